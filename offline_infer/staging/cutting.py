"""From a prepared case to bins and records, and from outputs back to the collector: the two ends of a staged run.

Both go group by group, in the order of the streaming run, so that both compute the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from offline_infer.errors import CaseError
from offline_infer.spec import BundleSpec
from offline_infer.staging.bins import read_output, write_bin
from offline_infer.staging.outputs import OutputsManifest
from offline_infer.staging.worklist import Item, Worklist, WorklistHeader
from offline_infer.tasks.base import Array, Collector, Layout, Prepared, Task
from offline_infer.threads import Team

Told = Callable[[int], None]


def cut_items(
    task: Task,
    prepared: Prepared,
    spec: BundleSpec,
    layout: Layout,
    groups: Sequence[int],
    header: WorklistHeader,
    work: Path,
    case: tuple[str, str],
    first_index: int,
    progress: Told | None = None,
) -> list[Item]:
    """Write the bins of some groups of a case.

    Args:
        groups: which, in order.
        case: (case id, safe name).
        first_index: index of the first item.
        progress: called with the number of items written so far.

    Raises:
        CaseError: float16 cannot hold a value.
    """
    case_id, safe = case
    items: list[Item] = []
    cutter = task.cutter(prepared, layout, spec, Team(1))
    for group in groups:
        cutter.load(group)
        for position in range(layout.per_group):
            file = f"inputs/{safe}_{layout.name(group, position)}.bin"
            size, checksum = write_bin(work / file, cutter.input(position)[0], header.input_dtype)
            items.append(
                Item(
                    index=first_index + len(items),
                    case=case_id,
                    file=file,
                    geometry=layout.record(group, position),
                    shape=layout.shape(group),
                    dtype=header.input_dtype,
                    bytes=size,
                    crc32=checksum,
                )
            )
        if progress is not None:
            progress(len(items))
    return items


def feed(
    collector: Collector,
    groups: Sequence[int],
    worklist: Worklist,
    manifest: OutputsManifest,
    items: Sequence[Item],
    progress: Told | None = None,
) -> None:
    """Give the outputs of whole groups to the collector: per group every fold, per fold every position.

    Args:
        groups: whose items these are, in order.

    Raises:
        CaseError: an output is missing or has a wrong size.
    """
    per_group = len(items) // len(groups) if groups else 1
    for done, (group, members) in enumerate(zip(groups, _groups(items, per_group), strict=True), start=1):
        for number, fold in enumerate(worklist.header.folds):
            for position, item in enumerate(members):
                collector.take(group, position, number, _answers(worklist, manifest, item, fold))
        if progress is not None:
            progress(done)


def check_items(items: Sequence[Item], layout: Layout, groups: Sequence[int], case_id: str) -> None:
    """Compare the listed items with those that the model asks for.

    Raises:
        CaseError: they differ; a result made of them would be wrong.
    """
    expected = [layout.record(group, position) for group in groups for position in range(layout.per_group)]
    if [item.geometry for item in items] != expected:
        raise CaseError(
            f"case {case_id}: the worklist has {len(items)} items that are not the {len(expected)} "
            "this model and these settings ask for; preprocess it again into a new folder"
        )


def missing_outputs(worklist: Worklist, manifest: OutputsManifest, items: Sequence[Item]) -> list[tuple[Item, str]]:
    """(item, fold) of every answer that inference needs and that is not there with its full size."""
    return [
        (item, fold)
        for item in items
        for fold in worklist.header.folds
        if any(manifest.complete(item.index, fold, output) is None for output in worklist.header.kept)
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


def _answers(worklist: Worklist, manifest: OutputsManifest, item: Item, fold: str) -> dict[str, Array]:
    """The kept outputs of an item by name, each (1, ...)."""
    found: dict[str, Array] = {}
    for output in worklist.header.kept:
        meaning = worklist.header.outputs[output]
        entry = manifest.get(item.index, fold, output)
        if entry is None:
            raise CaseError(f"{item.file}: fold {fold} has no output {meaning.name!r}; run infer again")
        found[meaning.name] = read_output(manifest, entry, meaning)
    return found


def _groups(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
