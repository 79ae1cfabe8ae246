"""The scaffold does what its documents say: from an empty folder to a trained checkpoint, masks and figures."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from photo_samples import write_list, write_pairs

from offline_infer.cli import main

KILLED = "OFFLINE_INFER_KILL_TESTS"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a new scaffold with a little drawn data, for images of 32 pixels."""
    pytest.importorskip("torch")
    made = tmp_path / "mine"
    assert main(["init", str(made), "--quiet"]) == 0
    monkeypatch.chdir(made)
    configure(made, epochs=1)
    for name, count in (("train", 6), ("test", 3)):
        script("drawn_data.py", f"data/{name}", str(count), "1")
    return made


def configure(folder: Path, **training: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["size"] = 32
    config["training"] |= {"batch_size": 4, **training}
    (folder / "config.json").write_text(json.dumps(config))


def script(name: str, *arguments: str) -> None:
    """Run a script of the working directory in this process, where torch is loaded already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(name, run_name="__main__")


def epochs(text: str) -> list[int]:
    return [json.loads(line)["epoch"] for line in text.splitlines() if line.startswith('{"epoch"')]


def test_from_an_empty_folder_to_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("train.py")
    script("train.py", "--epochs", "3")  # goes on where it stopped
    assert epochs(capsys.readouterr().out) == [0, 1, 2]
    weights = folder / "checkpoints" / "checkpoint-2.pth"
    assert {path.parent for path in folder.rglob("events.out.tfevents.*")} == {folder / "logs"}
    assert main(["export", ".", "--weights", str(weights), "--size", "32", "-o", "bundle", "--quiet"]) == 0
    assert main(["predict", "bundle", "datasets.json", "results", "--quiet"]) == 0
    assert main(["evaluate", "results", "datasets.json", "-o", "summary.json", "--quiet"]) == 0
    assert set(json.loads((folder / "summary.json").read_text())["sets"]) == {"Drawn", "DrawnAndAuthentic"}


def test_every_set_gives_as_many_images_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large set does not drown a small one, and the original's list of data sets is read as it is."""
    pytest.importorskip("torch")
    write_pairs(tmp_path / "Small", [(20, 30)])
    write_pairs(tmp_path / "Large", [(20, 30)] * 9)
    write_list(tmp_path / "list.json", [("Small/Tp/p0.png", "Negative")])
    balanced = [["ManiDataset", "Small"], ["ManiDataset", "Large"], ["JsonDataset", "list.json"]]
    (tmp_path / "balanced_dataset.json").write_text(json.dumps(balanced))
    assert main(["init", str(tmp_path / "mine"), "--quiet"]) == 0
    monkeypatch.chdir(tmp_path / "mine")
    images = runpy.run_path("train.py")["Images"]
    data = images("../balanced_dataset.json", 16, "pad", 5, True)
    assert [one.name for one in data.sets] == ["Small", "Large", "list"]
    assert [data[index][2] for index in range(len(data))] == [1] * 10 + [0] * 5


@pytest.mark.skipif(KILLED not in os.environ, reason=f"set {KILLED} to train with two processes and kill them")
def test_two_processes_are_killed_and_go_on(folder: Path) -> None:
    configure(folder, epochs=200)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    started = psutil.Popen(torchrun, env=environment)
    last = folder / "checkpoints" / "last.pth"
    for _ in range(600):
        if last.exists() or started.poll() is not None:
            break
        time.sleep(0.2)
    for process in (*started.children(recursive=True), started):
        process.kill()
    started.wait()
    assert last.exists()
    import torch

    reached = torch.load(last, weights_only=True)["epoch"]
    command = [*torchrun, "--epochs", str(reached + 3)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert epochs(done.stdout) == [reached + 1, reached + 2]
