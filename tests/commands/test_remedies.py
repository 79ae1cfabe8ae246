"""Remedy codes become options on the command line, and nowhere else."""

from __future__ import annotations

import io
import json
import re
from typing import get_args

import pytest

from offline_infer.cli import build_parser, main
from offline_infer.commands.console import json_lines
from offline_infer.commands.remedies import WORDS, advise
from offline_infer.errors import Remedy, RemedyCode, UsageError
from offline_infer.events import Event


def test_every_code_has_words() -> None:
    assert set(WORDS) == set(get_args(RemedyCode))


def test_every_option_that_is_named_exists() -> None:
    commands = next(action for action in build_parser()._actions if action.dest == "command")
    legal = {option for parser in commands.choices.values() for option in parser._option_string_actions}  # type: ignore[union-attr]
    for code, words in WORDS.items():
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", words)) <= legal, code


def test_values_are_filled_in_and_absent_ones_are_shown_as_placeholders() -> None:
    error = UsageError("there is no such graph", remedy=Remedy("export-precision", {"precision": "fp16"}))
    assert advise(str(error)) == "there is no such graph; export the checkpoint with --precision fp16"
    assert advise("odd [remedy: export-precision]") == "odd; export the checkpoint with --precision PRECISION"
    assert advise("odd [remedy: of-a-later-release]") == "odd"


def test_a_failing_command_names_the_option_and_the_code(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    (tmp_path / "bundle").mkdir()  # type: ignore[operator]
    (tmp_path / "bundle" / "bundle.json").write_text("{}")  # type: ignore[operator]
    status = main(["export", str(tmp_path), "-o", str(tmp_path / "bundle"), "--folds", "77", "--json"])  # type: ignore[operator]
    shown = capsys.readouterr()
    assert status == 2
    assert "[remedy" not in shown.out + shown.err
    assert json.loads(shown.out)["message"]


def test_progress_lines_hold_words_too() -> None:
    stream = io.StringIO()
    json_lines(stream)(Event("case-failed", "predict", "a", data={"reason": "odd [remedy: name-folds]"}))
    assert "say which with --folds FOLDS" in stream.getvalue()
