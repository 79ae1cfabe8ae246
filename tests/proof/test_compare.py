"""Comparison of prediction folders: counts, places, margins, and the verdict on ties."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from offline_infer.cli import main
from offline_infer.errors import ImageError, UsageError
from offline_infer.proof.comparison.differences import component_counts, confusion, differing_coordinates, place_of
from offline_infer.proof.comparison.label_maps import compare_folders
from offline_infer.proof.comparison.margins import find_probabilities, largest_difference, margins_at
from offline_infer.proof.comparison.records import CaseComparison
from offline_infer.proof.comparison.text import comparison_text
from offline_infer.proof.evaluation.metrics import joint_histogram

SHAPE = (6, 10, 12)


def save(path: Path, array: npt.NDArray[np.integer]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing((1.0, 2.0, 4.0))
    sitk.WriteImage(image, str(path))
    return path


def softmax(seed: int, shape: tuple[int, ...] = SHAPE, classes: int = 3) -> npt.NDArray[np.float64]:
    logits = np.random.default_rng(seed).normal(size=(classes, *shape)) * 3
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=0)


def block_labels() -> npt.NDArray[np.uint8]:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 2:8, 2:9] = 1
    labels[3, 4:6, 4:6] = 2
    return labels


def test_identical_folders(tmp_path: Path) -> None:
    for side in "ab":
        save(tmp_path / side / "x.nii.gz", block_labels())
    report = compare_folders(tmp_path / "a", tmp_path / "b")
    assert report.verdict == "identical"
    assert report.cases[0].agreement == 1.0
    assert report.cases[0].lowest_dice == 1.0
    assert "100.0000 %" in comparison_text(report)


def test_counts_and_place(tmp_path: Path) -> None:
    b = block_labels()
    a = b.copy()
    a[2, 2, 2] = 0  # on the border of label 1
    a[0, 9, 11] = 2  # in the middle of nowhere
    save(tmp_path / "a" / "x.nii.gz", a)
    save(tmp_path / "b" / "x.nii.gz", b)
    report = compare_folders(tmp_path / "a", tmp_path / "b", labels=[1, 2, (1, 2)])
    case = report.cases[0]
    assert (case.voxels, case.differing) == (b.size, 2)
    assert case.verdict == report.verdict == "unknown"
    assert case.confusion == ({"from": 0, "to": 2, "voxels": 1}, {"from": 1, "to": 0, "voxels": 1})
    assert set(case.labels) == {"1", "2", "(1, 2)"}
    row = case.labels["2"]
    assert (row["voxels_a"], row["voxels_b"]) == (5, 4)
    assert row["ml_b"] == pytest.approx(4 * 8 / 1000)
    assert (row["components_a"], row["components_b"]) == (2, 1)
    assert row["dice"] == pytest.approx(8 / 9)
    place = case.place
    assert place is not None
    assert place.box == ((0, 3), (2, 10), (2, 12))
    assert place.first == ((0, 9, 11), (2, 2, 2))
    assert place.centroid == (1.0, 5.5, 6.5)
    assert (place.components, place.largest) == (2, (1, 1))
    assert (place.on_border, place.judged, place.all_on_border) == (1, 2, False)
    # The nearest voxels that touch another label: one slice up, two rows and three columns away.
    border = np.argwhere(_border(b)) * (4.0, 2.0, 1.0)
    expected = np.linalg.norm(border - np.array([0, 9, 11]) * (4.0, 2.0, 1.0), axis=1).min()
    assert place.border_distance_max == pytest.approx(expected)
    json.dumps(report.to_json(), allow_nan=False)


def _border(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    padded = np.pad(labels, 1, mode="edge")
    centre = padded[1:-1, 1:-1, 1:-1]
    border = np.zeros(labels.shape, bool)
    for axis in range(3):
        for step in (-1, 1):
            border |= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] != centre
    return border


def test_confusion_is_ordered_by_size() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (4, 5, 6)), rng.integers(0, 3, (4, 5, 6))
    pairs = confusion(joint_histogram(a, b))
    assert sum(pair["voxels"] for pair in pairs) == int((a != b).sum())
    assert [p["voxels"] for p in pairs] == sorted((p["voxels"] for p in pairs), reverse=True)
    for pair in pairs:
        assert pair["voxels"] == int(((b == pair["from"]) & (a == pair["to"])).sum())


def test_place_in_a_map_of_one_label() -> None:
    b = np.zeros(SHAPE, np.uint8)
    a = b.copy()
    a[1, 1, 1:3] = 1
    place = place_of(differing_coordinates(a, b), b, (1, 1, 1))
    assert place.border_distance_max is None
    assert place.on_border == 0
    assert component_counts(b) == {}
    assert component_counts(a) == {1: 1}


def _tie_case(tmp_path: Path, margin: float) -> Path:
    """Two folders that differ in one voxel, whose two best classes are ``margin`` apart in b's stored probabilities."""
    probabilities = softmax(1)
    probabilities[:, 2, 3, 4] = (0.5 + margin / 2, 0.5 - margin / 2, 0)
    b = probabilities.argmax(axis=0)
    a = b.copy()
    a[2, 3, 4] = 1
    save(tmp_path / "a" / "x.nii.gz", a)
    save(tmp_path / "b" / "x.nii.gz", b)
    np.savez_compressed(tmp_path / "b" / "x.npz", probabilities=probabilities.astype(np.float32))
    return tmp_path


