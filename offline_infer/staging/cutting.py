"""From a prepared case to bins and records, and from outputs back into the aggregator: the two ends of a staged run.

Both go tile by tile in grid order, and within a tile through the mirrors in the aggregator's order, so that the sums
are those of the streaming run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from offline_infer.arithmetic.geometry import Shape3
from offline_infer.arithmetic.sliding_window import Mirror, TileGrid, cut_tile, mirror_code
from offline_infer.errors import CaseError
from offline_infer.staging.bins import read_output, write_bin
from offline_infer.staging.outputs import OutputsManifest
from offline_infer.staging.work_folder import bin_name
from offline_infer.staging.worklist import Item, TileGeometry, Worklist, WorklistHeader, mirror_axes
from offline_infer.tasks.volume.aggregation import CaseAggregator
from offline_infer.tasks.volume.preparing import PreparedCase


def cut_items(
    prepared: PreparedCase,
    grid: TileGrid,
    starts: Sequence[Shape3],
    mirrors: Sequence[Mirror],
    header: WorklistHeader,
    work: Path,
    case: tuple[str, str],
    first_index: int,
    progress: Callable[[int], None] | None = None,
) -> list[Item]:
    """Write the bins of some tiles of a case.

    Args:
        prepared: array (c, z, y, x), network order.
        starts: which tiles, in grid order.
        case: (case id, safe name).
        first_index: index of the first item.
        progress: called with the number of items written so far.

    Raises:
        CaseError: float16 cannot hold a value.
    """
    case_id, safe = case
    shape = header.input_shape[1:]
    tile = np.empty((shape[0], *grid.patch), np.float32)
    items: list[Item] = []
    for start in starts:
        cut_tile(prepared.array, grid, start, tile)
        for mirror in mirrors:
            code = mirror_code(mirror)
            file = f"inputs/{bin_name(safe, start, grid.patch, code)}"
            turned = np.flip(tile, tuple(axis + 1 for axis in mirror)) if mirror else tile
            size, checksum = write_bin(work / file, turned, header.input_dtype)
            items.append(
                Item(
                    index=first_index + len(items),
                    case=case_id,
                    file=file,
                    geometry=TileGeometry(start=start, mirror=code),
                    shape=shape,
                    dtype=header.input_dtype,
                    bytes=size,
                    crc32=checksum,
                )
            )
        if progress is not None:
            progress(len(items))
    return items


def feed(
    aggregator: CaseAggregator,
    worklist: Worklist,
    manifest: OutputsManifest,
    items: Sequence[Item],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Give the outputs of consecutive whole tiles to the aggregator: per tile every fold, per fold every mirror.

    Raises:
        CaseError: an output is missing or has a wrong size.
    """
    output = worklist.header.kept[0]
    meaning = worklist.header.outputs[output]
    for done, tile in enumerate(_tiles(items, len(aggregator.mirrors)), start=1):
        for position, fold in enumerate(worklist.header.folds):
            for item in tile:
                entry = manifest.get(item.index, fold, output)
                if entry is None:
                    raise CaseError(f"{item.file}: fold {fold} has no output {meaning.name!r}; run infer again")
                aggregator.add(item.start, position, mirror_axes(item.mirror), read_output(manifest, entry, meaning))
        if progress is not None:
            progress(done)


def check_items(items: Sequence[Item], starts: Sequence[Shape3], mirrors: Sequence[Mirror], case_id: str) -> None:
    """Compare the listed items with the tiles that the model asks for.

    Raises:
        CaseError: they differ; sums over them would be wrong.
    """
    expected = [(start, mirror_code(mirror)) for start in starts for mirror in mirrors]
    if [(item.start, item.mirror) for item in items] != expected:
        raise CaseError(
            f"case {case_id}: the worklist has {len(items)} items that are not the {len(expected)} tiles and mirrors "
            "this model and these settings ask for; preprocess it again into a new folder"
        )


def missing_outputs(worklist: Worklist, manifest: OutputsManifest, items: Sequence[Item]) -> list[tuple[Item, str]]:
    """(item, fold) of every answer that inference needs and that is not there with its full size."""
    output = worklist.header.kept[0]
    return [
        (item, fold)
        for item in items
        for fold in worklist.header.folds
        if manifest.complete(item.index, fold, output) is None
    ]


def refuse_missing(missing: Sequence[tuple[Item, str]], needed: int, remedy: str) -> None:
    """
    Raises:
        CaseError: something is missing; the message counts and names the first.
    """
    if missing:
        item, fold = missing[0]
        raise CaseError(
            f"{len(missing)} of {needed} network outputs are missing or incomplete "
            f"(first: {item.stem}, fold {fold}); {remedy}"
        )


def _tiles(items: Sequence[Item], mirrors: int) -> Iterator[Sequence[Item]]:
    for first in range(0, len(items), mirrors):
        yield items[first : first + mirrors]
