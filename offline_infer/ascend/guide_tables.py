"""The two tables the published guide ends with, made from records: precision, and performance beside a baseline.

Precision comes from ``summary.json`` files of an evaluation; performance from what the tools and ``infer`` leave behind;
the baseline from the JSON of ``tools/benchmark_wrappers/onnx_infer.py`` or of ``offline-infer benchmark``. A figure that is
only published (the checkpoint's own Dice) is given as numbers and marked as such.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline_infer.ascend.figures import PerformanceRecord, devices_per_card, read_folder
from offline_infer.errors import UsageError
from offline_infer.files import read_json
from offline_infer.proof.evaluation.tables import MEAN, dice_table


@dataclass(frozen=True)
class Precision:
    """A column of the precision table: label -> Dice (0 to 1), and where it is from."""

    name: str
    dice: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Performance:
    """A row of the performance table: network runs per second, on one device and on one card."""

    name: str
    per_device: float
    per_card: float
    latency_ms: float
    source: str


@dataclass(frozen=True)
class GuideTables:
    """Both tables.

    Attributes:
        baseline: the row the others are compared with, or None.
    """

    precisions: tuple[Precision, ...]
    performances: tuple[Performance, ...]
    baseline: Performance | None = None

    def to_text(self) -> str:
        """Both as Markdown."""
        parts = []
        if self.precisions:
            labels = list(dict.fromkeys(label for column in self.precisions for label in column.dice))
            rows = [[label, *(_percent(column.dice.get(label)) for column in self.precisions)] for label in labels]
            head = ["Dice (%)", *(column.name for column in self.precisions)]
            parts.append(_markdown(head, [*rows, ["from", *(column.source for column in self.precisions)]]))
        rates = [*([self.baseline] if self.baseline else []), *self.performances]
        if rates:
            head = ["", "ms a run", "runs/s per device", "runs/s per card", "against the baseline", "from"]
            parts.append(_markdown(head, [self._rate_row(row) for row in rates]))
        return "\n\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Both as data; ``ratio`` is per card against the baseline's card."""
        return {
            "kind": "offline_infer.guide_tables",
            "precision": [
                {"name": each.name, "dice": dict(each.dice), "source": each.source} for each in self.precisions
            ],
            "performance": [
                {**vars(each), "ratio": each.per_card / self.baseline.per_card if self.baseline else None}
                for each in self.performances
            ],
            "baseline": vars(self.baseline) if self.baseline else None,
        }

    def _rate_row(self, row: Performance) -> list[str]:
        ratio = "-" if self.baseline is None else f"{row.per_card / self.baseline.per_card:.2f} x"
        return [row.name, f"{row.latency_ms:.6g}", f"{row.per_device:.6g}", f"{row.per_card:.6g}", ratio, row.source]


def read_tables(
    precision: Sequence[tuple[str, str]],
    performance: Sequence[tuple[str, str]],
    baseline: tuple[str, str] | None = None,
    *,
    soc: str | None = None,
    names: Mapping[str, str] | None = None,
) -> GuideTables:
    """Make the tables.

    Args:
        precision: (column, ``summary.json``), or (column, ``1=95.80,2=65.60``) for figures that are only published.
        performance: (row, file or folder): ``perf/performance.json``, or a folder of a tool's own files.
        baseline: (row, JSON of ``onnx_infer.py --json`` or ``benchmark --json``).
        soc: chip, for the per-card rule, where the figures do not name it.
        names: label value -> name.

    Raises:
        UsageError: a file is missing, or holds no such figures.
    """
    return GuideTables(
        tuple(_precision(name, source, names or {}) for name, source in precision),
        tuple(_performance(name, Path(source), soc) for name, source in performance),
        _baseline(*baseline) if baseline else None,
    )


def _precision(name: str, source: str, names: Mapping[str, str]) -> Precision:
    if re.fullmatch(r"[\w ]+=[\d.]+(,[\w ]+=[\d.]+)*", source):
        pairs = [part.split("=") for part in source.split(",")]
        return Precision(name, {_named(label, names): float(value) / 100 for label, value in pairs}, "published")
    row = dice_table(_json(Path(source)))[-1]
    dice = {key: float(value) for key, value in row.items() if key not in ("case", MEAN, "0")}
    return Precision(name, {_named(label, names): value for label, value in dice.items()}, source)


def _performance(name: str, source: Path, soc: str | None) -> Performance:
    if source.is_dir():
        try:
            record = read_folder(source, soc, "pure")  # what the published guides report
        except UsageError:
            record = read_folder(source, soc, "dataset")
        return _row(name, record, str(source))
    content = _json(source)
    try:
        device, latency = float(content["throughput_per_device_per_s"]), float(content["latency_ms"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{source} holds no device figures; name the performance.json of 'infer', or a folder"
        ) from error
    factor = devices_per_card(soc or str(content.get("soc") or ""))
    return Performance(name, device, device * factor, latency, str(source))


def _row(name: str, record: PerformanceRecord, source: str) -> Performance:
    return Performance(name, record.per_device, record.per_card, record.latency_ms, source)


def _baseline(name: str, source: str) -> Performance:
    if re.fullmatch(r"[\d.]+ ?s?", source):
        stated = float(source.rstrip("s "))
        return Performance(name, 1 / stated, 1 / stated, 1000 * stated, "published")
    seconds = _seconds(_json(Path(source)))
    if seconds is None or not seconds > 0:
        raise UsageError(
            f"{source} holds no baseline; expected the JSON of onnx_infer.py --json, or of benchmark --json"
        )
    return Performance(name, 1 / seconds, 1 / seconds, 1000 * seconds, source)


def _seconds(content: Mapping[str, Any]) -> float | None:
    """Seconds of one run of the network."""
    if isinstance(content.get("average_s"), (int, float)):
        return float(content["average_s"])
    rows = content.get("results")
    if isinstance(rows, list):
        good = [row["p50_s"] for row in rows if isinstance(row, dict) and row.get("status") == "ok" and "p50_s" in row]
        return float(min(good)) if good else None
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}); name a record of this run") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a record: expected a JSON object")
    return content


def _named(label: str, names: Mapping[str, str]) -> str:
    return names.get(label, label)


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
