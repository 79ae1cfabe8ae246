"""Overlay pictures: anatomical orientation, slices, and a PNG that shows what it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from offline_infer.errors import GeometryError, UsageError
from offline_infer.proof.pictures.overlay import OverlayStyle, picture_title, write_overlay
from offline_infer.proof.pictures.patient_view import (
    body_box,
    choose_slices,
    largest_slice,
    lesion_slices,
    to_patient_axes,
)

SHAPE = (10, 24, 30)
LPS = (1, 0, 0, 0, 1, 0, 0, 0, 1)


def volume() -> tuple[np.ndarray, np.ndarray]:
    """A body of soft tissue with an organ that fills its left, posterior, superior corner (LPS storage)."""
    image = np.full(SHAPE, -1000, np.float32)
    image[:, 2:22, 3:27] = 40
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:9, 14:20, 17:25] = 1
    labels[7, 16:18, 19:21] = 2
    image[labels == 1] = 90
    return image, labels


@pytest.mark.parametrize(
    ("permutation", "flips"),
    [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, 1, -1)), ((2, 0, 1), (1, -1, 1)), ((1, 2, 0), (-1, -1, -1))],
)
def test_any_storage_gives_the_same_view(permutation: tuple[int, ...], flips: tuple[int, ...]) -> None:
    image, labels = volume()
    spacing = np.array([4.0, 2.0, 1.0])
    stored, stored_labels = (
        a.transpose(permutation)[tuple(slice(None, None, f) for f in flips)] for a in (image, labels)
    )
    # Column i of the direction is the patient axis (L, P, S) that stored image axis i (x, y, z) runs along.
    direction = np.zeros((3, 3))
    for array_axis in range(3):
        direction[2 - permutation[array_axis], 2 - array_axis] = flips[array_axis]
    view = to_patient_axes(stored, stored_labels, None, spacing[list(permutation)], direction.ravel())
    np.testing.assert_array_equal(view.image, image)
    np.testing.assert_array_equal(view.prediction, labels)
    assert view.spacing == (4.0, 2.0, 1.0)
    assert view.tilt == pytest.approx(0.0)
    axis, number = view.stored_index(0, 7).split()
    place = np.argwhere(stored_labels == 2)
    column = "zyx".index(axis)
    assert set(place[:, column].tolist()) == {int(number)}


def test_an_oblique_image_keeps_its_nearest_axes() -> None:
    image, labels = volume()
    angle = np.deg2rad(20)
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    view = to_patient_axes(image, labels, None, (4, 2, 1), turned.ravel())
    np.testing.assert_array_equal(view.image, image)
    assert view.tilt == pytest.approx(20)


def test_slices_and_box() -> None:
    image, labels = volume()
    view = to_patient_axes(image, labels, None, (4, 1, 1), LPS)
    assert largest_slice(view, 0) in (6, 7, 8)
    assert choose_slices(view, 3) == [8, 7, 6]
    assert choose_slices(view, 1) == [7]
    assert choose_slices(view, 9) == [8, 7, 6]
    assert body_box(view) == ((0, 10), (0, 24), (0, 30))
    empty = to_patient_axes(image, np.zeros_like(labels), None, (4, 1, 1), LPS)
    assert len(choose_slices(empty, 5)) == 5
    assert largest_slice(empty, 0) == 5


def test_the_picture_goes_through_the_largest_lesion() -> None:
    image, labels = volume()
    labels[:] = 0
    labels[1:5, 3:20, 5:25] = 1
    labels[4, 5, 6] = 2  # a small lesion
    labels[2:4, 14:18, 18:23] = 2  # a large one
    labels[3, 13:19, 17:24] = 2
    view = to_patient_axes(image, np.zeros_like(labels), labels, (4, 1, 1), LPS)
    axial, coronal, sagittal = lesion_slices(view)
    assert axial == 3
    assert 14 <= coronal < 18
    assert 18 <= sagittal < 23
    many = labels.copy()
    many[0, :5, 0] = [3, 4, 5, 6, 7]
    crowded = to_patient_axes(image, many, None, (4, 1, 1), LPS)
    assert lesion_slices(crowded) == tuple(largest_slice(crowded, axis) for axis in range(3))


def test_prediction_and_reference_have_one_colour_a_class(tmp_path: Path) -> None:
    image, labels = volume()
    shifted = np.roll(labels, 3, axis=2)
    write_overlay(tmp_path / "only.png", image, np.zeros_like(labels), shifted, spacing=(4, 2, 2))
    assert len(coloured(tmp_path / "only.png", (0x38, 0xBD, 0xF8))) > 50
    assert len(coloured(tmp_path / "only.png", (0xFB, 0x56, 0x07))) > 5


def test_titles_are_words() -> None:
    title = picture_title("case_1", "nnunetplusplus", "openvino", reference=True)
    assert title == "case_1: UNet++ (nnU-Net) on OpenVINO, and the reference"
    assert picture_title("c", "torch", "fake", reference=False) == "c: torch on fake"


def coloured(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    """Positions (row, column) of pixels near a colour."""
    pixels = imread(path)[..., :3] * 255
    return np.argwhere(np.abs(pixels - colour).max(axis=-1) < 12)


def test_the_picture_shows_the_organ_on_the_patients_left(tmp_path: Path) -> None:
    image, labels = volume()
    write_overlay(
        tmp_path / "p.png",
        image,
        labels,
        None,
        spacing=(4, 2, 2),
        style=OverlayStyle(title="case", names={1: "spleen"}),
    )
    blue = coloured(tmp_path / "p.png", (0x38, 0xBD, 0xF8))
    height, width = imread(tmp_path / "p.png").shape[:2]
    assert len(blue) > 200
    # The patient's left is on the right of the first, axial panel, and posterior is down.
    axial = blue[(blue[:, 1] < width * 0.45) & (blue[:, 0] < height * 0.6)]
    panel_left, panel_right = width * 0.01, width * 0.5
    assert axial[:, 1].mean() > (panel_left + panel_right) / 2
    mirrored = (image[..., ::-1], labels[..., ::-1], None)
    facing = (-1, 0, 0, 0, 1, 0, 0, 0, 1)
    write_overlay(
        tmp_path / "q.png",
        *mirrored,
        spacing=(4, 2, 2),
        direction=facing,
        style=OverlayStyle(title="case", names={1: "spleen"}),
    )
    same, other = imread(tmp_path / "p.png"), imread(tmp_path / "q.png")
    # Everything but the printed slice numbers is the same.
    assert (np.abs(same - other).max(axis=-1) > 0.02).mean() < 0.002


def test_pictures_of_odd_inputs(tmp_path: Path) -> None:
    image, labels = volume()
    write_overlay(tmp_path / "none.png", image, np.zeros_like(labels), None, spacing=(4, 2, 2))
    write_overlay(tmp_path / "flat.png", image[:1], labels[7:8], labels[7:8], spacing=(1, 2, 2))
    write_overlay(
        tmp_path / "mr.png", image + 1000, labels, None, spacing=(4, 2, 2), style=OverlayStyle(window=(500, 900))
    )
    write_overlay(tmp_path / "constant.png", np.zeros(SHAPE, np.float32), labels, None, spacing=(4, 2, 2))
    many = np.arange(np.prod(SHAPE)).reshape(SHAPE) // 60
    write_overlay(tmp_path / "many.png", image, many, None, spacing=(4, 2, 2))
    for name in ("none", "flat", "mr", "constant", "many"):
        assert imread(tmp_path / f"{name}.png").shape[0] > 300


def test_wrong_inputs(tmp_path: Path) -> None:
    image, labels = volume()
    path = tmp_path / "x.png"
    with pytest.raises(GeometryError, match="prediction has shape"):
        write_overlay(path, image, labels[1:], None, spacing=(1, 1, 1))
    with pytest.raises(GeometryError, match="reference has shape"):
        write_overlay(path, image, labels, labels[1:], spacing=(1, 1, 1))
    with pytest.raises(UsageError, match="window width"):
        write_overlay(path, image, labels, None, spacing=(1, 1, 1), style=OverlayStyle(window=(0, 40)))
    with pytest.raises(UsageError, match="not a rotation"):
        write_overlay(path, image, labels, None, spacing=(1, 1, 1), direction=(1, 0, 0, 1, 0, 0, 0, 0, 1))
    assert not path.exists()


def test_without_matplotlib_the_message_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    image, labels = volume()
    with pytest.raises(UsageError, match=r"offline-infer\[report\]"):
        write_overlay(tmp_path / "x.png", image, labels, None, spacing=(1, 1, 1))


def test_importing_loads_no_plotting_library() -> None:
    code = (
        "import sys, offline_infer.proof.pictures.overlay, offline_infer.proof.report, offline_infer.evaluate;"
        "import offline_infer.compare;"
        "print([m for m in ('matplotlib', 'jinja2', 'pandas', 'torch', 'cc3d', 'SimpleITK') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
