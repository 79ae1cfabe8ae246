"""What the template draws: plain values, all of them made before the page is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from offline_infer.proof.report.charts import Bar, Plot, StripPlot

_LONG = 40
"""Letters that no column of figures has."""


@dataclass(frozen=True)
class Tile:
    """One large figure at the top of the page. ``tone``: ``good``, ``bad``, ``warn`` or empty."""

    value: str
    label: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table. ``heat``: columns (by index) whose cells are coloured from 0 to 1. ``rule``: the last row is set off.
    ``digits``: of fractions."""

    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""
    heat: frozenset[int] = frozenset()
    rule: bool = False
    digits: int = 4

    @property
    def words(self) -> frozenset[int]:
        """Columns, but for the first, that hold sentences and long names: they are broken into lines, from the left."""
        lengths = ((i, len(cell)) for row in self.rows for i, cell in enumerate(row) if i and isinstance(cell, str))
        return frozenset(i for i, length in lengths if length > _LONG) - self.heat


@dataclass(frozen=True)
class Fold:
    """A part that opens on a click; printed, unless its tables are long."""

    heading: str
    tables: tuple[Table, ...] = ()
    lines: tuple[str, ...] = ()
    tone: str = ""

    @property
    def lengthy(self) -> bool:
        return sum(len(table.rows) for table in self.tables) > 100


@dataclass(frozen=True)
class Outline:
    """The outline of one label on one side, as an SVG path in voxels."""

    path: str
    colour: str
    dashed: bool


@dataclass(frozen=True)
class SliceView:
    """One slice. ``address``: the grey picture as a ``data:`` address, or empty. ``error``: path around the
    voxels that differ. ``share``: width as a percentage of the
    widest slice of its row, so that a millimetre is as long in each."""

    caption: str
    rows: int
    columns: int
    width_mm: float
    height_mm: float
    share: float
    address: str
    error: str
    outlines: tuple[Outline, ...]


@dataclass(frozen=True)
class SliceCase:
    """One case with slices through its largest error, and slices to scroll through."""

    heading: str
    text: str
    planes: tuple[SliceView, ...]
    scroll: tuple[SliceView, ...]


@dataclass(frozen=True)
class Thumb:
    """One picture of a gallery. ``address``: a ``data:`` address, as :func:`values.png_of` makes it."""

    heading: str
    text: str
    address: str


@dataclass(frozen=True)
class Section:
    """One part of the page, ready to draw. ``kind`` decides its place."""

    kind: str
    heading: str
    file: str = ""
    anchor: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    tiles: tuple[Tile, ...] = ()
    verdict: tuple[str, str] | None = None
    text: str = ""
    strip: StripPlot | None = None
    plots: tuple[Plot, ...] = ()
    bars: tuple[Bar, ...] = ()
    bars_caption: str = ""
    tables: tuple[Table, ...] = ()
    cases: tuple[SliceCase, ...] = ()
    gallery: tuple[Thumb, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def of_file(self, file: str, number: int, label: str) -> Section:
        """The section of a file; ``label`` tells it from others of its kind."""
        named = f"{self.heading}: {label}" if label else self.heading
        tiles = tuple(replace(tile, label=f"{tile.label}, {label}" if label else tile.label) for tile in self.tiles)
        return replace(self, file=file, anchor=f"s{number}", heading=named, tiles=tiles)
