"""Decathlon tasks to nnU-Net's layout, and the validation cases of a fold."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from image_samples import DIRECTIONS, itk_image, save, voxels

from offline_infer.errors import UnsafePickleError, UsageError
from offline_infer.events import Event
from offline_infer.images import read_image
from offline_infer.images.cases import find_cases
from offline_infer.images.datasets import convert_msd_task, pick_validation_cases, validation_cases


def task(root: Path, channels: int, name: str = "Task04_Hippocampus") -> Path:
    """A small Decathlon task: two training images, one test image, macOS's hidden files."""
    folder = root / name
    for sub, cases in (("imagesTr", ("a_1", "a_2")), ("imagesTs", ("a_9",)), ("labelsTr", ("a_1", "a_2"))):
        (folder / sub).mkdir(parents=True)
        for number, case in enumerate(cases):
            path = folder / sub / f"{case}.nii.gz"
            if sub == "labelsTr" or channels == 1:
                save(path, voxels(seed=number), DIRECTIONS["oblique"])
            else:
                volumes = [itk_image(voxels(seed=10 * number + c), DIRECTIONS["oblique"]) for c in range(channels)]
                sitk.WriteImage(sitk.JoinSeries(volumes), str(path), True)
            (folder / sub / f"._{case}.nii.gz").write_bytes(b"resource fork")
    names = {str(channel): f"channel {channel}" for channel in range(channels)}
    (folder / "dataset.json").write_text(json.dumps({"modality": names, "labels": {"0": "background"}}))
    return folder


@pytest.mark.parametrize("channels", [1, 2])
def test_convert(tmp_path: Path, channels: int) -> None:
    source = task(tmp_path, channels)
    events: list[Event] = []
    done = convert_msd_task(source, tmp_path / "raw", sink=events.append)
    assert done.folder == tmp_path / "raw" / "Task004_Hippocampus"
    assert (done.written, done.present, done.problems) == (5, 0, {})
    assert [event.done for event in events] == [1, 2, 3, 4, 5]
    images = sorted(path.name for path in (done.folder / "imagesTr").iterdir())
    assert images == [f"a_{case}_{channel:04d}.nii.gz" for case in (1, 2) for channel in range(channels)]
    assert sorted(path.name for path in (done.folder / "labelsTr").iterdir()) == ["a_1.nii.gz", "a_2.nii.gz"]
    assert (done.folder / "dataset.json").read_text() == (source / "dataset.json").read_text()
    stored = sitk.ReadImage(str(source / "imagesTr" / "a_2.nii.gz"))
    found = find_cases(done.folder / "imagesTr", channels, ".nii.gz")
    image = read_image(found.cases[1].channels, "SimpleITKIO", channels=channels)
    expected = sitk.GetArrayFromImage(stored).reshape(image.array.shape)
    np.testing.assert_array_equal(image.array, expected)
    assert image.geometry.itk_spacing == stored.GetSpacing()[:3]
    np.testing.assert_allclose(image.geometry.origin, stored.GetOrigin()[:3])
    direction = np.reshape(stored.GetDirection(), (stored.GetDimension(),) * 2)[:3, :3]
    np.testing.assert_allclose(image.geometry.direction, direction.ravel(), atol=1e-6)


def test_three_dimensional_images_and_labels_are_copied_byte_for_byte(tmp_path: Path) -> None:
    source = task(tmp_path, 1)
    target = convert_msd_task(source, tmp_path / "raw").folder
    pairs = [("imagesTr/a_1.nii.gz", "imagesTr/a_1_0000.nii.gz"), ("labelsTr/a_1.nii.gz", "labelsTr/a_1.nii.gz")]
    for before, after in pairs:
        assert (source / before).read_bytes() == (target / after).read_bytes()


def test_convert_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source = task(tmp_path, 2)
    target = convert_msd_task(source, tmp_path / "raw").folder
    kept = (target / "imagesTr" / "a_1_0000.nii.gz").stat().st_mtime_ns
    (target / "imagesTr" / "a_2_0001.nii.gz").unlink()
    again = convert_msd_task(source, tmp_path / "raw")
    assert (again.written, again.present) == (1, 4)
    assert (target / "imagesTr" / "a_1_0000.nii.gz").stat().st_mtime_ns == kept
    assert convert_msd_task(source, tmp_path / "raw", overwrite=True).written == 5


def test_convert_with_processes(tmp_path: Path) -> None:
    source = task(tmp_path, 1)
    assert convert_msd_task(source, tmp_path / "raw", jobs=2).written == 5


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    source = task(tmp_path, 2)
    victim = source / "imagesTr" / "a_1.nii.gz"
    victim.write_bytes(victim.read_bytes()[:-40])
    save(source / "imagesTs" / "a_9.nii.gz", voxels())
    label = source / "labelsTr" / "a_2.nii.gz"
    label.write_bytes(label.read_bytes()[:-4])
    done = convert_msd_task(source, tmp_path / "raw")
    assert set(done.problems) == {"imagesTr/a_1.nii.gz", "imagesTs/a_9.nii.gz", "labelsTr/a_2.nii.gz"}
    assert "2 channels" in done.problems["imagesTs/a_9.nii.gz"]
    assert done.written == 2
    assert not (done.folder / "dataset.json").exists()
    assert not list((done.folder / "imagesTr").glob("a_1*"))


