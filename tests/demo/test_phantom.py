"""The demonstration's phantoms: the same from the same seed, CT-like in value, and placed right in patient space."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from offline_infer.demo.canvas import ellipsoid, rotation, smooth_field
from offline_infer.demo.phantom import FRAMES, LIVER, TUMOUR, Phantom, make_phantom, write_phantom_case


def draw(seed: int, tumours: int | None = None) -> Phantom:
    """A phantom of few voxels."""
    return make_phantom(seed, in_plane_mm=4.0, slice_mm=6.0, coverage_mm=190, tumours=tumours)


coarse = lru_cache(maxsize=None)(draw)


def world(phantom: Phantom, mask: np.ndarray) -> np.ndarray:
    """(n, 3): LPS coordinates in mm of the mask's voxels."""
    index = np.argwhere(mask)[:, ::-1] * np.array(phantom.spacing)
    return np.array(phantom.origin) + index @ np.array(phantom.direction).reshape(3, 3).T


def test_the_same_seed_gives_the_same_voxels() -> None:
    first, again, other = draw(4), draw(4), draw(5)
    np.testing.assert_array_equal(first.ct, again.ct)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.origin, first.direction, first.spacing) == (again.origin, again.direction, again.spacing)
    assert first.ct.shape != other.ct.shape or not np.array_equal(first.ct, other.ct)


@pytest.mark.parametrize("seed", range(6))
def test_values_are_those_of_an_abdominal_ct(seed: int) -> None:
    phantom = coarse(seed)
    ct, labels = phantom.ct, phantom.labels
    assert ct.dtype == np.int16
    assert labels.dtype == np.uint8
    assert ct.min() >= -1024
    assert 300 < ct.max() < 1500  # bone
    assert -1024 <= np.median(ct[ct < -900]) <= -950
    assert set(np.unique(labels)) <= {0, LIVER, TUMOUR}
    # The middle of the liver, away from its edge.
    inner = ndimage.binary_erosion(labels == LIVER, iterations=2)
    assert 45 < np.median(ct[inner]) < 118
    assert 6 < np.std(ct[inner]) < 45
    millilitres = (labels > 0).sum() * np.prod(phantom.spacing) / 1000
    assert 700 < millilitres < 2800
    # Fat under the skin and in the belly.
    assert ((ct > -140) & (ct < -60)).mean() > 0.05


def test_tumours_are_darker_than_the_liver_and_touch_it() -> None:
    phantom = make_phantom(11, in_plane_mm=2.4, slice_mm=3.0, tumours=4)
    tumour, liver = phantom.labels == TUMOUR, phantom.labels == LIVER
    assert tumour.any()
    inner = ndimage.binary_erosion(tumour)
    assert np.median(phantom.ct[inner]) < np.median(phantom.ct[liver]) - 15
    components, count = ndimage.label(tumour)
    for number in range(1, count + 1):
        assert (ndimage.binary_dilation(components == number) & liver).any()


def test_no_tumours_on_request() -> None:
    assert not (coarse(11, tumours=0).labels == TUMOUR).any()


def test_the_liver_is_on_the_right_whatever_the_frame() -> None:
    """LPS: x grows to the patient's left, so liver tissue has smaller x than the spine does."""
    frames = set()
    for seed in range(12):
        phantom = coarse(seed)
        bone = phantom.ct > 330
        liver_x = np.median(world(phantom, phantom.labels > 0)[:, 0])
        bone_x = np.median(world(phantom, bone)[:, 0])
        assert liver_x < bone_x - 20, seed
        # The spine is behind the liver: larger y.
        assert np.median(world(phantom, bone)[:, 1]) > np.median(world(phantom, phantom.labels > 0)[:, 1])
        matrix = np.array(phantom.direction).reshape(3, 3)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
        frames.add(tuple(np.sign(np.diag(matrix)).astype(int)))
        assert phantom.origin != (0.0, 0.0, 0.0)
    assert frames <= {tuple(int(v) for v in frame) for frame in FRAMES}
    assert len(frames) >= 4


def test_some_frames_are_oblique_and_some_are_not() -> None:
    assert {_axis_aligned(coarse(seed)) for seed in range(8)} == {True, False}


def _axis_aligned(phantom: Phantom) -> bool:
    return bool(np.isin(np.abs(phantom.direction), (0.0, 1.0)).all())


def test_spacing_and_extent_follow_the_arguments() -> None:
    phantom = make_phantom(3, in_plane_mm=3.0, slice_mm=6.0, coverage_mm=120)
    assert phantom.spacing == (3.0, 3.0, 6.0)
    assert phantom.ct.shape[0] == 20
    assert phantom.ct.shape == phantom.labels.shape


@pytest.mark.parametrize(
    "arguments", [{"in_plane_mm": 0.0}, {"slice_mm": -1.0}, {"coverage_mm": float("nan")}, {"tumours": -1}]
)
def test_senseless_arguments_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make_phantom(0, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_files_have_the_names_and_the_frame(tmp_path: Path, seed: int) -> None:
    phantom = coarse(seed)
    image_file, label_file = write_phantom_case(tmp_path / "images", tmp_path / "labels", "case_07", phantom)
    assert image_file == tmp_path / "images" / "case_07_0000.nii.gz"
    assert label_file == tmp_path / "labels" / "case_07.nii.gz"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["case_07.nii.gz", "case_07_0000.nii.gz"]
    image, labels = SimpleITK.ReadImage(str(image_file)), SimpleITK.ReadImage(str(label_file))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), phantom.ct)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(labels), phantom.labels)
    for file in (image, labels):
        np.testing.assert_allclose(file.GetSpacing(), phantom.spacing, rtol=1e-5)
        np.testing.assert_allclose(file.GetOrigin(), phantom.origin, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(file.GetDirection(), phantom.direction, atol=1e-5)


def test_an_image_may_be_written_without_its_reference(tmp_path: Path) -> None:
    image_file, label_file = write_phantom_case(tmp_path, None, "a", coarse(0))
    assert label_file is None
    assert [p.name for p in tmp_path.iterdir()] == [image_file.name]


def test_smooth_field_is_standardised_and_smooth() -> None:
    field = smooth_field((60, 70, 80), (2.0, 2.0, 2.0), 10.0, np.random.default_rng(0))
    assert abs(float(field.mean())) < 0.15
    assert 0.8 < float(field.std()) < 1.2
    assert float(np.abs(np.diff(field, axis=2)).max()) < 1.5


def test_ellipsoid_is_zero_on_its_surface_and_negative_inside() -> None:
    turn = (0.3, -0.2, 0.5)
    point = np.array([5.0, -3.0, 2.0]) + rotation(turn) @ np.array([10.0, 0, 0])
    at = tuple(np.array([v, c], np.float32) for v, c in zip(point, (5.0, -3.0, 2.0), strict=True))
    surface = ellipsoid(at, (5.0, -3.0, 2.0), (10.0, 4.0, 7.0), turn)  # type: ignore[arg-type]
    assert abs(float(surface[0])) < 1e-4
    assert float(surface[1]) <= 0
