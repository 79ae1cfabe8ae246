"""INT8 is kept where unseen cases agree with float32, and refused with the figure where they do not."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from image_samples import save as save_image
from int8_samples import threshold_bundle, write_cases
from photo_samples import image_spec

from offline_infer.bundles.bundle import QUANTIZATION, Bundle
from offline_infer.bundles.checking import check_bundle
from offline_infer.bundles.kept_records import read_record
from offline_infer.bundles.manifest import MANIFEST
from offline_infer.bundles.opening import open_fold
from offline_infer.cli import main
from offline_infer.engines.base import EngineOptions
from offline_infer.errors import BundleError, QuantizationRefused, UsageError
from offline_infer.graph.quantized import Convolution
from offline_infer.images.cases import CaseFiles
from offline_infer.proof.report.sections.choices import quantization_section
from offline_infer.quantizing.cases import share_out
from offline_infer.quantizing.choosing import Trial, Trials, choose
from offline_infer.quantizing.quantize import QuantizeJob, _copy, _what_failed, quantize
from offline_infer.tasks.image.task import TASK as IMAGE_TASK
from offline_infer.tasks.settings import RunSettings

PLAIN = RunSettings(tta=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict]:
    folder = tmp_path_factory.mktemp("quantize")
    write_cases(folder / "images", folder / "labels")
    bundle = threshold_bundle(folder / "bundle")
    job = QuantizeJob(folder / "images", folder / "labels", inputs=2, threads=1, settings=PLAIN)
    record = quantize(bundle, job)
    return Bundle.load(folder / "bundle", verify_hashes=True), record


def test_a_model_that_stands_it_gets_a_graph_a_record_and_a_manifest(made: tuple[Bundle, dict]) -> None:
    bundle, record = made
    assert bundle.graph("0", "int8").file == "fold_0_int8.onnx"
    assert bundle.graph("0", "fp32").file == "fold_0.onnx"
    assert record["judged"]["lowest_dice"] >= 0.999
    assert record["judged"]["paired"]["cases"] == 2
    kept = read_record(bundle, QUANTIZATION)
    assert kept is not None
    assert kept["folds"][0]["int8_share"] == 1.0
    roles = kept["cases"]
    assert not set(roles["judges"]) & {*roles["calibration"], *roles["choosing"]}
    done = " ".join(check_bundle(bundle).done)
    assert "fold_0_int8.onnx" in done
    assert "as in MANIFEST.sha256" in done


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_both_engines_run_the_graph(made: tuple[Bundle, dict], engine: str) -> None:
    pytest.importorskip(engine)
    bundle, _ = made
    batch = np.random.default_rng(0).uniform(-1, 1, tuple(bundle.spec.input_shape)).astype(np.float32)
    with (
        open_fold(bundle, "0", engine, EngineOptions(precision="int8", threads=1)) as rounded,
        open_fold(bundle, "0", engine, EngineOptions(threads=1)) as exact,
    ):
        assert rounded.info.precision.startswith("int8")
        assert exact.info.precision == "fp32"
        difference = np.abs(rounded.run(batch) - exact.run(batch)).max()
    assert 0 < difference < 1.0


def test_as_a_lone_file_it_says_that_it_is_int8(made: tuple[Bundle, dict], tmp_path: Path) -> None:
    bundle, _ = made
    lone = Bundle.load(shutil.copy(bundle.graph_path("0", "int8"), tmp_path / "renamed.onnx"))
    assert lone.graph("0", "int8").precision == "int8"
    with pytest.raises(UsageError, match="no fp32 graph"):
        lone.graph("0")


def test_predict_uses_it_only_when_asked(made: tuple[Bundle, dict], tmp_path: Path) -> None:
    bundle, _ = made
    write_cases(tmp_path / "images", count=1)
    for precision in ("fp32", "int8"):
        arguments = [str(bundle.folder), str(tmp_path / "images"), str(tmp_path / precision), "--no-tta", "--threads=1"]
        arguments += [] if precision == "fp32" else ["--precision=int8"]
        assert main(["predict", *arguments, "--quiet", "--cache=none", "--isolate-readers=no"]) == 0
        record = json.loads((tmp_path / precision / "offline_infer_run.json").read_text())
        assert record["engine"]["precision"].startswith(precision)


def test_a_changed_record_is_not_believed(made: tuple[Bundle, dict], tmp_path: Path) -> None:
    bundle, _ = made
    path = bundle.folder / QUANTIZATION
    before = path.read_text()
    path.write_text(before.replace("0.999", "0.5"))
    try:
        with pytest.raises(BundleError, match="changed after it was kept"):
            read_record(bundle, QUANTIZATION)
    finally:
        path.write_text(before)


def test_a_record_that_the_manifest_does_not_know_is_none(made: tuple[Bundle, dict], tmp_path: Path) -> None:
    """So a bundle looks when a process was killed between writing the record and the manifest."""
    bundle, _ = made
    other = shutil.copytree(bundle.folder, tmp_path / "bundle")
    manifest = other / MANIFEST
    lines = [line for line in manifest.read_text().splitlines(keepends=True) if QUANTIZATION not in line]
    manifest.write_text("".join(lines))
    assert read_record(Bundle.load(other), QUANTIZATION) is None


def test_judges_without_a_reference_are_named_before_anything_runs(tmp_path: Path) -> None:
    write_cases(tmp_path / "images", tmp_path / "labels", count=4)
    (tmp_path / "labels" / "case3.nii.gz").unlink()
    job = QuantizeJob(tmp_path / "images", tmp_path / "labels")
    with pytest.raises(UsageError, match="no reference for 1 of 2 cases: case3"):
        quantize(threshold_bundle(tmp_path / "bundle"), job)


class _FakeTrials:
    """Layers ``a`` to ``d``: on the inputs all is well, on whole cases only without ``b`` and with a dither in ``c``."""

    def run(
        self, chosen: Collection[str], promising: Callable[[Trial], bool], *, dithered: Collection[str], around: str
    ) -> Trial:
        assert around == "fp32"
        assert promising(Trial(1.0, 1.0, 1.0))
        good = "b" not in chosen and set(chosen) & {"c"} == set(dithered) & {"c"}
        return Trial(1.0, 0.1, 1.0) if good else Trial(0.99, 1.0, 1.0, worst_case="hard")

    def error_alone(self, name: str, *, dithered: bool) -> float:
        return {"b": (5.0, 6.0), "c": (4.0, 0.1)}.get(name, (0.1, 0.05))[dithered]


LAYERS = [Convolution(name, "image", f"w{name}", 100) for name in "abcd"]


def test_layers_that_whole_cases_do_not_stand_stay_in_floating_point() -> None:
    told: list[tuple[int, int]] = []
    choice = choose(LAYERS, cast(Trials, _FakeTrials()), 0.999, "fp32", lambda *done: told.append(done))
    assert choice.chosen == ("a", "c", "d")
    assert choice.dithered == {"c"}, "a and d are below what is noticed"
    assert choice.share == 0.75
    assert choice.whole.agreement == 0.99
    assert choice.failed is not None
    assert choice.failed[0] == 1.0
    assert choice.sensitivity == {"a": 0.1, "b": 5.0, "c": 0.1, "d": 0.1}
    assert told[0] == (1, 11)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_all_layers_are_accepted_at_once_where_a_dither_makes_them_agree() -> None:
    class Easy(_FakeTrials):
        def run(self, chosen: Collection[str], promising: object, *, dithered: Collection[str], around: str) -> Trial:
            return Trial(1.0 if dithered else 0.9, 0.0, 1.0)

        def error_alone(self, name: str, *, dithered: bool) -> float:
            raise AssertionError("no layer has to be tried alone")

    choice = choose(LAYERS, cast(Trials, Easy()), 0.999, "fp32", lambda *_: None)
    assert choice.share == 1.0
    assert choice.dithered == set("abcd")


def test_a_refusal_names_what_came_nearest() -> None:
    class Never(_FakeTrials):
        def run(self, chosen: Collection[str], promising: object, *, dithered: Collection[str], around: str) -> Trial:
            return Trial(0.97 + 0.01 / len(chosen), 1.0, 1.0, worst_case="hard")

    choice = choose(LAYERS, cast(Trials, Never()), 0.999, "fp32", lambda *_: None)
    assert choice.final is None
    assert _what_failed(choice) == " With 25% it is 0.98000 in the case hard."


def test_random_weights_are_refused_with_the_figure(tmp_path: Path) -> None:
    write_cases(tmp_path / "images", count=3)
    bundle = threshold_bundle(tmp_path / "bundle", random=True)
    before = sorted((path.name, path.read_bytes()) for path in bundle.folder.iterdir())
    job = QuantizeJob(tmp_path / "images", inputs=2, threads=1, settings=PLAIN)
    with pytest.raises(QuantizationRefused, match=r"0\.\d{5}.*(INT8|Dice)"):
        quantize(bundle, job)
    assert sorted((path.name, path.read_bytes()) for path in bundle.folder.iterdir()) == before


def test_a_full_disk_is_the_bundles_and_leaves_it_as_it_was(
    made: tuple[Bundle, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = made

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr("shutil.copyfile", full)
    target = tmp_path / "fold_0_int8.onnx"
    with pytest.raises(OSError, match="No space") as raised:
        _copy(bundle.graph_path("0", "int8"), target)
    assert raised.value.filename == str(target)
    assert not list(tmp_path.iterdir())


def test_cases_in_which_nothing_is_found_prove_nothing(tmp_path: Path) -> None:
    write_cases(tmp_path / "images", count=3, bright=-40.0)
    job = QuantizeJob(tmp_path / "images", inputs=2, threads=1, settings=PLAIN)
    with pytest.raises(QuantizationRefused, match="finds nothing"):
        quantize(threshold_bundle(tmp_path / "bundle"), job)


def test_calibration_on_another_kind_of_images_is_refused(tmp_path: Path) -> None:
    """The first case is the one that gives the ranges: here it holds almost no contrast, the others the whole of it."""
    write_cases(tmp_path / "images", count=4)
    write_cases(tmp_path / "flat", count=1, bright=-49.0)
    (tmp_path / "flat" / "case0_0000.nii.gz").replace(tmp_path / "images" / "case0_0000.nii.gz")
    job = QuantizeJob(tmp_path / "images", inputs=2, threads=1, settings=PLAIN)
    with pytest.raises(QuantizationRefused, match="INT8"):
        quantize(threshold_bundle(tmp_path / "bundle"), job)


def test_labels_of_other_cases_are_refused(tmp_path: Path) -> None:
    write_cases(tmp_path / "images", tmp_path / "labels", count=3)
    for path in (tmp_path / "labels").iterdir():  # every label is of a place where nothing is
        wrong = np.zeros((10, 20, 20), np.uint8)
        wrong[9, 19, 19] = 1
        save_image(path, wrong, spacing=(1.5, 1.5, 1.5))
    job = QuantizeJob(tmp_path / "images", tmp_path / "labels", inputs=2, threads=1, settings=PLAIN)
    with pytest.raises(QuantizationRefused, match=r"task Dice of 0\.000 only"):
        quantize(threshold_bundle(tmp_path / "bundle"), job)


def test_two_cases_are_too_few() -> None:
    with pytest.raises(UsageError, match="at least three"):
        share_out([CaseFiles(name, ()) for name in "ab"])


def test_no_case_has_two_roles() -> None:
    roles = share_out([CaseFiles(f"{number:02d}", ()) for number in range(11)])
    names = [name for cases in roles.to_json().values() for name in cases]
    assert len(names) == len(set(names)) == 11
    assert len(roles.judges) >= 6


def test_int8_without_a_graph_says_how_to_make_one(tmp_path: Path) -> None:
    bundle = threshold_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="no int8 graph") as raised:
        bundle.graph("0", "int8")
    assert [remedy.code for remedy in raised.value.remedies] == ["quantize"]


def test_the_report_shows_each_layers_share_of_the_error(made: tuple[Bundle, dict]) -> None:
    _, record = made
    fold = record["folds"][0] | {
        "sensitivity": {"a": 1e-9, "b": 3e-9, "c": 4e-9},
        "int8_layers": ["a", "b"],
        "dithered_layers": ["b"],
    }
    (section,) = quantization_section(record | {"folds": [fold]}, {})
    assert section.tables[-1].rows == (
        ("0", "c", 0.5, "float"),
        ("0", "b", 0.375, "INT8, dithered"),
        ("0", "a", 0.125, "INT8"),
    )
    del fold["dithered_layers"]  # as records of earlier versions
    (section,) = quantization_section(record | {"folds": [fold]}, {})
    assert section.tables[-1].rows[1][-1] == "INT8"


def test_answers_that_are_none_do_not_agree_and_end_nothing() -> None:
    """A graph that overflows is turned away like any other that is not the same model."""

    class Session:
        def __init__(self, value: float) -> None:
            self._answer = {"mask": np.full((1, 1, 32, 48), value, np.float32)}

        def answer(self, batch: object) -> dict:
            return self._answer

    trials = object.__new__(Trials)
    trials._task = trials._compares = IMAGE_TASK
    trials._spec = image_spec()
    inputs = [np.zeros((1, 3, 32, 48), np.float32)]
    trials._reference = [Session(0.75).answer(None)]
    broken = trials._compare(Session(np.nan), inputs)
    assert broken.agreement == 0.0
    other = trials._compare(Session(0.25), inputs)
    assert other.error == 0.25
    assert broken.error > other.error
