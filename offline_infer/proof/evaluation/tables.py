"""Tables from a ``summary.json``: rows for a program, CSV for a spreadsheet, text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from offline_infer.errors import UsageError
from offline_infer.proof.csv_tables import write_table
from offline_infer.proof.evaluation.metrics import mean_of
from offline_infer.proof.evaluation.pairs import case_of
from offline_infer.proof.evaluation.summary import layout_of

Row = dict[str, str | float]
MEAN = "mean"


def dice_table(summary: Mapping[str, Any], *, metric: str = "Dice") -> list[Row]:
    """One row per case and a last row of means.

    Each row holds ``case``, one entry per label key as in the summary, and ``mean``: the mean of the foreground labels
    that are defined in the row. Undefined figures are NaN. The last row's label entries are the summary's own means.

    Args:
        summary: content of a ``summary.json``, either layout.
        metric: a figure of that layout: ``Dice``, ``IoU`` (v2), ``Jaccard`` (v1), ...

    Raises:
        UsageError: not a summary, or it holds no such figure.
    """
    cases, mean = _parts(summary)
    if any(metric not in figures for figures in mean.values()):
        known = sorted({name for figures in mean.values() for name in figures})
        raise UsageError(f"this summary holds no figure {metric!r}; it holds {', '.join(known)}")
    keys = _sorted_keys(mean)
    rows = [_row(case, {key: figures[key][metric] for key in keys if key in figures}) for case, figures in cases]
    return [*rows, _row(MEAN, {key: mean[key][metric] for key in keys})]


def long_table(summary: Mapping[str, Any]) -> list[Row]:
    """One row per case and label with every figure of the summary; the means stand last, as case ``mean``."""
    cases, mean = _parts(summary)
    return [
        {"case": case, "label": key, **figures[key]}
        for case, figures in [*cases, (MEAN, mean)]
        for key in _sorted_keys(figures)
    ]


def surface_table(surface: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """One row per label of the means in a ``surface.json``; undefined figures are None."""
    return [
        {
            "label": (names or {}).get(key, key),
            **{name: value for name, value in figures.items() if name != "cases"},
            "cases": figures["cases"]["present"],
            "one side empty": figures["cases"]["prediction empty"] + figures["cases"]["reference empty"],
        }
        for key, figures in surface["mean"].items()
    ]


def write_csv(
    summary: Mapping[str, Any], path: Path, *, layout: Literal["wide", "long"] = "wide", metric: str = "Dice"
) -> None:
    """Write :func:`dice_table` (``wide``) or :func:`long_table` (``long``) as CSV; undefined figures are empty.

    Numbers are written with all their digits.
    """
    if layout not in ("wide", "long"):
        raise UsageError(f"unknown table layout {layout!r}; legal names: wide, long")
    rows = dice_table(summary, metric=metric) if layout == "wide" else long_table(summary)
    write_table(path, rows)


def format_table(
    rows: Sequence[Mapping[str, str | float | int | None]], *, names: Mapping[str, str] | None = None, digits: int = 4
) -> str:
    """Rows as an aligned text table; a row whose first entry is ``mean`` is set off by a line.

    Args:
        rows: mappings with the same keys, the first of which is the row's name.
        names: column key -> heading, e.g. ``{"1": "liver"}``.
        digits: of fractions; whole numbers are printed as such, NaN and None as a dash.
    """
    if not rows:
        return ""
    keys = list(rows[0])
    heading = [(names or {}).get(key, key) for key in keys]
    body = [[_cell(row.get(key), digits) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in [heading, *body]) for i in range(len(keys))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])

    rule = "  ".join("-" * width for width in widths)
    lines = [line(heading).rstrip(), rule]
    for previous, cells in zip([heading, *body], body, strict=False):
        if cells[0] == MEAN and previous is not heading and previous[0] != MEAN:
            lines.append(rule)
        lines.append(line(cells).rstrip())
    return "\n".join(lines)


def _parts(
    summary: Mapping[str, Any],
) -> tuple[list[tuple[str, dict[str, dict[str, float]]]], dict[str, dict[str, float]]]:
    """Case name -> label -> figures, and label -> means, of either layout."""
    layout = layout_of(summary)
    if layout == "nnunet-v2":
        return [(_name(c["prediction_file"]), c["metrics"]) for c in summary["metric_per_case"]], summary["mean"]
    if layout == "nnunet-v1":
        cases = [
            (_name(case.get("test", "?")), {k: v for k, v in case.items() if k not in ("test", "reference")})
            for case in summary["results"]["all"]
        ]
        return cases, summary["results"]["mean"]
    raise UsageError("not a summary.json of nnU-Net: neither 'metric_per_case' and 'mean' nor 'results' inside")


def _name(file: str) -> str:
    last = file.replace("\\", "/").rsplit("/", 1)[-1]
    return case_of(last) or last


def _sorted_keys(figures: Mapping[str, Any]) -> list[str]:
    """Labels by value, regions after them: nnU-Net's own order puts 10 before 2."""
    return sorted(figures, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0, key))


def _row(case: str, values: Mapping[str, float]) -> Row:
    defined = [value for key, value in values.items() if key != "0" and not math.isnan(value)]
    return {"case": case, **values, MEAN: mean_of(defined)}


def _cell(value: str | float | int | None, digits: int) -> str:
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"
