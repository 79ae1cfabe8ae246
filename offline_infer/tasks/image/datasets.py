"""Which images, with which reference masks: the layouts that datasets of manipulated photographs come in.

* a folder with ``Tp`` (images) and ``Gt`` (masks), paired by name;
* a JSON list of ``[image, mask]``, where ``"Negative"`` in place of a mask means an authentic image;
* a JSON object of display names and paths of either layout: several sets;
* a JSON list of ``["ManiDataset", folder]`` and ``["JsonDataset", list]``, as IMDL-BenCo trains on: several sets, by the
  names of their files;
* a folder of images, or one image: no references.

Relative paths in a JSON file start at that file's folder, or else at the working directory.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline_infer.errors import CaseError, UsageError
from offline_infer.files import parse_json, read_utf8
from offline_infer.images.cases import natural_key
from offline_infer.images.decoding import ENDINGS, image_size

NEGATIVE = "Negative"
"""In place of a mask: the image is authentic."""
PAIR_BY = ("name", "order")

_IMAGES, _MASKS = "Tp", "Gt"
_DATASET_KINDS = ("ManiDataset", "JsonDataset")
_MASK_SUFFIX = re.compile(r"_(gt|mask)$", re.IGNORECASE)
_JSON_LIMIT = 256 << 20  # bytes
_SHOWN = 10  # mismatches listed in full


@dataclass(frozen=True)
class Item:
    """One image of a dataset.

    Attributes:
        image: its path.
        mask: the reference mask's path; None where there is none.
        authentic: known to be authentic: its mask is empty.
        name: what scores are listed under: the file name, or more of the path where that is not unique in its set.
        stem: what its result files are called, without an ending; unique in the whole source.
    """

    image: Path
    mask: Path | None
    authentic: bool
    name: str
    stem: str

    @property
    def referenced(self) -> bool:
        """Whether the right answer is known."""
        return self.authentic or self.mask is not None


@dataclass(frozen=True)
class ImageSet:
    """A named set of images.

    Attributes:
        name: display name; of a single set its file's or folder's name.
        items: in the dataset's order.
        notes: what was resolved on the way, e.g. images of the same name.
    """

    name: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pair:
    image: Path
    mask: Path | None
    authentic: bool = False


def find_sets(source: Path | str, *, pair_by: str = "name", need_masks: bool = False) -> tuple[ImageSet, ...]:
    """Read a dataset of any layout.

    Args:
        source: folder, JSON file or image.
        pair_by: ``name`` pairs ``Tp`` and ``Gt`` by file name (a mask may end with ``_gt`` or ``_mask``); ``order`` pairs
            the sorted listings one by one, whatever they are called.
        need_masks: refuse sets that have images without a reference.

    Raises:
        UsageError: the path is none of the layouts, a listed file does not exist, or images and masks do not pair;
            every mismatch is named.
    """
    if pair_by not in PAIR_BY:
        raise UsageError(f"unknown way to pair {pair_by!r}; legal: {', '.join(PAIR_BY)}")
    source = Path(source)
    if not source.exists():
        raise UsageError(f"{source}: does not exist; expected an image, a folder of images or a JSON list")
    named = _named_pairs(source, pair_by, need_masks)
    if need_masks:
        _require_masks(named)
    return _with_names(named)


def check_sizes(sets: Iterable[ImageSet]) -> dict[str, str]:
    """Compare every image's size with its mask's, from the headers alone.

    Returns:
        stem -> reason, of the images that cannot be evaluated: another size, or a header that cannot be read.
    """
    problems: dict[str, str] = {}
    for item in (item for one in sets for item in one.items if item.mask is not None):
        assert item.mask is not None
        try:
            image, mask = image_size(item.image), image_size(item.mask)
        except CaseError as error:
            problems[item.stem] = str(error)
            continue
        if image != mask:
            problems[item.stem] = (
                f"{item.image} has {image[1]} x {image[0]} pixels and its mask {item.mask} {mask[1]} x {mask[0]}; "
                "they must be the same"
            )
    return problems


# ---- layouts ---------------------------------------------------------------------------------------------------------


def _named_pairs(source: Path, pair_by: str, strict: bool) -> dict[str, list[_Pair]]:
    if source.is_dir():
        return {source.resolve().name or "images": _folder(source, pair_by, strict)}
    if source.suffix.lower() == ".json":
        value = _load(source)
        if isinstance(value, dict):
            return {name: _one_of_several(source, name, place, pair_by, strict) for name, place in value.items()}
        if _lists_datasets(value):
            return _training_sets(source, value, pair_by, strict)
        return {source.stem: _listed(source, value)}
    if source.suffix.lower() not in ENDINGS:
        legal = ", ".join(ENDINGS)
        raise UsageError(
            f"{source}: is not an image this model reads; expected one of {legal}, a folder or a JSON list"
        )
    return {source.stem: [_Pair(source, None)]}


def _lists_datasets(value: Sequence[Any]) -> bool:
    """Whether a list names data sets by their kind, as IMDL-BenCo's list for balanced training does."""
    return bool(value) and all(
        isinstance(entry, list) and len(entry) == 2 and entry[0] in _DATASET_KINDS for entry in value
    )


