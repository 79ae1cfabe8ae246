"""Nothing from a file reaches the terminal as a command to it, and no encoding stops a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from offline_infer.cli import main
from offline_infer.commands.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\rb", "a\\rb"),
        ("a\u202eb", "a\\u202eb"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}\tx\n", "caf\N{LATIN SMALL LETTER E WITH ACUTE}\tx\n"),
        ("\udcff", "\\udcff"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_error_names_a_hostile_path_harmlessly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "\x1b[31mx"), str(tmp_path)]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_an_accented_name_in_an_ascii_terminal(tmp_path: Path) -> None:
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        image = sitk.GetImageFromArray(np.ones((2, 3, 4), np.uint8))
        sitk.WriteImage(image, str(tmp_path / side / "case.nii.gz"))
        (tmp_path / side / "case.nii.gz").rename(tmp_path / side / "caf\N{LATIN SMALL LETTER E WITH ACUTE}.nii.gz")
    command = [sys.executable, "-m", "offline_infer", "evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "--quiet"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"caf\\xe9" in done.stdout
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["mean"]["1"]["Dice"] == 1.0
