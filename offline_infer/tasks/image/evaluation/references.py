"""What a run left about each image, beside the reference it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.bilinear import resize_mask
from offline_infer.errors import GeometryError, ImageError, UsageError
from offline_infer.files import read_json
from offline_infer.images.decoding import image_size, mask_has_value, read_mask, read_mask_values
from offline_infer.tasks.image.datasets import Item
from offline_infer.tasks.image.evaluation.pixel_measures import Mask, Soft

MASKS, FLOATS, NETWORK, SCORES = "pred", "npy", "network", "scores"
COMBINED = "pred_label_combined.json"
_JSON_LIMIT = 256 << 20  # bytes


@dataclass(frozen=True, eq=False)
class Compared:
    """A soft mask and its reference, (y, x) both.

    Attributes:
        soft: uint8 or float32.
        reference: bool.
        inside: bool; where the network's input holds the image; None: everywhere.
    """

    soft: Soft
    reference: Mask
    inside: Mask | None = None


class MissingPrediction(ImageError):
    """There is no result for an image of the dataset."""


class Predictions:
    """The folder a run wrote its results to, or one that IMDL-BenCo's saving script wrote."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"{folder}: is not a folder of predictions")
        self._folder = folder
        self._masks = folder / MASKS if (folder / MASKS).is_dir() else folder
        self._scores = self._read_scores()

    @property
    def has_masks(self) -> bool:
        """Whether there is any mask at all; a model may give scores only."""
        return any(self._masks.glob("*.png"))

    @property
    def has_scores(self) -> bool:
        return bool(self._scores)

    def score(self, item: Item) -> float | None:
        """The score of an image, by its result's name or by its own."""
        return self._scores.get(f"/{item.stem}", self._scores.get(item.name))

    def own_size(self, item: Item) -> Compared:
        """At the image's own size: the float mask where one was kept, else the 8-bit one.

        Raises:
            ImageError: missing or damaged.
        """
        floats = self._folder / FLOATS / f"{item.stem}.npy"
        if floats.is_file():
            soft: Soft = _load_array(floats)
        else:
            path = self._masks / f"{item.stem}.png"
            if not path.is_file():
                raise MissingPrediction(f"{path}: there is no prediction for {item.name}")
            soft = read_mask_values(path)
        return Compared(soft, _reference(item, (soft.shape[0], soft.shape[1])))

    def network_size(self, item: Item) -> Compared:
        """At the network's size, the reference resized or padded as the image was.

        Raises:
            ImageError: missing or damaged.
            GeometryError: the image was tiled.
        """
        path = self._folder / NETWORK / f"{item.stem}.npz"
        if not path.is_file():
            raise ImageError(f"{path}: there is no mask at the network's size; predict with the extra file 'network'")
        soft, size, content, mode = _load_network_mask(path)
        reference = _reference(item, size)
        if mode == "tile":
            raise GeometryError(f"{item.name} was cut into tiles; it has no mask at the network's size")
        if mode == "resize":
            return Compared(soft, resize_mask(reference, *content))
        scaled = resize_mask(reference, *content) if mode == "letterbox" else reference[: content[0], : content[1]]
        placed, inside = np.zeros(soft.shape, bool), np.zeros(soft.shape, bool)
        placed[: content[0], : content[1]] = scaled
        inside[: content[0], : content[1]] = True
        return Compared(soft, placed, inside)

    def _read_scores(self) -> dict[str, float]:
        """Image name -> score, and ``/<case>`` -> score of the run's own files."""
        found: dict[str, float] = {}
        combined = self._folder / COMBINED
        if combined.is_file():
            found.update(read_score_list(combined))
        for path in sorted((self._folder / SCORES).glob("*.json")):
            found[f"/{path.stem}"] = _number(_load_json(path).get("score"), path)
        return found


def read_score_list(path: Path) -> dict[str, float]:
    """A ``pred_label_*.json``: image name -> score.

    Raises:
        UsageError: it is damaged.
    """
    return {str(name): _number(score, path) for name, score in _load_json(path).items()}


def has_any_value(item: Item) -> bool:
    """Whether the mask holds any non-zero value, however small: what IMDL-BenCo takes for manipulated.

    Raises:
        ImageError: the mask cannot be read.
    """
    return item.mask is not None and mask_has_value(item.mask)


def _reference(item: Item, size: tuple[int, int]) -> Mask:
    if item.mask is None:
        if image_size(item.image) != size and image_size(item.image)[::-1] != size:
            raise GeometryError(f"{item.image} has another size than its prediction, {size[1]} x {size[0]} pixels")
        return np.zeros(size, bool)
    mask = read_mask(item.mask)
    if mask.shape != size:
        raise GeometryError(
            f"the prediction for {item.name} has {size[1]} x {size[0]} pixels, its reference {item.mask} "
            f"{mask.shape[1]} x {mask.shape[0]}"
        )
    return mask


def _load_array(path: Path) -> npt.NDArray[np.float32]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype != np.float32:
        raise ImageError(f"{path}: is no float32 mask (y, x)")
    return array


def _load_network_mask(
    path: Path,
) -> tuple[npt.NDArray[np.float32], tuple[int, int], tuple[int, int], str]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            mask, size, content, mode = (archive[name] for name in ("mask", "size", "content", "mode"))
        pair = (int(size[0]), int(size[1])), (int(content[0]), int(content[1]))
        if mask.ndim != 2 or mask.dtype != np.float32 or min(*pair[0], *pair[1]) < 1:
            raise ValueError("not a mask")
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile) as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error
    return mask, *pair, str(mode)


def _load_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, largest=_JSON_LIMIT)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: holds {type(value).__name__}; expected image names and scores")
    return value


def _number(value: Any, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(f"{path}: holds the score {value!r}; expected a number from 0 to 1")
    return float(value)
