"""The network's grid over a case, the tiles laid over it, and the inputs cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import ImageGeometry, Shape3, Spacing3, permute, resampled_shape
from offline_infer.arithmetic.sliding_window import (
    Mirror,
    TileGrid,
    constant_key,
    cut_tile,
    gaussian_map,
    lay_tiles,
    mirror_code,
    mirror_sets,
    mirror_tile,
)
from offline_infer.errors import UsageError
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.settings import RunSettings
from offline_infer.threads import Team, ThreadBuffers

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NetworkGrid:
    """Where the network sees a case, network order.

    Attributes:
        cropped: (z, y, x) of the image without its empty border.
        spacing: of the image, mm.
        shape: (z, y, x) of the prepared array.
        target: its spacing, mm.
    """

    cropped: Shape3
    spacing: Spacing3
    shape: Shape3
    target: Spacing3


def network_grid(spec: VolumeSpec, frame: ImageGeometry, cropped: Sequence[int] | None = None) -> NetworkGrid:
    """The network's grid over an image.

    Args:
        cropped: (z, y, x) of the image without its empty border, image order; None: it has none, which gives the largest grid.

    Raises:
        GeometryError: the image has no voxel at the model's spacing.
    """
    order = spec.transpose_forward
    inner: Shape3 = permute(tuple(cropped) if cropped is not None else frame.shape, order)
    spacing: Spacing3 = permute(frame.spacing, order)
    fixed = spec.spacing
    target: Spacing3 = (spacing[0], fixed[0], fixed[1]) if len(fixed) == 2 else (fixed[0], fixed[1], fixed[2])
    # nnU-Net's resampling function "none" hands the image on as it is, whatever the spacing.
    shape = inner if spec.resampling.function == "none" else resampled_shape(inner, spacing, target)
    return NetworkGrid(inner, spacing, shape, target)


def case_grid(spec: VolumeSpec, shape: Sequence[int], settings: RunSettings) -> TileGrid:
    """The tiles of a prepared case of that spatial shape."""
    return lay_tiles(shape, spec.patch_size, step_size(spec, settings))


def step_size(spec: VolumeSpec, settings: RunSettings) -> float:
    """Tile step as a fraction of the patch: as set, else the model's own."""
    return settings.step_size if settings.step_size is not None else spec.window.step_size


def case_mirrors(spec: VolumeSpec, settings: RunSettings) -> tuple[Mirror, ...]:
    """The mirrors of each tile, unmirrored first."""
    return mirror_sets(spec.window.mirror_axes if settings.tta else (), len(spec.patch_size))


def case_weights(spec: VolumeSpec, grid: TileGrid) -> FloatArray | None:
    """The weight of each voxel of a tile, or None where all count the same."""
    window = spec.window.gaussian
    weighted = window.apply == "always" or len(grid) > 1
    return gaussian_map(grid.patch, window, len(spec.patch_size)).astype(np.float32, copy=False) if weighted else None


def sum_dtype(spec: VolumeSpec, settings: RunSettings) -> str:
    """Precision of the sums over tiles: ``float32`` or ``float16``.

    Raises:
        UsageError: half-precision sums for a model whose framework does not make them.
    """
    if settings.accumulate == "framework":
        return spec.aggregation.accumulate
    if settings.accumulate == "float16" and spec.aggregation.accumulate != "float16":
        raise UsageError(
            f"{spec.source.framework} sums in {spec.aggregation.accumulate}, and half precision would lose its smallest "
            "weights; half-precision sums repeat those of nnU-Net v2 models only"
        )
    return settings.accumulate


@dataclass(frozen=True)
class TileLayout:
    """The items of a case: every tile (a group) in every mirror (a position).

    Attributes:
        grid: the tiles.
        mirrors: of each tile, unmirrored first.
        channels: of the network's input.
        slices: the network is two-dimensional.
    """

    grid: TileGrid
    mirrors: tuple[Mirror, ...]
    channels: int
    slices: bool

    @classmethod
    def of(cls, spec: VolumeSpec, shape: Sequence[int], settings: RunSettings) -> TileLayout:
        """The layout of a prepared case of spatial shape (z, y, x)."""
        return cls(
            case_grid(spec, shape, settings),
            case_mirrors(spec, settings),
            spec.input_channels,
            len(spec.patch_size) == 2,
        )

    @property
    def groups(self) -> int:
        return len(self.grid)

    @property
    def per_group(self) -> int:
        return len(self.mirrors)

    @property
    def extent(self) -> tuple[int, ...]:
        return self.grid.shape

    @cached_property
    def starts(self) -> tuple[Shape3, ...]:
        """Tile starts (z, y, x) in the padded array, in grid order."""
        return tuple(self.grid)

    def shape(self, group: int) -> tuple[int, ...]:
        return (self.channels, *(self.grid.patch[1:] if self.slices else self.grid.patch))

    def record(self, group: int, position: int) -> dict[str, Any]:
        """``start`` (z, y, x) in the padded array; bit 0 of ``mirror`` flips x, bit 1 y, bit 2 z."""
        return {"mode": "tile", "start": list(self.starts[group]), "mirror": mirror_code(self.mirrors[position])}

    def name(self, group: int, position: int) -> str:
        return tile_name(self.starts[group], self.grid.patch, mirror_code(self.mirrors[position]))


def tile_name(start: Sequence[int], patch: Sequence[int], mirror: int) -> str:
    """``<x0>_<x1>_<y0>_<y1>_<z0>_<z1>_<f>``: the published scripts call the first array axis x.

    Args:
        start: tile start in the padded array, first axis first.
        patch: three entries; 1 first for a two-dimensional network.
        mirror: mirror bits.
    """
    bounds = "_".join(f"{first}_{first + length}" for first, length in zip(start, patch, strict=True))
    return f"{bounds}_{mirror}"


class TileCutter:
    """Cuts tiles from a prepared array and mirrors them."""

    def __init__(self, array: FloatArray, layout: TileLayout, input_shape: Sequence[int], team: Team) -> None:
        """
        Args:
            array: (c, z, y, x), network order, unpadded.
            input_shape: of the network, batch axis first.
        """
        self._array, self._layout, self._team = array, layout, team
        self._tile = np.empty((array.shape[0], *layout.grid.patch), np.float32)
        self._batch = np.empty(tuple(input_shape), np.float32)
        self._buffers = ThreadBuffers()

    def load(self, group: int) -> tuple[int, ...] | None:
        """Cut a tile; the key of one that is constant (air, padding)."""
        cut_tile(self._array, self._layout.grid, self._layout.starts[group], self._tile)
        return constant_key(self._tile)

    def input(self, position: int) -> FloatArray:
        """The tile in one mirror, (1, c, *patch)."""
        mirror = self._layout.mirrors[position]
        mirror_tile(self._tile, mirror, self._batch.reshape(self._tile.shape), self._buffers, self._team.each)
        return self._batch
