"""The codes by which errors name what to do."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import get_args

import pytest

import offline_infer
from offline_infer.errors import (
    BundleError,
    CheckpointError,
    OfflineInferError,
    Remedy,
    RemedyCode,
    UnsafePickleError,
    UsageError,
    spell_out,
)


def test_a_remedy_is_part_of_the_text() -> None:
    error = UsageError("fold 0 has no fp16 graph", remedy=Remedy("export-precision", {"precision": "fp16"}))
    assert str(error) == "fold 0 has no fp16 graph [remedy: export-precision precision=fp16]"
    assert error.remedies == (Remedy("export-precision", {"precision": "fp16"}),)
    assert UsageError("no such fold", remedy="name-folds").remedies == (Remedy("name-folds"),)
    assert UsageError("plain").remedies == ()


def test_a_remedy_survives_quoting_and_pickling() -> None:
    inner = UnsafePickleError("bad", remedy="name-checkpoint")
    outer = CheckpointError(f"fold 0: {inner}; nothing was written")
    assert outer.remedies == (Remedy("name-checkpoint"),)
    assert pickle.loads(pickle.dumps(outer)).remedies == outer.remedies


@pytest.mark.parametrize("value", ["a folder with blanks", "a]b", "ä=\n", "", "100%"])
def test_any_value_comes_back_as_it_was(value: str) -> None:
    remedy = Remedy("name-folds", {"folds": value})
    assert BundleError("x", remedy=remedy).remedies == (remedy,)


def test_words_take_the_place_of_the_code() -> None:
    text = str(OfflineInferError("the patch is odd", remedy="name-folds"))
    assert spell_out(text, lambda remedy: f"see {remedy.code}") == "the patch is odd; see name-folds"
    assert spell_out(text, lambda remedy: "") == "the patch is odd"
    assert spell_out("no code here", lambda remedy: "x") == "no code here"


def test_every_code_is_used_and_none_is_unknown() -> None:
    package = Path(offline_infer.__file__).parent
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py") if path.name != "remedies.py"}
    used = {code for text in sources.values() for code in re.findall(r"(?:remedy=|Remedy\()\s*\"([a-z0-9-]+)\"", text)}
    assert used == set(get_args(RemedyCode))
