"""Folders that several processes use: who holds one, and what killed processes left there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_samples import save
from kill_routes import image_bundle
from photo_samples import write_pairs
from specimens import tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

from offline_infer.bundles.bundle import save as save_bundle
from offline_infer.cli import main
from offline_infer.engines import fake
from offline_infer.errors import UsageError
from offline_infer.files import temporary_name
from offline_infer.folders import held

FAKE = ["--engine", "fake", "--threads", "1", "--quiet", "--isolate-readers", "no"]
PYTHON = [sys.executable, "-c"]


@pytest.fixture(scope="module")
def killed() -> int:
    """The number of a process that was killed."""
    process = subprocess.Popen([*PYTHON, "import os; os.kill(os.getpid(), 9)"])
    process.wait()
    return process.pid


def leave(place: Path, name: str, process: int) -> Path:
    """What a process left half-written under a name."""
    place.mkdir(parents=True, exist_ok=True)
    left = place / temporary_name(name).replace(f"-{os.getpid()}-", f"-{process}-")
    left.write_bytes(b"half")
    return left


def test_one_process_at_a_time_holds_a_share(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from offline_infer.folders import held\n"
        "with held(Path(sys.argv[1]), 'part 0'):\n    print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([*PYTHON, program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline()
    with pytest.raises(UsageError, match="another process is writing results"), held(tmp_path, "part 0"):
        pass
    with held(tmp_path, "part 1"):
        pass
    other.kill()
    other.communicate()
    with held(tmp_path, "part 0"):
        pass


def _label_maps(root: Path) -> None:
    save(root / "labels" / "case.nii.gz", np.eye(6, dtype=np.uint8)[None].repeat(4, 0))


def _volumes(root: Path) -> None:
    fake.register()
    (root / "bundle").mkdir()
    save_bundle(with_graphs(with_outputs(tiny_spec()), root / "bundle"), root / "bundle")
    write_case(root / "in", "case", shape=(8, 14, 18))


def _members(root: Path) -> None:
    _volumes(root)
    for name in ("a", "b"):
        assert main(["predict", f"{root}/bundle", f"{root}/in", f"{root}/{name}", "--save-probabilities", *FAKE]) == 0


def _cut(root: Path) -> None:
    _volumes(root)
    words = ["preprocess", f"{root}/bundle", f"{root}/in", f"{root}/work", "--quiet", "--isolate-readers", "no"]
    assert main(words) == 0


def _pictures(root: Path) -> None:
    image_bundle(root / "bundle")
    write_pairs(root / "Set", [(40, 50), (32, 48)])
    (root / "grid.json").write_text('{"GaussianBlur": [3]}')


SWEEP = ["--engine", "onnxruntime", "--threads", "1", "--quiet"]
COMMANDS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "evaluate": (_label_maps, "evaluate {0}/labels {0}/labels -o {0}/out/summary.json --quiet", "out/summary.json"),
    "evaluate beside": (_label_maps, "evaluate {0}/labels {0}/labels --quiet", "labels/summary.json"),
    "compare": (_label_maps, "compare {0}/labels {0}/labels -o {0}/out/compared.json --quiet", "out/compared.json"),
    "statistics": (_label_maps, "statistics {0}/labels -o {0}/out/table.csv --quiet", "out/table.csv"),
    "predict": (_volumes, f"predict {{0}}/bundle {{0}}/in {{0}}/out {' '.join(FAKE)}", "out/case.nii.gz"),
    "preprocess": (_cut, "preprocess {0}/bundle {0}/in {0}/work --quiet --isolate-readers no", "work/inputs/a_0.bin"),
    "infer": (_cut, f"infer {{0}}/bundle {{0}}/work {' '.join(FAKE[:-2])}", "work/outputs/fold_0/a_0.bin"),
    "ensemble": (_members, "ensemble {0}/a {0}/b -o {0}/out --bundle {0}/bundle --quiet", "out/case.nii.gz"),
    "sweep": (
        _pictures,
        f"sweep {{0}}/bundle --references {{0}}/Set --grid {{0}}/grid.json -o {{0}}/out {' '.join(SWEEP)}",
        "out/rows/a.json",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_deletes_what_killed_runs_left_where_it_writes(name: str, tmp_path: Path, killed: int) -> None:
    prepare, words, file = COMMANDS[name]
    prepare(tmp_path)
    target = tmp_path / file
    theirs = leave(target.parent, target.name, killed)
    mine = leave(target.parent, target.name, os.getpid())
    assert main(words.format(tmp_path).split()) == 0
    assert not theirs.exists()
    assert mine.exists() or name == "preprocess"  # nobody else writes while it holds the work folder
