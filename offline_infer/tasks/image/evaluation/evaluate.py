"""A folder of predictions against a dataset: one summary per set, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offline_infer.errors import CaseError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.tasks.image.datasets import PAIR_BY, ImageSet, Item, check_sizes, find_sets
from offline_infer.tasks.image.evaluation.distribution import Confusion, Pool, auc, auc_error, best_f1
from offline_infer.tasks.image.evaluation.image_measures import image_measures
from offline_infer.tasks.image.evaluation.pixel_measures import border_ignored, pixel_measures
from offline_infer.tasks.image.evaluation.protocols import Protocol, get_protocol
from offline_infer.tasks.image.evaluation.references import Compared, MissingPrediction, Predictions, has_any_value
from offline_infer.tasks.image.evaluation.upstream import (
    tail_start,
    upstream_image_measures,
    upstream_pixel_measures,
)

STAGE = "evaluate"
NOT_AVAILABLE = "not available"
"""In place of measures that the model cannot have."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        protocol: see :mod:`offline_infer.tasks.image.evaluation.protocols`.
        size: compare at each image's ``own`` size, or at the ``network``'s.
        threshold: a value is positive if it is larger.
        pair_by: see :func:`offline_infer.tasks.image.datasets.find_sets`.
        as_upstream: the original's own figures, defects included; at the network's size.
        ranks, batch: of the original's run, which decide what its last batch was.
        allow_missing: leave images without a prediction out.
        column_scores: the model's scores have shape (B, 1), which the original compares with every label.
        listed_labels: take every image with a mask file for manipulated, as the original does in the baseline of its
            robustness test.
    """

    protocol: str = "benco"
    size: Literal["own", "network"] = "own"
    threshold: float = 0.5
    pair_by: str = "name"
    as_upstream: bool = False
    ranks: int = 1
    batch: int = 2
    column_scores: bool = False
    allow_missing: bool = False
    listed_labels: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EvaluationOptions:
        """From a mapping; numbers and switches (``yes``, ``no``) may be text.

        Raises:
            UsageError: an option that is unknown, or has an impossible value.
        """
        known = {field.name: field.default for field in fields(cls)}
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise UsageError(f"unknown options {', '.join(unknown)}; legal: {', '.join(sorted(known))}")
        options = cls(**{name: _of_type(name, value, known[name]) for name, value in given.items()})
        get_protocol(options.protocol)
        if options.size not in ("own", "network"):
            raise UsageError(f"unknown size {options.size!r}; legal: own, network")
        if options.pair_by not in PAIR_BY:
            raise UsageError(f"unknown way to pair {options.pair_by!r}; legal: {', '.join(PAIR_BY)}")
        if not 0 <= options.threshold < 1 or options.ranks < 1 or options.batch < 1:
            raise UsageError("the threshold must be at least 0 and below 1, ranks and batch at least 1")
        return options


@dataclass(frozen=True)
class ImageScores:
    """What an evaluation found.

    Attributes:
        summary: ready for JSON.
        failed: stem -> reason, of the images that could not be compared.
    """

    summary: dict[str, Any]
    failed: dict[str, str]

    @property
    def total(self) -> int:
        """Images that were to be compared, the failed ones included."""
        return sum(told["images"] for told in self.summary["sets"].values())

    def to_json(self) -> dict[str, Any]:
        """Everything that was found."""
        return {"summary": self.summary}

    def rows(self) -> list[list[Any]]:
        """One row for each image, a heading first: set, image, and every measure."""
        items = [(name, row) for name, told in self.summary["sets"].items() for row in told["items"]]
        columns = list(dict.fromkeys(key for _, row in items for key in row))
        return [["set", *columns], *([name, *(row.get(column) for column in columns)] for name, row in items)]

    def table(self) -> str:
        """One line for each set and kind of measure, the protocol's name in each."""
        lines = []
        for name, told in self.summary["sets"].items():
            for kind in ("pixel", "image"):
                values = told[kind]
                if values == NOT_AVAILABLE:
                    lines.append(f"{name}  {kind}  {NOT_AVAILABLE}")
                    continue
                shown = values["quoted"] if kind == "pixel" else values
                figures = "  ".join(f"{key} {_shown(value)}" for key, value in shown.items())
                lines.append(f"{name}  {kind}  [{self.summary['protocol']['name']}]  {figures}")
        return "\n".join(lines)


