"""One picture that lets a human check a segmentation: slices in three planes with contours, in anatomical orientation.

The volume is brought to patient axes first, so a picture never depends on how a file happens to store its voxels: axial
slices are seen from the feet (the patient's right is on the left), coronal ones from the front, sagittal ones from the
left. All large panels share one scale: a millimetre is as long in each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import UsageError
from offline_infer.files import replacing
from offline_infer.proof.evaluation.metrics import joint_histogram, label_counts
from offline_infer.proof.pictures.patient_view import (
    Box,
    FloatArray,
    LabelArray,
    View,
    body_box,
    choose_slices,
    intensity_limits,
    lesion_slices,
    to_patient_axes,
)

_PALETTE = (
    "#38bdf8",
    "#fb5607",
    "#ffd166",
    "#2dd4a7",
    "#c77dff",
    "#ff70a6",
    "#b8e986",
    "#f4a261",
    "#7aa2ff",
    "#f2f27a",
)
_PAPER, _INK, _QUIET, _FRAME = "#0d1117", "#e6edf3", "#8b949e", "#30363d"
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_PLANES = ("Axial", "Coronal", "Sagittal")
_EDGES = (("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I"))
"""Per plane: what lies at the left, right, top and bottom edge."""

_OBLIQUE_DEGREES = 5.0
_LEGEND_ROWS = 12
_HEAD, _GAP, _LINE = 0.75, 0.12, 0.24
"""Inches: height of the title block, distance between panels, height of a legend line."""


@dataclass(frozen=True)
class _Panel:
    """One slice: its view axis and index, and where it stands on the page in inches from the lower left corner."""

    axis: int
    index: int
    main: bool
    left: float
    bottom: float
    width: float
    height: float


@dataclass(frozen=True)
class OverlayStyle:
    """How a picture is drawn.

    Attributes:
        names: label -> name for the legend.
        title: a line above the picture.
        window: (width, level); by default the abdominal CT window for images with air in them, otherwise percentiles.
        slices: axial slices in the lower strip.
        dpi: pixels per inch of the page, which is 13 inches wide, 7.5 for a flat image.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    title: str = ""
    window: tuple[float, float] | None = None
    slices: int = 5
    dpi: int = 110


FRAMEWORKS: Mapping[str, str] = {
    "nnunet_v1": "nnU-Net v1",
    "nnunetplusplus": "UNet++ (nnU-Net)",
    "nnunet_v2": "nnU-Net v2",
}
ENGINES: Mapping[str, str] = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "om": "an Ascend NPU"}


def picture_title(case: str, framework: str, engine: str, *, reference: bool) -> str:
    """A title a person would write: ``phantom_01: UNet++ (nnU-Net) on OpenVINO, and the reference``."""
    beside = ", and the reference" if reference else ""
    return f"{case}: {FRAMEWORKS.get(framework, framework)} on {ENGINES.get(engine, engine)}{beside}"


