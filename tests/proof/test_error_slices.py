"""Slices through the largest error, as outlines and pictures, and what the report makes of them."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread
from matplotlib.path import Path as Polygon

from offline_infer.cli import main
from offline_infer.proof.pictures.error_slices import largest_error, view_slices
from offline_infer.proof.pictures.outlines import outline_path, png_of
from offline_infer.proof.pictures.patient_view import to_patient_axes
from offline_infer.proof.report import write_report


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask an SVG path of H and V lines encloses, by the even-odd rule."""
    inside = np.zeros(shape, bool)
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.column_stack([xs.ravel(), ys.ravel()])
    for loop in filter(None, path.split("Z")):
        corners: list[tuple[int, int]] = []
        for command, first, second in re.findall(r"([MHV])(\d+)(?: (\d+))?", loop):
            x, y = corners[-1] if corners else (0, 0)
            corners.append({"M": (int(first), int(second or 0)), "H": (int(first), y), "V": (x, int(first))}[command])
        inside ^= Polygon([*corners, corners[0]]).contains_points(centres).reshape(shape)
    return inside


@pytest.mark.parametrize("seed", range(5))
def test_an_outline_encloses_its_mask_and_nothing_else(seed: int) -> None:
    mask = np.random.default_rng(seed).random((9, 13)) < (0.2, 0.5, 0.8, 1.0, 0.0)[seed]
    np.testing.assert_array_equal(filled(outline_path(mask), mask.shape), mask)


def test_a_picture_is_a_png_with_the_window(tmp_path: Path) -> None:
    image = np.linspace(-100, 200, 60).reshape(6, 10)
    shown = imread(io.BytesIO(png_of(image, 0, 100)))
    assert shown.shape == (6, 10)
    np.testing.assert_allclose(shown, np.clip(image / 100, 0, 1), atol=0.02)


def test_the_largest_error_is_found_and_cut_through() -> None:
    reference = np.zeros((12, 20, 24), np.uint8)
    reference[3:9, 4:16, 5:19] = 1
    prediction = reference.copy()
    prediction[5:8, 10:14, 12:17] = 0  # a hole of 60 voxels
    prediction[0, 0, 0] = 1
    image = np.random.default_rng(0).normal(size=reference.shape).astype(np.float32)
    view = to_patient_axes(image, prediction, reference, (3.0, 1.0, 1.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    place = largest_error(view)
    assert place is not None
    assert (place.size, place.regions) == (60, 2)
    s, p, l = place.voxel  # noqa: E741
    assert 5 <= s < 8
    assert 10 <= p < 14
    assert 12 <= l < 17
    record = view_slices(view, grey=True)
    assert record["differing"] == 61
    assert [entry["plane"] for entry in record["planes"]] == ["axial", "coronal", "sagittal"]
    axial = record["planes"][0]
    assert axial["differing"] == 20
    assert axial["width_mm"] / axial["height_mm"] == pytest.approx(axial["columns"] / axial["rows"])
    coronal = record["planes"][1]
    assert coronal["height_mm"] == pytest.approx(coronal["rows"] * 3)  # true proportions, not square voxels
    error = filled(axial["error"], (axial["rows"], axial["columns"]))
    assert error.sum() == 20
    assert base64.b64decode(axial["png"]).startswith(b"\x89PNG")
    same = view_slices(to_patient_axes(image, reference, reference, (3, 1, 1), (1, 0, 0, 0, 1, 0, 0, 0, 1)), grey=False)
    assert same["largest_error"] is None
    assert "png" not in same["planes"][0]


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """A folder with the records of an evaluation of three cases, one of which is far worse."""
    rng = np.random.default_rng(1)
    for number in range(3):
        reference = np.zeros((8, 24, 30), np.uint8)
        reference[2:6, 6:18, 6:24] = 1
        prediction = reference.copy()
        prediction[2:6, 6 : 7 + 3 * number, 6:24] = 0
        image = rng.normal(size=reference.shape).astype(np.float32)
        for side, array in (("pred", prediction), ("ref", reference), ("images", image)):
            (tmp_path / side).mkdir(exist_ok=True)
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing((1.0, 1.0, 4.0))
            name = f"case_{number}_0000.nii.gz" if side == "images" else f"case_{number}.nii.gz"
            sitk.WriteImage(volume, str(tmp_path / side / name))
    command = ["evaluate", str(tmp_path / "pred"), str(tmp_path / "ref"), "--images", str(tmp_path / "images")]
    output = str(tmp_path / "run" / "deep" / "summary.json")
    assert main([*command, "--worst", "2", "--lesions", "--surface", "--quiet", "-o", output]) == 0
    return tmp_path / "run"


def test_the_report_shows_the_worst_case_first(evaluated: Path, tmp_path: Path) -> None:
    record = json.loads((evaluated / "deep" / "summary.slices.json").read_text())
    assert [case["case"] for case in record["cases"]] == ["case_2", "case_1"]
    result = write_report([evaluated], tmp_path / "r.html")  # the records lie in a subfolder
    assert result.problems == ()
    text = (tmp_path / "r.html").read_text()
    assert text.index("case_2: lowest Dice") < text.index("case_1: lowest Dice")
    assert text.count("<path") > 10
    for words in ("Lesions found", "Volumes", "Bland and Altman", "Scroll through"):
        assert words in text, words
    assert "<script" not in text


@pytest.mark.parametrize(
    "change",
    [
        {"path": 'M0 0"/><script>alert(1)</script>'},
        {"png": base64.b64encode(b"GIF89a").decode()},
        {"png": "javascript:alert(1)"},
        {"rows": 0},
        {"width_mm": 1e300},
        {"rows": "8;}"},
    ],
)
def test_hostile_slices_are_named_and_not_drawn(evaluated: Path, tmp_path: Path, change: dict) -> None:
    file = evaluated / "deep" / "summary.slices.json"
    record = copy.deepcopy(json.loads(file.read_text()))
    view = record["cases"][0]["planes"][0]
    if "path" in change:
        view["outlines"][0] |= change
    else:
        view |= change
    file.write_text(json.dumps(record))
    result = write_report([evaluated], tmp_path / "r.html")
    assert len(result.problems) == 1
    assert "summary.slices.json" in result.problems[0]
    text = (tmp_path / "r.html").read_text()
    assert "<script>" not in text
    assert "case_2: lowest Dice" not in text


def test_a_case_that_cannot_be_drawn_is_a_note(evaluated: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "case_2_0000.nii.gz").write_bytes(b"broken")
    command = ["evaluate", str(tmp_path / "pred"), str(tmp_path / "ref"), "--images", str(tmp_path / "images")]
    output = tmp_path / "again" / "summary.json"
    assert main([*command, "--quiet", "-o", str(output)]) == 0
    record = json.loads((tmp_path / "again" / "summary.slices.json").read_text())
    assert "case_2" not in [case["case"] for case in record["cases"]]
