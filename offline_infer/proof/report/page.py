"""From recognised inputs to one self-contained HTML page: no script, no network, everything escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from offline_infer.errors import UsageError
from offline_infer.files import write_text
from offline_infer.proof.report.charts import heat
from offline_infer.proof.report.inputs import KINDS, Inputs, Item, read_inputs
from offline_infer.proof.report.sections import (
    Section,
    arrays_section,
    benchmark_section,
    comparison_section,
    performance_section,
    problems_section,
    stage_section,
    summary_section,
    surface_section,
)

Builder = Callable[[Mapping[str, Any], Mapping[str, str]], Section]

_BUILDERS: Mapping[str, Builder] = {
    "summary": summary_section,
    "surface": surface_section,
    "comparison": comparison_section,
    "arrays": arrays_section,
    "benchmark": benchmark_section,
    "performance": performance_section,
    "stage": stage_section,
    "problems": problems_section,
}


@dataclass(frozen=True)
class ReportResult:
    """What was written. ``problems``: inputs that are not shown and why, one line each; the page lists them too."""

    output: Path
    shown: int
    problems: tuple[str, ...]


def write_report(
    runs: Sequence[Path], output: Path, *, title: str = "Inference report", names: Mapping[str, str] | None = None
) -> ReportResult:
    """Write a report.

    Args:
        runs: JSON files (summaries, surface distances, comparisons, performance records), PNG pictures, or folders of
            them.
        output: the HTML file.
        names: label key -> name, e.g. ``{"1": "liver"}``.

    Raises:
        UsageError: jinja2 is not installed, or there is nothing to show at all.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UsageError("reports need jinja2: pip install 'offline-infer[report]'") from error
    inputs = read_inputs(runs)
    sections = _sections(inputs, names or {})
    if not sections and not inputs.pictures:
        raise UsageError("nothing to report: " + "; ".join(inputs.problems))
    # Everything is escaped: file names and label names come from outside.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["heat"] = heat
    environment.filters["figure"] = figure
    page = environment.get_template("report.html.j2").render(
        title=title,
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        sections=sections,
        tiles=[tile for section in sections for tile in section.tiles],
        pictures=inputs.pictures,
        problems=inputs.problems,
        kinds=KINDS,
    )
    write_text(output, page)
    return ReportResult(output, len(sections) + len(inputs.pictures), tuple(inputs.problems))


def figure(value: Any, digits: int = 4) -> str:
    """A number for reading: whole numbers grouped, fractions rounded, very small ones in powers of ten."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.2e}"
    return f"{value:,.{digits}f}" if abs(value) < 1000 else f"{value:,.1f}"


def _sections(inputs: Inputs, names: Mapping[str, str]) -> list[Section]:
    """A section per item, in the order of :data:`_BUILDERS`; an item with a hole in it becomes a problem."""
    sections: list[Section] = []
    for kind, build in _BUILDERS.items():
        items = inputs.of(kind)
        for item in items:
            try:
                section = build(item.content, names)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, UsageError) as error:
                inputs.problems.append(_complaint(item, error))
                continue
            label = _short_name(item.path) if len(items) > 1 else ""
            sections.append(section.of_file(str(item.path), len(sections), label))
    return sections


def _short_name(path: Path) -> str:
    """What tells one ``summary.json`` from another: its folder, or its own name where that is a better one."""
    return path.absolute().parent.name if path.stem in ("summary", "surface", "comparison") else path.stem


def _complaint(item: Item, error: Exception) -> str:
    what = f"misses {error}" if isinstance(error, KeyError) else str(error)
    return f"{item.path}: looks like {KINDS[item.kind]}, but cannot be shown: {what}"
