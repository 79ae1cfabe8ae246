"""Dataset layouts, pairing and names."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from photo_samples import image_spec, photo, save, write_list, write_pairs

from offline_infer.errors import EngineUnavailable, UsageError
from offline_infer.tasks.image.datasets import check_sizes, find_sets
from offline_infer.tasks.image.task import TASK


def test_a_missing_pillow_is_named_while_cases_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(tmp_path, [(8, 9)])
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EngineUnavailable, match=r"offline-infer\[images\]"):
        TASK.list_cases(tmp_path, image_spec())


def test_a_folder_of_pairs(tmp_path: Path) -> None:
    (one,) = find_sets(write_pairs(tmp_path / "Set", [(8, 9), (10, 11)]), need_masks=True)
    assert one.name == "Set"
    assert [(item.name, item.stem, item.mask and item.mask.name) for item in one.items] == [
        ("p0.png", "p0", "p0.png"),
        ("p1.png", "p1", "p1.png"),
    ]
    assert check_sizes([one]) == {}


def test_masks_may_carry_a_suffix_and_stray_files_are_left_alone(tmp_path: Path) -> None:
    write_pairs(tmp_path, [(8, 9)])
    (tmp_path / "Gt" / "p0.png").rename(tmp_path / "Gt" / "p0_gt.png")
    (tmp_path / "Tp" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "Tp" / ".p0.png").write_bytes(b"")
    (one,) = find_sets(tmp_path, need_masks=True)
    assert [item.mask and item.mask.name for item in one.items] == ["p0_gt.png"]


def test_every_mismatch_is_named_before_any_work(tmp_path: Path) -> None:
    write_pairs(tmp_path, [(8, 9)] * 3)
    (tmp_path / "Gt" / "p1.png").rename(tmp_path / "Gt" / "q1.png")
    with pytest.raises(UsageError, match=r"Gt/q1\.png: no image; Tp/p1\.png: no mask"):
        find_sets(tmp_path, need_masks=True)
    (one,) = find_sets(tmp_path)  # prediction needs no masks
    assert [item.mask is None for item in one.items] == [False, True, False]
    (ordered,) = find_sets(tmp_path, pair_by="order", need_masks=True)
    assert [item.mask and item.mask.name for item in ordered.items] == ["p0.png", "p2.png", "q1.png"]


def test_order_refuses_unequal_counts(tmp_path: Path) -> None:
    write_pairs(tmp_path, [(8, 9)] * 2)
    (tmp_path / "Gt" / "p1.png").unlink()
    with pytest.raises(UsageError, match="2 images in Tp and 1 masks in Gt"):
        find_sets(tmp_path, pair_by="order")
    with pytest.raises(UsageError, match="legal: name, order"):
        find_sets(tmp_path, pair_by="size")


def test_a_list_of_pairs_with_authentic_images(tmp_path: Path) -> None:
    write_pairs(tmp_path, [(8, 9)] * 2)
    path = write_list(tmp_path / "list.json", [("Tp/p0.png", "Gt/p0.png"), ("Tp/p1.png", "Negative")])
    (one,) = find_sets(path, need_masks=True)
    assert [(item.authentic, item.referenced) for item in one.items] == [(False, True), (True, True)]
    assert one.items[1].mask is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("[]", "is empty"),
        ("{}", "is empty"),
        ("[", "not readable as JSON"),
        ("3", "holds int"),
        ('[["a.png"]]', "entry 0"),
        ('[["a.png", 3]]', "entry 0"),
        ('[["nowhere.png", "Negative"]]', "nowhere.png"),
        ('[["Tp/p0.png", "negative"]]', "capital N"),
        ('[["Tp/p0.png", "Gt/x.png"], ["Tp/p0.png", "Gt/y.png"]]', "2 files that do not exist"),
        ('{"Set": 3}', "Set"),
        ('{"Set": "nowhere"}', "does not exist"),
        ('[["Tp/p0.png", "Negative"], ["Tp/p0.png", "Negative"]]', "listed 2 times"),
        ("[" * 100_000, "not readable as JSON"),
        ('[["a\\u0000b.png", "Negative"]]', "do not exist"),
    ],
)
def test_a_bad_list_is_refused_with_its_reason(tmp_path: Path, text: str, message: str) -> None:
    write_pairs(tmp_path, [(8, 9)])
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        find_sets(tmp_path / "list.json")


def test_several_sets_keep_their_order_and_their_files_apart(tmp_path: Path) -> None:
    for name in ("B set", "A"):
        write_pairs(tmp_path / name, [(8, 9)])
    (tmp_path / "sets.json").write_text(json.dumps({"B set": "B set", "A": "A"}))
    sets = find_sets(tmp_path / "sets.json", need_masks=True)
    assert [(one.name, one.items[0].stem) for one in sets] == [("B set", "B set__p0"), ("A", "A__p0")]


def test_equal_names_are_told_apart_and_noted(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        save(tmp_path / "x" / name, photo(8, 8))
    save(tmp_path / "y" / "b.png", photo(8, 8))
    entries = [("x/a.png", "Negative"), ("x/a.jpg", "Negative"), ("x/b.png", "Negative"), ("y/b.png", "Negative")]
    (one,) = find_sets(write_list(tmp_path / "l.json", entries))
    assert [item.name for item in one.items] == ["a.png", "a.jpg", "x/b.png", "y/b.png"]
    assert [item.stem for item in one.items] == ["a_png", "a_jpg", "x_b", "y_b"]
    assert len(one.notes) == 4


def test_one_image_a_bare_folder_and_an_empty_one(tmp_path: Path) -> None:
    path = save(tmp_path / "some" / "photo.v2.JPG", photo(8, 8))
    (one,) = find_sets(path)
    assert [(item.stem, item.name) for item in one.items] == [("photo.v2", "photo.v2.JPG")]
    (bare,) = find_sets(tmp_path / "some")
    assert len(bare.items) == 1
    with pytest.raises(UsageError, match="1 images have no reference"):
        find_sets(tmp_path / "some", need_masks=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no image"):
        find_sets(tmp_path / "empty")
    with pytest.raises(UsageError, match="does not exist"):
        find_sets(tmp_path / "nowhere")


def test_pipes_and_folders_are_no_images(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    save(tmp_path / "Set" / "a.png", photo(4, 5))
    os.mkfifo(tmp_path / "Set" / "pipe.png")
    (tmp_path / "Set" / "folder.png").mkdir()
    (one,) = find_sets(tmp_path / "Set")
    assert [item.name for item in one.items] == ["a.png"]
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(UsageError, match=f"are no files: entry 0: Set/{name}"):
            find_sets(write_list(tmp_path / "l.json", [(f"Set/{name}", "Negative")]))


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, [(8, 9), (10, 11)])
    save(tmp_path / "Gt" / "p1.png", np.zeros((10, 12), np.uint8))
    (tmp_path / "Gt" / "p0.png").write_bytes(b"no image")
    problems = check_sizes(find_sets(tmp_path, need_masks=True))
    assert "11 x 10 pixels and its mask" in problems["p1"]
    assert "cannot be decoded" in problems["p0"]
