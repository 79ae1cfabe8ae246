"""Is a NRRD or GIPL file complete? Asked before ITK reads it, which does not notice all damage.

ITK reads a truncated ``.gipl`` and a compressed ``.nrrd`` with a wrong checksum without an error.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

from offline_infer.errors import ImageError
from offline_infer.images.streams import damaged, inflate, wrong_size

_HEADER_LIMIT = 1 << 16
_GIPL_BYTES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}


def check(path: Path, ending: str) -> None:
    """Refuse a file that is not complete, or that takes its voxels from a place outside its own folder.

    Raises:
        ImageError: it is damaged, truncated, of another kind, or points elsewhere.
    """
    if ending == ".nrrd":
        _check_nrrd(path)
    elif ending == ".gipl":
        _check_gipl(path)


def inside(path: Path, name: str) -> Path:
    """The data file a header names: it must lie in the header's folder or below.

    Raises:
        ImageError: it does not.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if not name or posix.is_absolute() or windows.is_absolute() or windows.drive or ".." in windows.parts:
        raise ImageError(f"{path}: takes its voxels from {name!r}, outside its own folder; refused")
    return path.parent / posix


def _check_nrrd(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(_HEADER_LIMIT)
    if not start.startswith(b"NRRD"):
        raise ImageError(f"{path}: is not a NRRD image; check that the file is what its name says")
    ends = [place + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (place := start.find(mark)) >= 0]
    if not ends:
        raise damaged(path, "its header is truncated")
    fields: dict[str, str] = {}
    for line in start[: min(ends)].decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        fields[name.strip().lower().replace(" ", "")] = value.strip()
    if "datafile" in fields:
        name = fields["datafile"]
        if name.upper().startswith("LIST") or "%" in name:
            raise ImageError(f"{path}: its voxels are spread over several files; convert the image to .nii.gz")
        data, offset = inside(path, name), 0
    else:
        data, offset = path, min(ends)
    skipped = {fields.get("lineskip", "0"), fields.get("byteskip", "0")} != {"0"}
    if fields.get("encoding", "").lower() in ("gzip", "gz") and not skipped and data.is_file():
        with data.open("rb") as stream:
            stream.seek(offset)
            for _ in inflate(stream, path, several=True):
                pass


def _check_gipl(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(256)
    if len(start) < 256 or start[252:256] not in (b"\xef\xff\xe9\xb0", b"\x2a\xe3\x89\xb8"):
        raise ImageError(f"{path}: is not a GIPL image; check that the file is what its name says")
    sizes = struct.unpack_from(">4H", start, 0)
    item = _GIPL_BYTES.get(struct.unpack_from(">H", start, 8)[0])
    if item is None:
        raise ImageError(f"{path}: unknown GIPL voxel type; convert the image to .nii.gz")
    expected = prod(max(1, size) for size in sizes) * item
    found = path.stat().st_size - 256
    if found < expected:
        raise wrong_size(path, found, expected)
