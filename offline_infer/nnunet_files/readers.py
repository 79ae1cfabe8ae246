"""Which reader's axes saved probabilities lie in. They lie in the array's axes, the label map beside them in the file's."""

from __future__ import annotations

import json
from pathlib import Path

from offline_infer.arithmetic.axes import IDENTITY, AffineAxes, Turn, TurnedAxes
from offline_infer.checkpoints.pickles.reading import read_pickle
from offline_infer.errors import OfflineInferError
from offline_infer.images import READERS, read_geometry

_PLANS_LIMIT = 1 << 26


def recorded_reader(array_file: Path) -> str | None:
    """The reader class that made the axes of ``case.npz``, or None where neither its record nor the plans beside it say so.

    The record (``case.pkl``) is asked first: nnU-Net's readers leave what their writers need in it. Nothing in it is
    executed.
    """
    return _reader_in_record(array_file.with_suffix(".pkl")) or _reader_in_plans(array_file.with_name("plans.json"))


def turn_of(label_file: Path, reader: str | None) -> Turn:
    """How a label map's stored array is turned to lie in a reader's axes.

    Raises:
        ImageError, GeometryError: the label map's header cannot be read.
    """
    if reader is None or not reader.endswith("WithReorient"):
        return IDENTITY
    axes = read_geometry([label_file], reader, label=True).axes
    return axes.turn if isinstance(axes, TurnedAxes | AffineAxes) else IDENTITY


def _reader_in_record(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        record = read_pickle(path)
    except OfflineInferError:
        return None
    if not isinstance(record, dict):
        return None
    for key, reader, sign in (
        ("sitk_stuff", "SimpleITKIO", "original_orientation"),
        ("nibabel_stuff", "NibabelIO", "reoriented_affine"),
    ):
        part = record.get(key)
        if isinstance(part, dict):
            return f"{reader}WithReorient" if sign in part or "turn" in record else reader
    return None


def _reader_in_plans(path: Path) -> str | None:
    try:
        if path.stat().st_size > _PLANS_LIMIT:
            return None
        reader = json.loads(path.read_bytes())["image_reader_writer"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return reader if isinstance(reader, str) and reader in READERS else None
