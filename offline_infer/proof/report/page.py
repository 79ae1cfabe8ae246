"""From recognised inputs to one self-contained HTML page: no script, no network, everything escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from offline_infer._version import __version__
from offline_infer.errors import UsageError
from offline_infer.files import write_bytes
from offline_infer.proof.report.charts import colour_of, heat
from offline_infer.proof.report.comparing_speed import speed_section
from offline_infer.proof.report.inputs import Inputs, Item, read_inputs
from offline_infer.proof.report.parts import Section
from offline_infer.proof.report.records import Timing
from offline_infer.proof.report.registry import KINDS, ORDER
from offline_infer.proof.report.values import figure

_HOLES = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, UsageError)
"""What a record that is not as it should be may raise while its sections are made."""
_GENERIC_NAMES = (
    *("summary", "surface", "comparison", "bundle", "offline_infer_run", "precision_checks", "statistics"),
    *("performance", "baseline", "benchmark", "layers"),
)
"""Files that everybody calls by these names: their folders tell them apart."""


@dataclass(frozen=True)
class ReportResult:
    """What was written. ``problems``: inputs that are not shown and why, one line each; the page lists them too."""

    output: Path
    shown: int
    problems: tuple[str, ...]


def write_report(
    runs: Sequence[Path],
    output: Path,
    *,
    title: str = "Inference report",
    names: Mapping[str, str] | None = None,
    baseline: str | None = None,
) -> ReportResult:
    """Write a report.

    Args:
        runs: JSON files (summaries, comparisons, run records, benchmarks, bundles), PNG pictures, or folders of them.
        output: the HTML file.
        names: label key -> name, e.g. ``{"1": "liver"}``; names found in the records are used where it has none.
        baseline: the engine or tool that all others are compared with in speed, by its name on the page; default the first.

    Raises:
        UsageError: jinja2 is not installed, there is nothing to show at all, the output is one of the inputs, or nothing was
            measured under the baseline's name.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UsageError("reports need jinja2: pip install 'offline-infer[report]'") from error
    if any(output.exists() and run.is_file() and output.samefile(run) for run in runs):
        raise UsageError(f"{output} is one of the files to report; name another file to write")
    inputs = read_inputs(runs)
    sections = _sections(inputs, {**_names_found(inputs), **(names or {})}, baseline)
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
    environment.filters["colour"] = colour_of
    page = environment.get_template("report.html.j2").render(
        title=title,
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        records=len(inputs.items),
        sections=sections,
        tiles=[tile for section in sections for tile in section.tiles],
        pictures=inputs.pictures,
        problems=inputs.problems,
    )
    # Bytes of a file name that are not UTF-8 arrive here as lone surrogates.
    write_bytes(output, page.encode("utf-8", errors="backslashreplace"))
    return ReportResult(output, len(sections) + len(inputs.pictures), tuple(inputs.problems))


def _sections(inputs: Inputs, names: Mapping[str, str], baseline: str | None) -> list[Section]:
    """The sections of every item, and those made of several, in reading order; an item with a hole in it becomes a problem."""
    built: list[tuple[Path | None, Section]] = []
    for kind in KINDS:
        for item in inputs.of(kind):
            try:
                found = kind.build(item.content, names)
            except _HOLES as error:
                inputs.problems.append(_complaint(item, error))
                continue
            built += [(item.path, section) for section in found]
    overview = _speed_of_all(inputs, baseline)
    if overview is not None:
        built.append((None, overview))
    built.sort(key=lambda pair: ORDER.index(pair[1].kind))
    sections = []
    for number, (path, section) in enumerate(built):
        several = sum(other.kind == section.kind for _, other in built) > 1
        label = _short_name(path) if several and path is not None else ""
        sections.append(section.of_file("" if path is None else str(path), number, label))
    return sections


def _speed_of_all(inputs: Inputs, baseline: str | None) -> Section | None:
    """One table of everything that was timed, where several records say something, or a baseline was asked for."""
    timings: list[tuple[str, Timing]] = []
    records = 0
    for item in inputs.items:
        if item.kind.timings is None:
            continue
        with suppress(*_HOLES):  # its own section has said so
            found = item.kind.timings(item.content)
            timings += [(_short_name(item.path), timing) for timing in found]
            records += bool(found)
    return speed_section(timings, baseline) if records > 1 or baseline is not None else None


def _names_found(inputs: Inputs) -> dict[str, str]:
    """Label key -> name, as far as the records say it; the first one counts. A record with a hole in it is named elsewhere."""
    found: dict[str, str] = {}
    for item in inputs.items:
        if item.kind.labels is None:
            continue
        try:
            known = item.kind.labels(item.content)
        except _HOLES:
            continue
        found.update({key: name for key, name in known.items() if isinstance(name, str) and key not in found})
    return found


def _short_name(path: Path) -> str:
    """What tells one ``summary.json`` from another: its folder, or its own name where that is a better one."""
    stem = path.stem.partition(".")[0]
    return path.absolute().parent.name if stem in _GENERIC_NAMES else path.stem


def _complaint(item: Item, error: Exception) -> str:
    what = f"misses {error}" if isinstance(error, KeyError) else str(error)
    return f"{item.path}: looks like {item.kind.title}, but cannot be shown: {what}"
