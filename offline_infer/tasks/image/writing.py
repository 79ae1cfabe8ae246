"""Results to files: soft masks at each image's own size, and what is asked for beside them.

``pred/<case>.png``: 8-bit grey, floor(255 p + 0.5); at least 128 means p >= 0.5. ``scores/<case>.json``: the score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.bilinear import soft_bands
from offline_infer.errors import UsageError
from offline_infer.files import keep_json, read_json, replacing, write_json
from offline_infer.images.decoding import pillow, read_image
from offline_infer.spec import Pixels
from offline_infer.tasks.image.case import FloatArray, ImageResult
from offline_infer.tasks.image.evaluation.pixel_measures import eroded
from offline_infer.tasks.image.geometry import uncovered
from offline_infer.tasks.image.options import EXTRA_FILES, EXTRAS, IMAGE_SCORE, THRESHOLD
from offline_infer.tasks.image.spec import ImageSpec
from offline_infer.tasks.settings import RunSettings

Bytes = npt.NDArray[np.uint8]

MASKS, SCORES = "pred", "scores"
COMBINED = "pred_label_combined.json"
_RANK = "pred_label_rank"
_ENDINGS = {"binary": ".png", "overlay": ".png", "png16": ".png", "npy": ".npy", "tiff": ".tif", "network": ".npz"}
_MARK = np.array([255, 40, 40], np.float32)  # colour of a region in an overlay
_BAND = 1 << 20  # pixels


def result_files(folder: Path, case_id: str, spec: ImageSpec, settings: RunSettings) -> list[Path]:
    """Files of a complete case, the main one first."""
    files = [folder / MASKS / f"{case_id}.png"] if spec.mask is not None else []
    if spec.score is not None or settings.option(IMAGE_SCORE) == "max":
        files.append(folder / SCORES / f"{case_id}.json")
    if spec.mask is not None:
        files += [folder / name / f"{case_id}{_ENDINGS[name]}" for name in extras(settings)]
    return files


def write_result(result: ImageResult, folder: Path, case_id: str, spec: ImageSpec, settings: RunSettings) -> Path:
    """Write a result, the main file last; returns it.

    Raises:
        UsageError: an extra that is unknown, or whose library is not installed.
    """
    files = {path.parent.name: path for path in result_files(folder, case_id, spec, settings)}
    for name in extras(settings):
        if name in files:
            _write_extra(name, files[name], result, settings)
    if SCORES in files:
        name = Path(result.frame.path).name
        write_json(files[SCORES], {"name": name, "image": result.frame.path, "score": result.score})
    if MASKS in files:
        _save_png(files[MASKS], soft_bytes(result))
    return files.get(MASKS, files.get(SCORES, folder))


def extras(settings: RunSettings) -> list[str]:
    """The further files that are wanted.

    Raises:
        UsageError: one is unknown.
    """
    text = settings.option(EXTRAS)
    names = [] if text == "none" else [part.strip() for part in text.split(",")]
    unknown = [name for name in names if name not in EXTRA_FILES]
    if unknown:
        raise UsageError(f"unknown extras {', '.join(map(repr, unknown))}; legal: {', '.join(EXTRA_FILES)}, or none")
    return names


def threshold(settings: RunSettings) -> float:
    """The threshold of binary masks.

    Raises:
        UsageError: not a number from 0 to 1.
    """
    text = settings.option(THRESHOLD)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"threshold {text!r}: expected a number from 0 to 1")
    return value


def own_size_bands(result: ImageResult) -> Iterator[tuple[int, FloatArray]]:
    """The mask at the image's own size, a band of rows at a time: (first row, (rows, width) float32).

    Beyond what a cropped image showed the network the mask is 0.
    """
    assert result.mask is not None
    placed = result.placed
    height, width = result.frame.size
    content = result.mask if placed.mode == "tile" else uncovered(result.mask, placed)
    if placed.mode in ("resize", "letterbox"):
        yield from soft_bands(content, height, width)
        return
    rows = max(1, _BAND // width)
    for first in range(0, height, rows):
        band = np.zeros((min(rows, height - first), width), np.float32)
        part = content[first : first + len(band)]
        band[: len(part), : part.shape[1]] = part
        yield first, band


def soft_bytes(result: ImageResult) -> Bytes:
    """The mask at the image's own size, (y, x) uint8: floor(255 p + 0.5)."""
    soft = np.empty(result.frame.size, np.uint8)
    for first, band in own_size_bands(result):
        soft[first : first + len(band)] = (band * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return soft


def soft_floats(result: ImageResult) -> FloatArray:
    """The mask at the image's own size, (y, x) float32."""
    soft = np.empty(result.frame.size, np.float32)
    for first, band in own_size_bands(result):
        soft[first : first + len(band)] = band
    return soft


def binary_mask(result: ImageResult, threshold: float) -> npt.NDArray[np.bool_]:
    """The mask at the image's own size, (y, x) bool: where it is larger than the threshold."""
    mask = np.empty(result.frame.size, bool)
    for first, band in own_size_bands(result):
        mask[first : first + len(band)] = band > threshold
    return mask


def overlay(pixels: Bytes, mask: npt.NDArray[np.bool_]) -> Bytes:
    """An RGB image with the region tinted and its border drawn, (y, x, 3) uint8."""
    picture = pixels.copy()
    picture[mask] = (0.6 * picture[mask] + 0.4 * _MARK).astype(np.uint8)
    width = max(1, round(min(mask.shape) / 300))
    border = mask & ~eroded(mask, 2 * width + 1)
    picture[border] = _MARK.astype(np.uint8)
    return picture


def write_score_lists(folder: Path, shares: Mapping[int, Sequence[str]], parts: int) -> Sequence[str]:
    """``pred_label_rank{part}.json`` with the scores of each share's cases; when there is one of every part,
    ``pred_label_combined.json`` with all scores. Files that say so already are left alone.

    Args:
        shares, parts: see :meth:`offline_infer.tasks.base.Task.write_shared_files`.

    Returns:
        Which parts the combined list is waiting for, as a sentence; nothing if it was written.

    Raises:
        UsageError: a case of a share has no score, or an image has two.
    """
    cases = [case for share in shares.values() for case in share]
    missing = [case for case in cases if not (folder / SCORES / f"{case}.json").is_file()]
    if missing:
        raise UsageError(f"{folder}: {len(missing)} images have no score, e.g. {missing[0]}; run again, overwriting")
    for part, share in shares.items():
        keep_json(folder / f"{_RANK}{part}.json", combine_scores(folder, share))
    for path in folder.glob(f"{_RANK}*.json"):  # of an earlier run in more parts
        if path.stem.removeprefix(_RANK).isdecimal() and int(path.stem.removeprefix(_RANK)) >= parts:
            path.unlink()
    if _waiting(folder, parts):
        (folder / COMBINED).unlink(missing_ok=True)
        if waiting := _waiting(folder, parts):  # else the last part finished in between
            return (f"{COMBINED} is written when all {parts} parts are done; still missing: {', '.join(waiting)}",)
    combined: dict[str, float] | None = None
    while combined != (found := combine_scores(folder)):  # another part may have finished in between
        combined = found
        keep_json(folder / COMBINED, found)
    return ()


def combine_scores(folder: Path, cases: Sequence[str] | None = None) -> dict[str, float]:
    """All scores of a folder of results, by image name in natural order; images of one name by more of their path.

    An image that several sets list stands there once.

    Args:
        cases: only these; default all.

    Raises:
        UsageError: a score file is damaged, or an image has two different scores.
    """
    from offline_infer.images.cases import natural_key
    from offline_infer.tasks.image.datasets import unique_names

    by_image: dict[str, float] = {}
    wanted = [folder / SCORES / f"{case}.json" for case in cases] if cases is not None else None
    for path in sorted((folder / SCORES).glob("*.json")) if wanted is None else wanted:
        record = read_score(path)
        image, score = record["image"] or record["name"], float(record["score"])
        if by_image.setdefault(image, score) != score:
            raise UsageError(f"{path}: {image} has the scores {by_image[image]} and {score}; predict into a new folder")
    names = unique_names([Path(image) for image in by_image])
    found = dict(zip(names, by_image.values(), strict=True))
    return {name: found[name] for name in sorted(found, key=natural_key)}


def read_score(path: Path) -> dict[str, Any]:
    """One score file: ``name``, ``image`` and ``score``.

    Raises:
        UsageError: it is damaged.
    """
    try:
        record = read_json(path)
        whole = isinstance(record["name"], str) and isinstance(record["image"], str)
        if not whole or not 0 <= float(record["score"]) <= 1:
            raise ValueError("not a score")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{path}: is no score of a run ({error}); delete it and run again") from error
    return dict(record)


def _waiting(folder: Path, parts: int) -> list[str]:
    """Numbers of the parts that have no list yet."""
    return [str(part) for part in range(parts) if not (folder / f"{_RANK}{part}.json").is_file()]


def _write_extra(name: str, path: Path, result: ImageResult, settings: RunSettings) -> None:
    if name == "binary":
        _save_png(path, binary_mask(result, threshold(settings)).astype(np.uint8) * np.uint8(255))
    elif name == "overlay":
        if not result.frame.path:
            raise UsageError("an overlay needs the image's file; this image was given in memory")
        pixels = read_image(Path(result.frame.path), Pixels())
        _save_png(path, overlay(pixels, binary_mask(result, threshold(settings))))
    elif name == "png16":
        _save_png(path, (soft_floats(result) * np.float32(65535) + np.float32(0.5)).astype(np.uint16))
    elif name == "npy":
        with replacing(path) as temporary:
            np.save(temporary, soft_floats(result), allow_pickle=False)
    elif name == "tiff":
        with replacing(path) as temporary:
            pillow().fromarray(soft_floats(result)).save(temporary, format="TIFF")
    else:
        _write_network_mask(path, result)


def _write_network_mask(path: Path, result: ImageResult) -> None:
    """The mask as the network gave it, with what is needed to place a reference alike."""
    assert result.mask is not None
    placed = result.placed
    with replacing(path) as temporary:
        np.savez(
            temporary,
            mask=result.mask,
            size=np.array(placed.size, np.int64),
            content=np.array(placed.content, np.int64),
            mode=np.array(placed.mode),
        )


def _save_png(path: Path, pixels: npt.NDArray[Any]) -> None:
    with replacing(path) as temporary:
        pillow().fromarray(pixels).save(temporary, format="PNG", compress_level=1)
