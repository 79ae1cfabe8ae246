"""Class probabilities at chosen voxels, read from a framework's ``.npz`` without holding the whole array.

The archive's one array is streamed block by block: a map of a hundred classes would not fit into memory, and a few
voxels of it are all that a comparison asks for.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.axes import IDENTITY, Turn
from offline_infer.errors import ImageError
from offline_infer.proof.comparison.arrays import top_two_margin
from offline_infer.proof.evaluation.pairs import case_of

Coordinates = npt.NDArray[np.int64]
Samples = npt.NDArray[np.float64]
Shape4 = tuple[int, int, int, int]

NAMES = ("probabilities", "softmax")
"""Array names of nnU-Net v2 and v1."""

_BLOCK = 1 << 20
_SUM_TOLERANCE = 0.02
_PROBES = 4096


@dataclass(frozen=True)
class ProbabilityFile:
    """An ``.npz`` of probabilities beside a label map.

    Attributes:
        name: the array's name in the archive.
        shape: (k, z, y, x) of the array.
        origin: where its first voxel lies in the image, (z, y, x); v1 stores the cropped region only.
        turn: from the label map's stored axes to the array's, where the model's reader turned the image.
        image_shape: (z, y, x) of the label map as stored.
    """

    path: Path
    name: str
    shape: Shape4
    origin: tuple[int, int, int] = (0, 0, 0)
    turn: Turn = IDENTITY
    image_shape: tuple[int, ...] = ()


def find_probabilities(label_file: Path, image_shape: tuple[int, ...]) -> ProbabilityFile | None:
    """The probabilities written beside a label map, or None if there are none.

    Args:
        image_shape: (z, y, x) of the label map as stored.

    Raises:
        ImageError: there is a file but it is damaged, or its region of the image is unknown.
    """
    from offline_infer.nnunet_files.readers import recorded_reader, turn_of  # it brings SimpleITK

    case = case_of(label_file.name) or label_file.stem
    path = label_file.with_name(case + ".npz")
    if not path.is_file():
        return None
    with _open_array(path) as (name, shape, _, _):
        pass
    turn = turn_of(label_file, recorded_reader(path))
    if shape[1:] == turn.permuted(tuple(image_shape)[::-1])[::-1]:
        return ProbabilityFile(path, name, shape, turn=turn, image_shape=tuple(image_shape))
    box = _crop_box(path.with_suffix(".pkl"))
    if tuple(last - first for first, last in box) != shape[1:]:
        raise ImageError(f"{path}: holds {shape[1:]} voxels, but its properties say the region is {box} (z, y, x)")
    if any(first < 0 or last > n for (first, last), n in zip(box, image_shape, strict=True)):
        raise ImageError(f"{path}: its region {box} lies outside the image of {tuple(image_shape)} voxels (z, y, x)")
    return ProbabilityFile(path, name, shape, (box[0][0], box[1][0], box[2][0]))


def margins_at(file: ProbabilityFile, coordinates: Coordinates) -> Samples:
    """How far each voxel was from another label, as a difference of probabilities.

    For exclusive classes: largest minus second-largest. For regions (probabilities that do not sum to one): the
    smallest distance of a channel from the threshold 0.5. A voxel outside the stored region is certain background:
    infinity.

    Args:
        coordinates: (n, 3) of the label map as stored, (z, y, x).

    Raises:
        ImageError: the file is damaged.
    """
    turned = coordinates if file.turn.identity else file.turn.turned_places(coordinates, file.image_shape)
    local = turned - np.asarray(file.origin)
    inside = np.all((local >= 0) & (local < np.asarray(file.shape[1:])), axis=1)
    count = math.prod(file.shape[1:])
    probes = np.unique(np.linspace(0, count - 1, min(_PROBES, count)).astype(np.int64))
    wanted = np.ravel_multi_index(tuple(local[inside].T), file.shape[1:])
    values = _values_at(file, np.concatenate([wanted, probes]))
    at_voxels, at_probes = values[:, : len(wanted)], values[:, len(wanted) :]
    margins = np.full(len(coordinates), np.inf)
    if _exclusive(at_probes) and (not len(wanted) or _exclusive(at_voxels)):
        margins[inside] = top_two_margin(at_voxels)
    else:
        margins[inside] = np.abs(at_voxels - 0.5).min(axis=0)
    return margins


def largest_difference(a: ProbabilityFile, b: ProbabilityFile) -> dict[str, float] | None:
    """``max`` and ``mean`` of ``|a - b|`` over all voxels and classes; None if the arrays are not of the same region or axes.

    Raises:
        ImageError: a file is damaged.
    """
    if (a.shape, a.origin, a.turn) != (b.shape, b.origin, b.turn):
        return None
    largest, total = 0.0, 0.0
    for (_, _, first), (_, _, second) in zip(_blocks(a.path), _blocks(b.path), strict=True):
        gap = np.abs(first.astype(np.float64) - second)
        largest = max(largest, float(gap.max()))
        total += float(gap.sum())
    return {"max": largest, "mean": total / math.prod(a.shape)}


def _exclusive(values: Samples) -> bool:
    return bool(np.abs(values.sum(axis=0) - 1).max(initial=0.0) <= _SUM_TOLERANCE)


def _values_at(file: ProbabilityFile, flat: npt.NDArray[np.int64]) -> Samples:
    """(k, n) values at flat indices of the array's (z, y, x)."""
    order = np.argsort(flat, kind="stable")
    ascending = flat[order]
    values = np.empty((file.shape[0], len(flat)))
    for channel, start, block in _blocks(file.path):
        first, last = np.searchsorted(ascending, [start, start + len(block)])
        values[channel, order[first:last]] = block[ascending[first:last] - start]
    return values


