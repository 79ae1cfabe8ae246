"""Evaluation: summary.json of either layout, labels, missing and bad cases, tables."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from offline_infer.cli import main
from offline_infer.errors import CasesFailed, ImageError, UsageError
from offline_infer.events import Event
from offline_infer.proof.evaluation.label_maps import evaluate, evaluate_folders
from offline_infer.proof.evaluation.labels import (
    label_key,
    labels_found,
    labels_given,
    labels_of_bundle,
    labels_of_dataset,
    parse_label,
)
from offline_infer.proof.evaluation.metrics import joint_histogram, label_counts, metrics_v1, metrics_v2
from offline_infer.proof.evaluation.options import EvaluationOptions
from offline_infer.proof.evaluation.pairs import case_of, pair_cases
from offline_infer.proof.evaluation.pool import run_cases
from offline_infer.proof.evaluation.summary import Header, read_summary
from offline_infer.proof.evaluation.tables import dice_table, format_table, long_table, write_csv
from offline_infer.spec import Labels

LabelArray = npt.NDArray[np.integer]


def save(path: Path, array: LabelArray, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def random_labels(seed: int, shape: tuple[int, int, int] = (6, 9, 11), top: int = 3) -> LabelArray:
    return np.random.default_rng(seed).integers(0, top + 1, shape).astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases with labels 0 to 3; label 3 is missing from both maps of the second."""
    for i, name in enumerate(("case_1", "case_10", "case_2")):
        reference = random_labels(i)
        if i == 1:
            reference[reference == 3] = 0
        prediction = np.where(np.random.default_rng(9 + i).random(reference.shape) < 0.2, 1, reference).astype(np.uint8)
        save(tmp_path / "pred" / f"{name}.nii.gz", prediction)
        save(tmp_path / "ref" / f"{name}.nii.gz", reference)
    return tmp_path / "pred", tmp_path / "ref"


def by_masks(prediction: LabelArray, reference: LabelArray, label: int | tuple[int, ...]) -> tuple[int, int, int, int]:
    """tp, fp, fn, tn the slow way."""
    wanted = [label] if isinstance(label, int) else list(label)
    p, r = np.isin(prediction, wanted), np.isin(reference, wanted)
    return int((p & r).sum()), int((p & ~r).sum()), int((~p & r).sum()), int((~p & ~r).sum())


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.uint8, [0, 1, 2, 255]),
        (np.uint16, [0, 300, 40000, 65535]),
        (np.int32, [-1, 0, 7, 2**30]),
        (np.int64, list(range(119))),
    ],
)
def test_joint_histogram_agrees_with_masks(dtype: type, values: list[int]) -> None:
    rng = np.random.default_rng(0)
    reference = rng.choice(values, (5, 7, 40)).astype(dtype)
    prediction = np.where(rng.random(reference.shape) < 0.3, rng.choice(values, reference.shape), reference)
    histogram = joint_histogram(prediction.astype(dtype), reference)
    assert histogram.total == reference.size
    assert histogram.differing == int((prediction != reference).sum())
    for label in (*values[:4], tuple(values[1:3])):
        counts = label_counts(histogram, label)
        assert (counts.tp, counts.fp, counts.fn, counts.tn) == by_masks(prediction, reference, label)


def test_joint_histogram_leaves_out_the_ignored_reference_voxels() -> None:
    reference, prediction = random_labels(1), random_labels(2)
    keep = reference != 3
    counts = label_counts(joint_histogram(prediction, reference).ignoring(3), (1, 3))
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == by_masks(prediction[keep], reference[keep], (1, 3))


def test_an_image_is_not_taken_for_a_label_map() -> None:
    image = np.arange(20000, dtype=np.int32).reshape(1, 100, 200)
    with pytest.raises(ImageError, match="image instead of a label map"):
        joint_histogram(image, image)


