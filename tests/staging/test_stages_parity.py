"""The staged route with a real network: identical to the streaming route and to what the framework answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recorded_models import RecordedModels
from staged_samples import postprocess, preprocess

from offline_infer.images import read_labels
from offline_infer.images.cases import find_cases
from offline_infer.staging.inferring import infer_stage
from offline_infer.staging.rounds import RoundsJob, run_in_rounds
from offline_infer.tasks.settings import RunSettings

pytestmark = [pytest.mark.parity, pytest.mark.slow]

MODEL = "v1/model/nnUNet/3d_fullres/Task003_Liver/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1"
BUDGET = 40_000_000


def test_two_folds_on_every_route(tmp_path: Path, goldens: Path, recorded_models: RecordedModels) -> None:
    """The network is asked once about each tile; a route that cut or mirrored one otherwise would ask again."""
    settings = RunSettings()
    image = goldens / "v1/images/ctthick_0000.nii.gz"
    expected, _ = read_labels(goldens / "v1/expected/ctthick_fold0+1/ctthick.nii.gz")
    with recorded_models.open(MODEL, ("0", "1")) as model:
        spec, folds = model.spec, model.folds
        streamed = model.predict(image, settings=settings).array
        sessions = dict(zip(folds, model.sessions, strict=True))
        cases = find_cases(image, len(spec.channels), spec.file_ending).cases
        work, out = tmp_path / "work", tmp_path / "out"
        preprocess(spec, cases, work, settings, folds, threads=2).raise_failures()
        infer_stage(work, sessions, spec=spec).raise_failures()
        postprocess(spec, work, out, settings=settings).raise_failures()
        job = RoundsJob(
            cases,
            tmp_path / "scratch",
            tmp_path / "rounds",
            BUDGET,
            lambda place: infer_stage(place, sessions),
            threads=2,
        )
        report = run_in_rounds(spec, job, settings, folds)
        report.raise_failures()
    staged, _ = read_labels(out / "ctthick.nii.gz")
    bounded, _ = read_labels(tmp_path / "rounds" / "ctthick.nii.gz")
    np.testing.assert_array_equal(staged, streamed)
    np.testing.assert_array_equal(bounded, streamed)
    assert np.mean(staged == expected) >= 0.9999
    assert report.facts["rounds"]["ctthick"] > 1
    assert report.facts["peak_bytes"] <= BUDGET
