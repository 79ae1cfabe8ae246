"""MetaImage (``.mha``, ``.mhd``): the header, and where the voxels are.

MetaIO, which ITK reads these files with, prints to stderr and returns uninitialised memory where compressed data is
damaged. So ITK is used for the frame only.
"""

from __future__ import annotations

import re
from math import isfinite, prod
from pathlib import Path

import numpy as np

from offline_infer.errors import GeometryError, ImageError
from offline_infer.images.frame import unsaid
from offline_infer.images.nifti import require_three_dimensions
from offline_infer.images.stored import StoredVoxels, data_file
from offline_infer.images.streams import damaged

_HEADER_LIMIT = 1 << 16
_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # four bytes by MetaIO's definition, on every machine
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}

_SPACING = ("ElementSpacing", "ElementSize")
_POSITION = ("Offset", "Position", "Origin")
_ORIENTATION = ("TransformMatrix", "Orientation", "Rotation")
_NAME = re.compile(r"[A-Za-z0-9_]+")


def read_header(path: Path) -> StoredVoxels:
    """Parse the header.

    Raises:
        GeometryError: position, direction or spacing that are no numbers, which MetaIO reads as 0.
        ImageError: no MetaImage, more than three dimensions, an unknown type, voxels that are missing, spread over
            several files, written as text, or taken from another place than the case's own files.
    """
    fields, end = _fields(path)
    try:
        count = int(fields["NDims"])
        dims = tuple(int(size) for size in fields["DimSize"].split())
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        element = fields["ElementType"]
        place = fields["ElementDataFile"]
        gap = int(fields.get("HeaderSize", "0"))
    except (KeyError, ValueError) as error:
        raise damaged(path, f"not a complete MetaImage header ({error})") from error
    if len(dims) != count or any(size < 1 for size in dims):
        raise damaged(path, f"the header's DimSize {dims} does not fit NDims = {count}")
    require_three_dimensions(path, dims)
    if channels != 1:
        raise ImageError(
            f"{path}: holds {channels} numbers per voxel (colours or vectors), expected one; write one file per channel"
        )
    if element not in _DTYPES:
        raise ImageError(f"{path}: unknown ElementType {element!r}; convert the image to .nii.gz")
    if not _flag(fields, "BinaryData", default=True):
        raise ImageError(f"{path}: its voxels are written as text; convert the image to .nii.gz")
    notes = _check_frame(path, fields, count)
    order = ">" if _flag(fields, "BinaryDataByteOrderMSB") or _flag(fields, "ElementByteOrderMSB") else "<"
    dtype = np.dtype(order + _DTYPES[element])
    compressed = _flag(fields, "CompressedData")
    if place.upper() == "LOCAL":
        return StoredVoxels(path, dims, dtype, path, end, compressed, notes)
    if place.upper().startswith("LIST") or "%" in place:
        raise ImageError(f"{path}: its voxels are spread over several files; convert the image to .nii.gz")
    data = data_file(path, place)
    if gap < 0:  # the voxels are the end of the file
        gap = max(0, data.stat().st_size - prod(dims) * dtype.itemsize)
    return StoredVoxels(path, dims, dtype, data, gap, compressed, notes)


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of the header, and where it ends."""
    with path.open("rb") as stream:
        start = stream.read(_HEADER_LIMIT)
    fields: dict[str, str] = {}
    position = 0
    while position < len(start):
        end = start.find(b"\n", position)
        end = len(start) if end < 0 else end
        name, equals, value = start[position:end].decode("latin-1").partition("=")
        position = end + 1
        if not equals:
            break
        if name.strip() in fields:
            raise damaged(path, f"its header has the field {name.strip()!r:.40} twice")
        if not _NAME.fullmatch(name.strip()):  # MetaIO takes a colon for an equals sign, too
            raise damaged(path, f"its header has a field with the name {name.strip()!r:.40}")
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return fields, position
    raise damaged(path, "not a MetaImage, or its header is truncated (no ElementDataFile)")


def _check_frame(path: Path, fields: dict[str, str], axes: int) -> tuple[str, ...]:
    """Make sure that what the header says of the frame has one meaning; returns remarks on what it does not say."""
    said = []
    for names, count in ((_SPACING, axes), (_POSITION, axes), (_ORIENTATION, axes * axes)):
        given = [name for name in names if name in fields]
        if len(given) > 1 and names is not _SPACING:  # a voxel's size may stand beside the distance
            raise damaged(path, f"its header says one thing by two names, {' and '.join(given)}")
        for name in given:
            try:
                numbers = [float(text) for text in fields[name].split()]
            except ValueError:
                numbers = []
            if len(numbers) != count or not all(map(isfinite, numbers)):
                raise GeometryError(
                    f"{path}: {name} in the header is {fields[name]!a:.60}, expected {count} numbers; repair the header"
                )
        said.append(bool(given))
    unit = fields.get("DistanceUnits", "mm")
    notes = () if unit == "mm" else (f"{path}: its unit is {unit!a:.20}; its numbers were taken for mm, as ITK does",)
    return unsaid(path, *said) + notes


def _flag(fields: dict[str, str], name: str, *, default: bool = False) -> bool:
    value = fields.get(name)
    return default if value is None else value[:1] in "TtYy1"