def _training_sets(file: Path, value: Sequence[Any], pair_by: str, strict: bool) -> dict[str, list[_Pair]]:
    sets: dict[str, list[_Pair]] = {}
    for kind, place in value:
        name = Path(str(place)).stem if kind == "JsonDataset" else Path(str(place)).name
        if name in sets:
            raise UsageError(f"{file}: two data sets are called {name!r}; name them in an object, {{name: path}}")
        sets[name] = _one_of_several(file, name, place, pair_by, strict)
    return sets


def _one_of_several(file: Path, name: str, place: Any, pair_by: str, strict: bool) -> list[_Pair]:
    if not isinstance(place, str) or not place:
        raise UsageError(f"{file}: set {name!r} is {place!r}; expected the path of a folder or of a JSON list")
    path = _resolved(file, place)
    if path is None:
        raise UsageError(f"{file}: set {name!r}: {place} does not exist")
    if path.is_dir():
        return _folder(path, pair_by, strict)
    value = _load(path)
    if not isinstance(value, list):
        raise UsageError(f"{path}: holds {type(value).__name__}; expected a list of [image, mask] as set {name!r}")
    return _listed(path, value)


def _folder(folder: Path, pair_by: str, strict: bool) -> list[_Pair]:
    images, masks = folder / _IMAGES, folder / _MASKS
    if not images.is_dir():
        found = _images_in(folder)
        if masks.is_dir():
            raise UsageError(f"{folder}: has {_MASKS} but no {_IMAGES}; images belong in {_IMAGES}, masks in {_MASKS}")
        return [_Pair(path, None) for path in found]
    if not masks.is_dir():
        if strict:
            raise UsageError(f"{folder}: has {_IMAGES} but no {_MASKS}; masks belong in {_MASKS}")
        return [_Pair(path, None) for path in _images_in(images)]
    found, references = _images_in(images), _images_in(masks)
    if pair_by == "order":
        return _paired_by_order(folder, found, references)
    return _paired_by_name(folder, found, references, strict)


def _images_in(folder: Path) -> list[Path]:
    try:
        # A link that leads nowhere is named when its turn comes; pipes and devices are no images.
        paths = [
            path for path in folder.iterdir() if not path.name.startswith(".") and (path.is_file() or not path.exists())
        ]
    except OSError as error:
        raise UsageError(f"{folder}: cannot be listed ({error.strerror or error})") from error
    images = [path for path in paths if path.suffix.lower() in ENDINGS]
    if not images:
        raise UsageError(
            f"{folder}: holds no image ({', '.join(ENDINGS)}) among {len(paths)} files; subfolders are not searched"
        )
    return sorted(images, key=lambda path: path.name)


