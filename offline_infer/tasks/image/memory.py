"""What an image will take of the memory, from its size."""

from __future__ import annotations

import math

from offline_infer.tasks.image.case import ImageFrame
from offline_infer.tasks.image.geometry import fit
from offline_infer.tasks.image.options import OVERSIZE
from offline_infer.tasks.image.spec import ImageSpec
from offline_infer.tasks.memory import MemoryEstimate
from offline_infer.tasks.settings import RunSettings

_FLOAT = 4
_MAPS = 64
"""Full-size feature maps an engine holds at once: a guess for networks with a decoder."""


def estimate_image(frame: ImageFrame, spec: ImageSpec, settings: RunSettings, graph_bytes: int) -> MemoryEstimate:
    """Bytes at the three heights of a case.

    Raises:
        GeometryError: the image does not fit the network.
    """
    placed = fit(frame.size, spec, settings.option(OVERSIZE))
    own, network = math.prod(frame.size), math.prod(placed.network)
    image, batch = own * spec.pixels.channels, network * spec.pixels.channels * _FLOAT
    soft = (own if placed.mode == "tile" else network) * _FLOAT
    prepared = image if placed.mode != "resize" and len(placed.tiles) > 1 else batch
    return MemoryEstimate(
        prepare=image + batch,
        prepared=prepared,
        infer=prepared + batch + soft,
        finish=prepared + soft + 2 * own,
        engine=2 * graph_bytes + _MAPS * network * _FLOAT,
        slab=0,
        parts={"image": image, "input": batch, "mask": soft},
    )
