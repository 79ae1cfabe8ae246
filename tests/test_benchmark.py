"""The benchmark command: what it records and what it refuses. No test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from specimens import tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

from offline_infer.benchmark import BenchmarkJob, benchmark
from offline_infer.bundles.bundle import Bundle, save
from offline_infer.cli import main
from offline_infer.errors import UsageError
from offline_infer.proof.report.inputs import recognise
from offline_infer.tasks.volume.judging import judge, mean_change


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), folder), folder)
    return folder


def answers(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 3, 8, 12, 16)).astype(np.float32)


def test_equal_answers_agree() -> None:
    found = judge([answers()], [answers()], tiny_spec())
    assert found["status"] == "ok"
    assert found["label_agreement"] == 1
    assert found["foreground_dice"] == 1
    assert found["max_abs_logit_difference"] == 0


def test_another_answer_is_measured() -> None:
    other = answers()
    other[0, :, 0] = other[0, ::-1, 0]
    found = judge([other], [answers()], tiny_spec())
    a, b = other[0].argmax(0), answers()[0].argmax(0)
    assert found["label_agreement"] == pytest.approx((a == b).mean())
    assert found["foreground_dice"] == pytest.approx(2 * ((a == b) & (a > 0)).sum() / ((a > 0).sum() + (b > 0).sum()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused_even_without_a_reference(bad: float) -> None:
    broken = answers()
    broken[0, 1, 2, 3, 4] = bad
    assert judge([answers(), broken], None, tiny_spec())["status"] == "failed"


def test_all_background_is_refused_where_float32_finds_something() -> None:
    empty = answers()
    empty[0, 0] = 100
    assert judge([empty], [answers()], tiny_spec())["status"] == "failed"
    assert judge([empty], [empty], tiny_spec())["status"] == "ok"


def test_the_command_records_every_pair(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_case(tmp_path / "in", "a", shape=(20, 30, 40)).channels[0]
    output = tmp_path / "record.json"
    arguments = [str(bundle), "--engines", "fake", "--precisions", "fp32", "bf16", "--input", str(image)]
    assert main(["benchmark", *arguments, "--repeats", "2", "-o", str(output), "--quiet"]) == 0
    record = json.loads(output.read_text())
    found = recognise(record)
    assert found is not None
    assert found.name == "benchmark"
    assert [(row["engine"], row["precision"], row["status"]) for row in record["results"]] == [
        ("fake", "fp32", "ok"),
        ("fake", "bf16", "ok"),
    ]
    assert record["results"][1]["foreground_dice"] == 1
    assert record["tiles"]["source"] == [str(image)]
    assert "the reference" in capsys.readouterr().out


def test_an_engine_that_is_not_to_be_had_does_not_stop_the_others(bundle: Path) -> None:
    record = benchmark(Bundle.load(bundle), BenchmarkJob(engines=("openvino", "fake"), precisions=("fp32",), repeats=1))
    status = {row["engine"]: row["status"] for row in record["results"]}
    assert status["fake"] == "ok"
    assert status["openvino"] == "unavailable"  # the stand-in graph is no ONNX


def test_wrong_usage_is_named(bundle: Path) -> None:
    with pytest.raises(UsageError, match="unknown engine"):
        benchmark(Bundle.load(bundle), BenchmarkJob(engines=("OpenVINO",)))
    with pytest.raises(UsageError, match="no fold 7"):
        benchmark(Bundle.load(bundle), BenchmarkJob(engines=("fake",), fold="7"))


def test_dice_and_margins_per_class() -> None:
    spec = tiny_spec()
    theirs = answers()
    mine = theirs.copy()
    place = np.unravel_index(int(theirs[0].max(axis=0).argmax()), theirs.shape[2:])
    column = (0, slice(None), *place)
    winner = int(theirs[column].argmax())
    other = (winner + 1) % theirs.shape[1]
    mine[(0, other, *place)] = theirs[column].max() + 1
    found = judge([mine], [theirs], spec)
    assert found["differing_voxels"] == 1
    top = np.sort(theirs[column])
    assert found["differing_margin_max"] == pytest.approx(float(top[-1] - top[-2]), rel=1e-5)
    for index, value in enumerate(spec.labels.channel_values):
        a, b = (array[0].argmax(axis=0) == index for array in (mine, theirs))
        if index:
            expected = 2 * (a & b).sum() / (a.sum() + b.sum())
            assert found["dice_per_class"][str(value)] == pytest.approx(expected)
    assert judge([theirs], [theirs], spec)["differing_margin_max"] is None


@pytest.mark.parametrize("domain", ["logits", "probabilities"])
def test_regions_are_decided_on_the_networks_logits_whatever_is_averaged(
    domain: Literal["logits", "probabilities"],
) -> None:
    """A logit of 0.3 is a probability above one half: the region is there."""
    spec = tiny_spec(regions=True)
    spec = spec.model_copy(update={"aggregation": spec.aggregation.model_copy(update={"domain": domain})})
    there, missing = answers(), answers()
    there[0, :, 0, 0, 0] = (-1.0, 0.3, -1.0)
    missing[0, :, 0, 0, 0] = (-1.0, -0.3, -1.0)
    found = judge([missing], [there], spec)
    assert found["differing_voxels"] == 1
    assert found["differing_margin_max"] == pytest.approx(0.3)


def test_a_change_counts_where_a_decision_is_near() -> None:
    near, far = np.zeros((1, 2, 1, 1, 1), np.float32), np.array([9.0, -9.0], np.float32).reshape(1, 2, 1, 1, 1)
    shift = np.array([0.0, 0.5], np.float32).reshape(1, 2, 1, 1, 1)
    spec = tiny_spec(classes=2)
    assert mean_change([near], [near], spec) == 0
    assert mean_change([near + shift], [near], spec) == pytest.approx((1 / (1 + np.exp(-0.5)) - 0.5) ** 2, rel=1e-5)
    assert mean_change([far + shift], [far], spec) < 1e-12
    regions = tiny_spec(classes=2, regions=True)
    assert mean_change([near + shift], [near], regions) == pytest.approx(
        (1 / (1 + np.exp(-0.5)) - 0.5) ** 2 / 2, rel=1e-5
    )
