"""Lists: what an input folder holds, and which bins an external tool is to read, whole and in shards for N devices.

The vendor's line format is ``index path width height``, separated by blanks, the index from 0 in every file. Beside
work folders, a plain folder of bins can be listed::

    python -m offline_infer.dataset_info bin DIR OUT.info 128 128

which writes OUT.info and, beside it, ``sth1.info`` to ``sth4.info``: four ordered parts that do not overlap.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offline_infer.errors import CaseError, OfflineInferError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import printable, write_text
from offline_infer.images import read_geometry, read_image
from offline_infer.images.cases import CaseFiles, find_cases, natural_key
from offline_infer.staging.legacy_tiles import shape_of_items, write_shape_record
from offline_infer.staging.worklist import Item, Worklist

InfoFormat = Literal["benchmark", "jsonl"]
FORMATS: tuple[InfoFormat, ...] = ("benchmark", "jsonl")
PUBLISHED_SHARDS = 4
"""A 310 card has four devices; the published script always writes four parts, ``sth1.info`` to ``sth4.info``."""


@dataclass(frozen=True)
class InfoFiles:
    """The lists that were written.

    Attributes:
        whole: list of everything.
        shards: contiguous parts of it, in order; a part may be empty where there are fewer inputs than devices.
        counts: lines of each shard.
    """

    whole: Path
    shards: tuple[Path, ...]
    counts: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "list": str(self.whole),
            "items": sum(self.counts),
            "shards": [
                {"list": str(path), "items": count} for path, count in zip(self.shards, self.counts, strict=True)
            ],
        }


def write_info(
    work: Path | str,
    shards: int = 1,
    format: str = "benchmark",  # noqa: A002 - the name of the command line's option
    *,
    absolute: bool = True,
    items: Sequence[Item] | None = None,
) -> InfoFiles:
    """Write ``info/all.info`` and ``info/shard_1.info`` ... for the items of a work folder, in worklist order.

    Shards of an earlier call are removed, so that no device works on a stale list.

    Args:
        shards: how many parts; their lengths differ by one at most.
        format: ``benchmark`` (the vendor's lines) or ``jsonl`` (one object per line, with the item's index).
        absolute: absolute paths; otherwise relative to the work folder, from where the tool must then be started.
        items: only these; default all.

    Raises:
        UsageError: not a work folder, nothing to list, a wrong number or format, or a path with a blank, which the
            vendor's format cannot hold.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown list format {format!r}; legal: {', '.join(FORMATS)}")
    worklist = Worklist.load(work)
    chosen = list(worklist.items() if items is None else items)
    if not chosen:
        raise UsageError(f"{work} has no items to list; run preprocess first")
    root = worklist.work.resolve() if absolute else Path()
    rows = [(item, root / item.file) for item in chosen]
    if format == "benchmark":
        refuse_blanks(
            [path for _, path in rows], "use a work folder without blanks, relative paths, or the jsonl format"
        )
        render, ending = _vendor_text, ".info"
    else:
        render, ending = _json_text, ".jsonl"
    folder = worklist.work / "info"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("shard_*"):
        if stale.suffix in (".info", ".jsonl"):
            stale.unlink()
    whole = folder / f"all{ending}"
    write_text(whole, render(rows))
    written, counts = [], []
    for index, (first, last) in enumerate(split_evenly(len(rows), shards), start=1):
        path = folder / f"shard_{index}{ending}"
        write_text(path, render(rows[first:last]))
        written.append(path)
        counts.append(last - first)
    return InfoFiles(whole, tuple(written), tuple(counts))


def cases_of_shards(worklist: Worklist) -> list[list[str]] | None:
    """The cases of each list that :func:`write_info` made, in order; None where there are none, or they are out of date.

    A case whose items several devices were given belongs to the device with its first one.
    """
    paths = sorted((worklist.work / "info").glob("shard_*"), key=lambda path: natural_key(path.name))
    case_of = {Path(item.file).name: item.case for item in worklist.items()}
    shares: list[list[str]] = []
    seen: set[str] = set()
    for path in paths:
        listed = (case_of.get(name) for name in _listed_files(path))
        new = list(dict.fromkeys(case for case in listed if case is not None and case not in seen))
        seen.update(new)
        shares.append(new)
    return shares if seen == {record.case_id for record in worklist.cases} else None


def write_all_shape(work: Path | str, case: str) -> Path:
    """Write ``info/all_shape.txt`` of a case of a work folder, for the published merging script and ``import-tiles``.

    Raises:
        UsageError: no such case, or its id is one the published script cannot take.
    """
    worklist = Worklist.load(work)
    items = [item for item in worklist.items() if item.case == case]
    if not items:
        raise UsageError(f"{work} has no case {case!r}; it has {', '.join(each.case_id for each in worklist.cases)}")
    starts = [tuple(item.geometry.get("start", ())) for item in items]
    folder = worklist.work / "info"
    folder.mkdir(exist_ok=True)
    return write_shape_record(folder, shape_of_items(case, starts, items[0].shape[1:]))


