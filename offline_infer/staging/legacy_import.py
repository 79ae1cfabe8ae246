"""Taking a case of the published Ascend flow into a work folder, to be inferred or put together as any other."""

from __future__ import annotations

import errno
import math
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.sliding_window import TileGrid, cut_tile, mirror_code
from offline_infer.errors import UsageError
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import OutputSpec, VolumeSpec
from offline_infer.staging.legacy_tiles import (
    Results,
    differences,
    find_results,
    legacy_stem,
    read_shape_file,
)
from offline_infer.staging.numbering import FileKind, decide_by_graph
from offline_infer.staging.outputs import OutputEntry, OutputsManifest, Writer
from offline_infer.staging.preprocessing import case_record
from offline_infer.staging.work_folder import exclusive, is_work_folder, mark_work_folder, safe_name
from offline_infer.staging.worklist import (
    WORKLIST_FILE,
    Item,
    Worklist,
    WorklistHeader,
    WorklistWriter,
    header_for,
)
from offline_infer.tasks.base import PreviousStage
from offline_infer.tasks.records import source_files
from offline_infer.tasks.registry import get_task
from offline_infer.tasks.running import prepare_case
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.preparing import PreparedCase
from offline_infer.tasks.volume.tiles import TileLayout

LARGEST_DIFFERENCE = 0.05
"""In normalised intensities (standard deviations): exact resamplings agree far better, another image far worse."""
_COMPARED = 5


@dataclass(frozen=True)
class LegacyFolders:
    """Where the published scripts left a case.

    Attributes:
        shapes: the ``all_shape.txt``, or the folder that holds it.
        tiles: folder with the input bins; None where they were deleted after inference.
        results: folder with the tool's results; None where the network has not run yet.
        tool: ``benchmark``, ``msame``, ``ais_bench`` or ``infer_py``; None detects it or refuses.
        copy: copy the files; otherwise they are hard-linked, which takes no disk but needs the same file system.
    """

    shapes: Path
    tiles: Path | None = None
    results: Path | None = None
    tool: str | None = None
    copy: bool = False


@dataclass(frozen=True)
class ImportReport:
    """What was taken over.

    Attributes:
        items: network inputs the model needs of this case; mirrors that it does not use are left behind.
        outputs: results taken over, of ``items``.
        tool, evidence: whose numbering was assumed, and why; None without results.
        largest_difference: between their tiles and ours, in normalised intensities; None without tiles.
        notes: things worth telling.
    """

    case: str
    items: int
    outputs: int
    tool: str | None
    evidence: str | None
    largest_difference: float | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "notes": list(self.notes)}


def import_case(
    spec: VolumeSpec,
    case: CaseFiles,
    work: Path,
    folders: LegacyFolders,
    *,
    fold: str = "0",
    settings: RunSettings | None = None,
    graph: Path | None = None,
    threads: int = 0,
) -> ImportReport:
    """Take one case into a work folder (new, or of earlier imports of the same model).

    The image itself is needed: the published files say nothing of spacing, crop or direction.

    Args:
        fold: whose network answered.
        settings: step size and mirroring that the tiles were cut with; default the model's own.
        graph: of that fold; one tile through it decides which of a tool's files is the final head.

    Raises:
        UsageError: files that are missing, ambiguous, or do not belong to this image and model.
        CaseError: the image cannot be read or does not fit the model.
    """
    chosen = settings if settings is not None else RunSettings()
    record = read_shape_file(folders.shapes)
    task = get_task(spec.task)
    prepared = prepare_case(task, case, spec, PreviousStage(), threads)
    assert isinstance(prepared, PreparedCase)
    layout = TileLayout.of(spec, prepared.geometry.network_shape, chosen)
    other = differences(record, layout.grid, case.case_id)
    if other:
        raise UsageError(
            f"{folders.shapes} does not belong to {case.case_id} and this model: it says {'; '.join(other)}. "
            "Name the image, bundle and step size the tiles were cut with"
        )
    tiles = _Tiles(record.case, prepared, layout)
    difference = None if folders.tiles is None else _compare_tiles(folders.tiles, record.case, prepared, layout.grid)

    def decide(stem: str, candidates: Mapping[FileKind, Path]) -> FileKind | None:
        kept = next(output.name for output in spec.outputs if output.keep)
        return decide_by_graph(graph, kept, tiles.cut(*tiles.stems[stem])[None], candidates) if graph else None

    stems = list(tiles.stems)
    results = find_results(folders.results, stems, folders.tool, decide) if folders.results is not None else None
    header = _header(spec, work, chosen, fold, results)
    if not is_work_folder(work):
        mark_work_folder(work)
    with exclusive(work):
        writer = WorklistWriter(work, header)
        if case.case_id in writer.cases:
            raise UsageError(f"case {case.case_id} is already in {work}; name a new folder")
        items = _take_items(writer, case, tiles, folders)
        sources = source_files(case.channels)
        writer.add(case_record(case, case.channels, sources, prepared, layout, items), items)
        try:
            taken = _take_outputs(writer, items, stems, fold, results, folders) if results is not None else 0
        except BaseException:
            writer.remove(case.case_id)  # so that the corrected command can be given again
            raise
    return ImportReport(
        case=case.case_id,
        items=len(items),
        outputs=taken,
        tool=results.tool if results else None,
        evidence=results.evidence if results else None,
        largest_difference=difference,
        notes=_notes(layout.grid, layout.per_group, len(items), taken, results),
    )