def write_overlay(
    path: Path,
    image: FloatArray,
    prediction: LabelArray,
    reference: LabelArray | None = None,
    *,
    spacing: Sequence[float],
    direction: Sequence[float] = _IDENTITY,
    style: OverlayStyle | None = None,
) -> None:
    """Write a PNG with axial, coronal and sagittal slices through the largest lesion; prediction contours solid, reference contours
    dashed, one colour for each label.

    Args:
        image: (z, y, x), one channel.
        prediction, reference: integers, (z, y, x).
        spacing: mm, (z, y, x).
        direction: ITK, nine numbers, row-major (LPS).
        style: how it is drawn; None: the defaults.

    Raises:
        UsageError: matplotlib is not installed, or a window or direction that makes no sense.
        GeometryError: the shapes differ.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("pictures need matplotlib: pip install 'offline-infer[report]'") from error
    style = style if style is not None else OverlayStyle()
    if style.window is not None and not style.window[0] > 0:
        raise UsageError(f"window width {style.window[0]} must be positive; expected (width, level), e.g. (400, 40)")
    view = to_patient_axes(image, prediction, reference, spacing, direction)
    crop = body_box(view)
    limits = intensity_limits(image, style.window)
    legend = _legend(view, style.names)
    flat = view.image.shape[0] == 1
    columns = 2 if flat else 3
    foot = 0.35 + _LINE * (math.ceil(len(legend) / columns) + 1)
    size, panels = _lay_out(view, crop, foot, 0 if flat else style.slices)
    figure = Figure(figsize=size, dpi=style.dpi, facecolor=_PAPER)
    canvas = FigureCanvasAgg(figure)
    for panel in panels:
        place = (panel.left / size[0], panel.bottom / size[1], panel.width / size[0], panel.height / size[1])
        _draw_panel(figure.add_axes(place), view, panel, crop, limits, letters=not flat)
    _draw_text(figure, size, view, style.title, limits)
    _draw_legend(figure, size, view, legend, foot, columns)
    with replacing(path) as temporary:
        canvas.print_png(str(temporary))


def _lay_out(view: View, crop: Box, foot: float, slices: int) -> tuple[tuple[float, float], list[_Panel]]:
    """Page size in inches and the panels on it."""
    flat = view.image.shape[0] == 1
    axes = (0,) if flat else (0, 1, 2)
    sizes = [_size_mm(view, crop, axis) for axis in axes]
    page = 7.5 if flat else 13.0
    cells, block = _arrange(sizes, page - 2 * _GAP, 6.4)
    strip = choose_slices(view, slices)
    small = (0.0, 0.0)
    if strip:
        shrink = min((page - _GAP * (len(strip) + 1)) / len(strip) / sizes[0][0], 2.6 / sizes[0][1])
        small = (sizes[0][0] * shrink, sizes[0][1] * shrink)
    height = _HEAD + block[1] + (small[1] + _GAP if strip else 0) + _GAP + foot
    left = (page - block[0]) / 2
    shown = lesion_slices(view)
    panels = [
        _Panel(axis, shown[axis], True, left + x, height - _HEAD - y - h, w, h)
        for axis, (x, y, w, h) in zip(axes, cells, strict=True)
    ]
    gap = (page - small[0] * len(strip)) / (len(strip) + 1)
    panels += [
        _Panel(0, index, False, gap + i * (small[0] + gap), foot, small[0], small[1]) for i, index in enumerate(strip)
    ]
    return (page, height), panels


def _arrange(
    sizes: Sequence[tuple[float, float]], width: float, height: float
) -> tuple[list[tuple[float, float, float, float]], tuple[float, float]]:
    """Rectangles (x, y from the top, w, h) in inches for the large panels, and the size of the whole block.

    Three panels stand in a row, or the second above the third beside the first: whichever shows them larger. Thin
    volumes have low coronal and sagittal slices, which would waste a row.
    """
    if len(sizes) == 1:
        scale = min(width / sizes[0][0], height / sizes[0][1])
        w, h = sizes[0][0] * scale, sizes[0][1] * scale
        return [(0.0, 0.0, w, h)], (w, h)
    (aw, ah), (cw, ch), (sw, sh) = sizes
    in_row = min((width - 2 * _GAP) / (aw + cw + sw), height / max(ah, ch, sh))
    stacked = min((width - _GAP) / (aw + max(cw, sw)), height / ah, (height - _GAP) / (ch + sh))
    if stacked <= in_row * 1.02:
        k = in_row
        tallest = max(ah, ch, sh) * k
        cells, x = [], 0.0
        for w, h in sizes:
            cells.append((x, (tallest - h * k) / 2, w * k, h * k))
            x += w * k + _GAP
        return cells, (x - _GAP, tallest)
    k = stacked
    tallest = max(ah * k, (ch + sh) * k + _GAP)
    side, column = aw * k + _GAP, max(cw, sw) * k
    spare = tallest - (ch + sh) * k
    top = max(0.0, (spare - _GAP * 3) / 2)
    below = min(tallest - sh * k, top + ch * k + _GAP * 3)
    cells = [
        (0.0, (tallest - ah * k) / 2, aw * k, ah * k),
        (side + (column - cw * k) / 2, top, cw * k, ch * k),
        (side + (column - sw * k) / 2, below, sw * k, sh * k),
    ]
    return cells, (side + column, tallest)


def _size_mm(view: View, crop: Box, axis: int) -> tuple[float, float]:
    """Width and height of a slice across ``axis``."""
    height, width = (a for a in range(3) if a != axis)
    mm = [(last - first) * step for (first, last), step in zip(crop, view.spacing, strict=True)]
    return mm[width], mm[height]


def _slice(array: npt.NDArray[Any], panel: _Panel, crop: Box) -> npt.NDArray[Any]:
    """Rows from top to bottom: towards posterior for axial slices; from superior for the others, stored upside down."""
    index: list[Any] = [slice(first, last) for first, last in crop]
    index[panel.axis] = panel.index
    plane: npt.NDArray[Any] = array[tuple(index)]
    return plane if panel.axis == 0 else plane[::-1]


def _draw_panel(axes: Any, view: View, panel: _Panel, crop: Box, limits: tuple[float, float], *, letters: bool) -> None:
    width, height = _size_mm(view, crop, panel.axis)
    axes.imshow(
        _slice(view.image, panel, crop),
        cmap="gray",
        vmin=limits[0],
        vmax=limits[1],
        extent=(0, width, height, 0),
        interpolation="bilinear",
        aspect="auto",
    )
    # The reference lies below: where both agree the solid line covers the dashed one.
    for array, solid in ((view.reference, False), (view.prediction, True)):
        if array is not None:
            _draw_contours(axes, _slice(array, panel, crop), (width, height), solid=solid, main=panel.main)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(_FRAME)
    if letters:
        _draw_letters(axes, view, panel)
    if panel.main and panel.axis == 0:
        _draw_scale(axes, width, height)


def _draw_contours(axes: Any, plane: LabelArray, size: tuple[float, float], *, solid: bool, main: bool) -> None:
    rows, columns = plane.shape
    # One ring of background closes the contours of labels that touch the edge.
    x = (np.arange(-1, columns + 1) + 0.5) * size[0] / columns
    y = (np.arange(-1, rows + 1) + 0.5) * size[1] / rows
    for label in (int(v) for v in np.unique(plane) if v != 0):
        mask = np.pad((plane == label).astype(np.float32), 1)
        colour = _colour(label)
        if solid:
            axes.contourf(x, y, mask, levels=[0.5, 1.5], colors=[colour], alpha=0.14)
            axes.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=1.6 if main else 1.0)
        else:
            thick = 1.6 if main else 1.0
            axes.contour(x, y, mask, levels=[0.5], colors=["black"], linewidths=thick + 1.2, alpha=0.6)
            axes.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=thick, linestyles=[(0, (2.5, 1.8))])


def _draw_letters(axes: Any, view: View, panel: _Panel) -> None:
    from matplotlib.patheffects import withStroke

    style = {
        "color": _INK,
        "fontsize": 9 if panel.main else 7.5,
        "fontweight": "bold",
        "transform": axes.transAxes,
        "path_effects": [withStroke(linewidth=2.2, foreground="black")],
    }
    dx, dy = 0.08 / panel.width, 0.08 / panel.height
    where = view.stored_index(panel.axis, panel.index)
    axes.text(dx, 1 - dy, f"{_PLANES[panel.axis]}  {where}" if panel.main else where, va="top", **style)
    if not panel.main:
        return
    left, right, top, bottom = _EDGES[panel.axis]
    axes.text(dx, 0.5, left, ha="left", va="center", **style)
    axes.text(1 - dx, 0.5, right, ha="right", va="center", **style)
    axes.text(0.5, 1 - dy, top, ha="center", va="top", **style)
    axes.text(0.5, dy, bottom, ha="center", va="bottom", **style)


def _draw_scale(axes: Any, width: float, height: float) -> None:
    from matplotlib.patheffects import withStroke

    length = next((mm for mm in (100, 50, 20, 10, 5) if mm < width / 3), 1)
    outline = [withStroke(linewidth=3.6, foreground="black")]
    x, y = width * 0.975 - length, height * 0.97
    axes.plot([x, x + length], [y, y], color=_INK, linewidth=2, solid_capstyle="butt", path_effects=outline)
    text = {"color": _INK, "fontsize": 8, "ha": "center", "va": "bottom", "path_effects": outline}
    axes.text(x + length / 2, y - height * 0.012, f"{length} mm", **text)


def _draw_text(figure: Any, size: tuple[float, float], view: View, title: str, limits: tuple[float, float]) -> None:
    left = 0.2 / size[0]
    figure.text(left, 1 - 0.3 / size[1], title, color=_INK, fontsize=13, fontweight="bold", va="center")
    stored = sorted((axis, i) for i, (axis, _) in enumerate(view.stored))
    facts = [
        " x ".join(str(view.image.shape[i]) for _, i in stored) + " voxels (z, y, x)",
        " x ".join(f"{view.spacing[i]:.3g}" for _, i in stored) + " mm",
        f"window {limits[1] - limits[0]:.4g}, level {(limits[0] + limits[1]) / 2:.4g}",
    ]
    if view.tilt > _OBLIQUE_DEGREES:
        facts.append(f"oblique by {view.tilt:.0f}°: nearest planes shown")
    figure.text(left, 1 - 0.56 / size[1], "   ·   ".join(facts), color=_QUIET, fontsize=9, va="center")


def _legend(view: View, names: Mapping[int, str]) -> list[tuple[str, str]]:
    """(colour, text) per label; of very many labels the largest."""
    reference = view.prediction if view.reference is None else view.reference
    histogram = joint_histogram(view.prediction, reference)
    counts = {label: label_counts(histogram, label) for label in view.labels}
    shown = sorted(sorted(counts, key=lambda label: -counts[label].tp - counts[label].fn)[:_LEGEND_ROWS])
    ml = math.prod(view.spacing) / 1000
    lines = []
    for label in shown:
        found = counts[label]
        text = f"{names.get(label, f'label {label}')}   {(found.tp + found.fp) * ml:,.1f} mL"
        if view.reference is not None:
            text += f"  (reference {(found.tp + found.fn) * ml:,.1f} mL)   Dice {found.dice:.3f}"
        lines.append((_colour(label), text))
    return lines


def _draw_legend(
    figure: Any, size: tuple[float, float], view: View, legend: Sequence[tuple[str, str]], foot: float, columns: int
) -> None:
    left = 0.2 / size[0]
    key = "solid: prediction" + ("" if view.reference is None else "     dashed: reference")
    if len(view.labels) > len(legend):
        key += f"     {len(view.labels) - len(legend)} smaller labels are drawn but not listed"
    if not view.labels:
        key = "nothing but background in the prediction" + ("" if view.reference is None else " and the reference")
    figure.text(left, (foot - 0.25) / size[1], key, color=_QUIET, fontsize=9, va="center")
    for (x, y), (colour, text) in zip(_grid(left, foot, size, columns), legend, strict=False):
        figure.text(x, y, "■", color=colour, fontsize=11, va="center")
        figure.text(x + 0.2 / size[0], y, text, color=_INK, fontsize=9, va="center")


def _grid(left: float, foot: float, size: tuple[float, float], columns: int) -> Iterator[tuple[float, float]]:
    for i in range(_LEGEND_ROWS):
        yield left + (i % columns) * (1 - 2 * left) / columns, (foot - 0.52 - _LINE * (i // columns)) / size[1]


def _colour(label: int) -> str:
    return _PALETTE[(label - 1) % len(_PALETTE)]