def test_what_is_no_task(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TaskXX_Name"):
        convert_msd_task(tmp_path, tmp_path / "raw")
    (tmp_path / "Task03_Liver").mkdir()
    with pytest.raises(UsageError, match="imagesTr"):
        convert_msd_task(tmp_path / "Task03_Liver", tmp_path / "raw")
    source = task(tmp_path, 1)
    (source / "dataset.json").write_text("{")
    with pytest.raises(UsageError, match="JSON"):
        convert_msd_task(source, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    same = task(tmp_path, 1, "Task005_Prostate")
    with pytest.raises(UsageError, match="same folder"):
        convert_msd_task(same, tmp_path)


SPLIT = [
    {"train": ["liver_1"], "val": ["liver_12", "liver_3"]},
    {"train": ["liver_3"], "val": ["liver_1"]},
]


def pickled(path: Path) -> Path:
    """As nnU-Net v1 writes it: a list of ordered dictionaries of string arrays."""
    value = [OrderedDict((key, np.array(names)) for key, names in fold.items()) for fold in SPLIT]
    path.write_bytes(pickle.dumps(value))
    return path


def images(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for case in ("liver_1", "liver_3", "liver_12", "liver_33"):
        for channel in range(2):
            (folder / f"{case}_{channel:04d}.nii.gz").write_text(f"{case} {channel}")
    return folder


@pytest.mark.parametrize("kind", ["pkl", "json"])
def test_splits_of_both_versions(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"splits_final.{kind}"
    if kind == "pkl":
        pickled(path)
    else:
        path.write_text(json.dumps(SPLIT))
    assert validation_cases(path, 0) == ("liver_3", "liver_12")
    assert validation_cases(path, 1) == ("liver_1",)
    with pytest.raises(UsageError, match="folds 0 to 1"):
        validation_cases(path, 2)


@pytest.mark.parametrize("way", ["symlink", "hardlink", "copy"])
def test_pick(tmp_path: Path, way: str) -> None:
    splits, source, target = pickled(tmp_path / "splits_final.pkl"), images(tmp_path / "imagesTr"), tmp_path / "input"
    picked = pick_validation_cases(splits, 0, source, target, copy_or_link=way)  # type: ignore[arg-type]
    assert picked.cases == ("liver_3", "liver_12")
    assert (picked.placed, picked.present) == (4, 0)
    expected = ["liver_12_0000.nii.gz", "liver_12_0001.nii.gz", "liver_3_0000.nii.gz", "liver_3_0001.nii.gz"]
    assert sorted(path.name for path in target.iterdir()) == expected
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in expected)
    assert (target / expected[0]).is_symlink() == (way == "symlink")
    assert [case.case_id for case in find_cases(target, 2, ".nii.gz").cases] == ["liver_3", "liver_12"]
    again = pick_validation_cases(splits, 0, source, target)
    assert (again.placed, again.present) == (0, 4)


def test_pick_labels_too(tmp_path: Path) -> None:
    splits, source = pickled(tmp_path / "splits_final.pkl"), images(tmp_path / "imagesTr")
    labels = tmp_path / "labelsTr"
    labels.mkdir()
    for case in ("liver_3", "liver_12", "liver_1"):
        (labels / f"{case}.nii.gz").write_text(case)
    places = {"labels_folder": labels, "labels_output": tmp_path / "reference"}
    pick_validation_cases(splits, 0, source, tmp_path / "input", **places)
    assert sorted(path.name for path in (tmp_path / "reference").iterdir()) == ["liver_12.nii.gz", "liver_3.nii.gz"]
    with pytest.raises(UsageError, match="belong together"):
        pick_validation_cases(splits, 0, source, tmp_path / "input", labels_folder=labels)


def test_pick_complains_before_it_places_anything(tmp_path: Path) -> None:
    splits, source, target = pickled(tmp_path / "splits_final.pkl"), images(tmp_path / "imagesTr"), tmp_path / "input"
    for path in source.glob("liver_12_*"):
        path.unlink()
    with pytest.raises(UsageError, match="no file for liver_12;"):
        pick_validation_cases(splits, 0, source, target)
    assert not target.exists()
    target.mkdir()
    (target / "liver_1_0001.nii.gz").write_text("something else")
    with pytest.raises(UsageError, match="in the way"):
        pick_validation_cases(splits, 1, source, target)
    assert len(list(target.iterdir())) == 1
    with pytest.raises(UsageError, match="same folder"):
        pick_validation_cases(splits, 1, source, source)
    with pytest.raises(UsageError, match="legal: symlink"):
        pick_validation_cases(splits, 1, source, target, copy_or_link="move")  # type: ignore[arg-type]


def test_a_split_cannot_lead_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "splits_final.json"
    for name in ("../secret", "/etc/passwd", "a/b", "..", ""):
        path.write_text(json.dumps([{"train": [], "val": [name]}]))
        with pytest.raises(UsageError, match="no plain file name"):
            validation_cases(path, 0)
    for content in ("{", "[]", "{}", '[{"train": []}]', '[{"val": []}]'):
        path.write_text(content)
        with pytest.raises(UsageError, match="splits_final"):
            validation_cases(path, 0)


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def test_a_pickle_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "splits_final.pkl"
    path.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(UnsafePickleError):
        validation_cases(path, 0)
    assert capsys.readouterr().out == ""
