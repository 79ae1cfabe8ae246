"""Geometry of the report's charts and the colours of its tables: numbers in, percentages out; the template draws.

Places are percentages of the plotting area, so that a chart takes the width it is given while its letters keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LOW, MIDDLE, HIGH = (199, 70, 22), (250, 240, 214), (15, 118, 110)
"""Orange to teal over cream: told apart with any kind of colour vision."""
PALETTE = ("#38bdf8", "#fb5607", "#ffd166", "#2dd4a7", "#c77dff", "#ff70a6", "#b8e986", "#f4a261", "#7aa2ff", "#f2f27a")
"""Colours of labels, as in the overlay pictures."""

_JITTER = 24.0


@dataclass(frozen=True)
class Dot:
    """A point; ``x`` from the left and ``y`` from the top, in percent."""

    x: float
    y: float
    note: str


@dataclass(frozen=True)
class StripRow:
    """One label: its cases as dots, a box (left, width) from the first to the third quartile, the median and the mean."""

    name: str
    dots: tuple[Dot, ...]
    box: tuple[float, float] | None
    median: float | None
    mean: float | None
    note: str


@dataclass(frozen=True)
class StripPlot:
    """A strip plot with horizontal rows. ``ticks``: place and text."""

    rows: tuple[StripRow, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Bar:
    name: str
    width: float
    text: str


@dataclass(frozen=True)
class Plot:
    """Points, level lines and curves over two axes.

    Attributes:
        lines: horizontal: place from the top, text.
        curves: points of polylines in a square of 100 by 100, with the name of each.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    dots: tuple[Dot, ...] = ()
    lines: tuple[tuple[float, str], ...] = ()
    curves: tuple[tuple[str, str], ...] = ()
    caption: str = ""


def strip_plot(values: Mapping[str, Sequence[tuple[str, float]]]) -> StripPlot:
    """A strip plot of figures between 0 and 1.

    Args:
        values: row name -> (case, figure); NaN is left out.
    """
    finite = [v for row in values.values() for _, v in row if math.isfinite(v)]
    start = _axis_start(min(finite, default=0.0))

    def place(value: float) -> float:
        return round(100 * (min(max(value, start), 1.0) - start) / (1 - start), 2)

    rows = []
    for name, row in values.items():
        defined = [(case, v) for case, v in row if math.isfinite(v)]
        figures = [v for _, v in defined]
        quartiles = [place(float(q)) for q in np.quantile(figures, [0.25, 0.5, 0.75])] if len(figures) > 3 else None
        mean = sum(figures) / len(figures) if figures else None
        rows.append(
            StripRow(
                name=name,
                dots=tuple(
                    Dot(place(v), round(50 + _spread(j) * _JITTER, 1), f"{case}: {v:.4f}")
                    for j, (case, v) in enumerate(defined)
                ),
                box=(quartiles[0], round(max(quartiles[2] - quartiles[0], 0.3), 2)) if quartiles else None,
                median=quartiles[1] if quartiles else None,
                mean=None if mean is None else place(mean),
                note="not present in any case" if mean is None else f"mean {mean:.4f}, {len(figures)} cases",
            )
        )
    steps = (start + (1 - start) * i / 5 for i in range(6))
    return StripPlot(tuple(rows), tuple((place(step), f"{step:.2g}") for step in steps))