def evaluate_folder(
    predictions: Path | str, references: Path | str, options: EvaluationOptions | None = None, sink: Sink = silent
) -> ImageScores:
    """Compare the predictions of a run with a dataset's references.

    Args:
        predictions: the folder a run wrote to.
        references: the dataset, in any layout with references.

    Raises:
        UsageError: no references, images and masks that do not pair, or no predictions.
    """
    chosen = options or EvaluationOptions()
    sets = find_sets(references, pair_by=chosen.pair_by, need_masks=True)
    folder = Predictions(Path(predictions))
    failed = check_sizes(sets)
    total, done = sum(len(one.items) for one in sets), 0
    told = {}
    for one in sets:
        tally = _Tally(chosen, folder)
        for index, item in enumerate(one.items):
            if item.stem not in failed:
                try:
                    tally.add(item, in_tail=index >= tail_start(len(one.items), chosen.ranks, chosen.batch))
                except MissingPrediction as error:
                    if not chosen.allow_missing:
                        failed[item.stem] = str(error)
                except CaseError as error:
                    failed[item.stem] = str(error)
            done += 1
            sink(Event("progress", STAGE, item.stem, done, total))
        told[one.name] = tally.summary(one)
    protocol = get_protocol(chosen.protocol)
    summary = {
        "kind": "offline_infer.image_summary",
        "protocol": {
            "name": _protocol_name(protocol, chosen),
            "description": protocol.description,
            "size": "network" if chosen.as_upstream else chosen.size,
            "threshold": chosen.threshold,
        },
        "sets": told,
        "failed": failed,
    }
    return ImageScores(summary, failed)