def test_a_tie_and_a_bug_are_told_apart(tmp_path: Path) -> None:
    tie = compare_folders(*(_tie_case(tmp_path / "tie", 2e-4) / side for side in "ab"))
    assert tie.verdict == "ties"
    margins = tie.cases[0].margins
    assert margins is not None
    assert (margins.source, margins.ties, margins.bugs) == ("b", 1, 0)
    assert margins.max == pytest.approx(2e-4, rel=1e-2)
    bug = compare_folders(*(_tie_case(tmp_path / "bug", 0.2) / side for side in "ab"))
    assert bug.verdict == "bug"
    assert bug.cases[0].margins is not None
    assert bug.cases[0].margins.worst[0]["voxel"] == [2, 3, 4]
    tolerant = compare_folders(*(tmp_path / "bug" / side for side in "ab"), tie_margin=0.3)
    assert tolerant.verdict == "ties"


def test_with_probabilities_on_both_sides_the_larger_margin_counts(tmp_path: Path) -> None:
    folder = _tie_case(tmp_path, 1e-4)
    with np.load(folder / "b" / "x.npz") as stored:
        ours = stored["probabilities"].copy()
    ours[:, 2, 3, 4] = (0.2, 0.8, 0.0)
    np.savez_compressed(folder / "a" / "x.npz", probabilities=ours)
    case = compare_folders(folder / "a", folder / "b").cases[0]
    assert case.margins is not None
    assert case.margins.source == "both"
    assert case.verdict == "bug"
    assert case.margins.probability_difference is not None
    assert case.margins.probability_difference["max"] == pytest.approx(0.3, abs=1e-3)


def test_v1_probabilities_of_a_cropped_region(tmp_path: Path) -> None:
    box = ((1, 5), (2, 9), (3, 11))
    inside = tuple(slice(*pair) for pair in box)
    probabilities = softmax(3, tuple(last - first for first, last in box))
    labels = np.zeros(SHAPE, np.uint8)
    labels[inside] = probabilities.argmax(axis=0)
    file = save(tmp_path / "x.nii.gz", labels)
    np.savez_compressed(tmp_path / "x.npz", softmax=probabilities.astype(np.float16))
    with pytest.raises(ImageError, match=r"x\.pkl: missing"):
        find_probabilities(file, SHAPE)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"crop_bbox": [list(pair) for pair in box]}))
    found = find_probabilities(file, SHAPE)
    assert found is not None
    assert found.origin == (1, 2, 3)
    voxels = np.array([[4, 8, 10], [1, 2, 3], [0, 0, 0], [2, 5, 7]])
    margins = margins_at(found, voxels)
    ordered = np.sort(probabilities.astype(np.float16).astype(float), axis=0)
    for voxel, margin in zip(voxels, margins, strict=True):
        if not all(first <= v < last for v, (first, last) in zip(voxel, box, strict=True)):
            assert np.isinf(margin)
        else:
            place = tuple(v - first for v, (first, _) in zip(voxel, box, strict=True))
            assert margin == pytest.approx(ordered[-1][place] - ordered[-2][place])


def test_a_pickle_that_wants_to_run_something_is_only_remarked_on(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "owned"),))

    a, b = block_labels(), block_labels()
    a[0, 0, 0] = 1
    save(tmp_path / "a" / "x.nii.gz", a)
    save(tmp_path / "b" / "x.nii.gz", b)
    np.savez(tmp_path / "b" / "x.npz", softmax=softmax(0, (2, 2, 2)).astype(np.float16))
    (tmp_path / "b" / "x.pkl").write_bytes(pickle.dumps({"crop_bbox": Evil()}))
    case = compare_folders(tmp_path / "a", tmp_path / "b").cases[0]
    assert case.verdict == "unknown"
    assert "probabilities of b not used" in case.remarks[0]
    assert not (tmp_path / "owned").exists()


