"""Outputs of a tool that was run by hand, from the lists of ``info`` or the bins of a work folder, taken into that folder.

The published guides run the tool in a terminal per device; what it writes lies wherever it was started, under names that
say which input but not which output. They are found by name, the output is identified by running one input through the graph,
and what was taken over is listed as if the tool had been run by ``infer``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.fingerprint import fingerprint
from offline_infer.bundles.opening import checked_graph
from offline_infer.engines.om.answers import Fault
from offline_infer.errors import EngineUnavailable, UsageError
from offline_infer.spec import OutputSpec
from offline_infer.staging.judging import AnswerJudge, told
from offline_infer.staging.numbering import FileKind, decide_by_graph
from offline_infer.staging.outputs import OutputEntry, OutputsManifest, Writer
from offline_infer.staging.work_folder import safe_name
from offline_infer.staging.worklist import Item, Worklist, output_bytes

ADOPTED = "outputs"
_INPUTS_TRIED = 4


@dataclass(frozen=True)
class AdoptReport:
    """What was taken over.

    Attributes:
        outputs: taken over, of ``needed``; those that were there before are not counted.
        numbering: what the needed output is called, e.g. ``<input>_1.bin``, and how that is known.
        other: files of the same inputs that inference does not need; they were left where they are.
        dropped: such files that were deleted.
        wrong_size: files that are truncated or of another model.
    """

    outputs: int
    needed: int
    numbering: str
    evidence: str
    other: int = 0
    dropped: int = 0
    wrong_size: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "wrong_size": list(self.wrong_size), "notes": list(self.notes)}


def adopt_outputs(
    bundle: Bundle, work: Path | str, results: Path, *, fold: str | None = None, drop_redundant: bool = False
) -> AdoptReport:
    """Take over the outputs below a folder that belong to the items of a work folder; may be called while the tool runs.

    Complete files are moved (copied where they lie on another disk); everything else stays where it is.

    Args:
        results: any folder above the tool's output folders, e.g. ``result``.
        fold: whose network answered; needed where the work folder has several.
        drop_redundant: delete whole files of outputs that inference does not need, of inputs whose needed ones are there.

    Raises:
        UsageError: the folder was made for another model, nothing belongs to its items, or the numbering is in doubt.
    """
    worklist = Worklist.load(work)
    chosen = _check(bundle, worklist, results, fold)
    found = _find(results, worklist)
    if not found:
        raise UsageError(
            f"{results} holds no outputs of the items in {work} (<input>_<n>.bin or <input>_output_<n>.bin)"
        )
    manifest = OutputsManifest.load(worklist.work)
    adopting = _Adopting(bundle, worklist, manifest, chosen, found)
    notes = adopting.take_over()
    dropped = adopting.drop_redundant() if drop_redundant else 0
    missing = len(adopting.pending())
    if missing:
        notes.append(f"outputs of {missing} items are still missing; infer does what is missing")
    return AdoptReport(
        outputs=adopting.taken,
        needed=len(worklist.items()) * len(worklist.header.kept),
        numbering=", ".join(_name(kind) for kind in adopting.kinds.values()),
        evidence=adopting.evidence,
        other=sum(path.exists() for files in found.values() for path in files.values()) - len(adopting.wrong),
        dropped=dropped,
        wrong_size=tuple(adopting.wrong),
        notes=tuple(notes),
    )


class _Adopting:
    """The files of one fold on their way into the work folder.

    Attributes:
        kinds: position of a needed output -> what its files are called; empty where nothing was pending.
        evidence: how that is known.
        taken: files that were taken over.
        wrong: names of files whose size is wrong.
    """

    def __init__(
        self,
        bundle: Bundle,
        worklist: Worklist,
        manifest: OutputsManifest,
        fold: str,
        found: Mapping[int, Mapping[FileKind, Path]],
    ) -> None:
        self._bundle, self._worklist, self._manifest, self._fold, self._found = bundle, worklist, manifest, fold, found
        self.kinds: dict[int, FileKind] = {}
        self.evidence = "nothing was missing"
        self.taken = 0
        self.wrong: list[str] = []

    def pending(self) -> list[Item]:
        """Items of which a needed output is missing."""
        return [
            item
            for item in self._worklist.items()
            if any(self._manifest.complete(item.index, self._fold, k) is None for k in self._worklist.header.kept)
        ]

    def take_over(self) -> list[str]:
        """Move what is complete and can be right; returns notes on the rest."""
        pending = [item for item in self.pending() if item.index in self._found]
        if not pending:
            return []
        self._tell_apart(pending)
        writer = Writer(
            tool="adopted",
            base=0,
            pattern="{stem}_output_{number}.bin",
            details={"numbering": ", ".join(_name(kind) for kind in self.kinds.values()), "evidence": self.evidence},
        )
        entries: list[OutputEntry] = []
        unusable: dict[str, Fault] = {}
        judge = AnswerJudge(self._bundle, self._worklist, self._fold)
        try:
            for item in pending:
                for position, kind in self.kinds.items():
                    source = self._found[item.index].get(kind)
                    if source is not None:
                        entries += self._move(item, position, source, writer, judge, unusable)
        finally:
            judge.close()
        self._manifest.append(entries, writer)
        self.taken = len(entries)
        return [told(unusable, len(pending))] if unusable else []

    def drop_redundant(self) -> int:
        """Delete whole files of other outputs of items that have what they need; returns how many."""
        sizes = {output_bytes(meaning) for meaning in self._worklist.header.outputs}
        waiting = {item.index for item in self.pending()}
        dropped = 0
        for index, files in self._found.items():
            for kind, path in files.items():
                if index not in waiting and kind not in self.kinds.values() and _size(path) in sizes:
                    path.unlink()
                    dropped += 1
        return dropped

    def _tell_apart(self, pending: Sequence[Item]) -> None:
        """Which file is which needed output: what the graph answers to one input decides.

        Raises:
            UsageError: no input is left, no engine can answer one, or none of some inputs decides.
        """
        present = [item for item in pending if self._worklist.path(item).is_file()][:_INPUTS_TRIED]
        if not present:
            raise UsageError(
                f"the bins of {self._worklist.work} are gone; without one of them the outputs cannot be told apart"
            )
        graph = checked_graph(self._bundle, self._fold)
        for item in present:
            try:
                for position in self._worklist.header.kept:
                    name = self._worklist.header.outputs[position].name
                    kind = decide_by_graph(graph, name, _batch(self._worklist, item), self._found[item.index])
                    if kind is None:
                        raise _no_engine()
                    self.kinds[position] = kind
            except UsageError:  # a device in trouble, or an input whose answers are all alike
                if item is present[-1]:
                    raise
                continue
            self.evidence = f"{item.stem} through {graph.name}"
            return

    def _move(
        self,
        item: Item,
        position: int,
        source: Path,
        writer: Writer,
        judge: AnswerJudge,
        unusable: dict[str, Fault],
    ) -> list[OutputEntry]:
        """Move a file into the work folder: its entry, or nothing where it is not complete or cannot be right."""
        meaning = _as_written(self._worklist.header.outputs[position], _size(source))
        if meaning is None:
            self.wrong.append(source.name)
            return []
        fault = judge.fault(source, item, meaning)
        if fault == "flat":  # a suspicion: asked twice, the graph decides
            fault = judge.fault(source, item, meaning)
        if fault is not None:
            unusable[item.stem] = fault
            return []
        file = f"{ADOPTED}/fold_{safe_name(self._fold)}/{writer.file_name(item.stem, position)}"
        target = self._worklist.work / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
        entry = OutputEntry(
            item=item.index,
            fold=self._fold,
            output=position,
            file=file,
            bytes=output_bytes(meaning),
            dtype=meaning.dtype,
            keep=True,
            judged=True,
        )
        return [entry]


def _check(bundle: Bundle, worklist: Worklist, results: Path, fold: str | None) -> str:
    """The fold that answered.

    Raises:
        UsageError: the folder was made for another model, or does not tell the fold.
    """
    header = worklist.header
    if header.fingerprint != fingerprint(bundle.spec):
        raise UsageError(f"{worklist.work} was made for another model than {bundle.name}")
    if not results.is_dir():
        raise UsageError(f"{results} is not a folder; name the folder the tool wrote its outputs into")
    chosen = fold if fold is not None else header.folds[0] if len(header.folds) == 1 else None
    if chosen is None or chosen not in header.folds:
        raise UsageError(f"say which fold answered: {', '.join(header.folds)}")
    return chosen


def _as_written(meaning: OutputSpec, size: int) -> OutputSpec | None:
    """An output in the type of a file of that size: its own, or the other precision where it is floating point."""
    types: tuple[Literal["float32", "float16"], ...] = ("float32", "float16")
    possible = [meaning, *(meaning.model_copy(update={"dtype": dtype}) for dtype in types)]
    return next((each for each in possible if output_bytes(each) == size and _same_kind(each, meaning)), None)


def _same_kind(one: OutputSpec, other: OutputSpec) -> bool:
    return one.dtype.startswith("float") == other.dtype.startswith("float")


def _batch(worklist: Worklist, item: Item) -> npt.NDArray[np.float32]:
    return np.fromfile(worklist.path(item), item.dtype).astype(np.float32).reshape(1, *item.shape)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the tool, or somebody else, was quicker
        return -1


def _no_engine() -> EngineUnavailable:
    return EngineUnavailable("telling the outputs apart needs an engine on this machine", remedy="install-engine")


def _find(results: Path, worklist: Worklist) -> dict[int, dict[FileKind, Path]]:
    """Item -> kind -> file, of everything below a folder that is called after an item's bin.

    Raises:
        UsageError: two files are the same output of the same input.
    """
    stems: dict[str, Item] = {item.stem: item for item in worklist.items()}
    # ais_bench cuts names at the first dot; where that is still unique, it is understood.
    cut = Counter(stem.partition(".")[0] for stem in stems)
    stems |= {short: item for stem, item in stems.items() if cut[short := stem.partition(".")[0]] == 1}
    found: dict[int, dict[FileKind, Path]] = {}
    own = worklist.work.resolve()
    for place, folders, names in os.walk(results, followlinks=False):
        if Path(place).resolve() in (own / "inputs", own / "outputs"):
            folders.clear()
            continue
        folders.sort()
        for name in sorted(names):
            match = re.fullmatch(r"(?P<stem>.+?)(?P<style>_output)?_(?P<number>\d{1,2})\.bin", name, re.DOTALL)
            path = Path(place) / name
            if match is None or match["stem"] not in stems or path.is_symlink():
                continue
            kind = ("output" if match["style"] else "plain", int(match["number"]))
            twin = found.setdefault(stems[match["stem"]].index, {}).setdefault(kind, path)
            if twin != path:
                raise UsageError(f"{twin} and {path} are the same output of the same input; name the folder of one run")
    return found


def _name(kind: FileKind) -> str:
    style, number = kind
    return f"<input>_output_{number}.bin" if style == "output" else f"<input>_{number}.bin"
