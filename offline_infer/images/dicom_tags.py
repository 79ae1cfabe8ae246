"""DICOM tags that ITK does not report: nested ones, and the kind of object a file holds. Read with pydicom.

Nothing but geometry and the kind is read, and no value of any tag gets into a message.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError, ImageError

_NO_IMAGE = (
    "1.2.840.10008.1.3.10",  # DICOMDIR
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
    "1.2.840.10008.5.1.4.1.1.66",  # registrations, raw data, segmentations, surfaces
    "1.2.840.10008.5.1.4.1.1.67",  # real-world value mappings
    "1.2.840.10008.5.1.4.1.1.88.",  # structured reports
    "1.2.840.10008.5.1.4.1.1.104.",  # encapsulated documents
    "1.2.840.10008.5.1.4.1.1.481.",  # radiotherapy
)
"""Prefixes of SOP classes that are not images; such files may lie beside a series."""

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
"""Transfer syntaxes without compression: implicit, explicit, big-endian."""
_PIXELS = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF  # as a length
_PIXEL_COUNTS = {0x00280010: 0, 0x00280011: 0, 0x00280002: 1, 0x00280008: 1, 0x00280100: 16}
"""Rows, columns, samples, frames, bits allocated: their product is the number of bits; and what they are where they are missing."""
_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


@dataclass(frozen=True)
class FrameTags:
    """The functional groups of a multi-frame file that say where its frames lie.

    Attributes:
        positions: ImagePositionPatient of every frame in file order, (n, 3) mm.
        orientations: every ImageOrientationPatient there is, (m, 6); one where all frames share it.
    """

    positions: npt.NDArray[np.float64]
    orientations: npt.NDArray[np.float64]


def frame_tags(path: Path) -> FrameTags:
    """Read a multi-frame file's functional groups.

    Raises:
        ImageError: they are damaged.
    """
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[_SHARED, _PER_FRAME])
            frames = list(dataset.get(_PER_FRAME, ()))
            groups = [*dataset.get(_SHARED, ()), *frames]
            return FrameTags(
                positions=_table(_values(frames, "PlanePositionSequence", "ImagePositionPatient"), 3),
                orientations=_table(_values(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), 6),
            )
    except Exception as error:  # what a damaged file makes of the parser
        raise ImageError(
            f"{path}: its functional groups are damaged ({type(error).__name__}); export it again"
        ) from error


def is_no_image(path: Path) -> bool:
    """Whether a file's own header (group 2) names a class that is no image; False where it cannot be read."""
    return str(_file_meta(path).get("MediaStorageSOPClassUID", "")).startswith(_NO_IMAGE)


def check_pixels(path: Path) -> None:
    """Uncompressed pixels must be all there: GDCM fills what is missing with whatever lies in memory.

    Raises:
        ImageError: there are fewer bytes than the header promises, or the header is damaged.
    """
    from pydicom import config
    from pydicom.filereader import read_partial

    if _file_meta(path).get("TransferSyntaxUID", _NATIVE[0]) not in _NATIVE:
        return  # compressed; pydicom would inflate a deflated file whole
    found: dict[str, int] = {}

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag == _PIXELS:
            found.update(length=length, head=12 if vr in ("OB", "OW") else 8)
        return tag == _PIXELS

    try:
        with warnings.catch_warnings(), config.disable_value_validation(), path.open("rb") as stream:
            warnings.simplefilter("ignore")
            dataset = read_partial(stream, at_pixels, force=True, specific_tags=[*_PIXEL_COUNTS])
            start = stream.tell() + found.get("head", 0)
            counts = [int(dataset[tag].value if tag in dataset else 0) or usual for tag, usual in _PIXEL_COUNTS.items()]
    except Exception as error:  # what a damaged file makes of the parser
        raise ImageError(f"{path}: its header is damaged ({type(error).__name__}); export it again") from error
    if not found:
        return
    if found["length"] == _UNDEFINED:
        raise ImageError(f"{path}: its pixels have no length, though they are not compressed; export it again")
    expected = -(-prod(counts) // 8)
    present = min(found["length"], path.stat().st_size - start)
    if present < expected:
        raise ImageError(
            f"{path}: is truncated: {max(present, 0):,} bytes of pixels where the header promises {expected:,}; copy or export "
            "it again"
        )


def check_orientation(path: Path, values: Sequence[float]) -> None:
    """ImageOrientationPatient: two perpendicular vectors of unit length. ITK makes an identity of zeros.

    Raises:
        GeometryError: they are not.
    """
    row, column = np.asarray(values[:3]), np.asarray(values[3:])
    plain = len(values) == 6 and all(isfinite(value) and abs(value) < 2 for value in values)
    if not plain or max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 0.02:
        raise GeometryError(
            f"{path}: its orientation in space (ImageOrientationPatient) is no pair of perpendicular unit vectors; repair the "
            "header or export the series again"
        )


def _file_meta(path: Path) -> Any:
    """A file's own header (group 2), a mapping; empty where it cannot be read, for the reader gives a better message."""
    from pydicom.filereader import read_file_meta_info

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_file_meta_info(path)
    except Exception:
        return {}


def _values(groups: Sequence[Any], sequence: str, tag: str) -> Iterator[Sequence[float]]:
    for group in groups:
        for item in group.get(sequence, ()):
            value = item.get(tag)
            if value is not None:
                yield [float(number) for number in value]


def _table(rows: Iterator[Sequence[float]], width: int) -> npt.NDArray[np.float64]:
    return np.asarray(list(rows), dtype=np.float64).reshape(-1, width)
