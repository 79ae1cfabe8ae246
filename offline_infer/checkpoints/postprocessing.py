"""Post-processing decisions that nnU-Net stores beside its models, as rules.

v1 writes ``postprocessing.json``; v2 writes ``postprocessing.pkl``, a pair of functions and arguments, of which only
the one function nnU-Net's own tool ever stores is understood (by name; it is never loaded).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from offline_infer.checkpoints.fields import Fields, plain, read_json, shown
from offline_infer.checkpoints.limits import MAX_CLASSES, MAX_LITERAL
from offline_infer.checkpoints.pickles.reading import read_pickle
from offline_infer.checkpoints.pickles.values import Symbol
from offline_infer.errors import CheckpointError
from offline_infer.spec import ComponentRule

KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"
V2_FUNCTIONS = {("nnunetv2.postprocessing.remove_connected_components", KEEP_LARGEST): KEEP_LARGEST}


def read_v1(path: Path, labels: Iterable[int]) -> tuple[ComponentRule, ...]:
    """The rules of a ``postprocessing.json``, in the order they apply.

    Args:
        path: the file.
        labels: foreground labels of the model, ascending; what "every class" means.

    Raises:
        CheckpointError: truncated, or an entry that is no label.
    """
    fields = read_json(path)
    classes = fields.raw("for_which_classes")
    sizes = _minimum_sizes(fields)
    entries = [[label] for label in labels] if classes is None else [_labels(entry, path) for entry in _list(classes)]
    rules = []
    for entry in entries:
        key = tuple(entry)
        if sizes is not None and key not in sizes:
            raise CheckpointError(f"{path}: min_valid_object_sizes has no entry for {shown(entry)}")
        size = None if sizes is None else sizes[key]
        rules.append(ComponentRule(labels=key, connectivity="face", min_size_mm3=size))
    return tuple(rules)


def read_v2(path: Path) -> tuple[ComponentRule, ...]:
    """The rules of a ``postprocessing.pkl``, in the order they apply.

    Raises:
        UnsafePickleError: it names another function.
        CheckpointError: truncated, or arguments that are not understood.
    """
    content = read_pickle(path, V2_FUNCTIONS)
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise CheckpointError(f"{path} does not hold nnU-Net's pair of functions and arguments")
    functions, arguments = content
    if not isinstance(functions, list) or not isinstance(arguments, list) or len(functions) != len(arguments):
        raise CheckpointError(f"{path} does not hold as many arguments as functions")
    rules = []
    for function, keywords in zip(functions, arguments, strict=True):
        if not isinstance(function, Symbol) or function.name != KEEP_LARGEST:
            raise CheckpointError(f"{path} names a post-processing function that is not known: {shown(function)}")
        fields = Fields(keywords, str(path))
        unknown = sorted(shown(key) for key in fields if key not in ("labels_or_regions", "background_label"))
        if unknown:
            raise CheckpointError(f"{path}: unknown arguments {', '.join(unknown)}")
        # A list names several labels or regions; all of them together make one mask.
        value = plain(fields.raw("labels_or_regions"))
        merged = sorted({label for item in _list(value) for label in _labels(item, path)})
        background = fields.integer("background_label", 0)
        rules.append(ComponentRule(labels=tuple(merged), connectivity="full", background=background))
    return tuple(rules)


def _minimum_sizes(fields: Fields) -> dict[tuple[int, ...], float] | None:
    """Labels -> size in mm^3. v1 stores the dictionary as the text of a Python literal."""
    value = fields.raw("min_valid_object_sizes", None)
    if isinstance(value, str):
        if len(value) > MAX_LITERAL:
            raise CheckpointError(f"{fields.origin}: min_valid_object_sizes has {len(value):,} characters")
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise CheckpointError(f"{fields.origin}: min_valid_object_sizes is not a dictionary of numbers") from error
    if value is None:
        return None
    sizes = Fields(value, f"{fields.origin}, min_valid_object_sizes")
    return {tuple(_labels(key, Path(fields.origin))): sizes.number(key) for key in sizes}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _labels(entry: Any, path: Path) -> list[int]:
    """A label or a region as a list of labels."""
    values = _list(plain(entry))
    if not values or not all(_is_label(value) for value in values):
        raise CheckpointError(f"{path}: {shown(entry)} is neither a label nor a list of labels")
    if 0 in values:
        raise CheckpointError(f"{path}: the background (label 0) cannot be post-processed")
    return values


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_CLASSES