def bland_altman(title: str, pairs: Sequence[tuple[str, float, float]], unit: str) -> Plot | None:
    """The difference of two measurements over their mean, with the mean difference and the limits of agreement (mean
    +- 1.96 standard deviations; Bland and Altman, Lancet 1986). None with fewer than two finite pairs.

    Args:
        pairs: name, measured, reference.
    """
    known = [(name, a, b) for name, a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if len(known) < 2:
        return None
    means, gaps = [(a + b) / 2 for _, a, b in known], [a - b for _, a, b in known]
    bias, spread = float(np.mean(gaps)), 1.96 * float(np.std(gaps, ddof=1))
    low, high = min(*gaps, bias - spread, 0.0), max(*gaps, bias + spread, 0.0)
    plane = _Plane(_Axis.over(min(means), max(means)), _Axis.over(low, high))
    levels = [(bias, f"mean {bias:+.3g} {unit}")]
    if spread > 0:
        levels += [(bias + spread, f"{bias + spread:+.3g} {unit}"), (bias - spread, f"{bias - spread:+.3g} {unit}")]
    return Plot(
        title=title,
        x_label=f"mean of prediction and reference, {unit}",
        y_label=f"prediction - reference, {unit}",
        x_ticks=plane.x_ticks,
        y_ticks=plane.y_ticks,
        dots=tuple(
            Dot(*plane.place(m, g), f"{name}: {a:.4g} {unit}, reference {b:.4g} {unit}")
            for (name, a, b), m, g in zip(known, means, gaps, strict=True)
        ),
        lines=tuple((plane.from_top(value), text) for value, text in levels),
    )


def growth_plot(title: str, curves: Mapping[str, Sequence[float]], x_label: str, y_label: str) -> Plot | None:
    """Curves of positive figures over their position, on a logarithmic scale; None where no figure is positive."""
    positive = [v for curve in curves.values() for v in curve if v > 0 and math.isfinite(v)]
    if not positive:
        return None
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    last = max(last, first + 1)
    longest = max(len(curve) for curve in curves.values())

    def point(index: int, value: float) -> str:
        x = 100 * index / max(longest - 1, 1)
        clipped = min(max(value, 10.0**first), 10.0**last)
        return f"{x:.2f},{100 - 100 * (math.log10(clipped) - first) / (last - first):.2f}"

    powers = range(first, last + 1, max(1, (last - first) // 5))
    return Plot(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x_ticks=((0.0, "1"), (100.0, str(longest))),
        y_ticks=tuple((round(100 - 100 * (p - first) / (last - first), 2), f"1e{p}") for p in powers),
        curves=tuple(
            (name, " ".join(point(i, v if math.isfinite(v) else 10.0**last) for i, v in enumerate(curve)))
            for name, curve in curves.items()
        ),
    )


def line_plot(
    title: str, curves: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str
) -> Plot | None:
    """Curves over two linear axes; None where no point is finite.

    Args:
        curves: name -> points (x, y), in the order in which they are joined; a point that is not finite is left out.
    """
    known = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in curves.items()
    }
    every = [point for points in known.values() for point in points]
    if not every:
        return None
    plane = _Plane.around(every)
    return Plot(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x_ticks=plane.x_ticks,
        y_ticks=plane.y_ticks,
        curves=tuple((name, plane.polyline(points)) for name, points in known.items() if points),
    )


def trade_off_plot(
    title: str,
    points: Sequence[tuple[str, float, float]],
    front: Sequence[tuple[float, float]],
    x_label: str,
    y_label: str,
) -> Plot | None:
    """Named points over two linear axes, and a line through the best of them; None with fewer than two finite points."""
    known = [(name, x, y) for name, x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(known) < 2:
        return None
    plane = _Plane.around([(x, y) for _, x, y in known])
    return Plot(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x_ticks=plane.x_ticks,
        y_ticks=plane.y_ticks,
        dots=tuple(Dot(*plane.place(x, y), f"{name}: {x:.3g}, {y:.4f}") for name, x, y in known),
        curves=(("the best", plane.polyline(front)),) if len(front) > 1 else (),
    )


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


def colour_of(label: int) -> str:
    """The colour of a label."""
    return PALETTE[(label - 1) % len(PALETTE)]


@dataclass(frozen=True)
class _Axis:
    """A linear axis with round ticks."""

    low: float
    high: float
    step: float

    @staticmethod
    def over(low: float, high: float) -> _Axis:
        span = high - low if high > low else max(abs(high), 1.0)
        rough = span / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough)
        return _Axis(math.floor(low / step) * step, math.ceil(high / step) * step or step, step)

    def place(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2) if self.high > self.low else 50.0

    def ticks(self) -> tuple[tuple[float, str], ...]:
        count = round((self.high - self.low) / self.step)
        values = [self.low + i * self.step for i in range(count + 1)]
        return tuple((self.place(value), f"{0.0 if abs(value) < self.step / 1e6 else value:.4g}") for value in values)


@dataclass(frozen=True)
class _Plane:
    """Two linear axes; places are percentages from the left and, since pages are read so, from the top."""

    x: _Axis
    y: _Axis

    @staticmethod
    def around(points: Sequence[tuple[float, float]]) -> _Plane:
        """Axes that hold some points (x, y), at least one."""
        xs, ys = zip(*points, strict=True)
        return _Plane(_Axis.over(min(xs), max(xs)), _Axis.over(min(ys), max(ys)))

    def place(self, x: float, y: float) -> tuple[float, float]:
        return self.x.place(x), self.from_top(y)

    def from_top(self, y: float) -> float:
        return round(100 - self.y.place(y), 2)

    def polyline(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{left:.2f},{top:.2f}" for left, top in (self.place(x, y) for x, y in points))

    @property
    def x_ticks(self) -> tuple[tuple[float, str], ...]:
        return self.x.ticks()

    @property
    def y_ticks(self) -> tuple[tuple[float, str], ...]:
        return tuple((round(100 - place, 2), text) for place, text in self.y.ticks())


def _axis_start(lowest: float) -> float:
    return next((start for start in (0.9, 0.8, 0.5) if lowest >= start), 0.0)


def _spread(index: int) -> float:
    """A fixed sequence in [-1, 1] that spreads neighbours: multiples of the golden ratio, modulo 1."""
    return 2 * ((index * 0.6180339887498949 + 0.5) % 1.0) - 1
