"""What a section of the report shows for each kind of record, as plain tables and charts for the template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from offline_infer.proof.evaluation.summary import layout_of
from offline_infer.proof.evaluation.tables import MEAN, dice_table
from offline_infer.proof.report.charts import Bar, StripPlot, bars, strip_plot
from offline_infer.proof.report.inputs import measurements_of

Content = Mapping[str, Any]
Names = Mapping[str, str]


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


@dataclass(frozen=True)
class Fold:
    """A part that opens on a click."""

    heading: str
    tables: tuple[Table, ...] = ()
    lines: tuple[str, ...] = ()
    tone: str = ""


@dataclass(frozen=True)
class Section:
    """One recognised file, ready to draw."""

    kind: str
    heading: str
    file: str = ""
    anchor: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    tiles: tuple[Tile, ...] = ()
    verdict: tuple[str, str] | None = None
    strip: StripPlot | None = None
    bars: tuple[Bar, ...] = ()
    bars_caption: str = ""
    tables: tuple[Table, ...] = ()
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def of_file(self, file: str, number: int, label: str) -> Section:
        """The section of a file; ``label`` tells it from others of its kind."""
        named = f"{self.heading}: {label}" if label else self.heading
        tiles = tuple(replace(tile, label=f"{tile.label}, {label}" if label else tile.label) for tile in self.tiles)
        return replace(self, file=file, anchor=f"s{number}", heading=named, tiles=tiles)


def summary_section(content: Content, names: Names) -> Section:
    """Dice per case and label with a colour scale, and a strip plot per label."""
    rows = dice_table(content)
    keys = [key for key in rows[-1] if key not in ("case", MEAN)]
    cases = rows[:-1]
    heading = tuple(_name(key, names) for key in keys)
    # The background's Dice is near 1 everywhere and would only squeeze the others together.
    drawn = [key for key in keys if key != "0"] or keys
    plot = strip_plot({_name(key, names): [(str(r["case"]), _real(r.get(key))) for r in cases] for key in drawn})
    table = Table(
        head=("case", *heading, "mean"),
        rows=tuple((str(row["case"]), *(_real(row.get(key)) for key in keys), _real(row[MEAN])) for row in rows),
        caption="Dice of each case and label; a dash where neither map holds the label. The last row is the mean.",
        heat=frozenset(range(1, len(keys) + 2)),
        rule=True,
    )
    overall = _real(rows[-1][MEAN])
    layout = "nnU-Net v2" if layout_of(content) == "nnunet-v2" else "nnU-Net v1"
    return Section(
        kind="summary",
        heading="Agreement with the references",
        facts=(("cases", str(len(cases))), ("labels", str(len(keys))), ("layout", layout)),
        tiles=(Tile("-" if math.isnan(overall) else f"{overall:.4f}", f"mean Dice of {_count(len(cases), 'case')}"),),
        strip=plot,
        tables=(table,),
    )


def surface_section(content: Content, names: Names) -> Section:
    """Means per label, the figures of each case, and the definitions used."""
    mean: Content = content["mean"]
    figures = [key for key in next(iter(mean.values())) if key != "cases"]
    means = Table(
        head=("label", *figures, "cases", "empty on one side", "empty on both"),
        rows=tuple(
            (
                _name(label, names),
                *(_real(row[key]) for key in figures),
                int(row["cases"]["present"]),
                int(row["cases"]["prediction empty"]) + int(row["cases"]["reference empty"]),
                int(row["cases"]["both empty"]),
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
            (str(case["case"]), _name(label, names), *(_real(row[key]) for key in figures), str(row["masks"]))
            for case in content["metric_per_case"]
            for label, row in case["metrics"].items()
        ),
        digits=3,
    )
    words = [f"{key}: {text}" for key, text in {**content["definition"], **content["empty_mask_policy"]}.items()]
    return Section(
        kind="surface",
        heading="Surface distances",
        facts=(("cases", str(len(content["metric_per_case"]))), ("unit", "mm")),
        tables=(means,),
        folds=(Fold("Each case", (every,)), Fold("Definitions and empty masks", lines=tuple(words))),
    )


_VERDICTS: Mapping[str, tuple[str, str]] = {
    "identical": ("identical", "good"),
    "ties": ("differs at ties only", "good"),
    "bug": ("differs beyond rounding", "bad"),
    "unknown": ("cannot be judged", "warn"),
}
_TILE_VERDICTS: Mapping[str, str] = {
    "identical": "none",
    "ties": "ties only",
    "bug": "not rounding",
    "unknown": "not judged",
}


def comparison_section(content: Content, names: Names) -> Section:
    """Agreement, differing voxels and margins per case, details on a click."""
    cases: Sequence[Content] = content["cases"]
    verdict = _VERDICTS[content["verdict"]]
    rows = []
    for case in cases:
        margins, place = case["margins"] or {}, case["place"]
        rows.append(
            (
                str(case["case"]),
                int(case["voxels"]),
                int(case["differing"]),
                _percent(case["agreement"], case["differing"]),
                _real(case["lowest_dice"]),
                "-" if place is None else f"{int(place['on_border']):,} of {int(place['judged']):,}",
                _real(margins.get("max")),
                "-" if not margins else f"{int(margins['ties']):,} / {int(margins['bugs']):,}",
                _VERDICTS[case["verdict"]][0],
            )
        )
    head = ("case", "voxels", "differing", "agreement", "lowest Dice", "on a border", "largest margin", "ties / bugs")
    missing = [f"{case}: only in a" for case in content["only_in_a"]]
    missing += [f"{case}: only in b" for case in content["only_in_b"]]
    missing += [f"{case}: not compared: {reason}" for case, reason in content["failed"].items()]
    differing, voxels = int(content["differing"]), int(content["voxels"])
    return Section(
        kind="comparison",
        heading="Agreement of two sets of predictions",
        facts=(("a", str(content["a"])), ("b", str(content["b"])), ("tie margin", f"{float(content['tie_margin']):g}")),
        tiles=(
            Tile(f"{differing:,}", f"of {voxels:,} voxels differ", "good" if differing == 0 else ""),
            Tile(_TILE_VERDICTS[content["verdict"]], "difference of the predictions", verdict[1]),
        ),
        verdict=verdict,
        tables=(
            Table(
                head=(*head, "verdict"),
                rows=tuple(rows),
                caption="A voxel is a tie if its two most probable classes differ by no more than the tie margin.",
            ),
        ),
        folds=tuple(_case_fold(case, names) for case in cases if case["differing"] or case["remarks"]),
        notes=tuple(missing),
    )


def arrays_section(content: Content, names: Names) -> Section:
    """Figures of two engine outputs."""
    passed = bool(content["passed"])
    flips: Content = content.get("flips") or {}
    figures = {**{k: v for k, v in content.items() if k not in ("kind", "version", "passed")}, **flips}
    shape = " x ".join(str(int(n)) for n in content["shape"])
    return Section(
        kind="arrays",
        heading="Engine outputs",
        facts=(("shape", shape), *((k.replace("_", " "), _short(v)) for k, v in figures.items() if _scalar(v))),
        verdict=("within tolerance", "good") if passed else ("outside tolerance", "bad"),
        tiles=(Tile(_short(_real(content["max_abs"])), "largest difference of outputs", "" if passed else "bad"),),
        notes=tuple(str(text) for text in content.get("warnings", ())),
    )


def performance_section(content: Content, names: Names) -> Section:
    """Figures of an inference tool, per device."""
    devices: Sequence[Content] = content["devices"]
    total = float(content["throughput_total_per_s"])
    return Section(
        kind="performance",
        heading="Device performance",
        facts=tuple((key.replace("_", " "), _short(value)) for key, value in content.items() if _scalar(value)),
        tiles=(Tile(f"{total:.4g}", "network runs per second, all devices"),),
        bars=bars(
            [
                (f"device {d['device']}", float(d["throughput_per_s"]), f"{float(d['throughput_per_s']):.4g} / s")
                for d in devices
            ]
        ),
        bars_caption="Network runs per second",
        tables=(_table_of(devices),),
    )


def benchmark_section(content: Content, names: Names) -> Section:
    """Any record with a list of measurements: a table of it, and bars of its first time or rate."""
    rows = measurements_of(content) or []
    table = _table_of(rows)
    column = next((i for i, key in enumerate(table.head) if _is_time_or_rate(key)), None)
    drawn: tuple[Bar, ...] = ()
    if column is not None:
        labels = [
            " ".join(str(cell) for cell in row if isinstance(cell, str)) or f"{i + 1}"
            for i, row in enumerate(table.rows)
        ]
        sizes = [_real(row[column]) for row in table.rows]
        drawn = bars([(label[:60], size, _short(size)) for label, size in zip(labels, sizes, strict=True)])
    return Section(
        kind="benchmark",
        heading=str(content.get("title", "Benchmark")),
        facts=tuple(
            (k.replace("_", " "), _short(v))
            for k, v in content.items()
            if _scalar(v) and k not in ("title", "kind", "version")
        ),
        bars=drawn,
        bars_caption=table.head[column] if column is not None else "",
        tables=(table,),
    )


def stage_section(content: Content, names: Names) -> Section:
    """A stage's report: its cases and what it measured."""
    cases: Sequence[Content] = content["cases"]
    failed = [f"{case['case']}: {case.get('reason')}" for case in cases if case["status"] == "failed"]
    return Section(
        kind="stage",
        heading=f"Run of {content['stage']}",
        facts=tuple((key, _short(value)) for key, value in content.items() if _scalar(value)),
        verdict=(f"{len(failed)} of {len(cases)} cases failed", "bad") if failed else ("all cases complete", "good"),
        tables=(_table_of(cases),) if cases else (),
        notes=tuple(failed),
    )


