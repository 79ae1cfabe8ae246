"""GIPL (``.gipl``): 256 bytes of header, then the voxels, both big-endian."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from offline_infer.errors import ImageError
from offline_infer.images.nifti import require_three_dimensions
from offline_infer.images.stored import StoredVoxels

_HEADER = 256
_MAGICS = (b"\xef\xff\xe9\xb0", b"\x2a\xe3\x89\xb8")
_DTYPES = {7: "i1", 8: "u1", 15: "i2", 16: "u2", 31: "u4", 32: "i4", 64: "f4", 65: "f8"}


def read_header(path: Path) -> StoredVoxels:
    """Parse the header.

    Raises:
        ImageError: no GIPL, an unknown voxel type, or more than three dimensions.
    """
    with path.open("rb") as stream:
        start = stream.read(_HEADER)
    if len(start) < _HEADER or start[252:] not in _MAGICS:
        raise ImageError(f"{path}: is not a GIPL image; check that the file is what its name says")
    sizes = list(struct.unpack_from(">4H", start, 0))
    code = struct.unpack_from(">H", start, 8)[0]
    if code not in _DTYPES:
        raise ImageError(f"{path}: unknown GIPL voxel type {code}; convert the image to .nii.gz")
    while len(sizes) > 2 and sizes[-1] < 2:
        if len(sizes) == 3 and sizes[-1] == 1:
            break
        sizes.pop()
    if min(sizes) < 1:
        raise ImageError(
            f"{path}: the header's sizes {tuple(sizes)} make no sense; repair it or convert the image again"
        )
    require_three_dimensions(path, tuple(sizes))
    return StoredVoxels(path, tuple(sizes), np.dtype(">" + _DTYPES[code]), path, _HEADER, compressed=False)
