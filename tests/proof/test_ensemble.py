"""Averaging saved probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from image_samples import DIRECTIONS, save
from specimens import tiny_spec

from offline_infer.arithmetic.geometry import CaseGeometry, ImageGeometry
from offline_infer.checkpoints.pickles.reading import read_pickle
from offline_infer.errors import CasesFailed, UsageError
from offline_infer.images import read_labels, write_labels
from offline_infer.nnunet_files.dataset_files import write_framework_files
from offline_infer.nnunet_files.probabilities import read_npz, write_probabilities
from offline_infer.proof.ensemble import ensemble_folders
from offline_infer.spec import VolumeSpec

FRAME = ImageGeometry((6, 7, 8), (2.0, 1.0, 1.0), (5.0, -3.0, 1.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1), (1.0, 1.0, 2.0))
CROP = ((1, 5), (0, 7), (2, 8))


def member(folder: Path, case: str, probabilities: np.ndarray, spec: VolumeSpec) -> None:
    folder.mkdir(exist_ok=True)
    geometry = CaseGeometry(FRAME, CROP, (4, 7, 6), (2.0, 1.0, 1.0), (0, 1, 2))
    labels = np.zeros(FRAME.shape, np.uint8)
    write_probabilities(folder / case, probabilities, geometry, spec)
    write_labels(folder / f"{case}.nii.gz", labels, FRAME)


def draw(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).random((3, 4, 7, 6)).astype(np.float32)
    return values / values.sum(0)


@pytest.mark.parametrize("domain", ["logits", "probabilities"])
def test_mean_then_argmax_in_the_crop(tmp_path: Path, domain: str) -> None:
    spec = tiny_spec()
    spec = spec.model_copy(update={"aggregation": spec.aggregation.model_copy(update={"domain": domain})})
    a, b = draw(1), draw(2)
    member(tmp_path / "a", "case", a, spec)
    member(tmp_path / "b", "case", b, spec)
    assert ensemble_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "out", spec) == ["case"]
    # v1 stores half precision and averages in half precision.
    mean = np.mean(np.stack([a, b]).astype(np.float16), 0) if domain == "probabilities" else (a + b) / 2
    expected = np.zeros(FRAME.shape, np.uint8)
    expected[1:5, 0:7, 2:8] = mean.argmax(0)
    labels, frame = read_labels(tmp_path / "out" / "case.nii.gz")
    np.testing.assert_array_equal(labels, expected)
    assert frame.spacing == FRAME.spacing
    assert ensemble_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "out", spec) == []  # finished cases are kept


def test_whole_image_layout_of_v2(tmp_path: Path) -> None:
    member(tmp_path / "a", "case", draw(1), tiny_spec())
    name, array = read_npz(tmp_path / "a" / "case.npz")
    assert (name, array.dtype, array.shape) == ("probabilities", np.float32, (3, 6, 7, 8))
    assert array[0, 0, 0, 0] == 1  # outside the crop: certainly background
    record = read_pickle(tmp_path / "a" / "case.pkl")
    assert record["sitk_stuff"]["spacing"] == (1.0, 1.0, 2.0)


def test_folders_must_hold_the_same_cases(tmp_path: Path) -> None:
    member(tmp_path / "a", "one", draw(1), tiny_spec())
    member(tmp_path / "b", "two", draw(2), tiny_spec())
    with pytest.raises(UsageError, match="two"):
        ensemble_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "out", tiny_spec())
    with pytest.raises(UsageError, match="at least two"):
        ensemble_folders([tmp_path / "a"], tmp_path / "out", tiny_spec())


def test_a_damaged_member_fails_its_case_alone(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 2)):
        member(tmp_path / folder, "good", draw(seed), tiny_spec())
        member(tmp_path / folder, "bad", draw(seed), tiny_spec())
    whole = (tmp_path / "b" / "bad.npz").read_bytes()
    (tmp_path / "b" / "bad.npz").write_bytes(whole[:100])
    with pytest.raises(CasesFailed) as failed:
        ensemble_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "out", tiny_spec())
    assert set(failed.value.failures) == {"bad"}
    assert (tmp_path / "out" / "good.nii.gz").exists()
    assert not (tmp_path / "out" / "bad.nii.gz").exists()


def test_framework_files_hold_what_nnunet_reads(tmp_path: Path) -> None:
    spec = tiny_spec()
    write_framework_files(tmp_path, spec)
    assert not list(tmp_path.iterdir())  # not an nnU-Net v2 model
    source = spec.source.model_copy(update={"framework": "nnunet_v2"})
    write_framework_files(tmp_path, spec.model_copy(update={"source": source}))
    assert json.loads((tmp_path / "dataset.json").read_text())["labels"] == {"background": 0, "l1": 1, "l2": 2}
    assert json.loads((tmp_path / "plans.json").read_text())["image_reader_writer"] == "SimpleITKIO"


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("name", sorted(DIRECTIONS))
def test_the_result_lies_in_the_files_own_frame(tmp_path: Path, reader: str, name: str) -> None:
    """Probabilities lie in the reader's axes; a label map is written, and read again, in the file's."""
    expected = np.zeros((6, 7, 8), np.uint8)
    expected[1:3, 2, 5:7], expected[4, 4:6, 1] = 1, 2  # stored axes, symmetric along none
    stored = save(tmp_path / "labels.nii.gz", expected, DIRECTIONS[name])
    turned, frame = read_labels(stored, reader)
    case = CaseGeometry(frame, tuple((0, n) for n in frame.shape), frame.shape, frame.spacing, (0, 1, 2))  # type: ignore[arg-type]
    spec = tiny_spec().model_copy(update={"reader": reader})
    probabilities = (np.arange(3)[:, None, None, None] == turned).astype(np.float32)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_probabilities(tmp_path / folder / "case", probabilities, case, spec)
        write_labels(tmp_path / folder / "case.nii.gz", turned, frame)
    ensemble_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "out", spec)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "case.nii.gz"))), expected
    )


def test_members_in_different_axes_are_refused(tmp_path: Path) -> None:
    stored = save(tmp_path / "labels.nii.gz", np.zeros((6, 6, 6), np.uint8), DIRECTIONS["identity"])
    for folder, reader in (("a", "SimpleITKIO"), ("b", "SimpleITKIOWithReorient")):
        spec = tiny_spec().model_copy(update={"reader": reader})
        labels, frame = read_labels(stored, reader)
        case = CaseGeometry(frame, ((0, 6), (0, 6), (0, 6)), (6, 6, 6), frame.spacing, (0, 1, 2))
        (tmp_path / folder).mkdir()
        write_probabilities(tmp_path / folder / "case", np.ones((3, 6, 6, 6), np.float32), case, spec)
        write_labels(tmp_path / folder / "case.nii.gz", labels, frame)
    with pytest.raises(CasesFailed) as failed:
        ensemble_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "out", tiny_spec())
    assert "axes" in failed.value.failures["case"]
