"""Comparing engines on an image model, and drawing what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import EngineFailed, GeometryError
from offline_infer.images.cases import CaseFiles
from offline_infer.images.decoding import pillow, read_image, read_mask, read_mask_values
from offline_infer.spec import Pixels
from offline_infer.tasks.base import CaseAgreement
from offline_infer.tasks.image.case import FloatArray, network_batch, read
from offline_infer.tasks.image.collecting import mask_probabilities, score_probability
from offline_infer.tasks.image.geometry import fit, tile_of, to_content
from offline_infer.tasks.image.own_model import drawn_inputs
from offline_infer.tasks.image.spec import ImageSpec
from offline_infer.tasks.image.writing import MASKS, overlay

Array = npt.NDArray[Any]

_FLIPS = 0.005  # share of pixels that may change sides
_SCORE = 0.02  # largest change of a score
_EXAMPLE = 256  # edge of made-up inputs for graphs that take any size


def sample_inputs(case: CaseFiles | None, spec: ImageSpec, count: int) -> list[FloatArray]:
    """Inputs (1, c, y, x): of an image, cut into tiles where it does not fit; or a drawn photograph and noise."""
    if case is None:
        multiple = spec.multiple_of
        edge = -(-_EXAMPLE // multiple) * multiple
        size = (spec.height, spec.width) if spec.height > 0 else (edge, edge)
        return list(drawn_inputs(size, spec.pixels).values())[:count]
    loaded = read(case.channels[0], spec)
    placed = fit(loaded.geometry.size, spec, "tile")
    content = to_content(loaded.pixels, placed)
    groups = range(min(count, len(placed.tiles)))
    return [network_batch(tile_of(content, placed, group), placed, spec) for group in groups]


def judge(
    answers: Sequence[Mapping[str, Array]], reference: Sequence[Mapping[str, Array]] | None, spec: ImageSpec
) -> dict[str, Any]:
    """Whether answers can be trusted: pixels that change sides of one half, and the change of the scores."""
    try:
        mine = [_probabilities(answer, spec) for answer in answers]
        theirs = [_probabilities(answer, spec) for answer in reference] if reference is not None else None
    except EngineFailed as error:
        return {"status": "failed", "reason": str(error)}
    if theirs is None:
        return {"status": "ok"}
    pixels = flips = 0
    worst = score = 0.0
    for (mask, value), (wanted, expected) in zip(mine, theirs, strict=True):
        if mask is not None and wanted is not None:
            pixels += mask.size
            flips += int(((mask > 0.5) != (wanted > 0.5)).sum())
            worst = max(worst, float(np.abs(mask - wanted).max()))
        if value is not None and expected is not None:
            score = max(score, abs(value - expected))
    figures = {"voxels": pixels, "flips": flips, "max_diff": worst, "score_diff": score}
    if flips > _FLIPS * pixels:
        return {"status": "failed", "reason": f"{flips} of {pixels} pixels change sides of one half", **figures}
    if score > _SCORE:
        return {"status": "failed", "reason": f"scores change by up to {score:.3g}", **figures}
    return {"status": "ok", **figures}


def mean_change(
    answers: Sequence[Mapping[str, Array]], reference: Sequence[Mapping[str, Array]], spec: ImageSpec
) -> float:
    """Mean square of the change of the mask's probabilities, plus that of the score's.

    Raises:
        EngineFailed: an answer holds what is no probability.
    """
    powers = []
    for mine, theirs in zip(answers, reference, strict=True):
        (mask, score), (wanted, expected) = _probabilities(mine, spec), _probabilities(theirs, spec)
        power = 0.0 if mask is None or wanted is None else float(np.square(mask - wanted).mean())
        powers.append(power + (0.0 if score is None or expected is None else (score - expected) ** 2))
    return float(np.mean(powers))


def agreement_of_masks(mine: Path, reference: Path) -> CaseAgreement:
    """How alike two soft masks are, each divided at one half.

    Raises:
        ImageError: a mask is missing or cannot be read.
        GeometryError: they differ in size.
    """
    a, b = (read_mask_values(path) >= 128 for path in (mine, reference))
    if a.shape != b.shape:
        raise GeometryError(f"{mine} has shape {a.shape} and {reference} {b.shape} (y, x); expected the same size")
    found = int(a.sum()) + int(b.sum())
    return CaseAgreement(2 * int((a & b).sum()) / found if found else None, float(b.mean()))


def draw_case(case: CaseFiles, predictions: Path, references: Path | None, picture: Path, title: str) -> None:
    """An image with its region tinted; where there is a reference, that beside it.

    Args:
        predictions: folder of a run.
        references: folder of masks, called as the results are.
    """
    image = read_image(case.channels[0], Pixels())
    mask = read_mask_values(predictions / MASKS / f"{case.case_id}.png") >= 128
    panels = [overlay(image, mask)]
    if references is not None:
        found = [path for path in sorted(references.glob(f"{case.case_id}.*")) if read_mask(path).shape == mask.shape]
        panels += [overlay(image, read_mask(path)) for path in found[:1]]
    gap = np.full((image.shape[0], 8, 3), 255, np.uint8)
    joined = panels[0] if len(panels) == 1 else np.concatenate([panels[0], gap, panels[1]], axis=1)
    picture.parent.mkdir(parents=True, exist_ok=True)
    pillow().fromarray(joined).save(picture, format="PNG")


def _probabilities(answer: Mapping[str, Array], spec: ImageSpec) -> tuple[FloatArray | None, float | None]:
    mask = mask_probabilities(answer, spec.mask).copy() if spec.mask is not None else None
    return mask, score_probability(answer, spec.score) if spec.score is not None else None
