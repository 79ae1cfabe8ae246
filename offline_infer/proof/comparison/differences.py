"""Where two label maps differ, and whether those places look like rounding or like a mistake. Pure arithmetic.

Rounding changes single voxels on the border between two labels. A shifted crop, a wrong axis or a missing
post-processing step changes connected regions, often away from any border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import bounding_box
from offline_infer.proof.evaluation.metrics import JointHistogram

LabelArray = npt.NDArray[Any]
Coordinates = npt.NDArray[np.int64]

SHOWN = 20
_CUBE = 8
LARGEST = 10
SAMPLE = 200_000
"""At most this many differing voxels are looked at one by one; more are sampled evenly."""


@dataclass(frozen=True)
class Place:
    """Where the differing voxels are. Coordinates are (z, y, x).

    Attributes:
        box: half-open interval per axis.
        centroid: mean coordinate.
        first: the first twenty coordinates in array order.
        judged: how many were measured against the border; all of them unless there are very many.
        on_border: of those, how many touch another label in ``b``.
        border_distance_max, border_distance_mean: mm to the nearest voxel of ``b`` that touches another label; 0 for
            those on the border; None where ``b`` has one label only, and where SciPy is absent.
        components: connected regions of differing voxels (corners count as contact).
        largest: voxels of the largest ten.
        reach: share of the border of ``b``, in cubes of eight voxels a side, that has a difference near it; None where
            ``b`` has one label only.
    """

    box: tuple[tuple[int, int], ...]
    centroid: tuple[float, ...]
    first: tuple[tuple[int, ...], ...]
    judged: int
    on_border: int
    border_distance_max: float | None
    border_distance_mean: float | None
    components: int
    largest: tuple[int, ...]
    reach: float | None = None

    @property
    def all_on_border(self) -> bool:
        return self.on_border == self.judged

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "all_on_border": self.all_on_border}


def differing_coordinates(a: LabelArray, b: LabelArray) -> Coordinates:
    """Coordinates (n, 3) of the voxels whose labels differ, in array order."""
    return np.argwhere(a != b).astype(np.int64)


def evenly(coordinates: Coordinates, limit: int = SAMPLE) -> Coordinates:
    """At most ``limit`` of them, evenly spaced."""
    if len(coordinates) <= limit:
        return coordinates
    return coordinates[np.linspace(0, len(coordinates) - 1, limit).astype(np.int64)]


def place_of(coordinates: Coordinates, b: LabelArray, spacing: Sequence[float]) -> Place:
    """Describe the differing voxels.

    Args:
        coordinates: (n, 3), n > 0.
        b: the map to measure the border in, (z, y, x).
        spacing: mm, (z, y, x).
    """
    low, high = coordinates.min(axis=0), coordinates.max(axis=0) + 1
    sizes = _component_sizes(coordinates, low, high)
    judged = evenly(coordinates)
    touching = _on_border(b, judged)
    border = border_voxels(b)
    distances = _border_distances(border, judged[~touching], spacing)
    return Place(
        box=tuple((int(first), int(last)) for first, last in zip(low, high, strict=True)),
        centroid=tuple(round(float(value), 3) for value in coordinates.mean(axis=0)),
        first=tuple(tuple(int(v) for v in voxel) for voxel in coordinates[:SHOWN]),
        judged=len(judged),
        on_border=int(touching.sum()),
        border_distance_max=None if distances is None else float(distances.max(initial=0.0)),
        border_distance_mean=None if distances is None else float(distances.sum() / len(judged)),
        components=len(sizes),
        largest=tuple(int(size) for size in np.sort(sizes)[::-1][:LARGEST]),
        reach=_reach(border, judged),
    )


def confusion(histogram: JointHistogram) -> list[dict[str, int]]:
    """Which labels became which: ``from`` the second map's label ``to`` the first map's, most frequent first.

    The histogram holds the second map ("reference") along axis 0.
    """
    rows, columns = np.nonzero(histogram.counts)
    pairs = [
        {"from": histogram.values[r], "to": histogram.values[c], "voxels": int(histogram.counts[r, c])}
        for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
        if r != c
    ]
    return sorted(pairs, key=lambda pair: (-pair["voxels"], pair["from"], pair["to"]))


def component_counts(labels: LabelArray) -> dict[int, int]:
    """Non-zero label -> number of its connected components (corners count as contact), (z, y, x)."""
    import cc3d

    if not labels.any():
        return {}
    box = tuple(slice(first, last) for first, last in bounding_box(labels != 0))
    window = np.ascontiguousarray(labels[box])
    components, number = cc3d.connected_components(window, connectivity=26, return_N=True)
    label_of = np.zeros(number + 1, dtype=np.int64)
    label_of[components.ravel()] = window.ravel()
    values, counts = np.unique(label_of[1:], return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _component_sizes(
    coordinates: Coordinates, low: npt.NDArray[np.int64], high: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    import cc3d

    window = np.zeros(tuple(high - low), dtype=bool)
    window[tuple((coordinates - low).T)] = True
    labelled, number = cc3d.connected_components(window, connectivity=26, return_N=True)
    return np.bincount(labelled.ravel(), minlength=number + 1)[1:].astype(np.int64)


def _on_border(b: LabelArray, coordinates: Coordinates) -> npt.NDArray[np.bool_]:
    own = b[tuple(coordinates.T)]
    touching = np.zeros(len(coordinates), dtype=bool)
    for axis in range(b.ndim):
        for step in (-1, 1):
            neighbour = coordinates.copy()
            neighbour[:, axis] = np.clip(neighbour[:, axis] + step, 0, b.shape[axis] - 1)
            touching |= b[tuple(neighbour.T)] != own
    return touching


def border_voxels(labels: LabelArray) -> Coordinates:
    """Coordinates (n, 3) of the voxels with a face neighbour of another label."""
    border = np.zeros(labels.shape, dtype=bool)
    for axis in range(labels.ndim):
        ahead = tuple(slice(1, None) if i == axis else slice(None) for i in range(labels.ndim))
        behind = tuple(slice(None, -1) if i == axis else slice(None) for i in range(labels.ndim))
        changes = labels[ahead] != labels[behind]
        border[ahead] |= changes
        border[behind] |= changes
    return np.argwhere(border).astype(np.int64)


def _border_distances(
    border: Coordinates, coordinates: Coordinates, spacing: Sequence[float]
) -> npt.NDArray[np.float64] | None:
    """mm from each coordinate to the nearest border voxel; None if there is no border, or SciPy is absent."""
    if not len(coordinates):
        return np.zeros(0)
    if not len(border):
        return None
    try:
        from scipy.spatial import cKDTree
    except ImportError:  # an extra: the distance is the one figure here that needs it
        return None
    scale = np.asarray(spacing, np.float64)
    distances, _ = cKDTree(border * scale).query(coordinates * scale)
    return np.asarray(distances, np.float64)


def _reach(border: Coordinates, coordinates: Coordinates) -> float | None:
    """Share of the cubes with border in them that also hold one of the coordinates."""
    if not len(border):
        return None
    cubes = np.unique(border // _CUBE, axis=0)
    both = np.concatenate([cubes, np.unique(coordinates // _CUBE, axis=0)])
    _, counts = np.unique(both, axis=0, return_counts=True)
    return float((counts == 2).sum() / len(cubes))
