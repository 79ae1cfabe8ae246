"""What the published Ascend scripts leave behind: tile names, ``all_shape.txt`` and the result folders of three tools.

The published flow writes eight mirrored copies of every tile as ``<case>_<x0>_<x1>_<y0>_<y1>_<z0>_<z1>_<f>.bin`` and
one line ``<case> D H W-x,x,..-y,y,..-z,z,..`` with the padded shape and the tile starts. The results of one input are
numbered from 1 by ``benchmark`` and from 0 by ``ais_bench`` and ``msame``. All heads have the same shape, so that a
wrong guess gives a wrong segmentation without any error: the tool is stated, or found without doubt, or the folder is
refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offline_infer.arithmetic.geometry import Shape3
from offline_infer.arithmetic.sliding_window import TileGrid
from offline_infer.errors import UsageError
from offline_infer.files import write_text

SHAPE_FILE = "all_shape.txt"
LEGACY_TOOLS: Mapping[str, tuple[Literal["plain", "output"], int]] = {
    "benchmark": ("plain", 1),
    "msame": ("output", 0),
    "ais_bench": ("plain", 0),
    # The published infer.py deletes _1 to _4 of ais_bench and renames _0 to _1: the final head then carries 1.
    "infer_py": ("plain", 1),
}
"""Tool -> (naming style, number of the final head); ``plain`` is ``<stem>_<n>.bin``, else ``<stem>_output_<n>.bin``."""

_BOUNDS = r"_(\d+)_(\d+)_(\d+)_(\d+)_(\d+)_(\d+)"
_TILE = re.compile(rf"^(?P<case>.+){_BOUNDS}_(?P<mirror>[0-7])$", re.DOTALL)
_RESULT = re.compile(r"^(?P<stem>.+_[0-7])(?P<style>_output)?_(?P<number>\d{1,2})\.bin$", re.DOTALL)
_SHAPE = re.compile(r"^(?P<case>.+?) +(?P<d>\d+) +(?P<h>\d+) +(?P<w>\d+) *$", re.DOTALL)


@dataclass(frozen=True)
class ShapeRecord:
    """The content of ``all_shape.txt``.

    Attributes:
        case: as the scripts know it: the file name up to its first dot.
        shape: (z, y, x) of the padded array.
        starts: tile starts per axis.
    """

    case: str
    shape: Shape3
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def tiles(self) -> int:
        return len(self.starts[0]) * len(self.starts[1]) * len(self.starts[2])


@dataclass(frozen=True)
class TileName:
    """A tile's file name, taken apart: ``bounds`` is ((z0, z1), (y0, y1), (x0, x1)) in the padded array."""

    case: str
    bounds: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    mirror: int


@dataclass(frozen=True)
class Results:
    """The result files of one case.

    Attributes:
        tool: one of :data:`LEGACY_TOOLS`.
        evidence: why.
        files: stem of the input -> position in graph order (0 = final head) -> file.
    """

    tool: str
    evidence: str
    files: Mapping[str, Mapping[int, Path]]

    @property
    def heads(self) -> int:
        """How many outputs were seen: the highest position plus one."""
        return max((max(found) + 1 for found in self.files.values() if found), default=0)


def read_shape_file(path: Path) -> ShapeRecord:
    """Read ``all_shape.txt`` (or the folder that holds it).

    The three lists are split off from the right and then the three sizes, so that hyphens and blanks in the case id,
    which the published reader cannot take, do no harm.

    Raises:
        UsageError: missing, or not of that format.
    """
    file = path / SHAPE_FILE if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read; name the {SHAPE_FILE} of this case") from error
    parts = text.rsplit("-", 3)
    head = _SHAPE.match(parts[0]) if len(parts) == 4 and "\n" not in text else None
    lists = [_numbers(part) for part in parts[1:]]
    if head is None or not all(lists):
        raise UsageError(f"{file} does not read '<case> D H W-x,x,..-y,y,..-z,z,..' on one line")
    return ShapeRecord(head["case"], (int(head["d"]), int(head["h"]), int(head["w"])), (lists[0], lists[1], lists[2]))


def write_shape_file(folder: Path, case: str, grid: TileGrid) -> Path:
    """Write ``all_shape.txt`` for a case, for the published merging script; see :func:`write_shape_record`."""
    return write_shape_record(folder, ShapeRecord(case, grid.padded_shape, grid.starts))


def write_shape_record(folder: Path, record: ShapeRecord) -> Path:
    """Write ``all_shape.txt``.

    Raises:
        UsageError: the published script cannot take the case id: it splits on blanks and hyphens, and ids end at the
            first dot.
    """
    if re.search(r"[\s.-]", record.case):
        raise UsageError(
            f"case id {record.case!r}: the published script cannot take blanks, hyphens or dots in it; rename it"
        )
    sizes = " ".join(str(size) for size in record.shape)
    lists = "-".join(",".join(str(start) for start in axis) for axis in record.starts)
    path = folder / SHAPE_FILE
    write_text(path, f"{record.case} {sizes}-{lists}\n")
    return path