def _blocks(path: Path) -> Iterator[tuple[int, int, npt.NDArray[Any]]]:
    """(channel, index of the block's first voxel in the channel, values), in file order."""
    with _open_array(path) as (_, shape, dtype, stream):
        voxels = math.prod(shape[1:])
        for channel in range(shape[0]):
            for start in range(0, voxels, _BLOCK):
                size = min(_BLOCK, voxels - start) * dtype.itemsize
                data = stream.read(size)
                if len(data) != size:
                    raise ImageError(f"{path}: ends in the middle of its array; write it again")
                yield channel, start, np.frombuffer(data, dtype)


@contextmanager
def _open_array(path: Path) -> Iterator[tuple[str, Shape4, np.dtype[Any], IO[bytes]]]:
    """Name, shape and dtype of the archive's array, and a stream at its first value. Nothing in it is executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            name = next((n for n in NAMES if f"{n}.npy" in members), None)
            if name is None:
                found = ", ".join(members[:5]) or "nothing"
                raise ImageError(f"{path}: holds {found}; expected 'probabilities' (nnU-Net v2) or 'softmax' (v1)")
            with archive.open(f"{name}.npy") as stream:
                version = np.lib.format.read_magic(stream)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = header(stream)
                if len(shape) != 4 or dtype.kind != "f" or fortran or 0 in shape:
                    order = "Fortran" if fortran else "C"
                    raise ImageError(
                        f"{path}: {name} is {dtype} {shape}, {order} order; expected floats (k, z, y, x), C order"
                    )
                yield name, (shape[0], shape[1], shape[2], shape[3]), dtype, stream
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise ImageError(f"{path}: cannot be read as probabilities ({error}); write it again") from error


def _crop_box(record: Path) -> tuple[tuple[int, int], ...]:
    """The crop box of v1's property file, (z, y, x)."""
    from offline_infer.checkpoints.pickles.reading import read_pickle

    if not record.is_file():
        raise ImageError(f"{record}: missing; it says which region of the image the probabilities beside it cover")
    try:
        box = read_pickle(record)["crop_bbox"]
        return tuple((int(first), int(last)) for first, last in box)
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(f"{record}: holds no usable crop_bbox ({error!r}); expected three pairs of numbers") from error