def problems_section(content: Content, names: Names) -> Section:
    """Cases that an evaluation left out."""
    failed = [f"{case}: {reason}" for case, reason in content["failed"].items()]
    others = [f"{case}: no prediction" for case in content["without_prediction"] if case not in content["failed"]]
    others += [f"{case}: no reference" for case in content["without_reference"]]
    others += [f"{case}: {remark}" for case, remarks in content["notes"].items() for remark in remarks]
    return Section(
        kind="problems",
        heading="Cases left out of the evaluation, and remarks",
        tiles=(Tile(str(len(failed)), "cases failed in the evaluation", "bad"),) if failed else (),
        verdict=(f"{len(failed)} failed", "bad") if failed else None,
        notes=(*failed, *others),
    )


def _case_fold(case: Content, names: Names) -> Fold:
    tables = [
        Table(
            head=("label", "Dice", "voxels a", "voxels b", "ml a", "ml b", "components a", "components b"),
            rows=tuple(
                (
                    _name(key, names),
                    _real(row["dice"]),
                    int(row["voxels_a"]),
                    int(row["voxels_b"]),
                    f"{_real(row['ml_a']):,.2f}",
                    f"{_real(row['ml_b']):,.2f}",
                    row.get("components_a"),
                    row.get("components_b"),
                )
                for key, row in case["labels"].items()
            ),
            heat=frozenset({1}),
        )
    ]
    if case["confusion"]:
        pairs = tuple(
            (_name(str(p["from"]), names), _name(str(p["to"]), names), int(p["voxels"])) for p in case["confusion"][:20]
        )
        tables.append(Table(("label in b", "label in a", "voxels"), pairs, caption="Which labels became which"))
    margins, place = case["margins"], case["place"]
    lines = [str(remark) for remark in case["remarks"]]
    if place is not None:
        box = ", ".join(f"{int(low)} to {int(high) - 1}" for low, high in place["box"])
        lines.append(f"differing voxels lie within z, y, x = {box}, in {int(place['components']):,} connected regions")
        if place["border_distance_max"] is not None:
            lines.append(f"farthest from a label border of b: {float(place['border_distance_max']):.2f} mm")
        first = ", ".join("(" + ", ".join(str(int(v)) for v in voxel) + ")" for voxel in place["first"][:8])
        lines.append(f"first of them (z, y, x): {first}")
    if margins is not None:
        quantiles = ", ".join(f"{key} {_short(_real(margins[key]))}" for key in ("p50", "p95", "p99", "max"))
        lines.append(f"margin between the top two classes, from {margins['source']}: {quantiles}")
        if margins["probability_difference"]:
            largest = _real(margins["probability_difference"]["max"])
            lines.append(f"largest difference of probabilities anywhere: {_short(largest)}")
    label, tone = _VERDICTS[case["verdict"]]
    return Fold(f"{case['case']}: {label}", tuple(tables), tuple(lines), tone)