def shape_of_items(case: str, starts: Collection[Sequence[int]], patch: Sequence[int]) -> ShapeRecord:
    """The shape record of a case that was cut into tiles which begin at ``starts`` (z, y, x).

    Raises:
        UsageError: the starts are not those of a grid of volumes.
    """
    if not starts or len(patch) != 3 or any(len(start) != 3 for start in starts):
        raise UsageError(f"case {case} was not cut into tiles of volumes; {SHAPE_FILE} describes those only")
    z, y, x = (tuple(sorted({start[axis] for start in starts})) for axis in range(3))
    padded = (z[-1] + patch[0], y[-1] + patch[1], x[-1] + patch[2])
    return ShapeRecord(case, padded, (z, y, x))


def parse_tile_name(name: str) -> TileName | None:
    """``case_0_128_0_128_0_128_7.bin`` taken apart, or None; what stands before the last seven numbers is the case."""
    match = _TILE.match(name.removesuffix(".bin"))
    if match is None:
        return None
    z0, z1, y0, y1, x0, x1 = (int(match.group(index)) for index in range(2, 8))
    return TileName(match["case"], ((z0, z1), (y0, y1), (x0, x1)), int(match["mirror"]))


def legacy_stem(case: str, start: Shape3, patch: Shape3, mirror: int) -> str:
    """Name of a tile without ``.bin``, with the scripts' own case id."""
    bounds = "_".join(f"{first}_{first + length}" for first, length in zip(start, patch, strict=True))
    return f"{case}_{bounds}_{mirror}"


def legacy_case(case_id: str) -> str:
    """The case id as the published scripts shorten it: up to the first dot."""
    return case_id.split(".", 1)[0]


def differences(record: ShapeRecord, grid: TileGrid, case_id: str) -> list[str]:
    """In what a shape record and the tiles that this model would cut differ."""
    found = []
    if record.case != legacy_case(case_id):
        found.append(f"case {record.case!r}, not {legacy_case(case_id)!r}")
    if record.shape != grid.padded_shape:
        found.append(f"padded shape {record.shape}, the model gives {grid.padded_shape}")
    for axis, theirs, ours in zip("zyx", record.starts, grid.starts, strict=True):
        if theirs != ours:
            found.append(f"tile starts along {axis} {theirs}, the model gives {ours}")
    return found


Decide = Callable[[str, Mapping[tuple[str, int], Path]], "tuple[str, int] | None"]
"""(stem of an input, its files by naming style and number) -> which of them is the final head; None: cannot be told."""


def find_results(
    folder: Path, stems: Collection[str], tool: str | None = None, decide: Decide | None = None
) -> Results:
    """Find the results of these inputs below a folder: ``dumpOutput_device<N>`` and time-stamped folders included.

    Args:
        stems: names of the inputs without ``.bin``.
        tool: one of :data:`LEGACY_TOOLS`; None asks for detection, which refuses whatever leaves a doubt.
        decide: runs one input through the graph; what it says outweighs names and folders.

    Raises:
        UsageError: unknown tool, no results, results found twice, a doubt about the numbering, or the graph says that
            another file is the final head.
    """
    if tool is not None and tool not in LEGACY_TOOLS:
        raise UsageError(f"unknown tool {tool!r}; legal: {', '.join(LEGACY_TOOLS)}")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name the folder with the tool's results")
    wanted = set(stems)
    found: dict[tuple[str, int], dict[str, Path]] = {}
    for path in _files(folder):
        match = _RESULT.match(path.name)
        if match is None or match["stem"] not in wanted:
            continue
        style = "output" if match["style"] else "plain"
        twin = found.setdefault((style, int(match["number"])), {}).setdefault(match["stem"], path)
        if twin != path:
            raise UsageError(f"{twin} and {path} are results of the same input; name the folder of one run only")
    if not found:
        raise UsageError(
            f"{folder} holds no results of these {len(wanted)} inputs (<tile>_<n>.bin, <tile>_output_<n>.bin)"
        )
    decided = _ask(decide, found) if decide is not None else None
    if decided is not None:
        tool, evidence = _tool_of(decided, tool), "one input through the graph"
    elif tool is None:
        tool, evidence = _detect(folder, {key: set(files) for key, files in found.items()})
    else:
        evidence = "stated"
    style, base = LEGACY_TOOLS[tool]
    by_stem: dict[str, dict[int, Path]] = {stem: {} for stem in wanted}
    for (its_style, number), files in found.items():
        if its_style == style and number >= base:
            for stem, path in files.items():
                by_stem[stem][number - base] = path
    if not any(0 in heads for heads in by_stem.values()):
        raise UsageError(
            f"{folder} holds no final head as {tool} would name it ({_final_name(tool)}); is the tool right?"
        )
    return Results(tool, evidence, by_stem)


