"""Whether two answers are the same: predictions of two runs, outputs of two engines, tensors inside a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from offline_infer.proof.report.charts import growth_plot
from offline_infer.proof.report.parts import Fold, Section, Table, Tile
from offline_infer.proof.report.records import RecordKind
from offline_infer.proof.report.values import Content, Names, flat, name_of, percent, real, short, whole

_VERDICTS: Mapping[str, tuple[str, str]] = {
    "identical": ("identical", "good"),
    "ties": ("differs at ties only", "good"),
    "different": ("two different models", "warn"),
    "bug": ("differs beyond rounding", "bad"),
    "unknown": ("cannot be judged", "warn"),
}
_TILE_VERDICTS: Mapping[str, str] = {
    "identical": "none",
    "ties": "ties only",
    "different": "two models",
    "bug": "not rounding",
    "unknown": "not judged",
}


def comparison_section(content: Content, names: Names) -> list[Section]:
    """Agreement, differing voxels and margins per case, details on a click."""
    cases: Sequence[Content] = content["cases"]
    verdict = _VERDICTS[content["verdict"]]
    rows = []
    for case in sorted(cases, key=lambda case: -whole(case["differing"])):
        margins, place = case["margins"] or {}, case["place"]
        rows.append(
            (
                str(case["case"]),
                whole(case["differing"]),
                percent(case["agreement"], case["differing"]),
                real(case["lowest_dice"]),
                "-" if place is None else f"{whole(place['on_border']):,} of {whole(place['judged']):,}",
                real(margins.get("max")),
                "-" if not margins else f"{whole(margins['ties']):,} / {whole(margins['bugs']):,}",
                _VERDICTS[case["verdict"]][0],
            )
        )
    head = (
        "case",
        "voxels that differ",
        "agreement",
        "lowest Dice",
        "on a border",
        "largest margin",
        "ties / bugs",
        "verdict",
    )
    missing = [f"{case['case']}: {case['explanation']['text']}" for case in cases if case.get("explanation")]
    missing += [f"{case}: only in a" for case in content["only_in_a"]]
    missing += [f"{case}: only in b" for case in content["only_in_b"]]
    missing += [f"{case}: not compared: {reason}" for case, reason in content["failed"].items()]
    differing, voxels = whole(content["differing"]), whole(content["voxels"])
    section = Section(
        kind="comparison",
        heading="Agreement of two sets of predictions",
        facts=(("a", str(content["a"])), ("b", str(content["b"])), ("tie margin", f"{real(content['tie_margin']):g}")),
        tiles=(
            Tile(f"{differing:,}", f"of {voxels:,} voxels differ", "good" if differing == 0 else ""),
            Tile(_TILE_VERDICTS[content["verdict"]], "difference of the predictions", verdict[1]),
        ),
        verdict=verdict,
        tables=(
            Table(
                head=head,
                rows=tuple(rows),
                caption="A voxel is a tie if its two most probable classes differ by no more than the tie margin.",
            ),
        ),
        folds=tuple(_case_fold(case, names) for case in cases if case["differing"] or case["remarks"]),
        notes=tuple(missing),
    )
    return [section]


def arrays_section(content: Content, names: Names) -> list[Section]:
    """Figures of two engine outputs."""
    passed = bool(content["passed"])
    flips: Content = content.get("flips") or {}
    figures = {
        **{k: v for k, v in content.items() if k not in ("kind", "version", "passed", "flips", "shape")},
        **flips,
    }
    shape = " x ".join(str(whole(n)) for n in content["shape"])
    section = Section(
        kind="arrays",
        heading="Engine outputs",
        facts=(("shape", shape), *((key, short(v)) for key, v in flat(figures, depth=0))),
        verdict=("within tolerance", "good") if passed else ("outside tolerance", "bad"),
        tiles=(Tile(short(real(content["max_abs"])), "largest difference of outputs", "" if passed else "bad"),),
        notes=tuple(str(text) for text in content.get("warnings", ())),
    )
    return [section]


def layers_section(content: Content, names: Names) -> list[Section]:
    """Where inside a graph two engines or precisions part, and how the error grows from there."""
    layers: Sequence[Content] = content["layers"]
    first = content.get("first")
    verdict = ("within tolerance everywhere", "good") if first is None else (f"parts at {first['name']}", "warn")
    distances = [_positive(layer["relative_euclidean"]) for layer in layers]
    plot = growth_plot(
        "Relative Euclidean distance, tensor by tensor",
        {"distance": distances},
        "tensor, in the graph's order",
        "|a - b| / |b|",
    )
    head = (
        "no.",
        "tensor",
        "kind",
        "cosine",
        "relative distance",
        "largest difference",
        "passes at atol",
        "passes at rtol",
    )
    rows = [
        (
            number + 1,
            str(layer["name"]),
            str(layer["op"]),
            real(layer["cosine"]),
            real(layer["relative_euclidean"]),
            real(layer["max_abs"]),
            real(layer["required_atol"]),
            real(layer["required_rtol"]),
        )
        for number, layer in enumerate(layers)
    ]
    told: tuple[str, ...] = ()
    if first is not None:
        told = (
            f"first tensor beyond the tolerance: {first['name']}, made by {first['op']}, number {whole(first['number'])}",
        )
    section = Section(
        kind="layers",
        heading="Inside the graph",
        verdict=verdict,
        facts=tuple(
            (key, short(value)) for key, value in flat(content, depth=1) if key.split()[0] in ("a", "b", "tolerance")
        ),
        plots=(plot,) if plot is not None else (),
        tables=(
            Table(
                head, tuple(sorted(rows, key=lambda row: -_sortable(row[4]))[:10]), caption="The ten largest distances."
            ),
        ),
        folds=(Fold(f"All {len(rows)} tensors", (Table(head, tuple(rows)),)),),
        notes=told,
    )
    return [section]


def _case_fold(case: Content, names: Names) -> Fold:
    tables = [
        Table(
            head=("label", "Dice", "voxels a", "voxels b", "mL a", "mL b", "components a", "components b"),
            rows=tuple(
                (
                    name_of(key, names),
                    real(row["dice"]),
                    whole(row["voxels_a"]),
                    whole(row["voxels_b"]),
                    f"{real(row['ml_a']):,.2f}",
                    f"{real(row['ml_b']):,.2f}",
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
            (name_of(str(p["from"]), names), name_of(str(p["to"]), names), whole(p["voxels"]))
            for p in case["confusion"][:20]
        )
        tables.append(Table(("label in b", "label in a", "voxels"), pairs, caption="Which labels became which"))
    label, tone = _VERDICTS[case["verdict"]]
    return Fold(f"{case['case']}: {label}", tuple(tables), tuple(_case_lines(case)), tone)


def _case_lines(case: Content) -> list[str]:
    margins, place = case["margins"], case["place"]
    lines = [str(remark) for remark in case["remarks"]]
    if case.get("explanation"):
        lines.append(str(case["explanation"]["text"]))
    if place is not None:
        box = ", ".join(f"{whole(low)} to {whole(high) - 1}" for low, high in place["box"])
        lines.append(
            f"differing voxels lie within z, y, x = {box}, in {whole(place['components']):,} connected regions"
        )
        if place["border_distance_max"] is not None:
            lines.append(f"farthest from a label border of b: {real(place['border_distance_max']):.2f} mm")
        first = ", ".join("(" + ", ".join(str(whole(v)) for v in voxel) + ")" for voxel in place["first"][:8])
        lines.append(f"first of them (z, y, x): {first}")
    if margins is not None:
        quantiles = ", ".join(f"{key} {short(real(margins[key]))}" for key in ("p50", "p95", "p99", "max"))
        lines.append(f"margin between the top two classes, from {margins['source']}: {quantiles}")
        if margins["probability_difference"]:
            largest = real(margins["probability_difference"]["max"])
            lines.append(f"largest difference of probabilities anywhere: {short(largest)}")
    return lines


def _positive(value: object) -> float:
    number = real(value)
    return 0.0 if math.isnan(number) else number


def _sortable(value: float) -> float:
    return math.inf if math.isnan(value) else value


RECORDS = (
    RecordKind(
        "comparison",
        "comparison of two prediction folders",
        comparison_section,
        named="offline_infer.comparison",
        labels=lambda c: dict(c.get("label_names") or {}),
    ),
    RecordKind("arrays", "comparison of engine outputs", arrays_section, named="offline_infer.comparison.arrays"),
    RecordKind("layers", "comparison inside a graph", layers_section, named="offline_infer.comparison.layers"),
)
