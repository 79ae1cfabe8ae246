"""Whose axes saved probabilities lie in."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_samples import DIRECTIONS, save, voxels

from offline_infer.arithmetic.axes import IDENTITY, Turn
from offline_infer.nnunet_files.readers import recorded_reader, turn_of

RECORDS: list[tuple[Any, str | None]] = [
    ({"sitk_stuff": {"spacing": (1.0, 1.0, 1.0)}}, "SimpleITKIO"),
    ({"sitk_stuff": {"original_orientation": "LPS"}}, "SimpleITKIOWithReorient"),
    ({"nibabel_stuff": {"original_affine": np.eye(4)}}, "NibabelIO"),
    ({"nibabel_stuff": {"original_affine": np.eye(4), "reoriented_affine": np.eye(4)}}, "NibabelIOWithReorient"),
    ({"sitk_stuff": {}, "turn": {}, "stored": {}}, "SimpleITKIOWithReorient"),  # written by releases before 0.2
    ({"crop_bbox": [[0, 1]] * 3}, None),
    ({"sitk_stuff": 7}, None),
    ([1], None),
]


@pytest.mark.parametrize(("record", "reader"), RECORDS)
def test_the_record_tells(tmp_path: Path, record: Any, reader: str | None) -> None:
    (tmp_path / "case.pkl").write_bytes(pickle.dumps(record))
    assert recorded_reader(tmp_path / "case.npz") == reader


@pytest.mark.parametrize(
    ("plans", "reader"),
    [
        (b'{"image_reader_writer": "NibabelIOWithReorient"}', "NibabelIOWithReorient"),
        (b'{"image_reader_writer": "EvilIO"}', None),
        (b'{"image_reader_writer": ["NibabelIO"]}', None),
        (b"[1]", None),
        (b"\xff\xfe", None),
        (b"[" * 200_000, None),
        (b"{}", None),
    ],
)
def test_else_the_plans_beside_it(tmp_path: Path, plans: bytes, reader: str | None) -> None:
    (tmp_path / "plans.json").write_bytes(plans)
    (tmp_path / "case.pkl").write_bytes(b"not a pickle")
    assert recorded_reader(tmp_path / "case.npz") == reader


def test_nothing_there(tmp_path: Path) -> None:
    assert recorded_reader(tmp_path / "case.npz") is None


def test_turns(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), DIRECTIONS["identity"])
    for reader in ("SimpleITKIO", "NibabelIO", None):
        assert turn_of(path, reader) == IDENTITY
    for reader in ("SimpleITKIOWithReorient", "NibabelIOWithReorient"):
        assert turn_of(path, reader) == Turn((0, 1, 2), (True, True, False))
