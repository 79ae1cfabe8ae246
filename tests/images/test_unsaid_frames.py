"""What a header leaves out, says twice or says wrong: a remark that reaches the user, or an error; nothing is made up silently."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer.bundles.bundle import save
from offline_infer.cli import main
from offline_infer.errors import CaseError
from offline_infer.images import read_image

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16)
NAN, INF = float("nan"), float("inf")
Rows = Sequence[Sequence[float]]
ROWS: Rows = ((0.7, 0, 0, 5), (0, 0.8, 0, 6), (0, 0, 2.5, 7))
SHEARED: Rows = ((0.7, 0.3, 0, 5), (0, 0.8, 0, 6), (0, 0, 2.5, 7))


def nifti(
    path: Path,
    *,
    qform: int = 0,
    sform: int = 0,
    quaternion: Sequence[float] = (0, 0, 0),
    rows: Rows = ROWS,
    fac: float = 1,
    units: int = 2,
) -> Path:
    """A .nii of (4, 5, 6) voxels (z, y, x) of 2.5 x 0.8 x 0.7 mm."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 6, 5, 4, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, fac, 0.7, 0.8, 2.5, 0, 0, 0, 0)
    struct.pack_into("<2f", header, 108, 352, 1)
    header[123] = units
    struct.pack_into("<2h6f", header, 252, qform, sform, *quaternion, 0, 0, 0)
    struct.pack_into("<12f", header, 280, *(value for row in rows for value in row))
    header[344:348] = b"n+1\0"
    path.write_bytes(bytes(header) + VOXELS.tobytes())
    return path


def metaimage(path: Path, *left_out: str, **fields: str) -> Path:
    said = {
        "NDims": "3",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "1 2 3",
        "ElementSpacing": "0.7 0.8 2.5",
        "DimSize": "6 5 4",
        "ElementType": "MET_SHORT",
        **fields,
    }
    lines = [f"{name} = {value}\n" for name, value in said.items() if name not in left_out]
    path.write_bytes("".join([*lines, "ElementDataFile = LOCAL\n"]).encode() + VOXELS.tobytes())
    return path


def nrrd(path: Path, *left_out: str, **fields: str) -> Path:
    said = {
        "type": "int16",
        "dimension": "3",
        "sizes": "6 5 4",
        "endian": "little",
        "encoding": "raw",
        "space": "left-posterior-superior",
        "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
        "space origin": "(1,2,3)",
        **{name.replace("_", " "): value for name, value in fields.items()},
    }
    lines = [f"{name}: {value}\n" for name, value in said.items() if name not in left_out]
    path.write_bytes(("NRRD0005\n" + "".join(lines) + "\n").encode() + VOXELS.tobytes())
    return path


def notes(path: Path, reader: str = "SimpleITKIO") -> str:
    return " | ".join(read_image([path], reader).notes)


def refusal(path: Path, reader: str = "SimpleITKIO") -> str:
    with pytest.raises(CaseError) as error:
        read_image([path], reader)
    return str(error.value)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_nifti(reader: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    assert not notes(nifti(path, sform=1), reader)
    assert not notes(nifti(path, qform=1), reader)
    assert not notes(nifti(path, qform=1, sform=1, quaternion=(0, 0, 1)), reader)  # two frames are common
    assert "does not say where it lies" in notes(nifti(path), reader)
    assert "how it is turned" in notes(nifti(path), reader)
    assert "does not say" in notes(nifti(path, quaternion=(0, 0, 1)), reader)  # there, but not declared valid
    assert "gives two spacings" in notes(nifti(path, sform=1, rows=np.eye(3, 4) * 3), reader)
    assert "micrometres" in notes(nifti(path, sform=1, units=3), reader)
    for wrong in (
        {"qform": 1, "quaternion": (3, 4, 5)},
        {"qform": 1, "quaternion": (0, NAN, 0)},
        {"qform": 1, "fac": NAN},
        {"sform": 300},
        {"qform": -1},
        {"sform": 1, "rows": ((INF, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))},
        {"sform": 1, "rows": np.zeros((3, 4))},
    ):
        refusal(nifti(path, **wrong), reader)  # type: ignore[arg-type]


def test_a_sform_that_itk_leaves_out(tmp_path: Path) -> None:
    """ITK falls back to the qform without a word, here to an identity."""
    path = nifti(tmp_path / "a.nii", qform=1, sform=1, rows=SHEARED)
    assert "its qform was taken" in notes(path)
    assert "not perpendicular" in notes(path, "NibabelIO")


def test_metaimage(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    assert not notes(metaimage(path))
    assert "how far its voxels are apart" in notes(metaimage(path, "ElementSpacing"))
    assert "where it lies" in notes(metaimage(path, "Offset"))
    assert "how it is turned" in notes(metaimage(path, "TransformMatrix"))
    assert not notes(metaimage(path, "TransformMatrix", Orientation="1 0 0 0 1 0 0 0 1"))
    assert "'um'" in notes(metaimage(path, DistanceUnits="um"))
    for name, value in (
        ("Offset", "inf 0 0"),
        ("Offset", "a b c"),
        ("Offset", "1 2"),
        ("ElementSpacing", "nan 1 1"),
        ("ElementSpacing", "1"),
        ("TransformMatrix", "1 0 0"),
        ("TransformMatrix", "nan 0 0 0 1 0 0 0 1"),
    ):
        assert f"{name} in the header is" in refusal(metaimage(path, **{name: value}))
    assert "by two names" in refusal(metaimage(path, Orientation="0 1 0 1 0 0 0 0 1"))
    assert "a field with the name" in refusal(metaimage(path, **{"ElementSpacing: 9 9 9 ": "x"}))


def test_nrrd(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    frame = ("space", "space directions", "space origin")
    assert not notes(nrrd(path))
    assert "where it lies" in notes(nrrd(path, "space origin"))
    assert "how far its voxels are apart" in notes(nrrd(path, "space directions"))
    assert "how far its voxels are apart" in notes(nrrd(path, space_directions="none none none"))
    said = notes(nrrd(path, *frame, spacings="0.7 0.8 2.5"))
    assert "how it is turned" in said
    assert "apart" not in said
    assert "'scanner-xyz'" in notes(nrrd(path, space="scanner-xyz"))
    assert "were taken for mm" in notes(nrrd(path, space_units='"um" "um" "um"'))
    for wrong in ("nan nan nan", "0.7 0.8", "a b c", ""):
        assert "expected 3 numbers" in refusal(nrrd(path, *frame, spacings=wrong))


@pytest.mark.parametrize("command", ["predict", "staged", "preprocess"])
def test_a_remark_reaches_the_user_and_the_record(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, images, out = tmp_path / "bundle", tmp_path / "in", tmp_path / "out"
    bundle.mkdir()
    images.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), bundle), bundle)
    nifti(images / "a_0000.nii")
    arguments: dict[str, list[Any]] = {
        "predict": [images, out, "--engine", "fake"],
        "staged": [images, tmp_path / "work", out, "--engine", "fake", "--scratch", "3MB"],
        "preprocess": [images, tmp_path / "work"],
    }
    assert main([command, str(bundle), *map(str, arguments[command]), "--json"]) == 0
    told = capsys.readouterr()
    assert "does not say where it lies" in told.err
    (case,) = json.loads(told.out)["cases"]
    assert "does not say where it lies" in case["notes"][0]
