"""What comparing random models with nnU-Net 1.7.1 brought to light (benchmarks/parity_v1), as tests that need no framework."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from checkpoint_samples import v1_folder, v1_plans
from scipy import ndimage
from skimage.transform import resize

from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.checkpoints import read_checkpoint
from offline_infer.resampling import resample_image
from offline_infer.spec import Resampling, VolumeSpec
from offline_infer.tasks.volume.preparing import prepare

SHAPE = (11, 19, 17)
MASKED_MR = {
    "modalities": {0: "MR"},
    "normalization_schemes": {0: "nonCT"},
    "use_mask_for_norm": {0: True},
    "dataset_properties": {"intensityproperties": None},
}


def read(root: Path, **changes: object) -> VolumeSpec:
    return read_checkpoint(v1_folder(root, plans=v1_plans(**changes))).spec


def frame(spacing: tuple[float, float, float], shape: tuple[int, int, int] = SHAPE) -> ImageGeometry:
    return ImageGeometry(shape, spacing, (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1), spacing[::-1])


@pytest.mark.parametrize(
    ("preprocessor", "spacing", "order", "apart"),
    [
        ("GenericPreprocessor", (3.1, 1.7, 1.6), 1, None),
        ("GenericPreprocessor", (6.1, 1.7, 1.6), 1, "nearest"),
        ("GenericPreprocessor_linearResampling", (3.1, 1.7, 1.6), 1, None),
        ("Preprocessor3DDifferentResampling", (6.1, 1.7, 1.6), 1, "linear"),
        ("Preprocessor3DBetterResampling", (6.1, 1.7, 1.6), 3, None),
    ],
)
def test_the_mask_is_resampled_by_the_rule_of_the_plans_preprocessor(
    tmp_path: Path, preprocessor: str, spacing: tuple[float, float, float], order: int, apart: str | None
) -> None:
    spec = read(tmp_path, **MASKED_MR, preprocessor_name=preprocessor)
    rng = np.random.default_rng(5)
    blobs = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.5)
    # A solid frame keeps the crop box at the whole image; the blobs open to the outside, so that no hole is filled.
    inside = blobs > -0.05
    inside[0, 0, 0] = inside[-1, -1, -1] = True
    outer = ~ndimage.binary_fill_holes(inside)
    assert 0.1 < outer.mean() < 0.9
    image = np.where(outer, 0, 50 + rng.standard_normal(SHAPE) * 10).astype(np.float32)[None]

    prepared = prepare(image, frame(spacing), spec)

    new = prepared.geometry.network_shape
    expected = framework_mask(~outer, new, order, apart)
    values = resample_image(image, new, spacing, (2.5, 1.25, 1.25), spec.resampling)[0]
    mean, std = values[expected].mean(), values[expected].std()
    answer = np.where(expected, (values - mean) / (std + np.float32(1e-8)), 0)
    assert np.abs(prepared.array[0] - answer).max() < 1e-5


def test_inside_wins_where_the_edge_of_the_resampled_mask_is_a_tie(tmp_path: Path) -> None:
    spec = read(tmp_path, **MASKED_MR)
    shape, spacing = (12, 18, 18), (1.25, 0.625, 0.625)  # half the model's: every new voxel is the mean of eight
    places = np.meshgrid(*(np.arange(n) // 3 * 3 + 1.5 for n in shape), indexing="ij")
    # An ellipsoid of blocks of three voxels: every other of its edges lies in the middle of a new voxel.
    radius = np.sum([((place - n / 2) / (n / 2)) ** 2 for place, n in zip(places, shape, strict=True)], axis=0)
    inside = radius < 1
    assert inside.any((1, 2)).all()  # so that nothing is cropped
    assert inside.any((0, 1)).all()
    image = np.where(inside, 50 + np.random.default_rng(5).standard_normal(shape) * 10, 0).astype(np.float32)[None]

    prepared = prepare(image, frame(spacing, shape), spec)

    share = inside.reshape(6, 2, 9, 2, 9, 2).mean((1, 3, 5))
    assert 0.05 < (share == 0.5).mean() < 0.5
    assert np.array_equal(prepared.array[0] != 0, share >= 0.5)


def framework_mask(
    inside: npt.NDArray[np.bool_], shape: tuple[int, int, int], order: int, apart: str | None
) -> npt.NDArray[np.bool_]:
    """The mask as a label map of -1 and 0, resized label by label; with ``apart``, slices first, then along axis 0."""

    def labels(mask: npt.NDArray[np.bool_], size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        result = np.ones(size, bool)
        for value in (False, True):
            part = resize((mask == value).astype(float), size, order, mode="edge", clip=True, anti_aliasing=False)
            result[part >= 0.5] = value
        return result

    if apart is None:
        return labels(inside, shape)
    slices = np.stack([labels(plane, shape[1:]) for plane in inside])
    at = len(slices) / shape[0] * (np.arange(shape[0]) + 0.5) - 0.5
    places = np.broadcast_to(at[:, None, None], shape), *np.indices(shape)[1:]
    outside: npt.NDArray[np.float64] = ndimage.map_coordinates(
        (~slices).astype(float), places, order=0 if apart == "nearest" else 1, mode="nearest"
    )
    return ~(outside > 0.5)


def test_an_order_the_export_does_not_use_is_not_asked_for(tmp_path: Path) -> None:
    params = {"force_separate_z": False, "interpolation_order": 1, "interpolation_order_z": 999999}
    assert read(tmp_path, segmentation_export_params=params).export.resampling == Resampling(
        order=1, order_z=0, force_separate_z=False
    )
