"""Which JSON files and pictures a report is made of. Files are recognised by what they hold, not by their names."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "run": "run of predict",
    "bundle": "bundle",
    "checks": "precision checks of a bundle",
    "comparison": "comparison of two prediction folders",
    "arrays": "comparison of engine outputs",
    "layers": "comparison inside a graph",
    "benchmark": "benchmark",
    "performance": "device performance",
    "stage": "run of a stage",
    "summary": "evaluation (nnU-Net summary.json)",
    "slices": "slices of the worst cases",
    "details": "volumes and lesions of an evaluation",
    "surface": "surface distances",
    "statistics": "statistics of a cohort",
    "problems": "cases left out of an evaluation",
    "measurements": "list of measurements",
    "record": "another record of this program",
}
_NAMED: Mapping[str, str] = {
    "offline_infer.evaluation.surface_distances": "surface",
    "offline_infer.evaluation_problems": "problems",
    "offline_infer.evaluation": "details",
    "offline_infer.error_slices": "slices",
    "offline_infer.comparison": "comparison",
    "offline_infer.comparison.arrays": "arrays",
    "offline_infer.comparison.layers": "layers",
    "offline_infer.precision_checks": "checks",
    "offline_infer.benchmark": "benchmark",
    "offline_infer.statistics": "statistics",
}
_DEEPEST = 6
_MOST_FILES = 5000
_MOST_PICTURES = 12
_LARGEST_JSON = 1 << 28
_LARGEST_PICTURE = 1 << 25
_MOST_DIGITS = 30


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
    """Read files, and the JSON files and pictures of folders and their subfolders.

    In a folder, JSON of other tools (``dataset.json``, ``plans.json``) is passed over, and so are the pictures in its
    subfolders unless their names begin with ``overlay``: they may be label maps. A file that is named must be understood.

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
            for path in _files_of(run, inputs.problems):
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
    named = _NAMED.get(str(content.get("kind")))
    if named:
        return named
    tests: tuple[tuple[str, Callable[[Content], bool]], ...] = (
        ("summary", lambda c: layout_of(c) is not None),
        ("bundle", lambda c: isinstance(c.get("graphs"), list) and isinstance(c.get("source"), dict)),
        ("run", lambda c: c.get("program") == "offline_infer" and "engine" in c and isinstance(c.get("cases"), list)),
        ("performance", lambda c: "throughput_total_per_s" in c and isinstance(c.get("devices"), list)),
        ("stage", lambda c: isinstance(c.get("stage"), str) and isinstance(c.get("cases"), list)),
        ("measurements", lambda c: measurements_of(c) is not None),
        ("record", lambda c: str(c.get("kind")).startswith("offline_infer.")),
    )
    return next((kind for kind, test in tests if test(content)), None)


def measurements_of(content: Content) -> list[Content] | None:
    """The list of measurements of a benchmark record: a non-empty list of objects under one of :data:`TABLE_KEYS`."""
    for key in TABLE_KEYS:
        value = content.get(key)
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            return value
    return None


def parse(data: bytes) -> Any:
    """JSON from an unknown hand.

    Raises:
        ValueError: not JSON, or a whole number that is no measurement of anything.
    """
    return json.loads(data, parse_int=_integer)


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _files_of(folder: Path, problems: list[str]) -> Iterator[Path]:
    """JSON files and pictures of a folder and its subfolders, hidden ones and links to folders left out."""
    found = 0
    for place, folders, names in os.walk(folder):
        inner = Path(place)
        deep = len(inner.relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if name[0] != "." and deep < _DEEPEST)
        for name in sorted(names):
            picture = name.endswith(".png") and (not deep or name.startswith("overlay"))
            if name[0] == "." or not (picture or name.endswith(".json")):
                continue
            found += 1
            if found > _MOST_FILES:
                problems.append(
                    f"{folder}: more than {_MOST_FILES} files; the others are not shown, name a smaller folder"
                )
                return
            yield inner / name


def _add(inputs: Inputs, path: Path, *, named: bool) -> None:
    picture = path.suffix == ".png"
    limit = _LARGEST_PICTURE if picture else _LARGEST_JSON
    try:
        if not path.is_file():
            return
        if path.stat().st_size > limit:
            inputs.problems.append(f"{path}: larger than {limit >> 20} MiB, not shown")
            return
        data = path.read_bytes()
    except OSError as error:
        inputs.problems.append(f"{path}: cannot be read ({error.strerror or error})")
        return
    if data.startswith(PNG_MAGIC):
        _add_picture(inputs, path, data)
        return
    if picture:
        inputs.problems.append(f"{path}: named .png but is no PNG picture")
        return
    try:
        content = parse(data)
    except (ValueError, RecursionError) as error:
        inputs.problems.append(f"{path}: not JSON ({error}); {_expected()}")
        return
    kind = recognise(content)
    if kind is not None:
        inputs.items.append(Item(path, kind, content))
    elif named:
        inputs.problems.append(f"{path}: JSON of an unknown kind; {_expected()}")


def _add_picture(inputs: Inputs, path: Path, data: bytes) -> None:
    if len(inputs.pictures) == _MOST_PICTURES:
        inputs.problems.append(
            f"{path}: a report shows {_MOST_PICTURES} pictures; this one and later ones are left out"
        )
    if len(inputs.pictures) < _MOST_PICTURES:
        encoded = base64.b64encode(data).decode("ascii")
        inputs.pictures.append(Picture(path.stem, f"data:image/png;base64,{encoded}"))


def _expected() -> str:
    return "expected " + ", ".join(KINDS.values()) + ", or PNG pictures"
