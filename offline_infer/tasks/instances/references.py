"""Reference objects: Pascal VOC trees with object masks, and COCO's annotation files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.budgets import check_plausible
from offline_infer.errors import CaseError, ImageError, UsageError
from offline_infer.files import plain_name, read_json
from offline_infer.images.decoding import pillow
from offline_infer.tasks.instances.cases import VOC_LIST, voc_ids
from offline_infer.tasks.instances.palette import VOID, voc_palette
from offline_infer.tasks.instances.rle import Runs, check_size, runs_of_coco, runs_of_mask

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Pascal VOC's classes in the order of its class images, which count them from 1."""
_SYNONYMS = {
    "airplane": "aeroplane", "dining table": "diningtable", "motorcycle": "motorbike", "potted plant": "pottedplant",
    "couch": "sofa", "tv": "tvmonitor",
}  # fmt: skip
_LARGEST_JSON = 1 << 31
_LONGEST_OUTLINE = 1 << 22
"""Pixels around all polygons of one object. pycocotools takes about 100 bytes for each, and crashes where it gets none."""
_ROWS = 256

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Reference:
    """The objects of one image.

    Attributes:
        size: (height, width).
        masks: one per object.
        labels: class number in the data set's own list, from 0; -1 where it is unknown.
        crowds: whether an object stands for a crowd, which detections may overlap without harm.
        ids: the data set's own object numbers.
        void: pixels that count for nothing.
    """

    size: tuple[int, int]
    masks: tuple[Runs, ...]
    labels: tuple[int, ...]
    crowds: tuple[bool, ...]
    ids: tuple[int, ...]
    void: Runs | None = None


class References(Protocol):
    """A data set's reference objects."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def names(self) -> tuple[str, ...]:
        """Images, in the data set's order; a file name without its ending."""
        ...

    def read(self, name: str) -> Reference:
        """The objects of an image.

        Raises:
            CaseError: they are missing or damaged.
        """
        ...

    def picture(self, name: str) -> Path | None:
        """The image's file, where it is known."""
        ...


def open_references(path: Path) -> References:
    """Open a Pascal VOC tree (a folder) or a COCO annotation file (``.json``).

    Raises:
        UsageError: neither.
    """
    if path.is_dir():
        if not (path / "SegmentationObject").is_dir():
            raise UsageError(f"{path}: is not a Pascal VOC tree: it has no folder SegmentationObject")
        return VocTree(path)
    if path.is_file():
        return CocoFile(path)
    raise UsageError(f"{path}: does not exist; expected a Pascal VOC tree or a COCO annotation file")


def _stem(file_name: Any) -> str:
    """An image's name: that of its file without folders and ending."""
    return plain_name(Path(str(file_name)).stem, "file name of an image")


def class_numbers(model: tuple[str, ...], data_set: tuple[str, ...]) -> tuple[int, ...]:
    """For each of a model's classes its number in the data set, or -1.

    Names are compared without case; COCO's and Pascal VOC's spellings of one thing count as equal.

    Raises:
        UsageError: not one class is known.
    """

    def plain(name: str) -> str:
        lower = name.strip().lower()
        return _SYNONYMS.get(lower, lower)

    known = {plain(name): index for index, name in enumerate(data_set)}
    numbers = tuple(known.get(plain(name), -1) for name in model)
    if max(numbers, default=-1) < 0:
        raise UsageError(
            f"none of the model's classes ({', '.join(model[:5])}, ...) is a class of the references "
            f"({', '.join(data_set[:5])}, ...); compare class-blind, or give the model its class names"
        )
    return numbers


