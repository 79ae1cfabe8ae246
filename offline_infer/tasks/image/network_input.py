"""8-bit pixels to the network's float32 input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


def normalize_into(out: FloatArray, content: Bytes, table: FloatArray) -> None:
    """Write an image, normalised, into the top left of the network's input; what lies beyond holds normalised zeros.

    Args:
        out: (1, c, y, x) float32, filled completely.
        content: (y, x, c) uint8, not larger than ``out``.
        table: of :func:`normalization_table`.
    """
    height, width, channels = content.shape
    for channel in range(channels):
        plane = out[0, channel]
        np.take(table[channel], content[:, :, channel], out=plane[:height, :width], mode="clip")
        plane[height:] = table[channel, 0]
        plane[:height, width:] = table[channel, 0]
