"""Damaged and hostile model folders: always an error that names the file, never a traceback and never an action."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import v1_folder, v1_plans, v2_folder

from offline_infer.checkpoints import read_checkpoint
from offline_infer.errors import CheckpointError, UnsafePickleError

torch = pytest.importorskip("torch")

LABELS_1 = {"for_which_classes": [1], "min_valid_object_sizes": "None"}
POSTPROCESSING_2 = b"\x80\x02]](e\x86."


def v1(root: Path) -> Path:
    folder = v1_folder(root, folds=("fold_0", "fold_1"))
    (folder / "postprocessing.json").write_text(json.dumps(LABELS_1))
    return folder


def v1_old(root: Path) -> Path:
    return v1_folder(root, legacy=True)


def v2(root: Path) -> Path:
    folder = v2_folder(root, folds=("fold_0", "fold_1"))
    (folder / "postprocessing.pkl").write_bytes(pickle.dumps(([], []), 2))
    return folder


@pytest.mark.parametrize("make", [v1, v1_old, v2])
def test_a_truncated_file_is_named_wherever_it_is_cut(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path)
    read_checkpoint(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for length in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError) as caught:
                read_checkpoint(folder)
            assert path.name in str(caught.value), (path.name, length)
        path.write_bytes(whole)
    read_checkpoint(folder)


@pytest.mark.parametrize("make", [v1, v2])
def test_a_missing_file_is_named(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path)
    optional = {"plans.pkl", "postprocessing.json", "postprocessing.pkl"}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        path.unlink()
        if path.name in optional or (path.suffix == ".pth" and path.parent.name == "fold_1"):
            read_checkpoint(folder)
        elif path.suffix in (".model", ".pth"):  # the fold is then none; asked for, it is missing
            with pytest.raises(CheckpointError, match=path.parent.name.replace("fold_", "fold ")):
                read_checkpoint(folder, folds=["0", "1"])
        else:
            with pytest.raises(CheckpointError, match=path.name):
                read_checkpoint(folder)
        path.write_bytes(whole)


class Command:
    """Runs a command when it is unpickled by anybody else."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return (os.system, (self.command,))


def test_hostile_pickles_in_every_place_do_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    command = Command(f"touch {victim}")
    folder = v1(tmp_path / "one")
    for name in ("plans.pkl", "fold_0/model_final_checkpoint.model.pkl"):
        whole = (folder / name).read_bytes()
        for content in (command, {"plans": {**v1_plans(), "list_of_npz_files": [command]}}):
            (folder / name).write_bytes(pickle.dumps(content))
            with pytest.raises(UnsafePickleError, match=rf"{Path(name).name}: .*system.*nothing was executed"):
                read_checkpoint(folder)
        (folder / name).write_bytes(whole)
    for legacy in (False, True):
        path = folder / "fold_1/model_final_checkpoint.model"
        torch.save({"state_dict": {}, "epoch": command}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UnsafePickleError, match=r"model_final_checkpoint\.model.*system"):
            read_checkpoint(folder)
    other = v2(tmp_path / "two")
    (other / "postprocessing.pkl").write_bytes(pickle.dumps(([command], [{}])))
    with pytest.raises(UnsafePickleError, match=r"postprocessing\.pkl: .*system"):
        read_checkpoint(other)
    torch.save({"network_weights": command}, other / "fold_0/checkpoint_final.pth")
    with pytest.raises(UnsafePickleError, match=r"checkpoint_final\.pth .*system"):
        read_checkpoint(other)
    assert not victim.exists()


def test_json_of_absurd_shape_is_explained(tmp_path: Path) -> None:
    folder = v2(tmp_path)
    for content in ("[]", "null", "{", '{"configurations": ' + "[" * 100_000, "\xff"):
        (folder / "plans.json").write_text(content, encoding="latin1")
        with pytest.raises(CheckpointError, match=r"plans\.json"):
            read_checkpoint(folder)


def test_a_changed_weight_is_noticed_when_it_is_loaded(tmp_path: Path) -> None:
    folder = v2(tmp_path)
    path = folder / "fold_0/checkpoint_final.pth"
    weights = read_checkpoint(folder).load_weights("0")
    data = bytearray(path.read_bytes())
    position = data.index(weights["encoder.stages.0.0.convs.0.conv.weight"].tobytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"checkpoint_final\.pth.*checksum"):
        read_checkpoint(folder).load_weights("0")


def test_weights_that_vanish_between_reading_and_loading(tmp_path: Path) -> None:
    folder = v1(tmp_path)
    description = read_checkpoint(folder)
    shutil.rmtree(folder / "fold_0")
    with pytest.raises(CheckpointError, match=r"fold_0.*cannot be read"):
        description.load_weights("0")
    assert description.load_weights("1")
