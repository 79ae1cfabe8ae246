"""Geometry of the report's charts and the colours of its tables: numbers in, numbers out; the template draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LOW, MIDDLE, HIGH = (199, 70, 22), (250, 240, 214), (15, 118, 110)
"""Orange to teal over cream: told apart with any kind of colour vision."""

_ROW, _PLOT, _JITTER = 30.0, 840.0, 6.0


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    note: str


@dataclass(frozen=True)
class StripRow:
    """One label: its cases as dots, a box from the first to the third quartile, the median and the mean."""

    name: str
    y: float
    dots: tuple[Dot, ...]
    box: tuple[float, float] | None
    median: float | None
    mean: float | None
    note: str


@dataclass(frozen=True)
class StripPlot:
    """A strip plot with horizontal rows; the plotting area starts at x = ``left``."""

    rows: tuple[StripRow, ...]
    ticks: tuple[tuple[float, str], ...]
    left: float
    width: float
    height: float


@dataclass(frozen=True)
class Bar:
    name: str
    width: float
    text: str


def strip_plot(values: Mapping[str, Sequence[tuple[str, float]]]) -> StripPlot:
    """A strip plot of figures between 0 and 1.

    Args:
        values: row name -> (case, figure); NaN is left out.
    """
    finite = [v for row in values.values() for _, v in row if math.isfinite(v)]
    start = _axis_start(min(finite, default=0.0))
    left = min(230.0, 24 + 7.2 * max((len(name) for name in values), default=4))

    def place(value: float) -> float:
        return round(left + _PLOT * (min(max(value, start), 1.0) - start) / (1 - start), 2)

    rows = []
    for i, (name, row) in enumerate(values.items()):
        y = 14 + _ROW * (i + 0.5)
        defined = [(case, v) for case, v in row if math.isfinite(v)]
        dots = tuple(
            Dot(place(v), round(y + _spread(j) * _JITTER, 2), f"{case}: {v:.4f}") for j, (case, v) in enumerate(defined)
        )
        figures = [v for _, v in defined]
        quartiles = [float(q) for q in np.quantile(figures, [0.25, 0.5, 0.75])] if figures else None
        many = quartiles is not None and len(figures) > 3
        mean = sum(figures) / len(figures) if figures else None
        note = "not present in any case" if mean is None else f"mean {mean:.4f}, {len(figures)} cases"
        rows.append(
            StripRow(
                name=name,
                y=round(y, 2),
                dots=dots,
                box=(place(quartiles[0]), place(quartiles[2])) if quartiles and many else None,
                median=place(quartiles[1]) if quartiles and many else None,
                mean=None if mean is None else place(mean),
                note=note,
            )
        )
    steps = 5
    ticks = tuple((place(start + (1 - start) * i / steps), f"{start + (1 - start) * i / steps:.2g}") for i in range(6))
    return StripPlot(tuple(rows), ticks, left, left + _PLOT + 24, 14 + _ROW * len(rows) + 30)


def bars(values: Sequence[tuple[str, float, str]]) -> tuple[Bar, ...]:
    """Horizontal bars, the longest 100: (name, size, text)."""
    longest = max((size for _, size, _ in values if math.isfinite(size)), default=0.0)
    return tuple(
        Bar(name, round(100 * size / longest, 2) if longest > 0 and math.isfinite(size) else 0.0, text)
        for name, size, text in values
    )


def heat(value: float | None) -> str:
    """CSS colours of a table cell for a figure from 0 (orange) to 1 (teal); empty for an undefined one.

    The upper half of the range gets most of the scale: 0.9 and 0.95 should look different.
    """
    if value is None or not math.isfinite(value):
        return ""
    position = min(max(value, 0.0), 1.0) ** 2
    first, second, share = (LOW, MIDDLE, position * 2) if position < 0.5 else (MIDDLE, HIGH, position * 2 - 1)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    # Relative luminance decides between dark and light figures.
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 140
    return f"background:rgb({red},{green},{blue});color:{'#16211f' if dark else '#ffffff'}"


def _axis_start(lowest: float) -> float:
    return next((start for start in (0.9, 0.8, 0.5) if lowest >= start), 0.0)


def _spread(index: int) -> float:
    """A fixed sequence in [-1, 1] that spreads neighbours: multiples of the golden ratio, modulo 1."""
    return 2 * ((index * 0.6180339887498949 + 0.5) % 1.0) - 1