@dataclass(frozen=True)
class _Tiles:
    """The tiles of a case, and what the published scripts call them.

    Attributes:
        name: of the case, in their files.
    """

    name: str
    prepared: PreparedCase
    layout: TileLayout

    @cached_property
    def stems(self) -> dict[str, tuple[int, int]]:
        """Their name of a tile without an ending -> (group, position), in the order of the items."""
        layout = self.layout
        return {
            legacy_stem(self.name, layout.starts[group], layout.grid.patch, mirror_code(layout.mirrors[position])): (
                group,
                position,
            )
            for group in range(layout.groups)
            for position in range(layout.per_group)
        }

    def cut(self, group: int, position: int) -> npt.NDArray[np.float32]:
        """A tile (c, z, y, x), mirrored as its position says."""
        grid = self.layout.grid
        tile = np.empty((self.prepared.array.shape[0], *grid.patch), np.float32)
        cut_tile(self.prepared.array, grid, self.layout.starts[group], tile)
        return np.flip(tile, tuple(axis + 1 for axis in self.layout.mirrors[position]))


def _header(spec: VolumeSpec, work: Path, settings: RunSettings, fold: str, results: Results | None) -> WorklistHeader:
    """The header; heads that the results have and the bundle does not are listed as unneeded."""
    header = header_for(spec, get_task(spec.task).item_settings(spec, settings), (fold,))
    outputs = header.outputs
    if header.kept != (0,):
        raise UsageError("the published flow keeps the graph's first output; this bundle keeps another one")
    if (work / WORKLIST_FILE).is_file() and is_work_folder(work):
        outputs = Worklist.load(work).header.outputs
    elif results is not None:
        first = outputs[0]
        outputs = (
            *outputs,
            *(
                OutputSpec(name=f"head_{position}", dtype=first.dtype, shape=first.shape, keep=False)
                for position in range(len(outputs), results.heads)
            ),
        )
    return header.model_copy(update={"outputs": outputs})


