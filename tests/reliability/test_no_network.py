"""No command opens a network connection, and what it keeps for itself is the user's alone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conv_bundle import PATCH, conv_bundle
from staged_samples import write_case

from offline_infer.checkpoints.archive import TemporaryFolder

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
REPOSITORY = HELPERS.parents[1]


def guarded(argument: str, cache: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(REPOSITORY), str(HELPERS), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache)}
    arguments = [sys.executable, "-m", "no_network", argument]
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=600, check=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guard is a filter in Linux")
def test_no_command_opens_a_network_socket(tmp_path: Path) -> None:
    bundle, images, work, out = (str(tmp_path / name) for name in ("bundle", "in", "work", "out"))
    conv_bundle(tmp_path / "bundle")
    for number in range(2):
        write_case(tmp_path / "in", f"case_{number}", shape=PATCH, seed=number)
    one = str(tmp_path / "in" / "case_0_0000.nii.gz")
    fake = ["--engine", "fake"]
    commands = [
        ["inspect", bundle, "--verify"],
        ["predict", bundle, images, out, "--engine", "openvino", "--save-probabilities"],
        ["predict", bundle, one, str(tmp_path / "ort"), "--engine", "onnxruntime"],
        ["preprocess", bundle, images, work],
        ["info", work, "--shards", "2"],
        ["infer", bundle, work, *fake],
        ["clean", work, "--apply"],
        ["postprocess", bundle, work, str(tmp_path / "merged")],
        ["staged", bundle, images, str(tmp_path / "rounds"), str(tmp_path / "by_rounds"), "--scratch", "3MB", *fake],
        ["evaluate", out, str(tmp_path / "merged"), "-o", str(tmp_path / "summary.json"), "--jobs", "2"],
        ["compare", out, str(tmp_path / "merged"), "-o", str(tmp_path / "agreement.json")],
        ["compare", bundle, "--layers", "openvino:fp32", "onnxruntime:fp32"],
        ["report", str(tmp_path / "summary.json"), "-o", str(tmp_path / "page.html")],
        ["statistics", out, "-o", str(tmp_path / "figures.csv")],
        ["ensemble", out, out, "-o", str(tmp_path / "joined"), "--bundle", bundle],
        ["benchmark", bundle, "--engines", "openvino", "onnxruntime", "--precisions", "fp32", "--repeats", "1"],
        ["phantoms", str(tmp_path / "phantoms"), "--cases", "1"],
        ["doctor"],
        ["doctor", "--clear-cache"],
    ]
    done = guarded(json.dumps([[*command, "--quiet"] for command in commands]), tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-4000:]
    ended = json.loads(done.stdout.splitlines()[-1])
    statuses = dict(zip((f"{i} {command[0]}" for i, command in enumerate(commands)), ended, strict=True))
    assert set(statuses.values()) == {0}, (statuses, done.stderr[-4000:])
    kept = tmp_path / "cache" / "offline_infer"
    folders = [kept, *(path for path in kept.rglob("*") if path.is_dir())]
    assert len(folders) > 1
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guard is a filter in Linux")
def test_the_guard_catches_a_connection(tmp_path: Path) -> None:
    assert guarded("probe", tmp_path / "cache").returncode not in (0, 1, 2)


def test_temporary_folders_are_the_users_alone() -> None:
    own = TemporaryFolder()
    assert stat.S_IMODE(own.path.stat().st_mode) == 0o700
    own.remove()
    with tempfile.TemporaryDirectory() as folder:  # what the standard library promises, and the package counts on
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
