"""Surface distances against brute force, and the policy for empty masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from offline_infer.errors import GeometryError
from offline_infer.proof.evaluation.label_maps import evaluate
from offline_infer.proof.evaluation.options import EvaluationOptions
from offline_infer.proof.evaluation.surface_distances import (
    surface_distances,
    surface_metrics,
    surface_records,
    surface_voxels,
)

Mask = npt.NDArray[np.bool_]
SPACING = (3.1, 0.7, 1.3)


def blob(seed: int, shape: tuple[int, ...] = (9, 14, 13)) -> Mask:
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) > 0.02


def surface_by_hand(mask: Mask, flat_axes: tuple[int, ...] = ()) -> npt.NDArray[np.int64]:
    padded = np.pad(mask, 1)
    found = []
    for voxel in np.argwhere(mask):
        for axis in range(mask.ndim):
            if axis in flat_axes:
                continue
            for step in (-1, 1):
                other = voxel + 1
                other[axis] += step
                if not padded[tuple(other)]:
                    found.append(tuple(voxel))
    return np.array(sorted(set(found)))


@pytest.mark.parametrize("seed", range(4))
def test_distances_agree_with_brute_force(seed: int) -> None:
    first, second = blob(seed), blob(seed + 10)
    a, b = surface_by_hand(first) * SPACING, surface_by_hand(second) * SPACING
    matrix = cdist(a, b)
    there, back = surface_distances(first, second, SPACING)
    np.testing.assert_allclose(np.sort(there), np.sort(matrix.min(axis=1)), atol=1e-9)
    np.testing.assert_allclose(np.sort(back), np.sort(matrix.min(axis=0)), atol=1e-9)
    found = surface_metrics(first, second, SPACING, (1.0, 2.5))
    both = np.concatenate([matrix.min(axis=1), matrix.min(axis=0)])
    assert found["HD"] == pytest.approx(both.max())
    assert found["HD95"] == pytest.approx(
        max(np.percentile(matrix.min(axis=1), 95), np.percentile(matrix.min(axis=0), 95))
    )
    assert found["HD95 pooled"] == pytest.approx(np.percentile(both, 95))
    assert found["ASSD"] == pytest.approx(both.mean())
    assert found["NSD 2.5 mm"] == pytest.approx((both <= 2.5).mean())
    assert found["NSD 1 mm"] < found["NSD 2.5 mm"]


def test_a_shift_by_one_slice_is_one_spacing() -> None:
    mask = np.zeros((8, 10, 10), bool)
    mask[2:5, 3:7, 3:7] = True
    found = surface_metrics(np.roll(mask, 1, axis=0), mask, SPACING)
    assert found["HD"] == pytest.approx(3.1)
    same = surface_metrics(mask, mask, SPACING)
    assert (same["HD"], same["ASSD"], same["NSD 1 mm"]) == (0.0, 0.0, 1.0)


def test_a_single_slice_has_a_contour_and_not_only_surface() -> None:
    mask = np.zeros((1, 9, 9), bool)
    mask[0, 2:7, 2:7] = True
    assert surface_voxels(mask).sum() == 16
    np.testing.assert_array_equal(np.argwhere(surface_voxels(mask)), surface_by_hand(mask, (0,)))
    # The same slice inside a volume is all surface.
    assert surface_voxels(np.pad(mask, ((1, 1), (0, 0), (0, 0)))).sum() == 25


def test_labels_regions_and_ignored_voxels() -> None:
    rng = np.random.default_rng(4)
    reference = (blob(1) + 2 * blob(2)).astype(np.uint8)
    prediction = np.where(rng.random(reference.shape) < 0.05, 0, reference).astype(np.uint8)
    found = surface_records(prediction, reference, SPACING, [1, (1, 2)], tolerances=(1.0,))
    assert found[1] == surface_metrics(prediction == 1, reference == 1, SPACING)
    assert found[1, 2] == surface_metrics(np.isin(prediction, (1, 2)), np.isin(reference, (1, 2)), SPACING)
    ignored = surface_records(prediction, reference, SPACING, [1], ignore=3)[1]
    keep = reference != 3
    assert ignored == surface_metrics((prediction == 1) & keep, (reference == 1) & keep, SPACING)
    with pytest.raises(GeometryError):
        surface_records(prediction[1:], reference, SPACING, [1])


@pytest.mark.parametrize(
    ("prediction", "reference", "masks", "nsd"),
    [(False, False, "both empty", None), (False, True, "prediction empty", 0.0), (True, False, "reference empty", 0.0)],
)
def test_empty_masks(prediction: bool, reference: bool, masks: str, nsd: float | None) -> None:
    full, empty = blob(0), np.zeros_like(blob(0))
    found = surface_metrics(full if prediction else empty, full if reference else empty, SPACING)
    assert found["masks"] == masks
    assert found["NSD 1 mm"] == nsd
    assert found["HD95"] is found["HD"] is found["ASSD"] is None


def test_surface_file(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        for side, shift in (("pred", 1), ("ref", 0)):
            labels = np.roll(blob(seed).astype(np.uint8), shift, axis=2)
            if name == "b" and side == "pred":
                labels[:] = 0
            image = sitk.GetImageFromArray(labels)
            image.SetSpacing(SPACING[::-1])
            (tmp_path / side).mkdir(exist_ok=True)
            sitk.WriteImage(image, str(tmp_path / side / f"{name}.nii.gz"))
    output = tmp_path / "summary.json"
    evaluate(
        tmp_path / "pred",
        tmp_path / "ref",
        EvaluationOptions(labels=[0, 1, 5], surface=True, tolerances=(1.5,)),
        output=output,
    )
    content = json.loads((tmp_path / "surface.json").read_text())
    assert set(content["empty_mask_policy"]) == {"both empty", "prediction empty", "reference empty"}
    assert set(content["mean"]) == {"1", "5"}
    mean, first = content["mean"]["1"], content["metric_per_case"][0]["metrics"]["1"]
    assert mean["cases"] == {"present": 1, "both empty": 0, "prediction empty": 1, "reference empty": 0}
    assert mean["HD95"] == first["HD95"]
    assert mean["NSD 1.5 mm"] == pytest.approx(first["NSD 1.5 mm"] / 2)
    assert content["mean"]["5"]["HD"] is None
    assert content["mean"]["5"]["cases"]["both empty"] == 2
    # Nothing of this leaks into nnU-Net's own file.
    assert "HD95" not in output.read_text()
