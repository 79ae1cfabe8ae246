"""The fastest setting within the loss allowed, confirmed on cases that had no part in the choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_samples import save as save_image
from int8_samples import threshold_bundle, write_cases

from offline_infer.bundles.bundle import BUNDLE_FILE, TUNING, Bundle, save
from offline_infer.bundles.checking import check_bundle
from offline_infer.cli import main
from offline_infer.engines.base import get_engine
from offline_infer.errors import BundleError, EngineUnavailable, UsageError
from offline_infer.files import sha256_file
from offline_infer.quantizing.judging import paired_difference, run_cases
from offline_infer.tuning.setting import Setting, grid, tuned_setting
from offline_infer.tuning.tune import Row, TuneJob, choose_row, pareto, tune

MIRRORS, PLAIN = Setting("fp32", True, None, ("0",)), Setting("fp32", False, None, ("0",))
BF16 = Setting("bf16", False, 0.75, ("0",))


def _row(setting: Setting, seconds: float, *scores: float) -> Row:
    return Row(setting, {f"c{number}": score for number, score in enumerate(scores)}, seconds)


def test_the_fastest_within_the_loss_is_chosen() -> None:
    rows = [_row(MIRRORS, 8, 0.9, 0.8, 0.7), _row(PLAIN, 1, 0.9, 0.799, 0.7), _row(BF16, 0.5, 0.8, 0.8, 0.7)]
    chosen, choosing, confirming = choose_row(rows, 0.002)
    assert chosen.setting == PLAIN
    assert (len(choosing), len(confirming)) == (3, 0)


def test_a_choice_that_the_other_half_does_not_confirm_is_given_up() -> None:
    rows = [_row(MIRRORS, 8, 0.9, 0.8, 0.7, 0.6), _row(PLAIN, 1, 0.9, 0.5, 0.7, 0.5)]
    chosen, choosing, confirming = choose_row(rows, 0.002)
    assert chosen.setting == MIRRORS
    assert set(choosing).isdisjoint(confirming)


def test_pareto_leaves_out_what_another_one_beats() -> None:
    rows = [_row(MIRRORS, 8, 0.9), _row(PLAIN, 1, 0.8), _row(BF16, 2, 0.7)]
    assert [row.setting for row in pareto(rows)] == [PLAIN, MIRRORS]


def test_paired_interval_holds_the_mean_and_is_the_same_every_time() -> None:
    first, second = [0.9, 0.8, 0.7, 0.6], [0.91, 0.8, 0.69, 0.62]
    found = paired_difference(first, second)
    assert found == paired_difference(first, second)
    assert found.low is not None
    assert found.high is not None
    assert found.mean == pytest.approx(0.005)
    assert found.low <= found.mean <= found.high
    assert paired_difference([0.5], [0.6]).low is None


def test_the_grid_begins_with_the_frameworks_way_and_knows_what_is_there(tmp_path: Path) -> None:
    bundle = threshold_bundle(tmp_path / "bundle")
    found = list(grid(bundle, ["bf16", "int8"], [0.75], mirrored=True, all_folds=("0",)))
    assert found[0] == MIRRORS
    assert len(found) == len(set(found)) == 8
    assert {setting.precision for setting in found} == {"fp32", "bf16"}


def test_tuned_settings_are_kept_and_used_when_asked_for_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(model: Any, cases: Any, output: Path, settings: Any, sink: Any) -> dict[str, float]:
        """The cases are run; the times are those of an undisturbed machine."""
        return dict.fromkeys(run_cases(model, cases, output, settings, sink), 8.0 if settings.tta else 1.0)

    monkeypatch.setattr("offline_infer.tuning.tune.run_cases", timed)
    write_cases(tmp_path / "images", tmp_path / "labels", count=2)
    bundle = threshold_bundle(tmp_path / "bundle")
    job = TuneJob(tmp_path / "images", tmp_path / "labels", precisions=(), steps=(), threads=1)
    record = tune(bundle, job)
    assert record["chosen"]["mirrors"] is False  # eight times fewer calls, the same answer
    assert len(record["settings"]) == 2
    assert "as in MANIFEST.sha256" in " ".join(check_bundle(Bundle.load(bundle.folder)).done)
    for flags, mirrors in (((), True), (("--tuned",), False)):
        output = tmp_path / f"out{len(flags)}"
        arguments = ["predict", str(bundle.folder), str(tmp_path / "images"), str(output), "--threads=1", *flags]
        assert main([*arguments, "--quiet", "--cache=none", "--isolate-readers=no"]) == 0
        run = json.loads((output / "offline_infer_run.json").read_text())
        assert run["settings"]["tta"] is mirrors
        assert run["tuned"] == (sha256_file(bundle.folder / TUNING) if flags else None)
    assert main([*arguments, "--precision=bf16", "--quiet"]) == 2


def test_a_record_for_other_graphs_is_not_used(tmp_path: Path) -> None:
    write_cases(tmp_path / "images", tmp_path / "labels", count=1)
    bundle = threshold_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="no tuned setting"):
        tuned_setting(bundle)
    tune(bundle, TuneJob(tmp_path / "images", tmp_path / "labels", precisions=(), steps=(), threads=1))
    changed = bundle.spec.graphs[0].model_copy(update={"sha256": "0" * 64})
    save(bundle.spec.model_copy(update={"graphs": (changed,)}), bundle.folder)
    with pytest.raises(BundleError, match="not those that were tuned"):
        tuned_setting(Bundle.load(bundle.folder))
    assert (bundle.folder / BUNDLE_FILE).exists()
    assert (bundle.folder / TUNING).exists()


def test_a_case_without_a_reference_is_named(tmp_path: Path) -> None:
    write_cases(tmp_path / "images", count=2)
    save_image(tmp_path / "labels" / "case0.nii.gz", np.ones((10, 20, 20), np.uint8), spacing=(1.5, 1.5, 1.5))
    job = TuneJob(tmp_path / "images", tmp_path / "labels", precisions=(), steps=(), threads=1)
    with pytest.raises(UsageError, match=r"no reference for 1 of 2 cases: case1"):
        tune(threshold_bundle(tmp_path / "bundle"), job)


def test_labels_that_float32_does_not_come_near_choose_nothing(tmp_path: Path) -> None:
    """Every setting would lose nothing against a Dice of 0, and the fastest would be chosen."""
    write_cases(tmp_path / "images", tmp_path / "labels", count=2)
    for path in (tmp_path / "labels").iterdir():
        save_image(path, np.full((10, 20, 20), 255, np.uint8), spacing=(1.5, 1.5, 1.5))
    bundle = threshold_bundle(tmp_path / "bundle")
    job = TuneJob(tmp_path / "images", tmp_path / "labels", precisions=(), steps=(), threads=1)
    with pytest.raises(UsageError, match=r"task Dice of 0\.000 only"):
        tune(bundle, job)
    assert not (bundle.folder / TUNING).exists()


def test_a_reference_of_another_grid_is_named(tmp_path: Path) -> None:
    write_cases(tmp_path / "images", tmp_path / "labels", count=2)
    save_image(tmp_path / "labels" / "case1.nii.gz", np.ones((10, 20, 21), np.uint8), spacing=(1.5, 1.5, 1.5))
    job = TuneJob(tmp_path / "images", tmp_path / "labels", precisions=(), steps=(), threads=1)
    with pytest.raises(UsageError, match=r"1 references cannot be used; case1: .*shape"):
        tune(threshold_bundle(tmp_path / "bundle"), job)


def test_a_case_in_which_nothing_is_to_be_found_counts_as_right_if_nothing_is(tmp_path: Path) -> None:
    write_cases(tmp_path / "images", tmp_path / "labels", count=2)
    write_cases(tmp_path / "dark", tmp_path / "dark_labels", count=1, bright=-50.0)
    (tmp_path / "dark" / "case0_0000.nii.gz").replace(tmp_path / "images" / "healthy_0000.nii.gz")
    save_image(tmp_path / "labels" / "healthy.nii.gz", np.zeros((10, 20, 20), np.uint8), spacing=(1.5, 1.5, 1.5))
    job = TuneJob(tmp_path / "images", tmp_path / "labels", precisions=(), steps=(), threads=1)
    record = tune(threshold_bundle(tmp_path / "bundle"), job)
    assert set(record["chosen_on"]) == {"case0", "case1", "healthy"}
    assert record["settings"][0]["dice"] > 0.9


def test_an_engine_that_is_not_there_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cases(tmp_path / "images", tmp_path / "labels", count=1)
    engine = get_engine("onnxruntime")
    monkeypatch.setattr(type(engine), "available", lambda self: "onnxruntime is not installed")
    job = TuneJob(tmp_path / "images", tmp_path / "labels", engine="onnxruntime")
    with pytest.raises(EngineUnavailable, match="is not installed"):
        tune(threshold_bundle(tmp_path / "bundle"), job)
