"""Which labels an evaluation covers: those of a bundle, of a ``dataset.json`` of nnU-Net v1 or v2, or those found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from offline_infer.errors import UsageError
from offline_infer.files import read_json
from offline_infer.proof.evaluation.metrics import Label
from offline_infer.proof.run_records import RUN_RECORD, read_run_record
from offline_infer.spec import Labels

Format = Literal["nnunet-v2", "nnunet-v1"]


@dataclass(frozen=True)
class EvaluatedLabels:
    """The labels and regions to evaluate, in the order the summary names them.

    Attributes:
        labels: integers, or tuples of integers for regions.
        ignore: value of the reference whose voxels are left out.
        names: label -> name, for tables and pictures.
        origin: where this came from, in words.
    """

    labels: tuple[Label, ...]
    ignore: int | None = None
    names: Mapping[Label, str] = field(default_factory=dict)
    origin: str = "given"


def labels_of_bundle(labels: Labels, layout: Format = "nnunet-v2") -> EvaluatedLabels:
    """What nnU-Net would evaluate for a model with these labels: regions if it has any, otherwise foreground labels.

    The v1 layout counts the background in, as v1's own validation does.
    """
    return _from_names(labels.names, labels.ignore, layout, "the bundle")


def labels_of_dataset(path: Path, layout: Format = "nnunet-v2") -> EvaluatedLabels:
    """The same from a ``dataset.json``: v2 maps names to values or lists of values, v1 maps values to names.

    Raises:
        UsageError: the file cannot be read, or its ``labels`` are in neither form.
    """
    try:
        content = read_json(path)
        table = content["labels"]
        names, ignore = _names_of(table)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: no usable 'labels' table ({error!r}); expected a dataset.json of nnU-Net v2 "
            '({"labels": {"background": 0, "liver": 1}}) or v1 ({"labels": {"0": "background", "1": "liver"}}); '
            "or name the labels explicitly"
        ) from error
    return _from_names(names, ignore, layout, str(path))


def labels_beside(folder: Path, layout: Format = "nnunet-v2") -> EvaluatedLabels | None:
    """The labels that the ``dataset.json`` of a folder names; None where there is none.

    Raises:
        UsageError: see :func:`labels_of_dataset`.
    """
    dataset = folder / "dataset.json"
    return labels_of_dataset(dataset, layout) if dataset.is_file() else None


def labels_of_run(folder: Path, layout: Format = "nnunet-v2") -> EvaluatedLabels | None:
    """The labels of the model that made a folder of results, as its run record names them; None where nothing does.

    nnU-Net v2's results have a ``dataset.json`` beside them, those of v1 do not.
    """
    table = (read_run_record(folder) or {}).get("labels")
    try:
        names, ignore = _names_of(table)
    except (ValueError, TypeError, AttributeError):
        return None
    return _from_names(names, ignore, layout, str(folder / RUN_RECORD)) if names else None


def labels_given(labels: Sequence[Label], ignore: int | None = None) -> EvaluatedLabels:
    """An explicit list, checked.

    Raises:
        UsageError: empty, a duplicate, an empty region, or not integers.
    """
    if not labels:
        raise UsageError("the list of labels to evaluate is empty; name at least one, e.g. 1 2")
    checked: list[Label] = []
    for label in labels:
        members = label if isinstance(label, tuple) else (label,)
        if not members or any(isinstance(m, bool) or not isinstance(m, int) for m in members):
            raise UsageError(f"{label!r} is not a label: expected an integer, or a tuple of integers for a region")
        if label in checked:
            raise UsageError(f"label {label!r} is named twice")
        if ignore is not None and ignore in members:
            raise UsageError(f"label {ignore} is to be ignored and evaluated at once; take it out of one of the lists")
        checked.append(label)
    return EvaluatedLabels(tuple(checked), ignore)


def labels_found(values: Iterable[int], ignore: int | None, layout: Format) -> EvaluatedLabels:
    """All values found, without the ignored one; without background unless the layout is v1's.

    Maps that hold background alone give the background: a summary needs one label.
    """
    kept = sorted({v for v in values if v != ignore})
    chosen = kept if layout == "nnunet-v1" else [v for v in kept if v != 0] or kept
    return EvaluatedLabels(tuple(chosen) or (0,), ignore, origin="the values found in the files")


def label_key(label: Label) -> str:
    """A label as a key of ``summary.json``: ``1``, or ``(1, 2)`` for a region."""
    return str(label)


def parse_label(text: str) -> Label:
    """The inverse of :func:`label_key`; the brackets of a region may be left out (``1,2``).

    Raises:
        UsageError: not an integer and not a list of integers.
    """
    inner = text.strip()
    bracketed = inner.startswith("(") and inner.endswith(")")
    parts = [part.strip() for part in (inner[1:-1] if bracketed else inner).split(",")]
    try:
        if len(parts) == 1 and not bracketed:
            return int(parts[0])
        return tuple(int(part) for part in parts if part)
    except ValueError:
        raise UsageError(f"{text!r} is not a label: expected an integer like 1 or a region like (1, 2)") from None


def _names_of(table: Any) -> tuple[dict[str, int | tuple[int, ...]], int | None]:
    names: dict[str, int | tuple[int, ...]] = {}
    for key, value in table.items():
        if isinstance(value, str):
            names[value if value not in names else f"{value} ({key})"] = int(key)
        elif isinstance(value, list):
            names[key] = tuple(int(v) for v in value)
        else:
            names[key] = int(value)
    ignore = names.pop("ignore", None)
    if isinstance(ignore, tuple):
        raise ValueError("the ignore label must be one integer")
    return names, ignore


def _from_names(
    names: Mapping[str, int | tuple[int, ...]], ignore: int | None, layout: Format, origin: str
) -> EvaluatedLabels:
    by_label: dict[Label, str] = {}
    if any(isinstance(value, tuple) and len(set(value)) > 1 for value in names.values()):
        for name, value in names.items():
            if name != "ignore" and set(value if isinstance(value, tuple) else (value,)) != {0}:
                by_label.setdefault(value, name)
        return EvaluatedLabels(tuple(by_label), ignore, by_label, origin)
    for name, value in names.items():
        for member in value if isinstance(value, tuple) else (value,):
            if member != ignore:
                by_label.setdefault(member, name)
    chosen = [v for v in sorted(v for v in by_label if isinstance(v, int)) if v != 0 or layout == "nnunet-v1"]
    return EvaluatedLabels(tuple(chosen), ignore, by_label, origin)
