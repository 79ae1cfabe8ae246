"""Names of a foreign model's classes: from a file, from the graph's metadata, or from a file beside the graph."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offline_infer.errors import UsageError

METADATA_KEYS = ("names", "classes", "class_names", "CLASSES", "labels")
"""Where exporters leave the list in a graph: ``{0: 'person', ...}``, ``['person', ...]``, or names joined by commas."""
BESIDE = (".json", ".txt")
"""Endings of a file beside the graph, with the graph's name, that is read if the graph names nothing."""
_BACKGROUND = ("__background__", "background", "bg")
_MAX_CLASSES = 100_000
_LARGEST_FILE = 1 << 24


def model_classes(given: Sequence[str] | None, path: Path, model: Any, count: int | None) -> tuple[str, ...]:
    """The names in the order of the labels, without a leading background class.

    Args:
        given: names the user gave; None looks for the graph's own.
        path: of the graph.
        model: the graph.
        count: of classes, where the graph tells it.

    Raises:
        UsageError: no names, or names that do not fit.
    """
    names = tuple(given) if given is not None else names_in_graph(model) or _names_beside(path)
    if names is None:
        number = "" if count is None else f" {count}"
        raise UsageError(
            f"the graph does not name its{number} classes; give their names in the order of its labels (--set classes=FILE)"
        )
    if names and names[0].strip().lower() in _BACKGROUND and len(names) != count:
        names = names[1:]
    names = _told_apart(names)
    if not names:
        raise UsageError("0 class names; a model has at least one class")
    if count is not None and count != len(names):
        raise UsageError(f"{len(names)} class names for a graph with {count} classes")
    return names


def names_in_graph(model: Any) -> tuple[str, ...] | None:
    """The names some exporters leave in the graph's metadata, parsed as literals; None where there are none."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    for key in METADATA_KEYS:
        found = _names_in_text(entries[key]) if key in entries else None
        if found is not None:
            return found
    return None


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names from a file: JSON (a list, or an object with ``classes``), or one name a line.

    Raises:
        UsageError: it cannot be read, or a name in its middle is empty.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UsageError(f"{path}: is too large for a list of class names")
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} holds no class names: {error}") from error
    if isinstance(names, dict):
        keys = [key for key in METADATA_KEYS if isinstance(names.get(key), (list, dict))]
        names = names[keys[0]] if keys else names
    listed = _listed(names)
    if listed is None:
        raise UsageError(f"{path} holds no list of class names")
    while listed and not listed[-1]:
        listed = listed[:-1]
    if "" in listed:
        # Left out, it would shift the names of all labels after it.
        raise UsageError(f"{path}: name {listed.index('') + 1} is empty; every label needs a name")
    return listed


def _names_beside(path: Path) -> tuple[str, ...] | None:
    files = [path.with_suffix(ending) for ending in BESIDE]
    return next((read_class_names(file) for file in files if file.is_file()), None)


def _names_in_text(text: str) -> tuple[str, ...] | None:
    if len(text) > 1 << 20:
        return None
    try:
        return _listed(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    if "{" in text or "[" in text:
        return None
    parts = tuple(part.strip() for part in text.replace("\n", ",").split(",") if part.strip())
    return parts if len(parts) > 1 else None


def _listed(value: Any) -> tuple[str, ...] | None:
    """A list of texts, or a mapping from 0, 1, ... (as numbers or texts) to texts."""
    if isinstance(value, Mapping) and 0 < len(value) <= _MAX_CLASSES:
        by_number = {str(key): name for key, name in value.items()}
        numbers = [str(index) for index in range(len(value))]
        value = [by_number[number] for number in numbers] if set(by_number) == set(numbers) else None
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


def _told_apart(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names that occur more than once with their label behind them, as in COCO's list of 91 with its many ``N/A``."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({label})" for label, name in enumerate(names))