def test_margins_of_region_models_are_distances_from_one_half(tmp_path: Path) -> None:
    sigmoid = np.random.default_rng(2).uniform(size=(2, *SHAPE)).astype(np.float32)
    file = save(tmp_path / "x.nii.gz", block_labels())
    np.savez_compressed(tmp_path / "x.npz", probabilities=sigmoid)
    found = find_probabilities(file, SHAPE)
    assert found is not None
    voxels = np.argwhere(np.ones(SHAPE, bool))
    expected = np.abs(sigmoid - 0.5).min(axis=0).ravel()
    np.testing.assert_allclose(margins_at(found, voxels), expected, atol=1e-6)
    assert largest_difference(found, found) == {"max": 0.0, "mean": 0.0}


@pytest.mark.parametrize("kind", ["text", "truncated", "other array", "fortran", "objects"])
def test_damaged_probabilities_are_named(tmp_path: Path, kind: str) -> None:
    file = save(tmp_path / "x.nii.gz", block_labels())
    path = tmp_path / "x.npz"
    if kind == "text":
        path.write_text("hello")
    elif kind == "other array":
        np.savez(path, image=np.zeros(3))
    elif kind == "fortran":
        np.savez(path, probabilities=np.asfortranarray(softmax(0)))
    elif kind == "objects":
        np.savez(path, probabilities=np.array([{}], dtype=object))
    else:
        np.savez(path, probabilities=softmax(0))
        path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ImageError, match=r"x\.npz"):
        find_probabilities(file, SHAPE)


def test_cases_that_cannot_be_compared_are_listed(tmp_path: Path) -> None:
    for name, side in (("same", "a"), ("same", "b"), ("mine", "a"), ("theirs", "b"), ("shape", "a")):
        save(tmp_path / side / f"{name}.nii.gz", block_labels())
    save(tmp_path / "b" / "shape.nii.gz", block_labels()[1:])
    report = compare_folders(tmp_path / "a", tmp_path / "b")
    assert (report.only_in_a, report.only_in_b) == (("mine",), ("theirs",))
    assert "shape" in report.failed["shape"]
    assert report.verdict == "unknown"
    text = comparison_text(report)
    assert "mine: only in a" in text
    assert "theirs: only in b" in text
    assert "shape: not compared" in text


def test_wrong_options(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.nii.gz", block_labels())
    save(tmp_path / "b" / "y.nii.gz", block_labels())
    with pytest.raises(UsageError, match="no case in common"):
        compare_folders(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UsageError, match="tie margin"):
        compare_folders(tmp_path / "a", tmp_path / "a", tie_margin=-1)


@pytest.mark.parity
def test_recorded_probabilities_decide_the_recorded_labels(goldens: Path) -> None:
    """Where two runs of the framework differ, the margins in its own files are found at the right voxels."""
    first, second = goldens / "v1/expected/ctthick_fold0", goldens / "v1/expected/ctthick_fold0+1"
    case = compare_folders(first, second).cases[0]
    assert case.differing > 100
    assert case.margins is not None
    assert case.margins.source == "both"
    assert case.margins.outside == 0
    label_file = first / "ctthick.nii.gz"
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(label_file)))
    stored = find_probabilities(label_file, labels.shape)
    assert stored is not None
    voxels = np.argwhere(labels > 0)[::500]
    with np.load(first / "ctthick.npz") as archive:
        softmaxes = archive["softmax"].astype(np.float64)
    local = tuple((voxels - stored.origin).T)
    top = np.sort(softmaxes[(slice(None), *local)], axis=0)
    np.testing.assert_allclose(margins_at(stored, voxels), top[-1] - top[-2])
    assert (softmaxes[(slice(None), *local)].argmax(axis=0) == labels[tuple(voxels.T)]).mean() > 0.99


def organ(seed: int = 0) -> npt.NDArray[np.uint8]:
    """A smooth organ with a lump in it, of no symmetry."""
    z, y, x = np.ogrid[:24, :30, :36]
    ripple = np.random.default_rng(seed).normal(size=(24, 30, 36))
    surface = ((z - 11) / 7) ** 2 + ((y - 13) / 9) ** 2 + ((x - 20) / 11) ** 2 + 1.5 * gaussian_filter(ripple, 1.5)
    labels = (surface < 1).astype(np.uint8)
    labels[8:12, 10:15, 14:20] = 2
    return labels


