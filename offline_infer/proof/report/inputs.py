"""Which JSON files and pictures a report is made of. Files are recognised by what they hold, not by their names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offline_infer.errors import UsageError
from offline_infer.proof.report.records import RecordKind
from offline_infer.proof.report.registry import KINDS, recognise
from offline_infer.proof.report.values import PNG_MAGIC, Content, png_address

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
    kind: RecordKind
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

    def of(self, kind: RecordKind) -> list[Item]:
        return [item for item in self.items if item.kind is kind]


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
        inputs.pictures.append(Picture(path.stem, png_address(data)))


def _expected() -> str:
    return "expected " + ", ".join(kind.title for kind in KINDS) + ", or PNG pictures"
