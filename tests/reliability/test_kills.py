"""SIGKILL at random moments: the same command finishes the job, and its results are those of an undisturbed run.

One moment a route by default; ``OFFLINE_INFER_KILLS=100 python -m pytest tests/reliability/test_kills.py`` tries a hundred.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from specimens import tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

from offline_infer.bundles.bundle import save
from offline_infer.files import is_partial

KILLS = int(os.environ.get("OFFLINE_INFER_KILLS", "1"))
PROGRAM = """
import sys
from offline_infer.cli import main
from offline_infer.engines import fake
fake.register()
sys.exit(main())
"""
SLOW = ["--engine", "fake", "--engine-option", "sleep=0.01", "--quiet"]
LIMIT_S = 300


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle and five cases."""
    folder = tmp_path_factory.mktemp("job")
    bundle = folder / "bundle"
    bundle.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), bundle), bundle)
    for number in range(5):
        write_case(folder / "in", f"case_{number}", shape=(14, 18, 22), seed=number)
    return bundle, folder / "in"


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(arguments: Sequence[str]) -> float:
    """Run to the end, which must be a good one; returns the seconds."""
    begun = time.monotonic()
    process = start(arguments)
    _, told = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, told.decode(errors="replace")
    return time.monotonic() - begun


def kill_at(arguments: Sequence[str], seconds: float) -> None:
    """Run for a while, then end the program, its workers and its children at once."""
    process = start(arguments)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz") if not is_partial(path)}


def whole(folder: Path) -> None:
    """Whatever stands under a final name can be read."""
    for path in folder.glob("*.nii.gz"):
        if not is_partial(path):
            assert np.asarray(sitk.GetArrayViewFromImage(sitk.ReadImage(str(path)))).shape == (14, 18, 22)


def commands(route: str, job: tuple[Path, Path], place: Path) -> list[list[str]]:
    bundle, images = (str(path) for path in job)
    out, work = str(place / "out"), str(place / "work")
    if route == "streaming":
        return [["predict", bundle, images, out, *SLOW]]
    if route == "rounds":
        return [["staged", bundle, images, work, out, "--scratch", "3MB", *SLOW]]
    return [
        ["preprocess", bundle, images, work, "--quiet"],
        ["infer", bundle, work, *SLOW],
        ["postprocess", bundle, work, out, "--quiet"],
    ]


@pytest.mark.parametrize("route", ["streaming", "rounds", "stages"])
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    route: str, job: tuple[Path, Path], tmp_path: Path
) -> None:
    seconds = [finish(command) for command in commands(route, job, tmp_path / "undisturbed")]
    wanted = maps(tmp_path / "undisturbed" / "out")
    assert len(wanted) == 5
    draw = random.Random(f"{route} {KILLS}")
    for number in range(KILLS):
        place = tmp_path / f"killed_{number}"
        for command, usual in zip(commands(route, job, place), seconds, strict=True):
            kill_at(command, draw.uniform(0.05, 1.1) * usual)
            whole(place / "out")
            finish(command)
        assert maps(place / "out") == wanted


def test_two_runs_on_one_folder_do_not_corrupt_it(job: tuple[Path, Path], tmp_path: Path) -> None:
    (command,) = commands("streaming", job, tmp_path)
    first, second = start(command), start(command)
    told = [process.communicate(timeout=LIMIT_S)[1].decode(errors="replace") for process in (first, second)]
    assert sorted((first.returncode, second.returncode)) in ([0, 0], [0, 2]), told
    if {first.returncode, second.returncode} == {0, 2}:
        assert "another process is writing results" in " ".join(told)
    finish(command)
    assert len(maps(tmp_path / "out")) == 5
    whole(tmp_path / "out")


def test_an_interrupt_ends_cleanly_and_the_same_command_goes_on(job: tuple[Path, Path], tmp_path: Path) -> None:
    (command,) = commands("streaming", job, tmp_path)
    usual = finish(command)
    for name, number, status in (("int", signal.SIGINT, 130), ("term", signal.SIGTERM, None)):
        (again,) = commands("streaming", job, tmp_path / name)
        process = start(again)
        time.sleep(0.7 * usual)
        process.send_signal(number)
        _, told = process.communicate(timeout=LIMIT_S)
        text = told.decode(errors="replace")
        assert "Traceback" not in text
        assert process.returncode in (0, status, -number, 128 + number), text
        finish(again)
        assert maps(tmp_path / name / "out") == maps(tmp_path / "out")