def test_undefined_figures_are_nan_as_in_the_frameworks() -> None:
    zeros, ones = np.zeros((2, 3, 4), np.uint8), np.ones((2, 3, 4), np.uint8)
    absent = label_counts(joint_histogram(zeros, zeros), 1)
    assert math.isnan(metrics_v2(absent)["Dice"])
    assert math.isnan(metrics_v2(absent)["IoU"])
    v1 = metrics_v1(absent)
    assert [key for key, value in v1.items() if math.isnan(value)] == [
        "Dice",
        "False Discovery Rate",
        "False Negative Rate",
        "Jaccard",
        "Precision",
        "Recall",
    ]
    full = metrics_v1(label_counts(joint_histogram(ones, ones), 1))
    assert math.isnan(full["True Negative Rate"])
    assert math.isnan(full["False Omission Rate"])
    assert full["Dice"] == 1.0


def test_summary_v2(folders: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out" / "summary.json"
    summary = evaluate_folders(*folders, EvaluationOptions(labels=[1, 2, 3, (1, 2)]), output=output)
    assert read_summary(output)["foreground_mean"]["TP"] == summary["foreground_mean"]["TP"]
    assert [Path(c["prediction_file"]).name for c in summary["metric_per_case"]] == [
        "case_1.nii.gz",
        "case_10.nii.gz",
        "case_2.nii.gz",
    ]
    assert math.isnan(summary["metric_per_case"][1]["metrics"]["3"]["Dice"])
    assert not math.isnan(summary["mean"]["3"]["Dice"])
    text = output.read_text()
    assert text.index('"foreground_mean"') < text.index('"mean"') < text.index('"metric_per_case"')
    assert '"(1, 2)"' in text
    assert "NaN" in text
    assert not text.endswith("\n")


def test_a_label_that_occurs_nowhere_makes_the_foreground_mean_nan(folders: tuple[Path, Path]) -> None:
    summary = evaluate_folders(*folders, EvaluationOptions(labels=[1, 77]))
    assert math.isnan(summary["mean"]["77"]["Dice"])
    assert math.isnan(summary["foreground_mean"]["Dice"])
    assert summary["mean"]["77"]["n_ref"] == 0


def test_summary_v1_has_the_framework_header(folders: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "summary.json"
    header = Header(name="trainer", task="Task003_Liver")
    evaluate_folders(*folders, EvaluationOptions(labels=[0, 1, 2], format="nnunet-v1", header=header), output=output)
    content = json.loads(output.read_text())
    assert list(content) == ["author", "description", "id", "name", "results", "task", "timestamp"]
    assert len(content["id"]) == 12
    assert content["task"] == "Task003_Liver"
    first = content["results"]["all"][0]
    assert list(first) == ["0", "1", "2", "reference", "test"]
    assert len(first["0"]) == 13


def test_jobs_give_the_same_answer(folders: tuple[Path, Path]) -> None:
    one = evaluate(*folders, EvaluationOptions(labels=[1, 2, 3], surface=True))
    two = evaluate(*folders, EvaluationOptions(labels=[1, 2, 3], surface=True, jobs=2))
    assert json.dumps(one.summary) == json.dumps(two.summary)
    assert one.surface == two.surface


def _dies_on_two(number: int) -> int:
    if number == 2:
        os._exit(9)
    return number * 10


def test_a_dead_process_costs_its_own_case_only() -> None:
    outcomes = run_cases(_dies_on_two, {str(i): (i,) for i in range(4)}, jobs=2, stage="test", sink=lambda event: None)
    assert outcomes.done == {"0": 0, "1": 10, "3": 30}
    assert list(outcomes.failed) == ["2"]
    assert "died" in outcomes.failed["2"]


def test_a_bad_case_fails_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    (predictions / "case_10.nii.gz").write_bytes(b"not an image")
    save(predictions / "case_2.nii.gz", random_labels(2, (6, 9, 10)))
    output = tmp_path / "summary.json"
    events: list[Event] = []
    with pytest.raises(CasesFailed) as caught:
        evaluate_folders(predictions, references, EvaluationOptions(labels=[1]), output=output, sink=events.append)
    assert set(caught.value.failures) == {"case_10", "case_2"}
    assert caught.value.exit_status == 3
    assert "(6, 9, 10)" in caught.value.failures["case_2"]
    assert len(read_summary(output)["metric_per_case"]) == 1
    problems = json.loads((tmp_path / "summary.problems.json").read_text())
    assert set(problems["failed"]) == {"case_10", "case_2"}
    assert {e.case for e in events if e.kind == "case-failed"} == {"case_10", "case_2"}


def test_missing_predictions(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    (predictions / "case_2.nii.gz").unlink()
    save(predictions / "extra.nii.gz", random_labels(5))
    output = tmp_path / "summary.json"
    with pytest.raises(CasesFailed) as caught:
        evaluate_folders(predictions, references, EvaluationOptions(labels=[1]), output=output)
    assert "no prediction" in caught.value.failures["case_2"]
    found = evaluate(predictions, references, EvaluationOptions(labels=[1], allow_missing=True), output=output)
    assert not found.failed
    assert (found.missing, found.extra, found.total) == (("case_2",), ("extra",), 3)
    assert (tmp_path / "summary.problems.json").exists()
    # Once everything is in order the complaint of the earlier run goes away.
    save(predictions / "case_2.nii.gz", random_labels(2))
    (predictions / "extra.nii.gz").unlink()
    evaluate_folders(predictions, references, EvaluationOptions(labels=[1]), output=output)
    assert not (tmp_path / "summary.problems.json").exists()


def test_another_frame_is_remarked_on(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    save(predictions / "case_1.nii.gz", random_labels(0), spacing=(1.0, 1.0, 3.0))
    events: list[Event] = []
    found = evaluate(predictions, references, EvaluationOptions(labels=[1]), sink=events.append)
    assert not found.failed
    assert "spacing differs" in found.notes["case_1"][0]
    assert any(e.kind == "note" and e.case == "case_1" for e in events)


def test_single_files(folders: tuple[Path, Path]) -> None:
    one = evaluate_folders(folders[0] / "case_1.nii.gz", folders[1] / "case_1.nii.gz", EvaluationOptions(labels=[1]))
    assert len(one["metric_per_case"]) == 1
    with pytest.raises(UsageError, match="one is a file and the other a folder"):
        evaluate_folders(folders[0] / "case_1.nii.gz", folders[1], EvaluationOptions(labels=[1]))


def test_files_of_one_case_may_have_different_endings(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.nii.gz", random_labels(1))
    save(tmp_path / "b" / "x.nrrd", random_labels(1))
    for other in ("x.npz", "x.png", "overview.png"):
        (tmp_path / "a" / other).write_bytes(b"")
    (tmp_path / "a" / ".y.123.partial.nii.gz").write_bytes(b"")
    pairing = pair_cases(tmp_path / "a", tmp_path / "b")
    assert [pair.case for pair in pairing.pairs] == ["x"]
    assert pairing.only_first == ()
    save(tmp_path / "a" / "x.nrrd", random_labels(1))
    with pytest.raises(UsageError, match="two files for case 'x'"):
        pair_cases(tmp_path / "a", tmp_path / "b")
    assert case_of("x.seg.nrrd") == "x"
    assert case_of("summary.json") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "v2"}, "nnunet-v1"),
        ({"labels": []}, "empty"),
        ({"labels": [1, 1]}, "twice"),
        ({"labels": [1, 3], "ignore": 3}, "ignored and evaluated"),
        ({"labels": ["1"]}, "not a label"),
        ({"surface": True, "tolerances": (0.0,)}, "positive"),
        ({"jobs": 0}, "jobs"),
    ],
)
def test_wrong_options(folders: tuple[Path, Path], change: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        evaluate_folders(*folders, EvaluationOptions(**{"labels": [1], **change}))


def test_wrong_places(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        evaluate_folders(tmp_path / "nowhere", folders[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no label file"):
        evaluate_folders(tmp_path / "empty", folders[1])
    save(tmp_path / "other" / "someone.nii.gz", random_labels(0))
    with pytest.raises(UsageError, match=r"no case is on both sides: .*someone"):
        evaluate_folders(tmp_path / "other", folders[1])


def test_labels_are_found_where_nobody_names_them(folders: tuple[Path, Path]) -> None:
    v2 = evaluate(*folders)
    assert v2.labels.labels == (1, 2, 3)
    assert "values found" in v2.labels.origin
    assert evaluate(*folders, EvaluationOptions(format="nnunet-v1")).labels.labels == (0, 1, 2, 3)
    assert evaluate(*folders, EvaluationOptions(ignore=3)).labels.labels == (1, 2)
    content = {"labels": {"background": 0, "liver": 1, "whole": [1, 2], "ignore": 3}}
    (folders[0] / "dataset.json").write_text(json.dumps(content))
    named = evaluate(*folders)
    assert named.labels.labels == (1, (1, 2))
    assert named.labels.ignore == 3
    assert named.summary is not None
    assert list(named.summary["mean"]) == ["1", "(1, 2)"]


def test_labels_of_a_dataset_file(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": {"0": "background", "2": "tumour", "1": "liver"}}))
    assert labels_of_dataset(file).labels == (1, 2)
    assert labels_of_dataset(file, "nnunet-v1").labels == (0, 1, 2)
    assert labels_of_dataset(file).names[2] == "tumour"
    file.write_text(json.dumps({"labels": {"background": 0, "a": [1], "b": 2, "ignore": 3}}))
    assert labels_of_dataset(file).labels == (1, 2)
    assert labels_of_dataset(file).ignore == 3
    for text in ("[1]", "{", '{"labels": {"a": "b"}}', '{"labels": 3}'):
        file.write_text(text)
        with pytest.raises(UsageError, match="no usable 'labels' table"):
            labels_of_dataset(file)


def test_labels_of_a_bundle() -> None:
    plain = Labels(names={"background": 0, "liver": 1, "tumour": 2}, channel_values=(0, 1, 2), ignore=5)
    assert labels_of_bundle(plain).labels == (1, 2)
    assert labels_of_bundle(plain, "nnunet-v1").labels == (0, 1, 2)
    assert labels_of_bundle(plain).ignore == 5
    regions = Labels(names={"background": 0, "whole": (1, 2), "core": 2}, regions_class_order=(1, 2))
    assert labels_of_bundle(regions).labels == ((1, 2), 2)


def test_label_keys() -> None:
    for label in (1, (1, 2), (2,)):
        assert parse_label(label_key(label)) == label
    assert parse_label("1,2") == (1, 2)
    with pytest.raises(UsageError, match="not a label"):
        parse_label("liver")
    assert labels_found([0], None, "nnunet-v2").labels == (0,)
    assert labels_given([(1, 2), 1]).labels == ((1, 2), 1)


@pytest.mark.parametrize("layout", ["nnunet-v2", "nnunet-v1"])
def test_tables(folders: tuple[Path, Path], tmp_path: Path, layout: str) -> None:
    summary = evaluate_folders(*folders, EvaluationOptions(labels=[0, 1, 2, 3], format=layout))  # type: ignore[arg-type]
    rows = dice_table(summary)
    assert [row["case"] for row in rows] == ["case_1", "case_10", "case_2", "mean"]
    first = [rows[0][key] for key in ("1", "2", "3")]
    assert rows[0]["mean"] == pytest.approx(np.mean(first))
    assert rows[1]["mean"] == pytest.approx(np.mean([rows[1]["1"], rows[1]["2"]]))
    write_csv(summary, tmp_path / "wide.csv")
    wide = list(csv.DictReader((tmp_path / "wide.csv").read_text().splitlines()))
    assert [float(row["1"]) for row in wide] == [row["1"] for row in rows]
    assert wide[1]["3"] == ""
    write_csv(summary, tmp_path / "long.csv", layout="long")
    long = list(csv.DictReader((tmp_path / "long.csv").read_text().splitlines()))
    assert len(long) == len(long_table(summary)) == 16
    text = format_table(rows, names={"1": "liver"})
    assert "liver" in text.splitlines()[0]
    assert len({len(line) for line in text.splitlines()}) == 1
    with pytest.raises(UsageError, match="Dice"):
        dice_table(summary, metric="HD95")
    with pytest.raises(UsageError, match="not a summary"):
        dice_table({})


# ---- the frameworks' own files ------------------------------------------------------------------------------------


def _strip(content: dict) -> dict:
    """A v1 summary without what differs by place and time."""
    results = content["results"]
    cases = [{**case, "test": Path(case["test"]).name, "reference": ""} for case in results["all"]]
    return {"all": cases, "mean": results["mean"], "author": content["author"]}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ("v1/expected/validation_fold0", "v1/labels_val"),
        ("v1/expected/validation_fold0_postprocessed", "v1/labels_val"),
        ("v1b/expected/d_validation/validation_raw", "v1b/expected/d_validation/gt"),
        ("v1b/expected/d_validation/validation_raw_postprocessed", "v1b/expected/d_validation/gt"),
    ],
)
def test_v1_validation_summaries_digit_for_digit(
    goldens: Path, tmp_path: Path, predictions: str, references: str
) -> None:
    theirs = json.loads((goldens / predictions / "summary.json").read_text())
    evaluate_folders(
        goldens / predictions,
        goldens / references,
        EvaluationOptions(
            labels=[parse_label(key) for key in theirs["results"]["mean"]], format="nnunet-v1", allow_missing=True
        ),
        output=tmp_path / "s.json",
    )
    ours = json.loads((tmp_path / "s.json").read_text())
    assert json.dumps(_strip(ours)) == json.dumps(_strip(theirs))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("summary", "layout", "references"),
    [
        ("v1/expected/summary.json", "nnunet-v1", "v1/labels"),
        ("v1b/expected/a/summary.json", "nnunet-v1", "v1b/labels/ct"),
        ("v2/expected/003_3d_f0_tta/summary.json", "nnunet-v2", "v2/labels/Dataset003_Liver"),
        ("v2/expected/003_2d_f0_tta/summary.json", "nnunet-v2", "v2/labels/Dataset003_Liver"),
        ("v2/expected/010_3d_f0_tta/summary.json", "nnunet-v2", "v2/labels/Dataset010_Regions"),
    ],
)
def test_recorded_cases_digit_for_digit(goldens: Path, summary: str, layout: str, references: str) -> None:
    theirs = json.loads((goldens / summary).read_text())
    v2 = layout == "nnunet-v2"
    recorded = theirs["metric_per_case"] if v2 else theirs["results"]["all"]
    checked = 0
    for case in recorded:
        named = Path(case["prediction_file" if v2 else "test"])
        prediction = goldens / Path(summary).parent / named.name
        if not prediction.exists():
            prediction = goldens / Path(summary).parent / named.parent.name / named.name
        if not prediction.exists():
            continue
        figures = case["metrics"] if v2 else {k: v for k, v in case.items() if k not in ("test", "reference")}
        labels = [parse_label(key) for key in figures]
        ours = evaluate_folders(
            prediction, goldens / references / named.name, EvaluationOptions(labels=labels, format=layout)
        )  # type: ignore[arg-type]
        found = ours["metric_per_case"][0]["metrics"] if v2 else ours["results"]["all"][0]
        for key, row in figures.items():
            assert json.dumps(found[key], sort_keys=True) == json.dumps(row, sort_keys=True)
        checked += 1
    assert checked >= 1


def test_an_evaluation_replaces_no_label_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    reference = references / "case_1.nii.gz"
    before = reference.read_bytes()
    (tmp_path / "alias.json").symlink_to(reference)
    (tmp_path / "hard.json").hardlink_to(reference)
    command = ["evaluate", str(predictions), str(references), "--labels", "1", "--quiet"]
    for output in (reference, tmp_path / "alias.json", tmp_path / "hard.json", references):
        assert main([*command, "-o", str(output)]) == 2
    assert main([*command, "-o", str(tmp_path / "s.json"), "--csv", str(reference)]) == 2
    assert reference.read_bytes() == before


def test_the_command_names_labels_and_prints_surfaces(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, references = folders
    content = {"labels": {"background": 0, "liver": 1, "tumour": 2, "cyst": 3}}
    (predictions / "dataset.json").write_text(json.dumps(content))
    output = str(tmp_path / "s.json")
    command = ["evaluate", str(predictions), str(references), "--quiet", "-o", output]
    assert main([*command, "--surface", "--lesions", "2"]) == 0
    text = capsys.readouterr().out
    for words in ("liver", "tumour", "cyst", "HD95", "NSD 1 mm", "invented"):
        assert words in text, words


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--lesion-iou", "0.5"], "give --lesions too"),
        (["--worst", "three"], "expected a number"),
        (["--lesions", "--lesion-iou", "1.5"], "at least 0 and below 1"),
        (["--task", "instances", "--surface"], "does not apply"),
    ],
)
def test_options_of_label_maps_are_checked(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert main(["evaluate", *(str(folder) for folder in folders), *options]) == 2
    assert complaint in capsys.readouterr().err
