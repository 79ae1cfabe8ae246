"""What counts as a case: nnU-Net's names, other formats, DICOM folders, and everything that goes wrong with names."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline_infer.errors import UsageError
from offline_infer.images.cases import CaseFiles, CaseList, find_cases, natural_key, select_part

MAGIC = bytes(128) + b"DICM"


def touch(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def names(found: CaseList) -> dict[str, list[str]]:
    return {case.case_id: [path.name for path in case.channels] for case in found.cases}


def test_nnunet_folder_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "liver_12_0000.nii.gz", "liver_3_0000.nii.gz", "liver_101_0000.nii.gz", "dataset.json", "x.txt")
    found = find_cases(tmp_path, 1, ".nii.gz")
    assert names(found) == {
        "liver_3": ["liver_3_0000.nii.gz"],
        "liver_12": ["liver_12_0000.nii.gz"],
        "liver_101": ["liver_101_0000.nii.gz"],
    }
    assert [case.case_id for case in found.cases] == ["liver_3", "liver_12", "liver_101"]
    assert found.problems == {}


def test_channels_in_order(tmp_path: Path) -> None:
    touch(tmp_path, *(f"b_{i:04d}.nii.gz" for i in (2, 0, 3, 1)))
    assert names(find_cases(tmp_path, 4, ".nii.gz")) == {"b": [f"b_{i:04d}.nii.gz" for i in range(4)]}


def test_missing_channel_does_not_stop_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "c_0001.nii.gz")
    found = find_cases(tmp_path, 2, ".nii.gz")
    assert list(names(found)) == ["a"]
    assert "_0001 is missing" in found.problems["b"]
    assert "_0000 is missing" in found.problems["c"]


@pytest.mark.parametrize(
    ("files", "channels", "word"),
    [
        (["a_0000.nii.gz", "a_0001.nii.gz"], 1, "_0001 is too many"),
        (["a_0000.nii.gz", "a_0000.mha"], 1, "different endings"),
        (["a_0000.nii.gz", "a.nii.gz"], 1, "same channel"),
        (["a_0000.nii.gz", "a_0001.mha"], 2, "different endings"),
        (["a.nii.gz"], 2, "_0000, _0001"),
        (["a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz"], 2, "_0002 is too many"),
    ],
)
def test_problems(tmp_path: Path, files: list[str], channels: int, word: str) -> None:
    touch(tmp_path, *files)
    found = find_cases(tmp_path, channels, ".nii.gz")
    assert found.cases == ()
    assert word in found.problems["a"]


def test_one_channel_models_take_plain_names(tmp_path: Path) -> None:
    touch(tmp_path, "scan_2023.nii.gz", "scan_2024.nii.gz", "plain.nii.gz", "with_0000.nii.gz")
    found = find_cases(tmp_path, 1, ".nii.gz")
    assert list(names(found)) == ["plain", "scan_2023", "scan_2024", "with"]
    assert found.problems == {}


@pytest.mark.parametrize("ending", [".nii", ".mha", ".mhd", ".nrrd", ".NII.GZ"])
def test_other_volume_formats(tmp_path: Path, ending: str) -> None:
    touch(tmp_path, f"a_0000{ending}", "a_0000.raw", "preview.png")
    assert names(find_cases(tmp_path, 1, ".nii.gz")) == {"a": [f"a_0000{ending}"]}


def test_hidden_files_are_left_alone(tmp_path: Path) -> None:
    touch(tmp_path, "._a_0000.nii.gz", ".a.partial.nii.gz", "a_0000.nii.gz")
    found = find_cases(tmp_path, 1, ".nii.gz")
    assert list(names(found)) == ["a"]


def test_a_link_that_leads_nowhere_is_still_a_case(tmp_path: Path) -> None:
    (tmp_path / "a_0000.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert names(find_cases(tmp_path, 1, ".nii.gz")) == {"a": ["a_0000.nii.gz"]}


def test_single_files(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b.nii.gz", "c_0003.nii.gz", "a_0001.mha")
    assert names(find_cases(tmp_path / "a_0000.nii.gz", 1, ".nii.gz")) == {"a": ["a_0000.nii.gz"]}
    assert names(find_cases(tmp_path / "b.nii.gz", 1, ".nii.gz")) == {"b": ["b.nii.gz"]}
    assert names(find_cases(tmp_path / "c_0003.nii.gz", 1, ".nii.gz")) == {"c_0003": ["c_0003.nii.gz"]}
    for name in ("a_0000.nii.gz", "a_0001.nii.gz"):
        found = find_cases(tmp_path / name, 2, ".nii.gz")
        assert names(found) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}
    assert "_0001 is missing" in find_cases(tmp_path / "b.nii.gz", 2, ".nii.gz").problems["b"]
    assert "_0000" in find_cases(tmp_path / "c_0003.nii.gz", 2, ".nii.gz").problems["c"]


def test_single_file_that_is_no_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.png")
    for name in ("a.txt", "b.png"):
        with pytest.raises(UsageError, match=r"expected one of \.nii\.gz"):
            find_cases(tmp_path / name, 1, ".nii.gz")


def test_dicom_folder(tmp_path: Path) -> None:
    touch(tmp_path / "patient 7", "im1.dcm", "im2.dcm", "notes.txt")
    found = find_cases(tmp_path / "patient 7", 1, ".nii.gz")
    assert found.cases == (CaseFiles("patient 7", (tmp_path / "patient 7",)),)


def test_folder_of_dicom_folders(tmp_path: Path) -> None:
    touch(tmp_path / "p10", "im1.dcm")
    touch(tmp_path / "p9", "IM0001", content=MAGIC)
    touch(tmp_path / "p8_0000", "a.ima")
    touch(tmp_path / "reports", "a.txt")
    found = find_cases(tmp_path, 1, ".nii.gz")
    assert names(found) == {"p8": ["p8_0000"], "p9": ["p9"], "p10": ["p10"]}


def test_two_channels_of_dicom_folders(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000"):
        touch(tmp_path / name, "im1.dcm")
    found = find_cases(tmp_path, 2, ".nii.gz")
    assert names(found) == {"a": ["a_0000", "a_0001"]}
    assert "_0001 is missing" in found.problems["b"]


def test_dicom_file_without_an_ending(tmp_path: Path) -> None:
    touch(tmp_path, "IM0001", content=MAGIC)
    assert names(find_cases(tmp_path / "IM0001", 1, ".nii.gz")) == {"IM0001": ["IM0001"]}


def test_loose_dicom_beside_images_is_not_dropped_silently(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a_0000.nii.gz", "im1.dcm")
    found = find_cases(tmp_path / "in", 1, ".nii.gz")
    assert list(names(found)) == ["a"]
    assert "1 DICOM files" in found.problems["in"]


def test_colour_images_stand_for_three_channels(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.png", "b_0000.png", "b_0001.png", "b_0002.png", "c.png", "d_0000.png", "d_0001.png")
    found = find_cases(tmp_path, 3, ".png")
    assert names(found) == {
        "a": ["a_0000.png"],
        "b": ["b_0000.png", "b_0001.png", "b_0002.png"],
        "c": ["c.png"],
    }
    assert "_0002 is missing" in found.problems["d"]
    assert names(find_cases(tmp_path / "c.png", 3, ".png")) == {"c": ["c.png"]}


def test_two_dimensional_models_ignore_volumes(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "b_0000.png", "c_0000.tif")
    assert list(names(find_cases(tmp_path, 1, ".png"))) == ["b", "c"]
    assert list(names(find_cases(tmp_path, 1, ".tif"))) == ["c"]
    assert list(names(find_cases(tmp_path, 1, ".nii.gz"))) == ["a"]


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is empty; looked for files named <case>_0000\.nii\.gz"):
        find_cases(tmp_path, 1, ".nii.gz")
    touch(tmp_path, "a.png", "b.txt")
    with pytest.raises(UsageError, match=r"_0000 to _0001.*found 2 other entries \(a\.png, b\.txt\)") as caught:
        find_cases(tmp_path, 2, ".nii.gz")
    assert "does not read" in str(caught.value)
    with pytest.raises(UsageError, match="does not exist"):
        find_cases(tmp_path / "nowhere", 1, ".nii.gz")


def test_names_that_would_spoil_lists(tmp_path: Path) -> None:
    touch(tmp_path, "a\nb_0000.nii.gz", "c\\d_0000.nii.gz", "good_0000.nii.gz")
    found = find_cases(tmp_path, 1, ".nii.gz")
    assert list(names(found)) == ["good"]
    assert len(found.problems) == 2
    assert all("\n" not in name and "rename" in reason for name, reason in found.problems.items())


def test_case_names_keep_dots_and_blanks(tmp_path: Path) -> None:
    touch(tmp_path, "Müller A. v1.2_0000.nii.gz")
    assert list(names(find_cases(tmp_path, 1, ".nii.gz"))) == ["Müller A. v1.2"]


def test_parts(tmp_path: Path) -> None:
    touch(tmp_path, *(f"c{i}_0000.nii.gz" for i in range(7)))
    cases = find_cases(tmp_path, 1, ".nii.gz").cases
    shares = [select_part(cases, part, 3) for part in range(3)]
    assert [[case.case_id for case in share] for share in shares] == [["c0", "c3", "c6"], ["c1", "c4"], ["c2", "c5"]]
    assert select_part(cases, 0, 1) == cases
    assert select_part(cases[:1], 1, 2) == ()
    for part, parts in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(UsageError, match="numbered from 0"):
            select_part(cases, part, parts)


def test_natural_order() -> None:
    mixed = ["b10", "b9", "a", "10", "9", "b09", "B1", "²"]
    assert sorted(mixed, key=natural_key) == sorted(sorted(mixed, reverse=True), key=natural_key)
    assert sorted(["x10", "x9", "x1"], key=natural_key) == ["x1", "x9", "x10"]
