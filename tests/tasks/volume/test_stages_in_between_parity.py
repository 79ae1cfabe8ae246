"""The stages between image and label map against what the frameworks recorded there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recorded_models import RecordedModels

from offline_infer.checkpoints import read_checkpoint
from offline_infer.images import read_image
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume import aggregation as aggregate
from offline_infer.tasks.volume.preparing import prepare

pytestmark = pytest.mark.parity

V1 = "v1/model/nnUNet/3d_fullres/Task003_Liver/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1"
V2 = "v2/models/{}/nnUNetTrainer__nnUNetPlans__3d_fullres"
CASES = {
    "v1-crop": (V1, ["v1/images/ctborder_0000.nii.gz"], "v1/expected/ctborder_fold0/intermediates"),
    "v1-separate-z": (V1, ["v1/images/ctthick_0000.nii.gz"], "v1/expected/ctthick_fold0/intermediates"),
    "v2-separate-z": (
        V2.format("Dataset003_Liver"),
        ["v2/images/Dataset003_Liver/case_aniso_0000.nii.gz"],
        "v2/expected/intermediates/003_case_aniso",
    ),
    "v2-crop": (
        V2.format("Dataset003_Liver"),
        ["v2/images/Dataset003_Liver/case_border_0000.nii.gz"],
        "v2/expected/intermediates/003_case_border",
    ),
    "v2-two-channels-transposed": (
        V2.format("Dataset010_Regions"),
        ["v2/images/Dataset010_Regions/rcase_3mm_0000.nii.gz", "v2/images/Dataset010_Regions/rcase_3mm_0001.nii.gz"],
        "v2/expected/intermediates/010_rcase_3mm",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_preprocessed_array(name: str, goldens: Path) -> None:
    model, images, folder = CASES[name]
    spec = read_checkpoint(goldens / model, folds=["0"]).spec
    image = read_image([goldens / path for path in images], spec.reader)
    recorded = np.load(goldens / folder / "preprocessed.npz")["data"]
    ours = prepare(image.array, image.geometry, spec).array
    assert ours.shape == recorded.shape
    np.testing.assert_allclose(ours, recorded, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "v1-crop"])
def test_aggregated_map(
    name: str, goldens: Path, recorded_models: RecordedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Averaged over mirrors and tiles, before resampling back."""
    pytest.importorskip("torch")
    model, images, folder = CASES[name]
    slabs: list[np.ndarray] = []

    class Keeper(aggregate.MapFinisher):
        def push(self, slab: np.ndarray) -> None:
            slabs.append(slab.copy())
            super().push(slab)

    monkeypatch.setattr(aggregate, "MapFinisher", Keeper)
    with recorded_models.open(model) as opened:
        opened.predict([goldens / path for path in images], settings=RunSettings())
    ours = np.concatenate(slabs, axis=1)
    if name.startswith("v1"):
        recorded = np.load(goldens / folder / "aggregated_softmax_call0.npz")["softmax"]
        np.testing.assert_allclose(ours, recorded, rtol=0, atol=1e-4)
        return
    recorded = np.load(goldens / folder / "logits_before_resampling_fp16.npz")["tta"]
    assert recorded.dtype == np.float16
    np.testing.assert_array_equal(ours, ours.astype(np.float16))
    # The engine's rounding of the network moves some half-precision sums by a step; nothing else differs.
    assert (ours == recorded).mean() > 0.9
    apart = np.abs(ours.astype(np.float32) - recorded.astype(np.float32))
    assert np.quantile(apart, 0.999) <= 0.01 * np.abs(recorded).max()
