"""NIfTI-1 and NIfTI-2 headers, and voxels straight into the float32 array, checksum verified on the way.

The frame is left to the framework's own library (ITK or nibabel); only the voxels are decoded here. That takes less
memory than either (no integer copy of the image), and it notices damage that ITK hides.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite, prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from offline_infer.errors import GeometryError, ImageError
from offline_infer.images.frame import FloatArray, unsaid
from offline_infer.images.streams import UNSCALED, Scaling, damaged, decode, is_gzip, pieces, wrong_size

_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_UNSUPPORTED = {
    1: "one bit a voxel",
    32: "complex numbers",
    128: "RGB colours",
    1536: "128-bit floats",
    1792: "complex numbers",
    2048: "complex numbers",
    2304: "RGBA colours",
}
_LAST_CODE = 5  # of qform_code and sform_code
_UNITS = {1: "metres", 3: "micrometres"}
_ROUNDING = 1e-2  # what files of single precision, and scanners, leave of a rotation or a spacing
CONVERT_MSD = "split it into one file per channel first (offline-infer convert-msd does so for Decathlon tasks)"


@dataclass(frozen=True)
class NiftiHeader:
    """What is needed to find and decode the voxels.

    Attributes:
        dims: sizes (x, y, z, t, ...) without trailing ones beyond the third; two entries for a two-dimensional image.
        dtype: stored type with its byte order.
        offset: bytes before the first voxel, in the decompressed file.
        slope, inter: as they stand in the header, which may be 0 or not finite; see the two ``..._scaling`` functions.
        gzip: the file is compressed (by its content).
        version: 1 or 2.
        notes: what the header leaves out, or says twice, a sentence each.
        skewed: there is a qform too, and the sform is no rectangular frame.
    """

    dims: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    inter: float
    gzip: bool
    version: int = 1
    notes: tuple[str, ...] = ()
    skewed: bool = False

    @property
    def size(self) -> int:
        """Bytes of voxels."""
        return prod(self.dims) * self.dtype.itemsize


class _Frame(NamedTuple):
    """See :class:`NiftiHeader`."""

    notes: tuple[str, ...]
    skewed: bool


def read_header(path: Path) -> NiftiHeader:
    """Parse the header of a ``.nii`` or ``.nii.gz``.

    Raises:
        ImageError: not NIfTI, truncated, damaged, or voxels that are no plain numbers.
        GeometryError: a spacing that is zero, negative or not finite (ITK would take 1 mm or the absolute value).
    """
    gzip = is_gzip(path)
    if gzip and not path.name.lower().endswith(".gz"):
        raise ImageError(f"{path}: is gzip-compressed but not named so; rename it to end with .nii.gz")
    start = _first_bytes(path, gzip, 544)
    if len(start) < 348:
        raise damaged(path, "truncated: not even the header is complete")
    order, two = _byte_order(path, start)
    if two:
        sizes = struct.unpack_from(order + "8q", start, 16)
        code = struct.unpack_from(order + "h", start, 12)[0]
        pixdim = struct.unpack_from(order + "8d", start, 104)
        offset = float(struct.unpack_from(order + "q", start, 168)[0])
        slope, inter = struct.unpack_from(order + "2d", start, 176)
        least = 544
    else:
        sizes = struct.unpack_from(order + "8h", start, 40)
        code = struct.unpack_from(order + "h", start, 70)[0]
        pixdim = struct.unpack_from(order + "8f", start, 76)
        offset, slope, inter = struct.unpack_from(order + "3f", start, 108)
        least = 352
    dims = _dims(path, sizes)
    _check_pixdim(path, dims, pixdim)
    frame = _check_frame(path, start, order, pixdim, two=two)
    if code not in _DTYPES:
        kind = _UNSUPPORTED.get(code, f"unknown NIfTI datatype {code}")
        raise ImageError(f"{path}: holds {kind}; expected one integer or float per voxel")
    if not (isfinite(offset) and offset >= least):
        raise damaged(path, f"the header puts the voxels at byte {offset:g}, inside the header")
    return NiftiHeader(
        dims=dims,
        dtype=np.dtype(order + _DTYPES[code]),
        offset=int(offset),
        slope=float(slope),
        inter=float(inter),
        gzip=gzip,
        version=2 if two else 1,
        notes=frame.notes,
        skewed=frame.skewed,
    )


def itk_scaling(header: NiftiHeader) -> Scaling:
    """Slope and offset as ITK takes them: what is not finite counts as 0, a slope of 0 as 1; the offset stays."""
    slope = header.slope if isfinite(header.slope) else 0.0
    inter = header.inter if isfinite(header.inter) else 0.0
    tiny = float(np.finfo(np.float64).eps)
    return (slope if abs(slope) > tiny else 1.0, inter)


def nibabel_scaling(path: Path, header: NiftiHeader) -> Scaling:
    """Slope and offset as nibabel takes them: without a finite slope other than 0 there is no scaling at all.

    Raises:
        ImageError: a slope with an offset that is not finite.
    """
    if not isfinite(header.slope) or header.slope == 0:
        return UNSCALED
    if not isfinite(header.inter):
        raise damaged(path, f"the header's intensity offset is {header.inter}")
    return (header.slope, header.inter)


def may_hold_nan(header: NiftiHeader, scaling: Scaling) -> bool:
    """Whether voxels can be NaN or infinite, so that they must be checked."""
    return header.dtype.kind == "f" or scaling != UNSCALED


def read_voxels(path: Path, header: NiftiHeader, scaling: Scaling, out: FloatArray) -> None:
    """Decode all voxels into ``out``.

    Args:
        out: (z, y, x), float32, C-contiguous; x runs fastest, as in the file.

    Raises:
        ImageError: the data ends too early or its checksum is wrong.
    """
    decode(pieces(path, compressed=header.gzip), path, header.dtype, scaling, out, skip=header.offset)


def check_complete(path: Path) -> None:
    """Read a NIfTI file to its end and check length and checksum.

    Raises:
        ImageError: it is not complete.
    """
    header = read_header(path)
    total = sum(len(piece) for piece in pieces(path, compressed=header.gzip))
    if total < header.offset + header.size:
        raise wrong_size(path, max(0, total - header.offset), header.size)


def require_three_dimensions(path: Path, dims: tuple[int, ...], least: int = 2) -> None:
    """A volume, or one slice where ``least`` is 2.

    Raises:
        ImageError: another number of dimensions; for four, the message says how to split the file.
    """
    if len(dims) > 3:
        shown = " x ".join(str(size) for size in dims)
        raise ImageError(f"{path}: has {len(dims)} dimensions ({shown}), expected three; {CONVERT_MSD}")
    if len(dims) < least:
        raise ImageError(
            f"{path}: has {len(dims)} dimensions, but this model's reader takes {least}-dimensional images"
        )


def _first_bytes(path: Path, gzip: bool, count: int) -> bytes:
    if not gzip:
        with path.open("rb") as stream:
            return stream.read(count)
    # The first piece holds the header unless the compressor cut unusually small blocks; a few pieces are enough.
    return b"".join(islice(pieces(path, compressed=True), 4))[:count]


def _byte_order(path: Path, start: bytes) -> tuple[str, bool]:
    """Byte order, and whether it is NIfTI-2."""
    for order in "<>":
        size = struct.unpack_from(order + "i", start, 0)[0]
        if size == 348 and start[344:348] == b"n+1\0":
            return order, False
        if size == 540 and start[4:8] == b"n+2\0":
            if len(start) < 544:
                raise damaged(path, "truncated: not even the header is complete")
            return order, True
        if size in (348, 540):
            raise ImageError(
                f"{path}: is an Analyze file or one half of a .hdr/.img pair, not a single-file NIfTI; convert it to "
                ".nii.gz"
            )
    raise ImageError(f"{path}: is not a NIfTI image; check that the file is what its name says")


def _dims(path: Path, sizes: tuple[int, ...]) -> tuple[int, ...]:
    count = sizes[0]
    if not 1 <= count <= 7 or any(size < 1 for size in sizes[1 : count + 1]):
        raise damaged(path, f"the header's dimensions {tuple(sizes)} make no sense")
    dims = list(sizes[1 : count + 1])
    while len(dims) > 3 and dims[-1] == 1:
        dims.pop()
    return tuple(dims)


def _check_pixdim(path: Path, dims: tuple[int, ...], pixdim: tuple[float, ...]) -> None:
    for axis, size in enumerate(dims[:3]):
        step = pixdim[axis + 1]
        # Along an axis of one voxel a spacing of 0 is common and harmless: both libraries take 1 mm.
        if not isfinite(step) or step < 0 or (step == 0 and size > 1):
            raise GeometryError(
                f"{path}: impossible spacing {step:g} mm along {'xyz'[axis]} in the header; every axis needs a "
                "positive number - repair the header or convert the image again"
            )


def _check_frame(path: Path, start: bytes, order: str, pixdim: Sequence[float], *, two: bool) -> _Frame:
    """What the header says of position and direction, as far as the libraries would make something up instead.

    Raises:
        GeometryError: a sform or qform that a code declares valid is not finite or no rotation, or the code is none of
            NIfTI's: the libraries take an identity, or another meaning each.
    """
    number, codes, first = ("d", "2i", 344) if two else ("f", "2h", 252)
    qform, sform = struct.unpack_from(order + codes, start, first)
    values = struct.unpack_from(order + "18" + number, start, first + struct.calcsize(codes))
    quaternion, rows = (pixdim[0], *values[:6]), values[6:]
    if (qform > 0 and not all(map(isfinite, quaternion))) or (sform > 0 and not all(map(isfinite, rows))):
        raise GeometryError(
            f"{path}: the position or direction in the header is not a finite number; repair the header or convert the "
            "image again"
        )
    if not (0 <= qform <= _LAST_CODE and 0 <= sform <= _LAST_CODE):
        raise GeometryError(
            f"{path}: qform_code {qform} and sform_code {sform} in the header: those of NIfTI are 0 to {_LAST_CODE}; repair "
            "the header or convert the image again"
        )
    if qform > 0 and sum(value**2 for value in values[:3]) > 1 + _ROUNDING:
        raise GeometryError(
            f"{path}: the quaternion in the header is no rotation (its parts are too large); repair the header or convert "
            "the image again"
        )
    unit = struct.unpack_from(f"{order}i", start, 500)[0] if two else start[123]
    notes = _unit_notes(path, unit)
    if qform == 0 and sform == 0:
        return _Frame(notes + unsaid(path, spacing=True, position=False, orientation=False), skewed=False)
    if sform == 0:
        return _Frame(notes, skewed=False)
    columns = np.asarray(rows, np.float64).reshape(3, 4)[:, :3]
    steps = np.linalg.norm(columns, axis=0)
    if np.all(steps > 0) and np.abs(steps / np.asarray(pixdim[1:4]) - 1).max() > _ROUNDING:
        notes += (
            f"{path}: gives two spacings, ({', '.join(f'{step:g}' for step in pixdim[1:4])}) mm in pixdim and "
            f"({', '.join(f'{step:g}' for step in steps)}) mm in its sform; pixdim was taken, as nnU-Net does",
        )
    turned = columns / np.where(steps > 0, steps, 1)
    return _Frame(notes, qform > 0 and bool(np.abs(turned.T @ turned - np.eye(3)).max() > _ROUNDING))


def _unit_notes(path: Path, code: int) -> tuple[str, ...]:
    """The remark on a header that counts in another unit than millimetres."""
    unit = _UNITS.get(code & 7)
    if unit is None:
        return ()
    return (f"{path}: counts in {unit}, which ITK turns into mm; nibabel takes the numbers for mm",)
