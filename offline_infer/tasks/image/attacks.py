"""What happens to photographs on their way: blur, noise and JPEG at the published strengths, and attacks of one's own.

Attacks act on the decoded 8-bit RGB image at its own size, before it is resized or padded; the reference mask stays.
Strength 0 is no attack.
"""

from __future__ import annotations

import hashlib
import io
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from offline_infer.errors import UsageError
from offline_infer.images.decoding import pillow

Bytes = npt.NDArray[np.uint8]
Apply = Callable[[Bytes, float, int], Bytes]
"""(image (y, x, 3) uint8, strength, seed) -> attacked image of the same shape."""


@dataclass(frozen=True)
class Attack:
    """A kind of damage.

    Attributes:
        name: in tables and file names.
        apply: what does it.
        strengths: the published ones, without 0.
        unit: what a strength means.
    """

    name: str
    apply: Apply
    strengths: tuple[float, ...]
    unit: str


def gaussian_blur(image: Bytes, strength: float, seed: int) -> Bytes:
    """Blur with an odd kernel of ``strength`` pixels, as OpenCV's ``GaussianBlur(..., sigma=0)``, to the bit.

    OpenCV rounds the kernel to eight fractional bits, filters rows and columns in fixed point and reflects at the border
    without repeating the edge pixel.
    """
    size = int(strength)
    if size != strength or size < 1 or size % 2 == 0:
        raise UsageError(f"a blur kernel has {strength:g} pixels; expected an odd number")
    if size == 1:
        return image
    kernel = blur_kernel(size)
    rows = _filtered(image.astype(np.uint32), kernel, axis=1)
    both = _filtered(rows, kernel, axis=0)
    return ((both + (1 << 15)) >> 16).astype(np.uint8)


def gaussian_noise(image: Bytes, strength: float, seed: int) -> Bytes:
    """Add noise of variance ``strength`` on the 0-255 scale, independent in every channel, cut off and truncated.

    Truncation darkens the image by half a grey level on average; it belongs to the published attack.
    """
    if strength < 0:
        raise UsageError(f"a noise variance is {strength:g}; expected 0 or more")
    noise = np.random.RandomState(seed & 0xFFFFFFFF).normal(0, strength**0.5, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def jpeg_compression(image: Bytes, strength: float, seed: int) -> Bytes:
    """Encode as JPEG of quality ``strength`` (1 to 100) and decode again, as published: red and blue are exchanged while
    encoding, so that chroma is damaged otherwise than by a camera.
    """
    return np.ascontiguousarray(_jpeg(np.ascontiguousarray(image[:, :, ::-1]), strength)[:, :, ::-1])


def jpeg_compression_rgb(image: Bytes, strength: float, seed: int) -> Bytes:
    """The same with the colours in their right order: what saving a photograph really does to it."""
    return _jpeg(image, strength)


ATTACKS: Mapping[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack("GaussianBlur", gaussian_blur, (3, 7, 11, 15, 19, 23), "kernel size in pixels"),
        Attack("GaussianNoise", gaussian_noise, (3, 7, 11, 15, 19, 23), "variance on the 0-255 scale"),
        Attack("JpegCompression", jpeg_compression, (50, 60, 70, 80, 90, 100), "quality"),
        Attack("JpegCompressionRGB", jpeg_compression_rgb, (50, 60, 70, 80, 90, 100), "quality, colours in order"),
    )
}
"""The attacks there are without a file of one's own."""

PUBLISHED = ("GaussianBlur", "GaussianNoise", "JpegCompression")


def attacks_of_file(path: Path) -> dict[str, Attack]:
    """Attacks of one's own: every :class:`Attack` that a Python file defines. The file is executed.

    Raises:
        UsageError: no such file, it cannot be executed, or it defines none.
    """
    if not path.is_file():
        raise UsageError(f"{path}: does not exist; expected a Python file that defines attacks")
    try:
        defined = runpy.run_path(str(path))
    except Exception as error:
        raise UsageError(f"{path}: cannot be executed ({type(error).__name__}: {error})") from error
    found = {value.name: value for value in defined.values() if isinstance(value, Attack)}
    if not found:
        raise UsageError(f"{path}: defines no Attack")
    return found


def seed_of(name: str, attack: str, strength: float, seed: int) -> int:
    """The seed of one image under one attack: the same in every run, on every machine, in any order."""
    text = f"{name}\0{attack}\0{strength:g}\0{seed}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def blur_kernel(size: int) -> npt.NDArray[np.uint32]:
    """OpenCV's Gaussian kernel for 8-bit images: ``size`` coefficients of eight fractional bits that sum to 256.

    Sizes up to 9 are a fixed table; larger ones have sigma = 0.3 ((size - 1) / 2 - 1) + 0.8. Rounding errors are carried
    from the ends to the middle.
    """
    tables = {
        1: [1.0],
        3: [0.25, 0.5, 0.25],
        5: [0.0625, 0.25, 0.375, 0.25, 0.0625],
        7: [0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125],
        9: [4 / 256, 13 / 256, 30 / 256, 51 / 256, 60 / 256, 51 / 256, 30 / 256, 13 / 256, 4 / 256],
    }
    if size in tables:
        exact = np.array(tables[size])
    else:
        sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
        offsets = np.arange(size) - (size - 1) / 2
        exact = np.exp(-(offsets**2) / (2 * sigma * sigma))
        exact /= exact.sum()
    fixed = np.zeros(size, np.int64)
    carried = 0.0
    for index in range(size // 2):
        wanted = exact[index] * 256 + carried
        fixed[index] = fixed[size - 1 - index] = int(np.rint(wanted))
        carried = wanted - fixed[index]
    fixed[size // 2] = 256 - 2 * fixed[: size // 2].sum()
    return fixed.astype(np.uint32)


def _filtered(values: npt.NDArray[np.uint32], kernel: npt.NDArray[np.uint32], axis: int) -> npt.NDArray[np.uint32]:
    """The sum of shifted values times coefficients along an axis; mirrored at the border."""
    length, reach = values.shape[axis], len(kernel) // 2
    positions = np.arange(-reach, length + reach)
    period = max(1, 2 * (length - 1))
    positions = np.abs((positions + period) % period if length > 1 else positions * 0)
    mirrored = np.where(positions >= length, period - positions, positions)
    padded = values.take(mirrored, axis=axis)
    total = np.zeros_like(values)
    for offset, weight in enumerate(kernel):
        total += weight * padded.take(range(offset, offset + length), axis=axis)
    return total


def _jpeg(image: Bytes, strength: float) -> Bytes:
    quality = int(strength)
    if quality != strength or not 1 <= quality <= 100:
        raise UsageError(f"a JPEG quality is {strength:g}; expected a whole number from 1 to 100")
    library = pillow()
    buffer = io.BytesIO()
    library.fromarray(image).save(buffer, format="JPEG", quality=quality)
    with library.open(buffer, formats=("JPEG",)) as decoded:
        return np.array(decoded.convert("RGB"))