class VocTree:
    """A Pascal VOC tree: ``SegmentationObject`` and, for classes, ``SegmentationClass``."""

    classes = VOC_CLASSES

    def __init__(self, root: Path) -> None:
        self._root = root
        listed = voc_ids(root)
        present = sorted(path.stem for path in (root / "SegmentationObject").glob("*.png"))
        self._names = listed if listed is not None else tuple(present)
        if not self._names:
            raise UsageError(f"{root}: neither {VOC_LIST} nor SegmentationObject names an image")

    def names(self) -> tuple[str, ...]:
        return self._names

    def picture(self, name: str) -> Path | None:
        found = sorted((self._root / "JPEGImages").glob(f"{escape(name)}.*"))
        return found[0] if found else None

    def read(self, name: str) -> Reference:
        objects = read_indices(self._root / "SegmentationObject" / f"{name}.png")
        classes = self._classes(name, objects)
        ids = [int(value) for value in np.unique(objects) if value not in (0, VOID)]
        masks, labels = [], []
        for value in ids:
            mask = objects == value
            masks.append(runs_of_mask(mask))
            labels.append(_class_under(classes, mask))
        void = objects == VOID
        return Reference(
            size=(objects.shape[0], objects.shape[1]),
            masks=tuple(masks),
            labels=tuple(labels),
            crowds=(False,) * len(ids),
            ids=tuple(ids),
            void=runs_of_mask(void) if void.any() else None,
        )

    def _classes(self, name: str, objects: Bytes) -> Bytes | None:
        path = self._root / "SegmentationClass" / f"{name}.png"
        if not path.is_file():
            return None
        classes = read_indices(path)
        if classes.shape != objects.shape:
            raise ImageError(f"{path}: has shape {classes.shape}, the object image {objects.shape}")
        return classes


def read_indices(path: Path) -> Bytes:
    """The label numbers of a palette PNG (y, x) uint8.

    A file that was saved in colours, or whose palette a program has put into another order, is turned back by Pascal VOC's
    palette, if it holds no other colour.

    Raises:
        ImageError: missing, damaged, or not a label image.
    """
    library = pillow()
    try:
        with _quietly_opened(library, path) as image:
            check_plausible(image.size, path.stat().st_size, str(path))
            image.load()
            if image.mode in ("P", "L", "1"):
                indices: Bytes = np.array(image.convert("L") if image.mode == "1" else image, np.uint8)
                return _by_colour(indices, image.palette.palette) if image.mode == "P" else indices
            if image.mode not in ("RGB", "RGBA"):
                raise ImageError(f"{path}: has mode {image.mode}; expected a palette image whose pixels are numbers")
            colours: Bytes = np.array(image.convert("RGB"))
    except CaseError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: does not exist; expected the image's label image") from error
    except Exception as error:  # whatever Pillow's decoders raise
        text = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ImageError(f"{path}: cannot be decoded ({text})") from error
    table = np.full(1 << 24, -1, np.int16)
    weights = np.array([1 << 16, 1 << 8, 1], np.uint32)
    table[voc_palette().astype(np.uint32) @ weights] = np.arange(256)
    values = np.empty(colours.shape[:2], np.int16)
    for row in range(0, len(colours), _ROWS):  # a small file may hold 180 million pixels
        values[row : row + _ROWS] = table[colours[row : row + _ROWS] @ weights]
    if (values < 0).any():
        raise ImageError(
            f"{path}: was saved in colours, some of which are not Pascal VOC's; convert it to a palette image again"
        )
    return values.astype(np.uint8)


