"""How well objects with masks were found: the figures, then the worst pairs, what was missed and what was invented."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from offline_infer.proof.report.charts import strip_plot
from offline_infer.proof.report.parts import Section, Table, Thumb, Tile
from offline_infer.proof.report.records import RecordKind
from offline_infer.proof.report.values import Content, Names, figure, png_of, real, whole

_WORST_IMAGES = 100
_LEGEND = (
    ("#ffffff", "reference object"),
    ("#38bdf8", "its prediction"),
    ("#fb5607", "missed object"),
    ("#ffd166", "invented object"),
)
_SORTS = {
    "matched": Section(kind="worst pairs", heading="Pairs that overlap least"),
    "missed": Section(kind="missed objects", heading="Missed objects, the largest first"),
    "invented": Section(kind="invented objects", heading="Invented objects, the surest first"),
}


def objects_section(content: Content, names: Names) -> list[Section]:
    """Counts, overlaps and average precision; images with the lowest mean IoU first."""
    counts: Content = content["counts"]
    settings: Content = content["settings"]
    objects, matched = whole(counts["objects"]), whole(counts["matched"])
    overall = real(content["over_objects"]["iou"])
    return [
        Section(
            kind="objects",
            heading="Objects found",
            text="IoU is the common area of an object and its prediction over the area of both together: 1 is perfect. "
            "Pairs are those with the largest total IoU; an object without a partner counts as 0.",
            facts=(
                ("images", figure(whole(counts["images"]))),
                ("matched", f"{settings['match']}, scores above {figure(real(settings['above']), 2)}"),
                ("images that failed", figure(whole(counts["failed"]))),
            ),
            tiles=(
                Tile("-" if math.isnan(overall) else f"{overall:.4f}", "mean IoU of the objects"),
                Tile(f"{matched:,} of {objects:,}", "objects matched"),
                Tile(figure(whole(counts["invented"])), "predictions without an object"),
            ),
            strip=strip_plot(_per_category(content)),
            tables=(_precision(content["average_precision"]), _images(content["images"])),
        )
    ]


def close_ups_section(content: Content, names: Names) -> list[Section]:
    """The worst pairs, the missed and the invented objects, each as a picture with contours."""
    found = []
    for sort, empty in _SORTS.items():
        thumbs = tuple(_thumb(entry) for entry in content["objects"] if entry["sort"] == sort)
        if thumbs:
            found.append(replace(empty, gallery=thumbs, legend=_LEGEND))
    return found


def _thumb(entry: Content) -> Thumb:
    said = [f"{name} {figure(real(entry[name]), 3)}" for name in ("iou", "score") if entry.get(name) is not None]
    kinds = [str(entry[name]) for name in ("category", "predicted") if entry.get(name) is not None]
    kind = " taken for ".join(kinds) if len(set(kinds)) > 1 else "".join(kinds[:1])
    return Thumb(str(entry["image"]), ", ".join(([kind] if kind else []) + said), png_of(entry["png"]))


def _per_category(content: Content) -> dict[str, list[tuple[str, float]]]:
    """IoU of every object by its class; one row where classes are not known."""
    rows: dict[str, list[tuple[str, float]]] = {}
    for name, row in _objects(content):
        rows.setdefault(str(row.get("category") or "object"), []).append((name, real(row["iou"])))
    return dict(sorted(rows.items()))


def _objects(content: Content) -> Iterator[tuple[str, Any]]:
    for name, image in content["images"].items():
        yield from ((str(name), row) for row in image["objects"])


def _precision(content: Content) -> Table:
    rows = []
    for name, figures in content.items():
        if "map" in figures:
            rows.append((name.replace("_", " "), real(figures["map"])))
        else:
            rows += [(f"{name.replace('_', ' ')} {key}", real(value)) for key, value in figures.items()]
    return Table(
        ("average precision", "value"),
        tuple(rows),
        caption="Over every detection, whatever its score.",
        heat=frozenset({1}),
    )


def _images(content: Content) -> Table:
    def row(name: str, image: Content) -> tuple[Any, ...]:
        objects = image["objects"]
        missed = sum(one["prediction"] is None for one in objects)
        figures = (real(image["mean_iou"]), real(image["mean_f1"]), real(image["bg_iou"]))
        return (name, len(objects), len(objects) - missed, missed, len(image["invented"]), *figures)

    rows = [row(str(name), image) for name, image in content.items()]
    rows.sort(key=lambda one: (math.inf if math.isnan(one[5]) else one[5], one[0]))
    more = f" {len(rows) - _WORST_IMAGES:,} better ones are left out." if len(rows) > _WORST_IMAGES else ""
    return Table(
        ("image", "objects", "matched", "missed", "invented", "mean IoU", "mean F1", "background IoU"),
        tuple(rows[:_WORST_IMAGES]),
        caption=f"Each image, the lowest mean IoU first; a dash where it holds no object.{more}",
        heat=frozenset({5, 6}),
    )


RECORDS: tuple[RecordKind, ...] = (
    RecordKind("objects", "evaluation of objects", objects_section, named="offline_infer.evaluation.objects"),
    RecordKind(
        "worst_objects", "close-ups of objects", close_ups_section, named="offline_infer.evaluation.worst_objects"
    ),
)