class _Tally:
    """Figures of one set, gathered image by image in constant memory but for a few numbers each."""

    def __init__(self, options: EvaluationOptions, folder: Predictions) -> None:
        self._options, self._folder = options, folder
        self._protocol = get_protocol(options.protocol)
        self._masks = folder.has_masks
        self._rows: list[dict[str, Any]] = []
        self._counts = Confusion(0, 0, 0, 0)
        self._pool = Pool()
        self._scores: list[float] = []
        self._labels: list[bool] = []

    def add(self, item: Item, *, in_tail: bool) -> None:
        """Compare one image.

        Raises:
            CaseError: its prediction or its reference cannot be used.
        """
        row: dict[str, Any] = {"name": item.name, "case": item.stem}
        label = False
        if self._masks:
            network = self._options.as_upstream or self._options.size == "network"
            compared = self._folder.network_size(item) if network else self._folder.own_size(item)
            label = bool(compared.reference.any())
            row |= self._upstream_row(compared, in_tail) if self._options.as_upstream else self._row(compared)
        if not self._masks or network:
            # Padding and cropping may have taken the region away; the label is the whole image's.
            label = self._label(item)
        if self._options.as_upstream:
            label = item.mask is not None if self._options.listed_labels else has_any_value(item)
        row["manipulated"] = label
        score = self._folder.score(item)
        if score is not None:
            row["score"] = score
            self._scores.append(score)
            self._labels.append(label)
        self._rows.append(row)

    def summary(self, one: ImageSet) -> dict[str, Any]:
        told: dict[str, Any] = {
            "images": len(one.items),
            "used": len(self._rows),
            "manipulated": sum(row["manipulated"] for row in self._rows),
            "pixel": self._pixel() if self._masks and self._rows else NOT_AVAILABLE,
            "image": self._image() if self._scores else NOT_AVAILABLE,
        }
        if one.notes:
            told["notes"] = list(one.notes)
        told["items"] = self._rows
        return told

    def _label(self, item: Item) -> bool:
        from offline_infer.images.decoding import read_mask

        return item.mask is not None and bool(read_mask(item.mask).any())

    def _row(self, compared: Compared) -> dict[str, Any]:
        inside = compared.inside
        if self._protocol.border is not None:
            counted = border_ignored(compared.reference, *self._protocol.border)
            inside = counted if inside is None else counted & inside
        told = pixel_measures(compared.soft, compared.reference, inside=inside, threshold=self._options.threshold)
        self._counts += told.counts
        if inside is None:
            self._pool.add(compared.soft, compared.reference)
        else:
            self._pool.add(compared.soft[inside], compared.reference[inside])
        return {**told.values, "best_threshold": told.best_threshold, "positives": told.positives}

    def _upstream_row(self, compared: Compared, in_tail: bool) -> dict[str, Any]:
        values = upstream_pixel_measures(compared.soft, compared.reference, compared.inside, in_tail=in_tail)
        return {name: None if np.isnan(value) else value for name, value in values.items()}

    def _pixel(self) -> dict[str, Any]:
        if self._options.as_upstream:
            names = [name for name in self._rows[0] if name.split("_")[0] in ("F1", "IOU", "Accuracy", "AUC")]
            means = {name: _strict_mean([row[name] for row in self._rows]) for name in names}
            return {"quoted": {name: means[name] for name in ("F1", "IOU", "Accuracy", "AUC")}, "macro": means}
        names = [name for name in self._rows[0] if name.split("_")[0] in ("F1", "IOU", "Accuracy", "AUC")]
        macro = {name: _mean([row[name] for row in self._rows if row["positives"]]) for name in names}
        with_authentic = {name: _mean([row[name] or 0.0 for row in self._rows]) for name in names}
        table = self._pool.distribution()
        best = best_f1(table)
        suffix = "" if self._protocol.mode == "origin" else f"_{self._protocol.mode}"
        quoted = {name: macro[f"{name}{suffix}"] for name in ("F1", "F1_best", "IOU", "AUC")}
        # Accuracy is defined for authentic images too.
        quoted["Accuracy"] = _mean([row[f"Accuracy{suffix}"] for row in self._rows])
        return {
            "quoted": quoted,
            "used": sum(1 for row in self._rows if row["positives"]),
            "macro": macro,
            "macro_authentic_as_zero": with_authentic,
            "accuracy_all": _mean([row["Accuracy"] for row in self._rows]),
            "micro": {
                "F1": self._counts.f1,
                "IOU": self._counts.iou,
                "Accuracy": self._counts.accuracy,
                "AUC": auc(table),
                "AUC_error_at_most": auc_error(table),
                "F1_best": best and best[0],
                "best_threshold": best and best[1],
            },
        }

    def _image(self) -> dict[str, Any]:
        values = image_measures(self._scores, self._labels, threshold=self._options.threshold)
        if self._options.as_upstream:
            imitated = upstream_image_measures(self._scores, self._labels, column_scores=self._options.column_scores)
            return {**imitated, "AUC": values["AUC"], "used": len(self._scores)}
        return {**values, "used": len(self._scores)}


def _of_type(name: str, value: Any, default: Any) -> Any:
    """An option's value in the type of its default."""
    if not isinstance(value, str) or isinstance(default, str):
        return value
    if isinstance(default, bool):
        if value in ("yes", "no"):
            return value == "yes"
        raise UsageError(f"{name} {value!r}: expected yes or no")
    try:
        return type(default)(value)
    except ValueError as error:
        raise UsageError(f"{name} {value!r}: expected a number") from error


def _protocol_name(protocol: Protocol, options: EvaluationOptions) -> str:
    return "IMDL-BenCo 0.1.45, as it prints" if options.as_upstream else protocol.name


def _mean(values: list[float | None]) -> float | None:
    """Mean of the defined values; None without any."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _strict_mean(values: list[float | None]) -> float | None:
    """None where one value is undefined: NaN spreads to the whole set."""
    return None if any(value is None for value in values) else float(np.mean([v for v in values if v is not None]))


def _shown(value: Any) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
