"""How well the predictions agree with the references: Dice, the worst cases, volumes, lesions, surfaces."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from offline_infer.proof.evaluation.summary import layout_of
from offline_infer.proof.evaluation.tables import MEAN, dice_table
from offline_infer.proof.report.charts import bland_altman, colour_of, strip_plot
from offline_infer.proof.report.parts import Fold, Outline, Section, SliceCase, SliceView, Table, Tile
from offline_infer.proof.report.records import RecordKind
from offline_infer.proof.report.values import Content, Names, count, figure, name_of, png_of, real, whole

_COLUMNS = 10
_PLOTS = 6
_IN_LEGEND = 24
_IN_TABLE = 40
"""Cases that are shown at once; of more, the worst ``_WORST``."""
_WORST = 20

Cases = Sequence[Mapping[str, Any]]
_PATH = re.compile(r"(?:M\d{1,6} \d{1,6}(?:[HV]\d{1,6})+Z)*")
_LARGEST_SIDE = 1e5


def summary_section(content: Content, names: Names) -> list[Section]:
    """Dice per case and label with a colour scale, the worst cases first, and a strip plot per label."""
    rows = dice_table(content)
    keys = [key for key in rows[-1] if key not in ("case", MEAN)]
    cases = sorted(rows[:-1], key=lambda row: (_last(real(row[MEAN])), str(row["case"])))
    # The background's Dice is near 1 everywhere and would only squeeze the others together.
    drawn = [key for key in keys if key != "0"] or keys
    plot = strip_plot({name_of(key, names): [(str(r["case"]), real(r.get(key))) for r in cases] for key in drawn})
    overall = real(rows[-1][MEAN])
    layout = "nnU-Net v2" if layout_of(content) == "nnunet-v2" else "nnU-Net v1"
    if len(keys) <= _COLUMNS:
        tables, folds = _shortened(lambda few: _wide(few, rows[-1], keys, names), cases)
    else:
        tables, folds = _shortened(lambda few: _by_case(few, drawn, names), cases)
        tables = (_by_label(cases, drawn, names), *tables)
    section = Section(
        kind="summary",
        heading="Agreement with the references",
        text="Dice is twice the common volume over the sum of both: 1 is perfect, 0 is no voxel in common.",
        facts=(("cases", str(len(cases))), ("labels", str(len(keys))), ("layout", layout)),
        tiles=(Tile("-" if math.isnan(overall) else f"{overall:.4f}", f"mean Dice of {count(len(cases), 'case')}"),),
        strip=plot,
        tables=tables,
        folds=folds,
    )
    return [section]


def slices_section(content: Content, names: Names) -> list[Section]:
    """Slices through the largest error of the worst cases."""
    ours, theirs = (str(side) for side in content["sides"])
    cases = tuple(_slice_case(case) for case in content["cases"])
    found = {str(key): name for key, name in dict(content.get("labels") or {}).items() if isinstance(name, str)}
    drawn = sorted({whole(o["label"]) for case in content["cases"] for s in case["planes"] for o in s["outlines"]})
    known = {**found, **names}
    legend = tuple((colour_of(label), known.get(str(label), f"label {label}")) for label in drawn[:_IN_LEGEND])
    if len(drawn) > _IN_LEGEND:
        legend = (*legend, ("", f"and {len(drawn) - _IN_LEGEND} more"))
    section = Section(
        kind="slices",
        heading="The worst cases, at their largest error",
        text=f"Solid: {ours}. Dashed: {theirs}. Yellow: voxels that differ. Outlines follow the edges of the voxels; slices "
        "are seen from the feet, from the front and from the left, in their true proportions.",
        cases=cases,
        legend=legend,
    )
    return [section]


def details_section(content: Content, names: Names) -> list[Section]:
    """Volumes with their agreement, and lesions if they were matched."""
    sections = [_volumes(content, names)]
    if content.get("lesions"):
        sections.append(_lesions(content, names))
    return sections


def surface_section(content: Content, names: Names) -> list[Section]:
    """Means per label, the figures of each case, and the definitions used."""
    mean: Content = content["mean"]
    figures = [key for key in next(iter(mean.values())) if key != "cases"]
    means = Table(
        head=("label", *figures, "cases", "empty on one side", "empty on both"),
        rows=tuple(
            (
                name_of(label, names),
                *(real(row[key]) for key in figures),
                whole(row["cases"]["present"]),
                whole(row["cases"]["prediction empty"]) + whole(row["cases"]["reference empty"]),
                whole(row["cases"]["both empty"]),
            )
            for label, row in mean.items()
        ),
        caption="Means over the cases; distances in mm.",
        digits=3,
        heat=frozenset(i + 1 for i, key in enumerate(figures) if key.startswith("NSD")),
    )
    every = Table(
        head=("case", "label", *figures, "masks"),
        rows=tuple(
            (str(case["case"]), name_of(label, names), *(real(row[key]) for key in figures), str(row["masks"]))
            for case in content["metric_per_case"]
            for label, row in case["metrics"].items()
        ),
        digits=3,
    )
    words = [f"{key}: {text}" for key, text in {**content["definition"], **content["empty_mask_policy"]}.items()]
    section = Section(
        kind="surface",
        heading="Surface distances",
        facts=(("cases", str(len(content["metric_per_case"]))), ("unit", "mm")),
        tables=(means,),
        folds=(Fold("Each case", (every,)), Fold("Definitions and empty masks", lines=tuple(words))),
    )
    return [section]


def _shortened(table: Callable[[Cases], Table], cases: Cases) -> tuple[tuple[Table, ...], tuple[Fold, ...]]:
    """A table of the worst of many cases, and one of all of them to be opened."""
    if len(cases) <= _IN_TABLE:
        return (table(cases),), ()
    short = table(cases[:_WORST])
    caption = f"The worst {_WORST} of {len(cases)} cases. {short.caption}"
    return (replace(short, caption=caption),), (Fold(f"All {len(cases)} cases", (table(cases),)),)


def _wide(cases: Sequence[Mapping[str, Any]], means: Mapping[str, Any], keys: Sequence[str], names: Names) -> Table:
    return Table(
        head=("case", *(name_of(key, names) for key in keys), "mean"),
        rows=tuple(
            (str(row["case"]), *(real(row.get(key)) for key in keys), real(row[MEAN])) for row in (*cases, means)
        ),
        caption="Dice of each case and label, the worst cases first; a dash where neither map holds the label. "
        "The last row is the mean.",
        heat=frozenset(range(1, len(keys) + 2)),
        rule=True,
    )


def _by_label(cases: Sequence[Mapping[str, Any]], keys: Sequence[str], names: Names) -> Table:
    rows = []
    for key in keys:
        known = [(real(row.get(key)), str(row["case"])) for row in cases]
        known = [(value, case) for value, case in known if math.isfinite(value)]
        figures = [value for value, _ in known]
        worst = min(known, default=(math.nan, "-"))
        middle = (float(np.mean(figures)), float(np.median(figures))) if figures else (math.nan, math.nan)
        rows.append((name_of(key, names), len(known), *middle, *worst))
    rows.sort(key=lambda row: _last(real(row[2])))
    return Table(
        ("label", "cases", "mean", "median", "lowest", "in case"),
        tuple(rows),
        caption="Dice per label over the cases, the lowest first.",
        heat=frozenset({2, 3, 4}),
    )


def _by_case(cases: Sequence[Mapping[str, Any]], keys: Sequence[str], names: Names) -> Table:
    rows = []
    for row in cases:
        known = sorted((real(row.get(key)), key) for key in keys if math.isfinite(real(row.get(key))))
        low = ", ".join(f"{name_of(key, names)} {value:.3f}" for value, key in known[:3])
        rows.append((str(row["case"]), real(row[MEAN]), known[0][0] if known else math.nan, low))
    head = ("case", "mean", "lowest", "lowest labels")
    return Table(head, tuple(rows), caption="Dice per case, the worst first.", heat=frozenset({1, 2}))


def _volumes(content: Content, names: Names) -> Section:
    """Volumes in mL of both sides: the agreement per label, and every case."""
    keys = [str(entry["label"]) for entry in content["labels"] if str(entry["label"]) != "0"]
    cases: Sequence[Content] = content["cases"]
    pairs = {
        key: [
            (str(case["case"]), real(case["labels"][key]["prediction_ml"]), real(case["labels"][key]["reference_ml"]))
            for case in cases
            if key in case["labels"]
        ]
        for key in keys
    }
    plots = [bland_altman(name_of(key, names), pairs[key], "mL") for key in keys[:_PLOTS]]
    rows = [(name_of(key, names), *_agreement(pairs[key])) for key in keys]
    head = (
        "label",
        "mean prediction, mL",
        "mean reference, mL",
        "mean difference, mL",
        "limits of agreement, mL",
        "largest, mL",
        "in case",
    )
    every = Table(
        ("case", "label", "prediction, mL", "reference, mL", "difference, mL"),
        tuple((case, name_of(key, names), a, b, a - b) for key in keys for case, a, b in pairs[key]),
        digits=3,
    )
    return Section(
        kind="volumes",
        heading="Volumes",
        text="Each dot is a case: how much larger or smaller the predicted volume is, over the mean of both. Lines: the "
        "mean difference, and the limits between which 95 % of differences are expected (Bland and Altman).",
        plots=tuple(plot for plot in plots if plot is not None),
        tables=(Table(head, tuple(rows), digits=3),),
        folds=(Fold("Each case", (every,)),),
    )


def _agreement(pairs: Sequence[tuple[str, float, float]]) -> tuple[Any, ...]:
    if not pairs:
        return (None,) * 6
    ours, theirs = [a for _, a, _ in pairs], [b for _, _, b in pairs]
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    bias = float(np.mean(gaps))
    spread = 1.96 * float(np.std(gaps, ddof=1)) if len(gaps) > 1 else math.nan
    worst = max(range(len(gaps)), key=lambda i: abs(gaps[i]))
    limits = "-" if math.isnan(spread) else f"{bias - spread:+.2f} to {bias + spread:+.2f}"
    return (float(np.mean(ours)), float(np.mean(theirs)), bias, limits, gaps[worst], pairs[worst][0])


def _lesions(content: Content, names: Names) -> Section:
    found: Content = content["lesions"]
    head = ("label", "in the references", "found", "missed", "invented", "sensitivity", "precision", "F1")
    rows = tuple(
        (
            name_of(key, names),
            *(whole(row[k]) for k in ("reference", "found", "missed", "invented")),
            *(real(row[k]) for k in ("sensitivity", "precision", "F1")),
        )
        for key, row in found["total"].items()
    )
    folds = _lesion_folds(content["cases"], names)
    words = tuple(f"{key}: {text}" for key, text in found["definition"].items())
    total = [sum(whole(row[key]) for row in found["total"].values()) for key in ("found", "reference")]
    return Section(
        kind="lesions",
        heading="Lesions found, missed, invented",
        facts=(
            ("overlap (IoU) above", figure(real(found["iou"]), 3)),
            ("smallest, mL", figure(real(found["min_ml"]), 3)),
        ),
        tiles=(Tile(f"{total[0]:,} of {total[1]:,}", "lesions found"),) if rows else (),
        tables=(Table(head, rows, heat=frozenset({5, 6, 7}), digits=3),) if rows else (),
        folds=(*folds[:20], Fold("Definitions", lines=words)),
    )


def _lesion_folds(cases: Sequence[Content], names: Names) -> list[Fold]:
    """The missed and invented lesions of each case, the worst case first."""
    folds = []
    for case in sorted(cases, key=_lesion_errors, reverse=True):
        lines, missed, invented = [], 0, 0
        for key, row in (case.get("lesions") or {}).items():
            missed, invented = missed + whole(row["missed"]), invented + whole(row["invented"])
            for kind in ("missed", "invented"):
                lines += [
                    f"{kind}: {name_of(key, names)}, {figure(real(lesion['ml']), 3)} mL at z, y, x = "
                    + ", ".join(figure(real(v), 1) for v in lesion["centroid"])
                    for lesion in row[f"{kind}_lesions"][:20]
                ]
        if lines:
            tone = "bad" if missed else "warn"
            folds.append(Fold(f"{case['case']}: {missed} missed, {invented} invented", lines=tuple(lines), tone=tone))
    return folds


def _lesion_errors(case: Content) -> int:
    return sum(whole(row["missed"]) + whole(row["invented"]) for row in (case.get("lesions") or {}).values())


def _slice_case(case: Content) -> SliceCase:
    error = case.get("largest_error")
    value = case.get("figure")
    text = "Nothing differs in this case."
    if error is not None:
        where = ", ".join(str(whole(v)) for v in error["voxel"])
        text = (
            f"{whole(case['differing']):,} voxels differ in {count(whole(error['regions']), 'region')}; the largest region "
            f"has {whole(error['voxels']):,} voxels ({figure(real(error['ml']), 2)} mL) around z, y, x = {where}."
        )
    widest = max((real(entry["width_mm"]) for entry in case["planes"]), default=1.0)
    heading = f"{case['case']}" + ("" if value is None else f": lowest Dice {real(value):.4f}")
    return SliceCase(
        heading=heading,
        text=text,
        planes=tuple(_view(entry, widest) for entry in case["planes"]),
        scroll=tuple(_view(entry, real(entry["width_mm"])) for entry in case["scroll"]),
    )


def _view(entry: Content, widest: float) -> SliceView:
    """One slice, everything in it checked: it is drawn, not shown as text.

    Raises:
        ValueError: a size out of all proportion, a path that is no outline, or a picture that is no PNG.
    """
    rows, columns = whole(entry["rows"]), whole(entry["columns"])
    width, height = real(entry["width_mm"]), real(entry["height_mm"])
    sides: tuple[float, ...] = (rows, columns, width, height)
    if not all(0 < side < _LARGEST_SIDE for side in sides):
        raise ValueError("a slice has an impossible size")
    outlines = tuple(
        Outline(_path(outline["path"]), colour_of(whole(outline["label"])), outline["side"] == "reference")
        for outline in entry["outlines"]
    )
    return SliceView(
        caption=f"{entry['plane']}, {entry['index']}"
        + (f": {whole(entry['differing']):,} voxels differ" if entry["differing"] else ""),
        rows=rows,
        columns=columns,
        width_mm=width,
        height_mm=height,
        share=round(100 * width / widest, 2),
        address=png_of(entry.get("png")),
        error=_path(entry.get("error") or ""),
        outlines=outlines,
    )


def _path(value: Any) -> str:
    text = str(value)
    if not _PATH.fullmatch(text):
        raise ValueError("an outline is no path of horizontal and vertical lines")
    return text


def _last(value: float) -> float:
    """A key for sorting that puts undefined figures last."""
    return math.inf if math.isnan(value) else value


RECORDS = (
    RecordKind(
        "summary", "evaluation (nnU-Net summary.json)", summary_section, like=lambda c: layout_of(c) is not None
    ),
    RecordKind("slices", "slices of the worst cases", slices_section, named="offline_infer.error_slices"),
    RecordKind(
        "details",
        "volumes and lesions of an evaluation",
        details_section,
        named="offline_infer.evaluation",
        labels=lambda c: {row["label"]: row["name"] for row in c["labels"]},
    ),
    RecordKind("surface", "surface distances", surface_section, named="offline_infer.evaluation.surface_distances"),
)
