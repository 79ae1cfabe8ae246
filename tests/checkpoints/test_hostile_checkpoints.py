"""Checkpoints made to do harm: never executed, refused by name, in bounded time and memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import v1_folder, v2_folder
from hostile_checkpoints import ARCHIVES, ATTACKS_V1, ATTACKS_V2, PAYLOAD_PLACES, PAYLOADS, VICTIM, nested
from limited import limited

from offline_infer.checkpoints import read_checkpoint
from offline_infer.errors import CheckpointError, UnsafePickleError
from offline_infer.networks import build, load_weights

pytest.importorskip("torch")

ATTACKS = [("v1", name) for name in ATTACKS_V1] + [("v2", name) for name in ATTACKS_V2]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("good")
    return {"v1": v1_folder(root / "one"), "v2": v2_folder(root / "two")}


def use(path: Path) -> Any:
    """Everything export does with a checkpoint before it traces the network."""
    description = read_checkpoint(path)
    network = build(description.network)
    for source in description.spec.source.folds:
        load_weights(network, description.load_weights(source.fold))
    return description.spec


@pytest.mark.parametrize(("kind", "attack"), ATTACKS, ids=lambda value: str(value).replace("/", "_"))
def test_a_hostile_checkpoint_is_refused(
    good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, attack: str
) -> None:
    folder = copied(good[kind], tmp_path / "model")
    (ATTACKS_V1 if kind == "v1" else ATTACKS_V2)[attack](folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        limited(use, folder)
    message = str(caught.value)
    assert len(message) < 2000
    assert "\n" not in message
    assert not (tmp_path / VICTIM).exists()


@pytest.mark.parametrize("name", list(ARCHIVES))
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(ARCHIVES[name]())
    with pytest.raises(CheckpointError, match=r"model\.zip"):
        limited(use, path)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"model\.bin"):
        limited(use, path.with_suffix(".bin"))


def test_the_good_folders_are_good(good: dict[str, Path]) -> None:
    for folder in good.values():
        assert limited(use, folder).patch_size == (4, 8, 12)


@pytest.mark.parametrize("place", list(PAYLOAD_PLACES))
@pytest.mark.parametrize("payload", list(PAYLOADS))
def test_no_payload_runs_wherever_it_stands(
    good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, program in enumerate((PAYLOADS[payload], nested(PAYLOADS[payload]))):
        folder = copied(good[place[:2]], tmp_path / f"model{number}")
        PAYLOAD_PLACES[place](program)(folder)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(folder)
        # A persistent id that is no storage, and a torch file that is not a state dict, are refused as such.
        assert isinstance(caught.value, UnsafePickleError) or "PERSID" in payload
    assert not (tmp_path / VICTIM).exists()


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))
