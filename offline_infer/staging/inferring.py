"""Infer: the listed items are answered by an engine in this process; answers that are complete are not asked for again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from offline_infer.engines.base import FloatArray, Session
from offline_infer.engines.queueing import Request, in_order
from offline_infer.errors import DiskBudgetError, EngineFailed, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import HeldFolder, clear_partial
from offline_infer.spec import BundleSpec, OutputSpec
from offline_infer.staging.bins import read_item, write_bin
from offline_infer.staging.disk_budget import free_bytes, size_text
from offline_infer.staging.judging import forget_unusable, numbers_fault, tell_unusable
from offline_infer.staging.outputs import OutputEntry, OutputsManifest, Writer
from offline_infer.staging.work_folder import safe_name
from offline_infer.staging.worklist import Item, Worklist
from offline_infer.tasks.base import Array
from offline_infer.tasks.reports import CaseOutcome, RunReport, each_case

STAGE = "infer"
_ENTRIES_PER_FLUSH = 16


def infer_stage(
    work: Path,
    sessions: Mapping[str, Session],
    *,
    spec: BundleSpec | None = None,
    items: Iterable[Item] | None = None,
    sink: Sink = silent,
) -> RunReport:
    """Answer the listed items with an engine in this process.

    Several processes may each work on a part of the items of one folder.

    Args:
        sessions: fold -> opened session; all of the worklist's folds or some of them.
        spec: the model the sessions belong to, to make sure that the folder was made for it.
        items: which items, e.g. one shard; default all.

    Raises:
        UsageError: the folder was made for another model, or a session does not fit it.
        DiskBudgetError: the outputs will not fit the disk.
    """
    worklist = Worklist.load(work)
    if not worklist.items():
        raise UsageError(f"{work} holds no items to answer; preprocess cases into it first")
    _check_sessions(worklist, sessions, spec)
    clear_partial(work, depth=2)  # outputs/fold_0/
    manifest = OutputsManifest.load(work)
    for fold in sessions:
        tell_unusable(forget_unusable(worklist, manifest, fold, numbers_fault), sink)
    kept = worklist.header.kept
    wanted: dict[str, list[Item]] = {case.case_id: [] for case in worklist.cases}
    for item in worklist.items() if items is None else items:
        wanted[item.case].append(item)
    wanted = {case: chosen for case, chosen in wanted.items() if chosen}
    todo = {
        case: [
            (item, missing)
            for item in chosen
            if (missing := [f for f in sessions if any(manifest.complete(item.index, f, o) is None for o in kept)])
        ]
        for case, chosen in wanted.items()
    }
    _check_room(work, worklist, sum(len(missing) for pairs in todo.values() for _, missing in pairs))

    held = HeldFolder(work)

    def answer(case: str) -> CaseOutcome:
        if not todo[case]:
            return CaseOutcome(case, "skipped", items=len(wanted[case]))
        with held.writing(()):
            return _Answering(worklist, manifest, sessions, sink).case(case, todo[case])

    return each_case(STAGE, list(wanted), answer, None, sink)


class _Answering:
    """Answers items and lists the outputs, some at a time."""

    def __init__(
        self, worklist: Worklist, manifest: OutputsManifest, sessions: Mapping[str, Session], sink: Sink
    ) -> None:
        self._worklist, self._manifest, self._sessions, self._sink = worklist, manifest, sessions, sink
        info = next(iter(sessions.values())).info
        self._writer = Writer(
            tool="engine",
            base=0,
            pattern="{stem}_output_{number}.bin",
            compiled={fold: digest for fold, each in sessions.items() if (digest := each.info.compiled) is not None},
            details={"engine": info.engine, "device": info.device, "precision": info.precision},
        )
        self._listed = self._writer in manifest.writers
        self._entries: list[OutputEntry] = []

    def case(self, case: str, todo: Sequence[tuple[Item, list[str]]]) -> CaseOutcome:
        """Answer some items of a case, each by the folds named with it. Sessions that queue get inputs ahead."""
        written = done = 0
        try:
            for (item, fold, last), answers in in_order(self._requests(todo)):
                written += self._keep(item, fold, answers)
                if len(self._entries) >= _ENTRIES_PER_FLUSH:
                    self._flush()
                if last:
                    done += 1
                    self._sink(Event("progress", STAGE, case, done, len(todo)))
        finally:
            self._flush()  # what was answered stays answered, whatever happened to the next item
        return CaseOutcome(case, "done", items=len(todo), bytes=written)

    def _requests(self, todo: Sequence[tuple[Item, list[str]]]) -> Iterator[Request[tuple[Item, str, bool]]]:
        """Every item by every fold that is to answer it, tagged (item, fold, whether it is the item's last)."""
        for item, folds in todo:
            read = lru_cache(maxsize=1)(partial(self._batch, item))  # once for all folds
            for fold in folds:
                yield Request((item, fold, fold == folds[-1]), self._sessions[fold], read)

    def _batch(self, item: Item) -> FloatArray:
        return read_item(self._worklist, item)[None]

    def _keep(self, item: Item, fold: str, answers: Mapping[str, Array]) -> int:
        """Write the kept outputs of one item; returns their bytes."""
        written = 0
        for output in self._worklist.header.kept:
            meaning = self._worklist.header.outputs[output]
            array = answers[meaning.name]
            check_answer(array, meaning, item.stem)
            file = f"outputs/fold_{safe_name(fold)}/{self._writer.file_name(item.stem, output)}"
            path = self._worklist.work / file
            for folder in (path.parent.parent, path.parent):
                folder.mkdir(exist_ok=True)  # the work folder itself is never made anew
            dtype = "float32" if array.dtype.kind == "f" else meaning.dtype
            size, _ = write_bin(path, array, dtype)
            self._entries.append(
                OutputEntry(
                    item=item.index,
                    fold=fold,
                    output=output,
                    file=file,
                    bytes=size,
                    dtype=dtype,
                    keep=True,
                    judged=True,
                )
            )
            written += size
        return written

    def _flush(self) -> None:
        if self._entries:
            self._manifest.append(self._entries, None if self._listed else self._writer)
            self._entries, self._listed = [], True


def check_answer(array: Array, meaning: OutputSpec, stem: str) -> None:
    """Refuse an answer that cannot be valid.

    Raises:
        EngineFailed: another shape than the graph's output, or NaN or infinite numbers.
    """
    shape = tuple(meaning.shape)
    fits = len(array.shape) == len(shape) and all(e in (-1, n) for e, n in zip(shape, array.shape, strict=True))
    if not fits:
        raise EngineFailed(f"{stem}: output {meaning.name!r} has shape {array.shape}, expected {shape}")
    if array.dtype.kind == "f" and not np.isfinite(array.sum(dtype=np.float64)):
        raise EngineFailed(f"{stem}: output {meaning.name!r} holds NaN or infinite numbers", remedy="run-in-float32")


def _check_sessions(worklist: Worklist, sessions: Mapping[str, Session], spec: BundleSpec | None) -> None:
    header = worklist.header
    if spec is not None:
        worklist.refuse_other_model(spec)
    unknown = [fold for fold in sessions if fold not in header.folds]
    if unknown or not sessions:
        raise UsageError(
            f"{worklist.work} was made for the folds {', '.join(header.folds)}, not for {', '.join(unknown) or 'none'}"
        )
    for fold, session in sessions.items():
        shape = tuple(session.info.input_shape)
        if shape != header.input_shape:
            raise UsageError(
                f"fold {fold}: the graph takes {shape}, the items in {worklist.work} are {header.input_shape}"
            )


def _check_room(work: Path, worklist: Worklist, answers: int) -> None:
    need = answers * sum(worklist.output_bytes(output) for output in worklist.header.kept)
    free = free_bytes(work)
    if need > free:
        raise DiskBudgetError(
            f"the outputs of {answers} items need {size_text(need)}, {work} has {size_text(free)} free; free some disk",
            remedy="work-in-rounds",
        )
