"""Files and folders whose names are bytes that are no UTF-8, through the commands: each ends clearly, none aborts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conv_bundle import conv_bundle
from image_samples import save

from offline_infer.files import read_json, write_json

ODD = os.fsdecode(b"caf\xe9")
REPOSITORY = Path(__file__).resolve().parents[1]


def statuses(*commands: list[str]) -> list[tuple[int, str]]:
    """Exit status and standard error of each command, run in one process as from a terminal that knows ASCII only."""
    program = (
        "import json, sys\nfrom offline_infer.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    status = main(words)\n"
        "    print('STATUS', status, file=sys.stderr, flush=True)\n"
    )
    path = os.pathsep.join((str(REPOSITORY), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts = done.stderr.split("STATUS ")
    return [(int(after.split()[0]), before) for before, after in pairwise(parts)]


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere know no such names")
def test_commands_end_clearly(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1:3, 1:4] = 1
    for folder in ("a", "b"):
        save(tmp_path / folder / "case.nii.gz", labels)
        shutil.copy(tmp_path / folder / "case.nii.gz", tmp_path / folder / f"{ODD}.nii.gz")
    odd = tmp_path / ODD
    shutil.copytree(tmp_path / "a", odd)
    conv_bundle(tmp_path / "bundle")
    a, b, named = str(tmp_path / "a"), str(tmp_path / "b"), str(odd)
    found = statuses(
        ["evaluate", a, b, "-o", str(tmp_path / "summary.json")],
        ["compare", a, b, "-o", str(tmp_path / "agreement.json")],
        ["evaluate", named, named, "-o", str(odd / "summary.json")],
        ["compare", named, b, "-o", str(odd / "agreement.json")],
        ["statistics", a, "-o", str(tmp_path / "volumes.csv")],
        ["report", str(tmp_path / "summary.json"), "-o", str(tmp_path / "page.html")],
        ["predict", str(tmp_path / "bundle"), named, str(tmp_path / "out")],
        ["phantoms", str(odd / "phantoms"), "--cases", "1"],
    )
    assert [status for status, _ in found] == [3, 3, 3, 3, 3, 0, 2, 3], [text[-300:] for _, text in found]
    assert not any("Traceback" in text for _, text in found)
    written = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.json")]
    assert sum("\\udce9" in text for text in written) >= 2  # of the evaluation and of the comparison


def test_a_record_keeps_such_a_name(tmp_path: Path) -> None:
    value = {ODD: [ODD, "é\N{GREEK SMALL LETTER ALPHA}\n\\"]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
