"""Soft masks and scores of image models, and how they hold under attacks and over checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from offline_infer.proof.report.charts import Plot, line_plot, strip_plot
from offline_infer.proof.report.parts import Fold, Section, Table, Tile
from offline_infer.proof.report.records import RecordKind
from offline_infer.proof.report.values import Content, Names, figure, flat, real, short, table_of, whole

_WORST = 20  # images listed
_DRAWN = ("pixel-level F1", "pixel-level AUC", "image-level F1", "image-level AUC")
_BASELINE = "none"


def summary_section(content: Content, names: Names) -> list[Section]:
    """What ``evaluate`` found: for each set its figures, a dot for each image, and the worst images."""
    protocol = content["protocol"]
    facts = tuple((key, short(value)) for key, value in flat(protocol, depth=0) if key != "description")
    failed = tuple(f"{case}: {reason}" for case, reason in dict(content["failed"]).items())
    return [
        _set_section(str(name), told, str(protocol["name"]), facts, failed if index == 0 else ())
        for index, (name, told) in enumerate(dict(content["sets"]).items())
    ]


def _set_section(
    name: str, told: Content, protocol: str, facts: tuple[tuple[str, str], ...], failed: tuple[str, ...]
) -> Section:
    items: Sequence[Content] = told["items"]
    quoted = _measures("pixel", told["pixel"].get("quoted") if isinstance(told["pixel"], Mapping) else None)
    quoted |= _measures("image", told["image"] if isinstance(told["image"], Mapping) else None)
    manipulated = [row for row in items if row.get("manipulated")]
    dots = [(str(row["name"]), real(row.get("F1"))) for row in manipulated]
    missing = [kind for kind in ("pixel", "image") if not isinstance(told[kind], Mapping)]
    more = [
        table_of([dict(_scalars(told["pixel"][key]))], caption=key.replace("_", " "))[0]
        for key in ("macro", "macro_authentic_as_zero", "micro")
        if isinstance(told["pixel"], Mapping) and isinstance(told["pixel"].get(key), Mapping)
    ]
    return Section(
        kind="image_summary",
        heading=f"Masks and scores: {name}",
        verdict=(f"{len(failed)} failed", "bad") if failed else None,
        text=f"Protocol {protocol}. Measures of masks are means over the images with a manipulated pixel.",
        facts=(
            *facts,
            ("images", f"{whole(told['images'])}"),
            ("compared", f"{whole(told['used'])}"),
            ("manipulated", f"{whole(told['manipulated'])}"),
        ),
        tiles=tuple(Tile(figure(value, 4), f"{measure} [{protocol}]") for measure, value in quoted.items()),
        strip=strip_plot({"F1": dots}) if any(math.isfinite(value) for _, value in dots) else None,
        tables=_worst(manipulated),
        folds=(Fold("All means", tables=tuple(more)),) if more else (),
        notes=(*(f"{kind}-level measures: not available" for kind in missing), *failed),
    )


def _worst(rows: Sequence[Content]) -> tuple[Table, ...]:
    """The images with the lowest F1."""
    known = sorted((row for row in rows if math.isfinite(real(row.get("F1")))), key=lambda row: real(row["F1"]))
    if not known:
        return ()
    head = ("image", "F1", "IOU", "AUC", "score")
    cells = tuple((str(row["name"]), *(real(row.get(column)) for column in head[1:])) for row in known[:_WORST])
    return (Table(head, cells, caption=f"The {len(cells)} images with the lowest F1"),)


def _measures(kind: str, values: Mapping[str, Any] | None) -> dict[str, float]:
    """Measures that are defined, under the names of a sweep."""
    told = {f"{kind}-level {name}": real(value) for name, value in (values or {}).items() if name != "used"}
    return {name: value for name, value in told.items() if math.isfinite(value)}


def _scalars(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    return ((str(name), real(value)) for name, value in values.items())


def sweep_section(content: Content, names: Names) -> list[Section]:
    """Curves of a sweep, a section for each data set: measures against an attack's strength, and over checkpoints."""
    rows: Sequence[Content] = content["rows"]
    sections = []
    for dataset in dict.fromkeys(str(row["dataset"]) for row in rows):
        mine = [row for row in rows if str(row["dataset"]) == dataset]
        attacks = [name for name in dict.fromkeys(str(row["attack"]) for row in mine) if name != _BASELINE]
        measures = [name for name in _DRAWN if any(name in row["measures"] for row in mine)]
        plots = [_attack_plot(mine, attack, measure) for measure in measures for attack in attacks]
        plots += [_checkpoint_plot(mine, measure) for measure in measures]
        failed = sum(whole(row["failed"]) for row in mine)
        sections.append(
            Section(
                kind="sweep",
                heading=f"Sweep: {dataset}",
                verdict=(f"{failed} images failed", "bad") if failed else None,
                text="Strength 0 is the image as it is. Protocols: "
                + ", ".join(sorted({str(r["protocol"]) for r in mine})),
                plots=tuple(plot for plot in plots if plot is not None),
                tables=(_sweep_table(mine),),
                notes=tuple(
                    f"{row['model']} {row['attack']} {real(row['strength']):g}, {case}: {reason}"
                    for row in mine
                    for case, reason in dict(row.get("failures") or {}).items()
                )[:_WORST],
            )
        )
    return sections


def _attack_plot(rows: Sequence[Content], attack: str, measure: str) -> Plot | None:
    """A measure against the strength of an attack, a curve for each model."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["attack"] in (attack, _BASELINE):
            point = (real(row["strength"]), real(row["measures"].get(measure)))
            curves.setdefault(str(row["model"]), []).append(point)
    ordered = {model: sorted(points) for model, points in curves.items()}
    return line_plot(f"{measure} under {attack}", ordered, f"strength of {attack}", measure)


def _checkpoint_plot(rows: Sequence[Content], measure: str) -> Plot | None:
    """A measure of unattacked images over the checkpoints; None where there is one."""
    points = sorted(
        (real(row["step"]), real(row["measures"].get(measure))) for row in rows if row["attack"] == _BASELINE
    )
    if len(points) < 2:
        return None
    return line_plot(f"{measure} over checkpoints", {measure: points}, "checkpoint", measure)


def _sweep_table(rows: Sequence[Content]) -> Table:
    measures = list(dict.fromkeys(str(name) for row in rows for name in row["measures"]))
    head = ("model", "attack", "strength", *measures)
    cells = tuple(
        (
            str(row["model"]),
            str(row["attack"]),
            f"{real(row['strength']):g}",
            *(real(row["measures"].get(name)) for name in measures),
        )
        for row in rows
    )
    return Table(head, cells)


RECORDS = (
    RecordKind("image_summary", "summary of soft masks", summary_section, named="offline_infer.image_summary"),
    RecordKind("sweep", "sweep of image models", sweep_section, named="offline_infer.sweep"),
)
