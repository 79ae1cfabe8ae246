"""8-bit pixels to the network's input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.bilinear import resize_pixels
from offline_infer.arithmetic.normalization import normalization_table
from offline_infer.tasks.instances.geometry import InstanceGeometry
from offline_infer.tasks.instances.spec import InstancesSpec

Bytes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


def network_input(image: Bytes, geometry: InstanceGeometry, spec: InstancesSpec) -> FloatArray:
    """The input (1, c, y, x) for an image (y, x, c) uint8 in the channel order of ``spec.pixels``."""
    height, width = geometry.scaled
    y, x = geometry.offset
    content = resize_pixels(image, height, width)
    result = np.full((1, spec.input_channels, *geometry.network), spec.padding.value, np.float32)
    inside = result[:, :, y : y + height, x : x + width]
    for channel, table in enumerate(normalization_table(spec.pixels)):
        np.take(table, content[:, :, channel], out=inside[0, channel], mode="clip")
    if spec.padding.validity_channel:
        result[0, -1] = 0
        inside[0, -1] = 1
    return result
