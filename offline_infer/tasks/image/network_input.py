"""8-bit pixels to the network's float32 input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from offline_infer.tasks.image.spec import Pixels

Bytes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


def normalization_table(pixels: Pixels) -> FloatArray:
    """The normalised value of every 8-bit value, (c, 256) float32.

    Computed as ``(value - mean * scale) * (1 / (std * scale))`` with every step rounded to float32, which is the
    arithmetic of the augmentation libraries that models are trained with.
    """
    scale = np.float32(pixels.scale)
    values = np.arange(256, dtype=np.float32)
    offsets = np.asarray(pixels.mean, np.float32) * scale
    factors = np.float32(1) / (np.asarray(pixels.std, np.float32) * scale)
    return np.asarray((values[None, :] - offsets[:, None]) * factors[:, None], np.float32)


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
