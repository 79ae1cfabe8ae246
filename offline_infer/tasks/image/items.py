"""Which inputs an image becomes, and how they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offline_infer.tasks.image.case import FloatArray, ImageFrame, PreparedImage, network_batch
from offline_infer.tasks.image.geometry import ImageGeometry, fit, tile_of, to_content
from offline_infer.tasks.image.options import OVERSIZE
from offline_infer.tasks.image.spec import ImageSpec
from offline_infer.tasks.settings import RunSettings


@dataclass(frozen=True)
class ImageLayout:
    """One group of one input; of a tiled image one group for each tile."""

    placed: ImageGeometry
    channels: int
    per_group: int = 1

    @classmethod
    def of(cls, frame: ImageFrame, spec: ImageSpec, settings: RunSettings) -> ImageLayout:
        """
        Raises:
            GeometryError: the image does not fit, and the settings do not say what to do.
        """
        return cls(fit(frame.size, spec, settings.option(OVERSIZE)), spec.pixels.channels)

    @property
    def groups(self) -> int:
        return len(self.placed.tiles)

    @property
    def extent(self) -> tuple[int, ...]:
        """(height, width) the network sees of the image, all tiles together."""
        return self.placed.size if self.placed.mode == "tile" else self.placed.network

    def shape(self, group: int) -> tuple[int, ...]:
        return (self.channels, *self.placed.network)

    def record(self, group: int, position: int) -> dict[str, Any]:
        """``mode``, the image's size and the content's, and where in the image the input begins."""
        placed = self.placed
        return {
            "mode": placed.mode,
            "size": list(placed.size),
            "content": list(placed.content),
            "origin": list(placed.tiles[group]),
        }

    def name(self, group: int, position: int) -> str:
        y, x = self.placed.tiles[group]
        return f"y{y}_x{x}" if self.placed.mode == "tile" else self.placed.mode


class ImageCutter:
    """Makes the inputs of one image."""

    def __init__(self, prepared: PreparedImage, layout: ImageLayout, spec: ImageSpec) -> None:
        self._prepared, self._layout, self._spec = prepared, layout, spec
        self._group = 0
        self._content = to_content(prepared.pixels, layout.placed) if prepared.pixels is not None else None

    def load(self, group: int) -> None:
        self._group = group

    def input(self, position: int) -> FloatArray:
        """(1, c, y, x) float32."""
        if self._content is None:
            assert self._prepared.batch is not None
            return self._prepared.batch
        placed = self._layout.placed
        return network_batch(tile_of(self._content, placed, self._group), placed, self._spec)