def write_plain_info(folder: Path, output: Path, width: int, height: int) -> InfoFiles:
    """List the bins of a plain folder as the published script does, in natural order; also ``sth1.info`` ... beside it.

    Paths are written as the folder was given.

    Raises:
        UsageError: no bins, or a path with a blank.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name the folder that holds the .bin files")
    paths = sorted(
        (
            path
            for path in folder.iterdir()
            if path.suffix == ".bin" and not path.name.startswith(".") and path.is_file()
        ),
        key=lambda path: natural_key(path.name),
    )
    if not paths:
        raise UsageError(f"{folder} holds no .bin files; run the preprocessing first")
    if width < 1 or height < 1:
        raise UsageError(f"width {width} and height {height} must be positive")
    refuse_blanks(paths, "move the folder to a path without blanks")
    lines = [f"{path} {width} {height}" for path in paths]
    write_text(output, vendor_lines(lines))
    shards, counts = [], []
    for index, (first, last) in enumerate(split_evenly(len(lines), PUBLISHED_SHARDS), start=1):
        shard = output.parent / f"sth{index}.info"
        if shard == output:
            raise UsageError(f"{output} is also the name of a part; choose another name for the whole list")
        write_text(shard, vendor_lines(lines[first:last]))
        shards.append(shard)
        counts.append(last - first)
    return InfoFiles(output, tuple(shards), tuple(counts))


def describe_cases(
    source: Path, channels: int, file_ending: str, reader: str, *, intensities: bool = True, sink: Sink = silent
) -> dict[str, Any]:
    """What an input folder holds, JSON-able: per case its channels, shape (z, y, x), spacing in mm and intensity range.

    A case that cannot be used is listed with its ``problem`` and does not stop the others.

    Args:
        channels, file_ending, reader: the model's.
        intensities: read the voxels for their range; without it only headers are read.

    Raises:
        UsageError: the path holds nothing that could be a case.
    """
    found = find_cases(source, channels, file_ending)
    cases: list[dict[str, Any]] = [{"case": name, "problem": reason} for name, reason in found.problems.items()]
    for done, case in enumerate(found.cases, start=1):
        cases.append(_describe(case, reader, channels, intensities))
        sink(Event("progress", "info", case.case_id, done, len(found.cases)))
    usable = sum("problem" not in case for case in cases)
    return {"source": str(source), "channels": channels, "usable": usable, "cases": cases}


def split_evenly(count: int, parts: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges that cover ``range(count)`` in order; lengths differ by one at most.

    Raises:
        UsageError: fewer than one part.
    """
    if parts < 1:
        raise UsageError(f"{parts} shards are impossible; give 1 or more")
    return tuple((i * count // parts, (i + 1) * count // parts) for i in range(parts))


def vendor_lines(lines: Sequence[str]) -> str:
    """Lines ``path width height`` with an index from 0 in front, as one text."""
    return "".join(f"{index} {line}\n" for index, line in enumerate(lines))


def refuse_blanks(paths: Sequence[Path], remedy: str) -> None:
    """
    Raises:
        UsageError: a path holds white space; the vendor's tools split lines there.
    """
    for path in paths:
        if any(character.isspace() for character in str(path)):
            raise UsageError(f"{path}: the vendor's list format cannot hold a path with blanks; {remedy}")


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m offline_infer.dataset_info bin DIR OUT.info WIDTH HEIGHT``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m offline_infer.dataset_info",
        description="List a folder of .bin files for the vendor's tools: OUT, and sth1.info to sth4.info beside it.",
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=["bin"], help="kind of the files")
    parser.add_argument("folder", type=Path, help="folder with the .bin files")
    parser.add_argument("output", type=Path, help="list to write")
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    options = parser.parse_args(arguments)
    try:
        files = write_plain_info(options.folder, options.output, options.width, options.height)
    except OfflineInferError as error:
        sys.stderr.write(f"{parser.prog}: error: {printable(error)}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"{parser.prog}: error: {printable(error.filename)}: {error.strerror}\n")
        return 2
    sys.stderr.write(f"{files.whole}: {sum(files.counts)} inputs; parts of {', '.join(map(str, files.counts))}\n")
    return 0


def _listed_files(path: Path) -> list[str]:
    """Names of the bins of a list, in either format."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        places = [json.loads(line)["path"] if path.suffix == ".jsonl" else line.split()[1] for line in lines]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return []
    return [Path(str(place)).name for place in places]


def _vendor_text(rows: Sequence[tuple[Item, Path]]) -> str:
    return vendor_lines([f"{path} {item.shape[-1]} {item.shape[-2]}" for item, path in rows])


def _json_text(rows: Sequence[tuple[Item, Path]]) -> str:
    return "".join(
        json.dumps(
            {
                "index": index,
                "item": item.index,
                "case": item.case,
                "path": str(path),
                "shape": item.shape,
                "dtype": item.dtype,
                "bytes": item.bytes,
            }
        )
        + "\n"
        for index, (item, path) in enumerate(rows)
    )


def _describe(case: CaseFiles, reader: str, channels: int, intensities: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"case": case.case_id, "files": [str(path) for path in case.channels]}
    try:
        if intensities:
            image = read_image(case.channels, reader, channels=channels)
            frame = image.geometry
            record["ranges"] = [[float(np.min(channel)), float(np.max(channel))] for channel in image.array]
            if image.notes:
                record["notes"] = list(image.notes)
        else:
            frame = read_geometry(case.channels, reader)
    except CaseError as error:
        return {**record, "problem": str(error)}
    return {**record, "shape": list(frame.shape), "spacing": list(frame.spacing)}