def _paired_by_order(folder: Path, images: Sequence[Path], masks: Sequence[Path]) -> list[_Pair]:
    if len(images) != len(masks):
        raise UsageError(
            f"{folder}: {len(images)} images in {_IMAGES} and {len(masks)} masks in {_MASKS}; pairing by order needs "
            "as many of each, or every later pair is wrong"
        )
    return [_Pair(image, mask) for image, mask in zip(images, masks, strict=True)]


def _paired_by_name(folder: Path, images: Sequence[Path], masks: Sequence[Path], strict: bool) -> list[_Pair]:
    by_stem: dict[str, list[Path]] = {}
    for mask in masks:
        by_stem.setdefault(mask.stem, []).append(mask)
        bare = _MASK_SUFFIX.sub("", mask.stem)
        if bare != mask.stem:
            by_stem.setdefault(bare, []).append(mask)
    pairs, problems, used = [], [], set()
    for image in images:
        candidates = by_stem.get(image.stem, [])
        if len(candidates) == 1:
            used.add(candidates[0])
            pairs.append(_Pair(image, candidates[0]))
            continue
        pairs.append(_Pair(image, None))
        why = f"{len(candidates)} masks ({', '.join(m.name for m in candidates)})" if candidates else "no mask"
        problems.append(f"{_IMAGES}/{image.name}: {why}")
        used.update(candidates)
    problems += [f"{_MASKS}/{mask.name}: no image" for mask in masks if mask not in used]
    if problems and strict:
        raise UsageError(
            f"{folder}: images and masks do not pair by name: {_shortened(problems)}; rename or remove them, or "
            "pair by order if both listings are known to agree"
        )
    return pairs


def _listed(file: Path, value: Any) -> list[_Pair]:
    if not isinstance(value, list) or not value:
        told = "is empty" if value in ([], {}) else f"holds {type(value).__name__}"
        raise UsageError(f"{file}: {told}; expected a list of [image, mask] or of [image, {NEGATIVE!r}]")
    pairs, missing = [], []
    for number, entry in enumerate(value):
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) and part for part in entry):
            raise UsageError(
                f"{file}: entry {number} is {_brief(entry)}; expected two strings, [image, mask] or [image, {NEGATIVE!r}]"
            )
        image, mask = entry
        place = _resolved(file, image)
        reference = None if mask == NEGATIVE else _resolved(file, mask)
        if place is None or not place.is_file():
            missing.append(f"entry {number}: {image}")
        if mask != NEGATIVE and (reference is None or not reference.is_file()):
            hint = (
                f" (write {NEGATIVE!r} with a capital N for an authentic image)" if mask.lower() == "negative" else ""
            )
            missing.append(f"entry {number}: {mask}{hint}")
        pairs.append(_Pair(place or Path(image), reference, mask == NEGATIVE))
    if missing:
        raise UsageError(
            f"{file}: lists {len(missing)} files that do not exist or are no files: {_shortened(missing)}; "
            "relative paths start at the list's own folder, or else at the working directory"
        )
    return pairs


