"""Reading the real frameworks' own model folders."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_infer.checkpoints import read_checkpoint
from offline_infer.checkpoints.description import parameter_count
from offline_infer.checkpoints.pickles.reading import read_pickle
from offline_infer.checkpoints.postprocessing import read_v2
from offline_infer.spec import ComponentRule

pytestmark = pytest.mark.parity


def same(a: Any, b: Any) -> bool:
    if isinstance(b, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))
    return type(a) is type(b) and bool(a == b)


def test_pickles_of_v1_read_as_python_reads_them(goldens: Path) -> None:
    paths = [path for folder in ("v1", "v1b") for path in (goldens / folder).rglob("*.pkl")]
    assert len(paths) > 10
    for path in paths:
        assert same(read_pickle(path), pickle.loads(path.read_bytes())), path


def test_unetplusplus_folder(goldens: Path) -> None:
    (folder,) = (goldens / "v1/model/nnUNet/3d_fullres/Task003_Liver").iterdir()
    description = read_checkpoint(folder)
    spec = description.spec
    assert spec.source.framework == "nnunetplusplus"
    assert (spec.source.dataset, spec.source.configuration) == ("Task003_Liver", "3d_fullres")
    assert [fold.fold for fold in spec.source.folds] == ["0", "1"]
    assert spec.patch_size == (16, 64, 96)
    assert spec.spacing == (2.5, 2.4765625, 2.4765625)
    assert spec.labels.channels == description.network.output_channels == 3
    assert description.network.kind == "unetplusplus"
    assert description.notes == ()
    assert parameter_count(description.load_weights("0")) == parameter_count(description.load_weights("1")) > 2_000_000


@pytest.mark.parametrize(
    ("place", "patch", "spacing"),
    [
        ("2d/Task021_AbdCT/nnUNetTrainerV2__nnUNetPlansv2.1", (160, 192), (1.953125, 1.953125)),
        ("3d_lowres/Task021_AbdCT/nnUNetTrainerV2__nnUNetPlansv2.1", (7, 80, 84), (3.45704915, 3.37602456, 3.37602456)),
        ("3d_fullres/Task021_AbdCT/nnUNetTrainerV2__nnUNetPlansv2.1", (16, 64, 80), (2.0, 1.953125, 1.953125)),
        (
            "3d_cascade_fullres/Task021_AbdCT/nnUNetTrainerV2CascadeFullRes__nnUNetPlansv2.1",
            (16, 64, 80),
            (2.0, 1.953125, 1.953125),
        ),
    ],
)
def test_v1_folders(goldens: Path, place: str, patch: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    spec = read_checkpoint(goldens / "v1b/model/nnUNet" / place).spec
    assert spec.source.configuration == place.split("/")[0]
    assert spec.patch_size == patch
    np.testing.assert_allclose(spec.spacing, spacing, rtol=1e-8)
    assert spec.window.mirror_axes == tuple(range(len(patch)))
    assert (spec.previous_stage is not None) == ("Cascade" in place)
    if place.startswith("3d_fullres"):
        assert spec.postprocessing == (ComponentRule(labels=(1,), connectivity="face"),)


@pytest.mark.parametrize(
    ("place", "patch", "channels"),
    [
        ("Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres", (24, 56, 64), 1),
        ("Dataset003_Liver/nnUNetTrainer__nnUNetPlans__2d", (96, 112), 1),
        ("Dataset010_Regions/nnUNetTrainer__nnUNetPlans__3d_fullres", (24, 24, 56), 2),
    ],
)
def test_v2_folders(goldens: Path, place: str, patch: tuple[int, ...], channels: int) -> None:
    description = read_checkpoint(goldens / "v2/models" / place)
    spec = description.spec
    assert spec.source.configuration == place.split("__")[-1]
    assert spec.patch_size == patch
    assert len(spec.channels) == channels
    assert description.notes == ()
    assert len(description.load_weights("0")) == 188
    if "Regions" in place:
        assert spec.transpose_forward == (2, 0, 1)
        assert spec.labels.regions_class_order == (1, 2)
        assert spec.aggregation.activation == "sigmoid"
        assert [channel.scheme for channel in spec.channels] == ["ct", "zscore"]
        assert [channel.use_mask for channel in spec.channels] == [False, True]


def test_v2_postprocessing_pickle(goldens: Path) -> None:
    rules = read_v2(goldens / "v2/expected/003_3d_f0_tta/postprocessing.pkl")
    assert rules == (ComponentRule(labels=(1,), connectivity="full"), ComponentRule(labels=(2,), connectivity="full"))
