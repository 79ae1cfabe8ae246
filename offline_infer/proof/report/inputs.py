"""Which JSON files and pictures a report is made of. Files are recognised by what they hold, not by their names."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offline_infer.errors import UsageError
from offline_infer.proof.evaluation.summary import layout_of

Content = Mapping[str, Any]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TABLE_KEYS = ("results", "records", "rows", "engines", "measurements")
"""Where a benchmark record may keep its list of measurements."""

KINDS: Mapping[str, str] = {
    "summary": "evaluation (nnU-Net summary.json)",
    "surface": "surface distances",
    "problems": "cases left out of an evaluation",
    "comparison": "comparison of two prediction folders",
    "arrays": "comparison of engine outputs",
    "performance": "device performance",
    "stage": "run of a stage",
    "benchmark": "benchmark",
}


@dataclass(frozen=True)
class Item:
    """One recognised file."""

    path: Path
    kind: str
    content: Content


@dataclass(frozen=True)
class Picture:
    """A PNG, as a ``data:`` address."""

    name: str
    address: str


@dataclass
class Inputs:
    """Everything a report shows. ``problems``: what could not be shown, one line each, naming the file."""

    items: list[Item] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Item]:
        return [item for item in self.items if item.kind == kind]


def read_inputs(runs: Sequence[Path]) -> Inputs:
    """Read files, and the JSON and PNG files that lie directly in folders.

    In a folder, JSON of other tools (``dataset.json``, ``plans.json``) is passed over; a file that is named must be
    understood.

    Raises:
        UsageError: nothing at all to show.
    """
    inputs = Inputs()
    seen: set[Path] = set()

    def fresh(path: Path) -> bool:
        known = path.resolve() in seen
        seen.add(path.resolve())
        return not known

    for run in runs:
        if run.is_dir():
            before = (len(inputs.items), len(inputs.pictures), len(inputs.problems))
            for path in sorted(p for p in run.iterdir() if p.suffix in (".json", ".png") and p.name[0] != "."):
                if fresh(path):
                    _add(inputs, path, named=False)
            if before == (len(inputs.items), len(inputs.pictures), len(inputs.problems)):
                inputs.problems.append(f"{run}: holds nothing a report can show; {_expected()}")
        elif run.is_file():
            if fresh(run):
                _add(inputs, run, named=True)
        else:
            inputs.problems.append(f"{run}: does not exist")
    if not inputs.items and not inputs.pictures:
        reasons = "; ".join(inputs.problems) or "no file was named"
        raise UsageError(f"nothing to report: {reasons}")
    return inputs


def recognise(content: Any) -> str | None:
    """The kind of a parsed JSON file, one of :data:`KINDS`, or None."""
    if not isinstance(content, dict):
        return None
    named = {
        "offline_infer.evaluation.surface_distances": "surface",
        "offline_infer.evaluation_problems": "problems",
        "offline_infer.comparison": "comparison",
        "offline_infer.comparison.arrays": "arrays",
    }.get(str(content.get("kind")))
    if named:
        return named
    tests: tuple[tuple[str, Callable[[Content], bool]], ...] = (
        ("summary", lambda c: layout_of(c) is not None),
        ("performance", lambda c: "throughput_total_per_s" in c and isinstance(c.get("devices"), list)),
        ("stage", lambda c: isinstance(c.get("stage"), str) and isinstance(c.get("cases"), list)),
        ("benchmark", lambda c: measurements_of(c) is not None),
    )
    return next((kind for kind, test in tests if test(content)), None)


def measurements_of(content: Content) -> list[Content] | None:
    """The list of measurements of a benchmark record: a non-empty list of objects under one of :data:`TABLE_KEYS`."""
    for key in TABLE_KEYS:
        value = content.get(key)
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            return value
    return None


def _add(inputs: Inputs, path: Path, *, named: bool) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        inputs.problems.append(f"{path}: cannot be read ({error.strerror or error})")
        return
    if data.startswith(PNG_MAGIC):
        encoded = base64.b64encode(data).decode("ascii")
        inputs.pictures.append(Picture(path.stem, f"data:image/png;base64,{encoded}"))
        return
    if path.suffix == ".png":
        inputs.problems.append(f"{path}: named .png but is no PNG picture")
        return
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        inputs.problems.append(f"{path}: not JSON ({error}); {_expected()}")
        return
    kind = recognise(content)
    if kind is not None:
        inputs.items.append(Item(path, kind, content))
    elif named:
        inputs.problems.append(f"{path}: JSON of an unknown kind; {_expected()}")


def _expected() -> str:
    return "expected " + ", ".join(KINDS.values()) + ", or PNG pictures"