def _compare_tiles(tiles: Path, case: str, prepared: PreparedCase, grid: TileGrid) -> float:
    """Largest difference between some of their unmirrored tiles and ours.

    Raises:
        UsageError: a tile is missing, has a wrong size, or shows another image.
    """
    starts = list(grid)
    every = max(len(starts) // _COMPARED, 1)
    ours = np.empty((prepared.array.shape[0], *grid.patch), np.float32)
    largest = 0.0
    for start in starts[::every]:
        path = tiles / f"{legacy_stem(case, start, grid.patch, 0)}.bin"
        _require_size(path, ours.nbytes)
        cut_tile(prepared.array, grid, start, ours)
        theirs = np.fromfile(path, "<f4").reshape(ours.shape)
        largest = max(largest, float(np.abs(theirs - ours).max()))
        if not largest <= LARGEST_DIFFERENCE:  # a NaN is no agreement either
            raise UsageError(
                f"{path} differs from the same tile of {case} by {largest:.3g} (normalised intensities): it was cut "
                "from another image or with another model's normalisation"
            )
    return largest


def _take_items(writer: WorklistWriter, case: CaseFiles, tiles: _Tiles, folders: LegacyFolders) -> list[Item]:
    layout = tiles.layout
    shape = writer.header.input_shape[1:]
    size = writer.header.item_bytes(shape)
    items: list[Item] = []
    for stem, (group, position) in tiles.stems.items():
        file = f"inputs/{safe_name(case.case_id)}_{layout.name(group, position)}.bin"
        if folders.tiles is not None:
            source = folders.tiles / f"{stem}.bin"
            _require_size(source, size)
            _place(source, writer.work / file, folders.copy)
            checksum = zlib.crc32(source.read_bytes())
        else:
            # The bins are gone; the checksum is that of the bin as we would cut it.
            checksum = zlib.crc32(np.ascontiguousarray(tiles.cut(group, position)).data)
        items.append(
            Item(
                index=writer.next_index + len(items),
                case=case.case_id,
                file=file,
                geometry=layout.record(group, position),
                shape=shape,
                dtype="float32",
                bytes=size,
                crc32=checksum,
            )
        )
    return items


def _take_outputs(
    writer: WorklistWriter, items: list[Item], stems: list[str], fold: str, results: Results, folders: LegacyFolders
) -> int:
    """Link the final heads into the work folder under names of our own and list them; returns how many there were."""
    meaning = writer.header.outputs[0]
    count = math.prod(meaning.shape)
    naming = Writer(
        tool="import",
        base=0,
        pattern="{stem}_output_{number}.bin",
        folder="outputs/imported",
        details={"tool": results.tool, "evidence": results.evidence},
    )
    entries = []
    for item, stem in zip(items, stems, strict=True):
        source = results.files[stem].get(0)
        if source is None:
            continue
        size = source.stat().st_size
        if size not in (4 * count, 2 * count):
            raise UsageError(
                f"{source} has {size} bytes; one output of shape {meaning.shape} has {4 * count} (float32) or "
                f"{2 * count} (float16). It is incomplete or of another model"
            )
        file = f"{naming.folder}/{naming.file_name(item.stem, 0)}"
        _place(source, writer.work / file, folders.copy)
        entries.append(
            OutputEntry(
                item=item.index,
                fold=fold,
                output=0,
                file=file,
                bytes=size,
                dtype="float32" if size == 4 * count else "float16",
                keep=True,
            )
        )
    OutputsManifest.load(writer.work).append(entries, naming)
    return len(entries)


def _place(source: Path, target: Path, copy: bool) -> None:
    """Hard-link or copy a file into the work folder.

    Raises:
        UsageError: the file system cannot link there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if copy:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        raise UsageError(
            f"{source} cannot be linked into {target.parent} ({error.strerror}); "
            "put the work folder on the same disk, or have the files copied"
        ) from error


def _require_size(path: Path, size: int) -> None:
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise UsageError(f"{path} is missing; the tiles of this case are not complete") from error
    if actual != size:
        raise UsageError(
            f"{path} has {actual} bytes, a tile of this model has {size}; it is incomplete or of another model"
        )


def _notes(grid: TileGrid, mirrors: int, items: int, taken: int, results: Results | None) -> tuple[str, ...]:
    notes = []
    if len(grid) == 1:
        notes.append("the case is a single tile, which the published merging script cannot take; here it can")
    if mirrors < 8:
        notes.append(f"the model mirrors {mirrors} of the 8 ways the scripts write; the others are left behind")
    if results is not None and taken < items:
        notes.append(
            f"{items - taken} of {items} results are missing; infer does what is missing if the tiles are there"
        )
    return tuple(notes)