def _ask(decide: Decide, found: Mapping[tuple[str, int], Mapping[str, Path]]) -> tuple[str, int] | None:
    """Which kind of file is the final head, by the input that has most files."""
    files: dict[str, dict[tuple[str, int], Path]] = {}
    for kind, paths in found.items():
        for stem, path in paths.items():
            files.setdefault(stem, {})[kind] = path
    stem = max(sorted(files), key=lambda each: len(files[each]))
    return decide(stem, files[stem])


def _tool_of(kind: tuple[str, int], stated: str | None) -> str:
    """The tool that calls the final head so.

    Raises:
        UsageError: none does, or not the one that was stated.
    """
    if stated is not None and LEGACY_TOOLS[stated] == kind:
        return stated
    fitting = [tool for tool, naming in LEGACY_TOOLS.items() if naming == kind]
    if stated is not None or not fitting:
        what = f"{_final_name(stated)}, as {stated} would call it" if stated else "what any known tool calls it"
        style = "_output_" if kind[0] == "output" else "_"
        raise UsageError(
            f"the graph itself answers what <tile>{style}{kind[1]}.bin holds, not {what}; name the tool that wrote the files"
        )
    return fitting[0]


def _detect(folder: Path, found: Mapping[tuple[str, int], set[str]]) -> tuple[str, str]:
    """The tool, where names and the files beside them leave no doubt.

    Raises:
        UsageError: they do.
    """
    styles = {style for style, _ in found}
    numbers = {number for style, number in found if style == "plain"}
    options = "; say which tool it was: " + ", ".join(LEGACY_TOOLS)
    if len(styles) > 1:
        raise UsageError(f"{folder} holds results of msame (_output_<n>.bin) and of another tool (_<n>.bin){options}")
    if styles == {"output"}:
        return "msame", "names end with _output_<n>.bin"
    marks_benchmark, marks_ais = _marks(folder)
    if {0, 1} <= numbers:
        raise UsageError(
            f"{folder} holds both <tile>_0.bin and <tile>_1.bin: the final head is _0 for ais_bench and _1 for "
            f"benchmark, and both have the same size{options}"
        )
    if 0 in numbers:
        if marks_benchmark:
            raise UsageError(f"{folder} looks like benchmark's, which never writes <tile>_0.bin{options}")
        return "ais_bench", "numbering starts at 0"
    if numbers == {1} and marks_ais:
        raise UsageError(
            f"{folder} was written by ais_bench but only <tile>_1.bin is left: it is the final head if the published "
            f"infer.py renamed it (infer_py), and another head if _0 was deleted (do not use it){options}"
        )
    if 1 in numbers and (marks_benchmark or numbers == {1}):
        return "benchmark", "benchmark's folders" if marks_benchmark else "only _1 is there, as clear2345.sh leaves it"
    raise UsageError(f"{folder}: results are numbered {sorted(numbers)}; that fits more than one tool{options}")


def _marks(folder: Path) -> tuple[bool, bool]:
    """(traces of benchmark, traces of ais_bench) in the folder, beside it and below it."""
    places = [folder, folder.parent, *(path for path in folder.iterdir() if path.is_dir())]
    names = {path.name for place in places for path in place.iterdir()} | {folder.name}
    benchmark = any(re.match(r"dumpOutput_device\d+$|perf_\w+_batchsize_\d+_device_\d+\.txt$", name) for name in names)
    inside = {path.name for path in folder.iterdir()}
    ais = f"{folder.name}_summary.json" in names or any(name.endswith("_summary.json") for name in inside)
    return benchmark, ais


def _final_name(tool: str) -> str:
    style, base = LEGACY_TOOLS[tool]
    return f"<tile>_output_{base}.bin" if style == "output" else f"<tile>_{base}.bin"


def _files(folder: Path) -> list[Path]:
    """Regular files below a folder in a fixed order; links are not followed."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        found += [Path(place) / name for name in sorted(names) if not (Path(place) / name).is_symlink()]
    return found


def _numbers(text: str) -> tuple[int, ...]:
    """``0,64,128`` (blanks, brackets and a comma at the end do no harm) as numbers, or () if it is something else."""
    pieces = [piece.strip() for piece in text.strip(" []()").split(",")]
    if pieces and not pieces[-1]:
        pieces.pop()
    return tuple(int(piece) for piece in pieces) if pieces and all(piece.isdecimal() for piece in pieces) else ()