def _load(file: Path) -> Any:
    try:
        text = read_utf8(file, largest=_JSON_LIMIT)
        if not text.strip():
            raise UsageError(f"{file}: is empty; expected a JSON list of [image, mask], or an object of named sets")
        value = parse_json(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: is not readable as JSON ({error})") from error
    if value == {}:
        raise UsageError(f"{file}: is empty; expected display names and paths of datasets")
    if not isinstance(value, list | dict):
        raise UsageError(f"{file}: holds {type(value).__name__}; expected a list of [image, mask] or named sets")
    return value


def _resolved(file: Path, text: str) -> Path | None:
    """The path a JSON file means, or None if there is nothing."""
    try:
        path = Path(os.path.expanduser(text))
        for place in (file.parent / path, path):
            if place.exists():
                return place
    except (OSError, ValueError):  # a name too long, or one with a NUL
        pass
    return None


def _require_masks(named: Mapping[str, Sequence[_Pair]]) -> None:
    bare = [str(pair.image) for pairs in named.values() for pair in pairs if pair.mask is None and not pair.authentic]
    if bare:
        raise UsageError(
            f"{len(bare)} images have no reference mask: {_shortened(bare)}; expected a folder with {_IMAGES} and "
            f"{_MASKS}, or a JSON list of pairs"
        )


# ---- names -----------------------------------------------------------------------------------------------------------


def _with_names(named: Mapping[str, Sequence[_Pair]]) -> tuple[ImageSet, ...]:
    """Give every image a name for its score, unique in its set, and a stem for its files, unique in the source."""
    several = len(named) > 1
    sets = []
    for set_name, pairs in named.items():
        paths = [pair.image for pair in pairs]
        names = unique_names(paths)
        stems = _unique_stems(names)
        notes = tuple(
            f"{path}: its results are called {stem!r}, because other images are called {path.stem!r} too"
            for path, stem in zip(paths, stems, strict=True)
            if stem != path.stem
        )
        prefix = f"{safe_name(set_name)}__" if several else ""
        items = (
            Item(pair.image, pair.mask, pair.authentic, name, prefix + stem)
            for pair, name, stem in zip(pairs, names, stems, strict=True)
        )
        sets.append(ImageSet(set_name, tuple(items), notes))
    prefixes = [safe_name(one.name) for one in sets]
    if len(set(prefixes)) < len(prefixes):
        raise UsageError(f"sets called {', '.join(repr(one.name) for one in sets)} give files of the same name; rename")
    return tuple(sets)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """File names; where several are equal, with as many parent folders as tell them apart, joined by ``/``.

    Raises:
        UsageError: the same file is listed twice.
    """
    names = [path.name for path in paths]
    parts = [path.absolute().parts for path in paths]
    depth = 1
    while True:
        counts = Counter(names)
        doubled = [index for index, name in enumerate(names) if counts[name] > 1]
        if not doubled:
            return names
        depth += 1
        if all(len(parts[index]) < depth for index in doubled):
            raise UsageError(f"{paths[doubled[0]]} is listed {counts[names[doubled[0]]]} times; list every image once")
        for index in doubled:
            names[index] = "/".join(part.strip("/") for part in parts[index][-depth:])


def _unique_stems(names: Sequence[str]) -> list[str]:
    """Names for result files: the stem; the ending joins where stems are equal, then a number."""
    plain = [safe_name(name.rsplit(".", 1)[0] if "." in name.lstrip(".") else name) for name in names]
    counts = Counter(stem.lower() for stem in plain)  # some file systems do not tell cases apart
    stems = [
        safe_name(name.replace(".", "_")) if counts[stem.lower()] > 1 else stem
        for name, stem in zip(names, plain, strict=True)
    ]
    taken: set[str] = set()
    for index, stem in enumerate(stems):
        candidate, number = stem, 2
        while candidate.lower() in taken or (number > 2 and counts[candidate.lower()]):
            candidate, number = f"{stem}_{number}", number + 1
        stems[index] = candidate
        taken.add(candidate.lower())
    return stems


def safe_name(name: str) -> str:
    """A name as part of a file name: no separators and nothing a terminal or a list could trip over."""
    text = "".join(
        character if character.isprintable() and character not in '\\/:*?"<>|' else "_" for character in name
    )
    return text.lstrip(".") or "_"


def _shortened(lines: Sequence[str]) -> str:
    shown = "; ".join(sorted(lines, key=natural_key)[:_SHOWN])
    return shown if len(lines) <= _SHOWN else f"{shown}; and {len(lines) - _SHOWN} more"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
