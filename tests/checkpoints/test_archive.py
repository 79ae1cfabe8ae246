"""Zip archives of trained models, honest and hostile."""

from __future__ import annotations

import gc
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import v1_folder, v2_folder

from offline_infer.checkpoints import limits, read_checkpoint
from offline_infer.errors import CheckpointError
from offline_infer.networks import build, load_weights

pytest.importorskip("torch")


def pack(source: Path, target: Path, prefix: str = "") -> Path:
    """A deflated archive of everything below a folder, as nnU-Net's export tool writes it."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(source.rglob("*")):
            packed.write(path, prefix + path.relative_to(source).as_posix())
    return target


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def left_behind(tmp_path: Path) -> list[Path]:
    gc.collect()
    return list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("make", [v1_folder, v2_folder])
def test_an_archive_is_read_like_its_folder(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "models")
    (folder / "fold_0/progress.png").write_bytes(b"picture")
    (folder / "fold_0/validation").mkdir()
    (folder / "fold_0/validation/case.nii.gz").write_bytes(b"image")
    packed = pack(tmp_path / "models", tmp_path / "export.zip")
    from_folder, from_archive = read_checkpoint(folder), read_checkpoint(packed)
    assert from_archive.spec == from_folder.spec
    assert from_archive.network == from_folder.network
    (unpacked,) = left_behind(tmp_path)
    assert not [path for path in unpacked.rglob("*") if path.suffix in (".png", ".gz")]
    network = build(from_archive.network)
    load_weights(network, from_archive.load_weights("0"))
    del from_archive
    assert left_behind(tmp_path) == []


def test_several_models_need_a_configuration(tmp_path: Path) -> None:
    v2_folder(tmp_path / "models")
    v2_folder(tmp_path / "models", configuration="3d_cascade_fullres", inputs=3)
    packed = pack(tmp_path / "models", tmp_path / "export.zip")
    with pytest.raises(CheckpointError, match=r"holds 2 models \(.*3d_cascade_fullres.*\).*name-configuration"):
        read_checkpoint(packed)
    spec = read_checkpoint(packed, configuration="3d_cascade_fullres").spec
    assert spec.previous_stage is not None
    with pytest.raises(CheckpointError, match="no model folder of configuration 2d"):
        read_checkpoint(packed, configuration="2d")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "../escape.json",
        "a/../../escape.json",
        "/etc/escape.json",
        "a\\..\\escape.json",
        "C:/escape.json",
        "a/b/../../../x",
    ],
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    v2_folder(tmp_path / "models")
    packed = pack(tmp_path / "models", tmp_path / "export.zip")
    with zipfile.ZipFile(packed, "a") as target:
        target.writestr(zipfile.ZipInfo(name), "{}")
    with pytest.raises(CheckpointError, match="would leave the folder; nothing was unpacked"):
        read_checkpoint(packed)
    assert left_behind(tmp_path) == []


def test_links_are_refused(tmp_path: Path) -> None:
    packed = tmp_path / "export.zip"
    with zipfile.ZipFile(packed, "w") as target:
        link = zipfile.ZipInfo("model/plans.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(link, "/etc/passwd")
    with pytest.raises(CheckpointError, match="is a link"):
        read_checkpoint(packed)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    packed = tmp_path / "export.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("model/fold_0/checkpoint_final.pth", bytes(50_000_000))
    with pytest.raises(CheckpointError, match="compressed more than 100 times"):
        read_checkpoint(packed)
    assert left_behind(tmp_path) == []


def test_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v2_folder(tmp_path / "models")
    packed = pack(tmp_path / "models", tmp_path / "export.zip")
    for name, why in [
        ("MAX_SMALL_BYTES", "accepted"),
        ("MAX_WEIGHT_BYTES", "accepted"),
        ("SMALL_TOTAL", "not a model"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(limits, name, 1)
            patch.setattr(limits, "MAX_TOTAL_RATIO", 0)
            with pytest.raises(CheckpointError, match=why):
                read_checkpoint(packed)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="name-temporary-folder"):
        read_checkpoint(packed)
    assert left_behind(tmp_path) == []


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    v1_folder(tmp_path / "models")
    packed = pack(tmp_path / "models", tmp_path / "export.zip")
    whole = packed.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        packed.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"export\.zip"):
            read_checkpoint(packed)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    packed.write_bytes(bytes(damaged))
    with pytest.raises(CheckpointError, match=r"export\.zip"):
        read_checkpoint(packed)
    assert left_behind(tmp_path) == []


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    v2_folder(tmp_path / "models")
    packed = pack(tmp_path / "models", tmp_path / "export.zip")
    with zipfile.ZipFile(packed) as source:
        name = next(name for name in source.namelist() if name.endswith("plans.json"))
    with zipfile.ZipFile(packed, "a") as target, pytest.warns(UserWarning, match="Duplicate name"):
        target.writestr(name, "{}")
    with pytest.raises(CheckpointError, match="cannot be unpacked"):
        read_checkpoint(packed)
