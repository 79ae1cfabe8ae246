"""Intensity normalisation, one function per scheme. float32 throughout, as the frameworks do it. Pure arithmetic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from offline_infer.errors import ImageError
from offline_infer.spec import Channel, Pixels

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def normalize(channel: FloatArray, mask: Mask | None, rule: Channel) -> None:
    """Normalise one channel in place.

    Args:
        channel: (z, y, x), float32.
        mask: filled non-zero mask of the same shape, or None where the whole array is image.
        rule: scheme and figures.

    Raises:
        ImageError: the values do not fit the scheme (``rgb_to_01`` outside 0..255).
    """
    masked = rule.use_mask and mask is not None
    if rule.scheme == "ct":
        assert rule.intensity is not None
        np.clip(
            channel, np.float32(rule.intensity.percentile_00_5), np.float32(rule.intensity.percentile_99_5), out=channel
        )
        channel -= np.float32(rule.intensity.mean)
        channel /= _guarded(rule.intensity.std, rule)
    elif rule.scheme == "ct2":
        assert rule.intensity is not None
        low, high = np.float32(rule.intensity.percentile_00_5), np.float32(rule.intensity.percentile_99_5)
        inside = channel[(channel > low) & (channel < high)]
        np.clip(channel, low, high, out=channel)
        channel -= inside.mean()
        channel /= _guarded(float(inside.std()), rule)
    elif rule.scheme == "zscore":
        values = channel[mask] if masked else channel
        mean, std = values.mean(), values.std()
        if masked and mask is not None:
            channel[mask] = (values - mean) / _guarded(float(std), rule)
        else:
            channel -= mean
            channel /= _guarded(float(std), rule)
    elif rule.scheme == "rescale_to_01":
        channel -= channel.min()
        channel /= np.clip(channel.max(), np.float32(1e-8), None)
    elif rule.scheme == "rgb_to_01":
        darkest, brightest = float(channel.min()), float(channel.max())
        if darkest < 0 or brightest > 255:
            raise ImageError(
                f"channel {rule.name!r}: values {darkest:g}..{brightest:g}, but the model expects 8-bit colour, 0..255"
            )
        channel /= np.float32(255)
    if masked and mask is not None and rule.scheme in ("ct", "ct2", "zscore"):
        channel[~mask] = 0


def _guarded(std: float, rule: Channel) -> np.float32:
    """The divisor, guarded against zero as the framework does."""
    value = np.float32(std)
    if rule.std_guard == "max":
        return max(value, np.float32(1e-8))
    if rule.std_guard == "add":
        return value + np.float32(1e-8)
    return value


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
