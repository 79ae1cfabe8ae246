"""Label maps against what the real frameworks answered for the same checkpoint and image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recorded_answers import RECORDED, Recorded
from recorded_models import RecordedModels

from offline_infer.images import read_labels
from offline_infer.tasks.settings import RunSettings

pytestmark = [pytest.mark.parity, pytest.mark.slow]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_label_maps_agree_with_the_framework(
    recorded: Recorded, goldens: Path, recorded_models: RecordedModels
) -> None:
    """With float32 sums, and with the framework's own where those are others (nnU-Net v2 sums in half precision)."""
    pytest.importorskip("torch")
    settings = RunSettings(tta=recorded.tta, postprocess=recorded.postprocess, accumulate="float32")
    images = [goldens / image for image in recorded.images]
    with recorded_models.open(recorded.model, recorded.folds, recorded.previous) as model:
        ours = model.predict(images, settings=settings).array
        half = model.spec.aggregation.accumulate == "float16"
        repeated = model.predict(images, settings=replace(settings, accumulate="framework")).array if half else None
    theirs, frame = read_labels(goldens / recorded.answer)
    assert ours.shape == frame.shape
    differing = int((ours != theirs).sum())
    assert differing <= 1e-4 * theirs.size, f"{differing} of {theirs.size} voxels differ"
    assert dice(ours > 0, theirs > 0) >= 0.9995
    for label in np.unique(theirs[theirs > 0]):
        # Half-precision sums decide a handful of voxels.
        assert dice(ours == label, theirs == label) >= (0.998 if half else 0.9995)
    if repeated is not None:
        # Only the engine's own rounding is left: at most one voxel in a hundred thousand, and not fewer than three.
        assert int((repeated != theirs).sum()) <= max(3, 1e-5 * theirs.size)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))
