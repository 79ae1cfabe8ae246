"""Label files in two places, paired by case (two folders, or two single files), and read as a pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import GeometryError, UsageError

VOLUME_ENDINGS: tuple[str, ...] = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".seg.nrrd", ".gipl")
LABEL_ENDINGS: tuple[str, ...] = (*VOLUME_ENDINGS, ".tiff", ".tif", ".png", ".bmp")
"""Endings of the label files that nnU-Net's readers know; anything else in a folder is left alone."""

LabelArray = npt.NDArray[Any]

_ORIGIN_MM = 1e-2
_SPACING_RELATIVE = 1e-3
_DIRECTION = 1e-3
_BY_LENGTH = tuple(sorted(LABEL_ENDINGS, key=len, reverse=True))


@dataclass(frozen=True)
class CasePair:
    """One case and its two files; ``first`` is the prediction, ``second`` the reference (or the other prediction)."""

    case: str
    first: Path
    second: Path


@dataclass(frozen=True)
class Pairing:
    """What stands on both sides, and what on one only. ``pairs`` are in the order of the first side's file names."""

    pairs: tuple[CasePair, ...]
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()


def pair_cases(first: Path, second: Path) -> Pairing:
    """Pair the label files of two folders by case, or two single files.

    The ending need not agree: ``liver_1.nii.gz`` and ``liver_1.nrrd`` are the same case.

    Raises:
        UsageError: a missing path, a file against a folder, a folder without label files, two files of one case.
    """
    for path in (first, second):
        if not path.exists():
            raise UsageError(f"{path}: does not exist; expected a label map or a folder of label maps")
    if first.is_file() != second.is_file():
        raise UsageError(f"{first} and {second}: one is a file and the other a folder; give two files or two folders")
    if first.is_file():
        for path in (first, second):
            if case_of(path.name) is None:
                raise UsageError(f"{path}: not a label file; its name must end with one of {', '.join(LABEL_ENDINGS)}")
        return Pairing((CasePair(str(case_of(first.name)), first, second),))
    ours, theirs = label_files(first), label_files(second)
    shared = sorted(ours.keys() & theirs.keys(), key=lambda case: ours[case].name)
    return Pairing(
        pairs=tuple(CasePair(case, ours[case], theirs[case]) for case in shared),
        only_first=tuple(sorted(ours.keys() - theirs.keys())),
        only_second=tuple(sorted(theirs.keys() - ours.keys())),
    )


def label_files(folder: Path) -> dict[str, Path]:
    """Case -> label file of a folder; hidden files and other kinds of file are left alone.

    Beside volumes, flat images count as pictures of the result and are left alone too.

    Raises:
        UsageError: no label file, or two for one case.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.is_file())
    volumes = any(name.endswith(VOLUME_ENDINGS) for name in names)
    found: dict[str, Path] = {}
    for name in names:
        case, path = case_of(name), folder / name
        if case is None or (volumes and not name.endswith(VOLUME_ENDINGS)):
            continue
        if case in found:
            raise UsageError(f"{folder}: two files for case {case!r}: {found[case].name} and {path.name}; remove one")
        found[case] = path
    if not found:
        raise UsageError(f"{folder}: holds no label file; names must end with one of {', '.join(LABEL_ENDINGS)}")
    return found


def case_of(name: str) -> str | None:
    """The case a label file's name stands for, or None if it is no label file."""
    for ending in _BY_LENGTH:
        if name.endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return None


def read_pair(pair: CasePair) -> tuple[LabelArray, LabelArray, ImageGeometry, tuple[str, ...]]:
    """Both label maps (z, y, x), the second's frame, and how the frames differ.

    Raises:
        ImageError: a file cannot be read or is no label map.
        GeometryError: the shapes differ.
    """
    from offline_infer.images import read_labels

    first, ours = read_labels(pair.first)
    second, theirs = read_labels(pair.second)
    if first.shape != second.shape:
        raise GeometryError(
            f"{pair.first} has shape {tuple(first.shape)} and {pair.second} {tuple(second.shape)} (z, y, x); expected "
            "the same grid: was one of them resampled, or do they belong to different cases?"
        )
    return first, second, theirs, frame_remarks(ours, theirs)


def frame_remarks(ours: ImageGeometry, theirs: ImageGeometry) -> tuple[str, ...]:
    """How two frames of equal shape differ, beyond what file formats round away."""
    remarks = []
    for name, first, second, relative, absolute in (
        ("spacing", ours.spacing, theirs.spacing, _SPACING_RELATIVE, 0.0),
        ("origin", ours.origin, theirs.origin, 0.0, _ORIGIN_MM),
        ("direction", ours.direction, theirs.direction, 0.0, _DIRECTION),
    ):
        if len(first) != len(second) or not np.allclose(first, second, rtol=relative, atol=absolute):
            remarks.append(f"{name} differs: {_numbers(first)} and {_numbers(second)}")
    return tuple(remarks)


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
