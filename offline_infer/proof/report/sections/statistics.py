"""Figures of the labels of a cohort."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offline_infer.proof.report.parts import Section, Table
from offline_infer.proof.report.records import RecordKind
from offline_infer.proof.report.values import Content, Names, name_of, real

_PERCENTILES = (0, 5, 50, 95, 100)


def statistics_section(content: Content, names: Names) -> list[Section]:
    """Volumes and mean intensities per label over a cohort."""
    rows: Sequence[Content] = content["statistics"]
    known = {**{str(k): str(v) for k, v in dict(content.get("labels") or {}).items()}, **names}
    table = []
    for label in dict.fromkeys(row["label"] for row in rows):
        mine = [row for row in rows if row["label"] == label]
        volumes = [real(row["volume_ml"]) for row in mine]
        means = [real(row["intensity"]["mean"]) for row in mine if row.get("intensity")]
        figures = (float(v) for v in np.percentile(volumes, _PERCENTILES))
        table.append((name_of(str(label), known), len(mine), *figures, float(np.mean(means)) if means else None))
    head = ("label", "cases", "smallest, mL", "5 %", "median, mL", "95 %", "largest, mL", "mean intensity")
    section = Section(
        kind="statistics",
        heading="Volumes and intensities of the cohort",
        facts=(("cases", str(content["cases"])),),
        tables=(Table(head, tuple(table), digits=2),),
        notes=tuple(f"{case}: {reason}" for case, reason in content["failed"].items()),
    )
    return [section]


RECORDS = (RecordKind("statistics", "statistics of a cohort", statistics_section, named="offline_infer.statistics"),)