def compared(tmp_path: Path, a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> CaseComparison:
    save(tmp_path / "a" / "x.nii.gz", a)
    save(tmp_path / "b" / "x.nii.gz", b)
    return compare_folders(tmp_path / "a", tmp_path / "b").cases[0]


@pytest.mark.parametrize(
    ("mistake", "kind", "words"),
    [
        (lambda m: m[:, :, ::-1], "flip", "flipped along x"),
        (lambda m: m[::-1, ::-1], "flip", "flipped along z and y"),
        (lambda m: np.roll(m, 1, axis=0), "shift", "shifted by 1 voxel along z"),
        (lambda m: np.array([0, 2, 1], np.uint8)[m], "labels", "1 of b is 2 in a, 2 of b is 1 in a"),
        (np.zeros_like, "empty", "a holds nothing but background"),
    ],
)
def test_a_single_mistake_is_named(tmp_path: Path, mistake: Callable, kind: str, words: str) -> None:  # type: ignore[type-arg]
    case = compared(tmp_path, mistake(organ()), organ())
    assert case.explanation is not None
    assert (case.explanation.kind, case.verdict) == (kind, "bug")
    assert words in case.explanation.text


def write_run_record(folder: Path, digest: str) -> None:
    record = {"folds": ["0"], "source": {"folds": [{"fold": "0", "sha256": digest * 64}]}}
    (folder / "offline_infer_run.json").write_text(json.dumps(record))


def test_two_models_are_told_from_a_bug(tmp_path: Path) -> None:
    assert compared(tmp_path, organ(1), organ(2)).verdict == "different"  # differs a little everywhere
    write_run_record(tmp_path / "a", "a")
    write_run_record(tmp_path / "b", "b")
    assert compared(tmp_path, organ(1), organ(2)).verdict == "different"
    write_run_record(tmp_path / "b", "a")
    same = compared(tmp_path, organ(1), organ(2))
    assert (same.same_model, same.verdict) == (True, "unknown")  # no probabilities to tell ties from mistakes
    (tmp_path / "b" / "offline_infer_run.json").write_text("[" * 100_000)
    assert compared(tmp_path, organ(1), organ(2)).same_model is None


def test_the_command_prints_dice_per_class_and_fails_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = organ(1), organ(2)
    case = compared(tmp_path, a, b)
    (tmp_path / "a" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "tumour": 2}}))
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["compare", *folders, "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "Dice liver" in text
    assert "Dice tumour" in text
    assert f"{case.labels['1']['dice']:.4f}" in text
    assert "two different models" in text
    assert main(["compare", *folders, "--quiet", "--fail-below", "0.999"]) == 3
    assert "Dice of liver" in capsys.readouterr().out
    assert main(["compare", *folders, "--quiet", "--fail-below", "0.5"]) == 0


@pytest.mark.parametrize("margin", ["inf", "nan", "-1", "2"])
def test_a_tie_margin_is_a_difference_of_probabilities(tmp_path: Path, margin: str) -> None:
    compared(tmp_path, organ(), organ())
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["compare", *folders, "--quiet", f"--tie-margin={margin}"]) == 2


def test_a_comparison_replaces_no_label_file(tmp_path: Path) -> None:
    compared(tmp_path, organ(1), organ(2))
    before = (tmp_path / "b" / "x.nii.gz").read_bytes()
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["compare", *folders, "--quiet", "-o", str(tmp_path / "b" / "x.nii.gz")]) == 2
    assert (tmp_path / "b" / "x.nii.gz").read_bytes() == before


def test_a_reduced_precision_has_wider_ties(tmp_path: Path) -> None:
    case = compared(tmp_path, organ(1), organ(2))
    assert compare_folders(tmp_path / "a", tmp_path / "b").tie_margin == pytest.approx(1e-3)
    (tmp_path / "a" / "offline_infer_run.json").write_text(json.dumps({"engine": {"precision": "bf16"}}))
    assert compare_folders(tmp_path / "a", tmp_path / "b").tie_margin == pytest.approx(0.05)
    assert compare_folders(tmp_path / "a", tmp_path / "b", tie_margin=0.002).tie_margin == pytest.approx(0.002)
    made = {"engine": {"name": "x"}, "cases": [{"record": {"precision": "fp16"}}, {"record": None}, 3]}
    (tmp_path / "a" / "offline_infer_run.json").write_text(json.dumps(made))
    assert compare_folders(tmp_path / "a", tmp_path / "b").tie_margin == pytest.approx(0.01)
    (tmp_path / "a" / "offline_infer_run.json").write_text(json.dumps({"engine": ["bf16"], "cases": {}}))
    assert compare_folders(tmp_path / "a", tmp_path / "b").tie_margin == pytest.approx(1e-3)
    assert case.same_model is None
