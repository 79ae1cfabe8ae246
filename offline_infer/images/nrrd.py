"""NRRD (``.nrrd``): the header, read more strictly than the format asks for, and where the voxels are.

Parsers of this format disagree about spelling (``datafile``, ``Data File``), repeated fields, line ends and ``key:=value``
lines, and so about which file the voxels come from. ITK is asked for the frame only after every line of the header has
been found to have one meaning.
"""

from __future__ import annotations

import re
from math import isfinite, nan, prod
from pathlib import Path

import numpy as np

from offline_infer.errors import GeometryError, ImageError
from offline_infer.images.frame import unsaid
from offline_infer.images.nifti import require_three_dimensions
from offline_infer.images.stored import StoredVoxels, data_file
from offline_infer.images.streams import damaged

_HEADER_LIMIT = 1 << 16
_MAGIC = re.compile(rb"NRRD000[1-5]$")
_FIELD = re.compile(r"([A-Za-z][A-Za-z ]*): (.*)$")
_PAIR = re.compile(r"([^:=]+):=")
_TEXT = re.compile(r"[\t\x20-\x7e\xa0-\xff]*$")
_KNOWN = {
    "axismaxs", "axismins", "axsmaxs", "axsmins", "blocksize", "byteskip", "centerings", "centers", "content", "datafile",
    "date", "dimension", "encoding", "endian", "kinds", "labels", "lineskip", "max", "measurementframe", "min", "number",
    "numberofaxes", "oldmax", "oldmin", "sampleunits", "sizes", "space", "spacedimension", "spacedirections", "spaceorigin",
    "spaceunits", "spacings", "thicknesses", "type", "units",
}  # fmt: skip
_SYNONYMS = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_PATIENT_SPACES = (
    "left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las",
)  # fmt: skip
"""Spaces that ITK tells apart."""
_DTYPES = {name: dtype for dtype, names in _SYNONYMS.items() for name in names}


def read_header(path: Path) -> StoredVoxels:
    """Parse the header.

    Raises:
        GeometryError: spacings that are no numbers.
        ImageError: no NRRD, more than three dimensions, an ambiguous header, an unknown type or encoding, voxels that are
            missing, spread over several files, or taken from another place than the case's own files.
    """
    fields, end = _fields(path)
    try:
        dims = tuple(int(size) for size in fields["sizes"].split())
        count = int(fields["dimension"])
        element = fields["type"].lower()
        encoding = fields["encoding"].lower()
        skip = int(fields.get("byteskip", "0"))
        lines = int(fields.get("lineskip", "0"))
    except (KeyError, ValueError) as error:
        raise damaged(path, f"not a complete NRRD header ({error!s:.60})") from error
    if len(dims) != count or any(size < 1 for size in dims):
        raise damaged(path, f"the header's sizes {dims} do not fit dimension {count}")
    if count <= 3:
        require_three_dimensions(path, dims)
    if element not in _DTYPES:
        raise ImageError(f"{path}: unknown voxel type {element!r:.40}; convert the image to .nii.gz")
    if encoding not in ("raw", "gzip", "gz") or lines or (skip and encoding != "raw"):
        raise ImageError(f"{path}: its voxels are stored as {encoding!r:.40}; convert the image to .nii.gz")
    data, offset = path, end
    if "datafile" in fields:
        name = fields["datafile"]
        if name.upper().startswith("LIST") or "%" in name:
            raise ImageError(f"{path}: its voxels are spread over several files; convert the image to .nii.gz")
        data, offset = data_file(path, name), 0
    dtype = np.dtype(_byte_order(path, fields, _DTYPES[element]) + _DTYPES[element])
    if skip < 0:  # the voxels are the end of the file
        offset = max(offset, data.stat().st_size - prod(dims) * dtype.itemsize)
    return StoredVoxels(
        path, dims, dtype, data, offset + max(skip, 0), encoding != "raw", _check_frame(path, fields, count)
    )


def _check_frame(path: Path, fields: dict[str, str], count: int) -> tuple[str, ...]:
    """Remarks on what the header does not say of the frame, or what ITK does not take as it says it.

    Raises:
        GeometryError: spacings that are no numbers; ITK takes 1 mm for them.
    """
    try:
        spacings = [float(text) for text in fields.get("spacings", "").split()]
    except ValueError:
        spacings = [nan]
    if "spacings" in fields and (len(spacings) != count or not all(map(isfinite, spacings))):
        raise GeometryError(
            f"{path}: its spacings are {fields['spacings']!a:.60}, expected {count} numbers; repair the header"
        )
    directions = "(" in fields.get("spacedirections", "")
    limits = "axismins" in fields or "axsmins" in fields
    notes = unsaid(path, bool(spacings) or directions, "(" in fields.get("spaceorigin", "") or limits, directions)
    space, units = fields.get("space", ""), fields.get("spaceunits", fields.get("units", ""))
    if space and space.lower() not in _PATIENT_SPACES:
        notes += (f"{path}: its space is {space!a:.60}; it was taken for left-posterior-superior, as ITK does",)
    if any(unit not in ("", "mm") for unit in re.findall(r'"([^"]*)"', units)):
        notes += (f"{path}: its units are {units!a:.60}; its numbers were taken for mm, as ITK does",)
    return notes


def _byte_order(path: Path, fields: dict[str, str], element: str) -> str:
    order = fields.get("endian", "little" if element.endswith("1") else "")
    if order.lower() not in ("little", "big"):
        raise damaged(path, f"the header's endian is {order!r:.20}, expected little or big")
    return "<" if order.lower() == "little" else ">"


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields by name (lower case, no blanks), and where the header ends."""
    with path.open("rb") as stream:
        start = stream.read(_HEADER_LIMIT)
    first, _, _ = start.partition(b"\n")
    if _MAGIC.match(first.rstrip(b"\r")) is None:
        raise ImageError(f"{path}: is not a NRRD image; check that the file is what its name says")
    fields: dict[str, str] = {}
    position = len(first) + 1
    while position < len(start):
        end = start.find(b"\n", position)
        if end < 0:
            break
        line = start[position:end].removesuffix(b"\r").decode("latin-1")
        position = end + 1
        if not line:
            return fields, position
        _take_line(path, line, fields)
    if "datafile" in fields and position >= len(start):
        return fields, position  # a header on its own may end without an empty line
    raise damaged(path, "its header is truncated")


def _take_line(path: Path, line: str, fields: dict[str, str]) -> None:
    """Take one line of the header, or refuse it where two parsers could read two things in it."""
    if not _TEXT.match(line):
        raise damaged(path, "its header holds control characters")
    if line.startswith("#"):
        return
    match, pair = _FIELD.match(line), _PAIR.match(line)
    name = match[1].lower().replace(" ", "") if match else ""
    if match and name in _KNOWN and name not in fields:
        fields[name] = match[2].strip()
    elif not pair or ": " in line[: pair.end()] or pair[1].lower().replace(" ", "") in _KNOWN:
        raise damaged(path, f"its header has a line that is no field, or a repeated one: {line[:60]!r}")