def _table_of(rows: Sequence[Content]) -> Table:
    """A table of the scalars in a list of objects; one level of nesting is spelled with a blank."""
    flat = []
    for row in rows:
        entry: dict[str, Any] = {}
        for key, value in row.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            entry.update({f"{key} {name}".strip(): item for name, item in inner if _scalar(item)})
        flat.append(entry)
    head = list(dict.fromkeys(key for row in flat for key in row if any(r.get(key) is not None for r in flat)))
    return Table(tuple(key.replace("_", " ") for key in head), tuple(tuple(row.get(k) for k in head) for row in flat))


def _is_time_or_rate(key: str) -> bool:
    words = key.lower().split()
    return any(word in words for word in ("seconds", "ms", "s", "latency", "throughput", "median", "mean"))


def _name(key: str, names: Names) -> str:
    """``liver (1)`` where the name is known, otherwise the key."""
    if key in names:
        return f"{names[key]} ({key})"
    return "background (0)" if key == "0" else f"label {key}" if key.isdigit() else f"region {key}"


def _real(value: Any) -> float:
    """A figure as a float, NaN for null.

    Raises:
        ValueError: neither a number nor null.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} stands where a number is expected")
    return float(value)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return "-" if math.isnan(value) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _percent(agreement: Any, differing: Any) -> str:
    text = f"{100 * float(agreement):.4f}"
    return f"{'99.9999+' if differing and text == '100.0000' else text} %"