@contextmanager
def _quietly_opened(library: Any, path: Path) -> Iterator[Any]:
    """A PNG opened without Pillow's warnings of large pictures; beyond its own limit it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", library.DecompressionBombWarning)
        with library.open(path, formats=("PNG",)) as image:
            yield image


def _by_colour(indices: Bytes, palette: bytes) -> Bytes:
    """The numbers that a palette's colours stand for in Pascal VOC, where all that are used are its colours; else as they are.

    Programs that save a picture anew leave colours out and number the others afresh: void is no longer 255 then.
    """
    own = np.frombuffer(palette[: len(palette) // 3 * 3], np.uint8).reshape(-1, 3)
    used = np.unique(indices)
    if not len(own) or used[-1] >= len(own):
        return indices
    known = {tuple(colour): number for number, colour in enumerate(voc_palette().tolist())}
    numbers = [known.get(tuple(colour)) for colour in own[used].tolist()]
    table = np.arange(256, dtype=np.uint8)
    for index, number in zip(used, numbers, strict=True):
        if number is None:
            return indices
        table[index] = number
    return np.asarray(table[indices], np.uint8)


def _class_under(classes: Bytes | None, mask: npt.NDArray[np.bool_]) -> int:
    """The lowest class number under an object, from 0; -1 where there is none."""
    if classes is None:
        return -1
    values = np.unique(classes[mask])
    named = values[(values > 0) & (values <= len(VOC_CLASSES))]
    return int(named[0]) - 1 if named.size else -1


class CocoFile:
    """COCO's annotation file: polygons, run lengths, crowds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = _json(path)
        try:
            categories = sorted(content["categories"], key=lambda category: int(category["id"]))
            self.classes = tuple(str(category["name"]) for category in categories)
            number = {int(category["id"]): index for index, category in enumerate(categories)}
            self._images = {_stem(image["file_name"]): image for image in content["images"]}
            names = {int(image["id"]): name for name, image in self._images.items()}
            self._objects: dict[str, list[tuple[Any, int]]] = {name: [] for name in self._images}
            for annotation in content["annotations"]:
                owner = names.get(int(annotation["image_id"]))
                if owner is None or int(annotation["category_id"]) not in number:
                    raise UsageError(
                        f"annotation {annotation.get('id')!r:.50} names an image or a category that the file lacks"
                    )
                self._objects[owner].append((annotation, number[int(annotation["category_id"])]))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{path} is not a COCO annotation file: {error!r:.300}") from error
        if len(names) != len(content["images"]):
            raise UsageError(
                f"{path}: two images have one name without folder and ending; results cannot be told apart"
            )

    def names(self) -> tuple[str, ...]:
        return tuple(self._images)

    def picture(self, name: str) -> Path | None:
        beside = self._path.parent / Path(str(self._images[name]["file_name"])).name
        return beside if beside.is_file() else None

    def read(self, name: str) -> Reference:
        image = self._images.get(name)
        if image is None:
            raise CaseError(f"{self._path}: has no image {name}")
        try:
            size = (int(image["height"]), int(image["width"]))
            _check_image(size)
            rows = list(self._masks(name, size))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CaseError(f"{self._path}: the annotations of {name} are damaged: {error!r:.300}") from error
        return Reference(
            size=size,
            masks=tuple(mask for mask, _, _, _ in rows),
            labels=tuple(label for _, label, _, _ in rows),
            crowds=tuple(crowd for _, _, crowd, _ in rows),
            ids=tuple(identity for _, _, _, identity in rows),
        )

    def _masks(self, name: str, size: tuple[int, int]) -> Iterator[tuple[Runs, int, bool, int]]:
        for annotation, label in self._objects[name]:
            mask = runs_of_segmentation(annotation["segmentation"], size)
            yield mask, label, bool(annotation.get("iscrowd", 0)), int(annotation["id"])


def _check_image(size: tuple[int, int]) -> None:
    try:
        check_size(*size)
    except UsageError as error:
        raise CaseError(str(error)) from error


def runs_of_segmentation(segmentation: Any, size: tuple[int, int]) -> Runs:
    """COCO's polygons or run lengths as a mask.

    Raises:
        CaseError: damaged, or of another size.
        UsageError: polygons without pycocotools.
    """
    if isinstance(segmentation, list):
        segmentation = _of_polygons(segmentation, size)
    try:
        runs = runs_of_coco(segmentation)
    except UsageError as error:
        raise CaseError(str(error)) from error
    if (runs.height, runs.width) != size:
        raise CaseError(f"a mask has {runs.width} x {runs.height} pixels, the image {size[1]} x {size[0]}")
    return runs


def _of_polygons(polygons: list[Any], size: tuple[int, int]) -> dict[str, Any]:
    coco = coco_masks()
    flat = [[float(value) for value in polygon] for polygon in polygons]
    if not flat or any(len(polygon) < 6 or len(polygon) % 2 for polygon in flat):
        raise CaseError("a polygon has fewer than three corners")
    if not np.isfinite([value for polygon in flat for value in polygon]).all():
        raise CaseError("a polygon's corner is NaN or infinite")
    if sum(map(_outline, flat)) > _LONGEST_OUTLINE:
        raise CaseError(f"the outline of its polygons is longer than {_LONGEST_OUTLINE:,} pixels")
    merged = coco.merge(coco.frPyObjects(flat, *size))
    return {"size": list(size), "counts": merged["counts"].decode("ascii")}


def _outline(polygon: list[float]) -> float:
    """How many pixels a polygon (x0, y0, x1, y1, ...) walks along, by the longer axis of each side."""
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    with np.errstate(over="ignore", invalid="ignore"):  # of two corners 1e308 apart comes infinity, which is too long
        return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()) + float(np.abs(corners).max())


def coco_masks() -> Any:
    """pycocotools' masks, which say exactly which pixels a polygon covers.

    Raises:
        UsageError: not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UsageError(
            f"COCO's polygons and figures need pycocotools ({error}); pip install 'offline-infer[instances]'"
        ) from error
    return mask


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path, largest=_LARGEST_JSON)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} holds a JSON {type(content).__name__}; expected an object with images and annotations"
        )
    return content
