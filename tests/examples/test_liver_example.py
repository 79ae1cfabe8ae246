"""The step-by-step example, as its README says, on phantoms and stand-ins: every step, and the same labels as ``predict``.

An ordinary run goes through it with one tool; ``OFFLINE_INFER_EVERY_TOOL=1`` takes all three.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ascend_specimens import REPOSITORY

TOOLS = [("benchmark", "1"), ("ais_bench", "0"), ("msame", "0")]
EXAMPLE = REPOSITORY / "examples" / "liver_ascend"

pytestmark = pytest.mark.slow


def run(*command: object, **environment: str) -> str:
    """Run a command, which must succeed; everything it printed."""
    values = {name: value for name, value in os.environ.items() if not name.startswith(("OFFLINE_INFER_", "LIVER_"))}
    values |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [str(word) for word in command], env=values, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("tool", "heads"), TOOLS if os.environ.get("OFFLINE_INFER_EVERY_TOOL") else TOOLS[:1])
def test_every_step_on_phantoms_ends_in_the_labels_of_predict(tool: str, heads: str, tmp_path: Path) -> None:
    settings = {
        "USE_STANDINS": "1",
        "LIVER_ENVIRONMENT": str(tmp_path),
        "LIVER_CASE": "liver_5",
        "LIVER_TOOL": tool,
        "KEEP_HEADS": heads,
        "LIVER_DEVICES": "0,1,2",
        # Verification of the export is tested where it is made; here it would only cost time.
        "LIVER_EXPORT_OPTIONS": "--no-verify",
        # Times of stand-ins mean nothing, so few runs are as good as many.
        "LIVER_RUNS": "3",
        # The stand-ins run in float32: device 1 dies after its first tile, and nobody notices in the result.
        "OFFLINE_INFER_STANDIN_FAIL": "crash-after:1 device:1 times:1",
        "OFFLINE_INFER_STANDIN_STATE": str(tmp_path),
    }
    text = run(EXAMPLE / "run_all.sh", **settings)
    assert "ended by SIGKILL" in text
    assert "runs/s per device" in text
    assert "Average time spent: " in text
    tables = (tmp_path / "tables.md").read_text()
    assert "| Dice (%) | published | ONNX | Ascend310 |" in tables
    assert tables.count("Ascend310, ") == 2
    assert "| 1.00 x |" in tables
    if heads == "1":
        assert "in 32 files" in text, "eight tiles of four redundant heads"
    summary: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())
    assert summary["results"]["mean"]["1"]["Dice"] > 0.9
    command = [sys.executable, "-m", "offline_infer", "predict", tmp_path / "bundle"]
    image = tmp_path / "input" / "liver_5_0000.nii.gz"
    run(*command, image, tmp_path / "streamed", "--engine", "onnxruntime", "--threads", "1", "--no-tta")
    assert _labels(tmp_path / "output" / "liver_5.nii.gz") == _labels(tmp_path / "streamed" / "liver_5.nii.gz")


def _labels(path: Path) -> bytes:
    import SimpleITK

    data: bytes = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).tobytes()
    return data
