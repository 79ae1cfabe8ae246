"""Whether the answers in files can be believed, file by file: those a tool has just written, and those of older runs.

The rules are those of :mod:`offline_infer.engines.om.answers`. An answer that is the same number everywhere is first
requested again from another device; if the second answer is the same, the graph itself is run on that input and decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.opening import checked_graph
from offline_infer.engines.base import Session
from offline_infer.engines.om.answers import EXPLANATIONS, REMEDIES, Fault, fault_of, is_constant
from offline_infer.engines.reference import open_reference
from offline_infer.events import Event, Sink
from offline_infer.spec import OutputSpec
from offline_infer.staging.outputs import OutputEntry, OutputsManifest
from offline_infer.staging.worklist import Item, Worklist

FaultOf = Callable[[Path, Item, OutputSpec], Fault | None]
"""What is wrong with the answer in a file, or None: (file, item, output in the file's own type)."""


class AnswerJudge:
    """Looks at the numbers of complete output files of one fold."""

    def __init__(self, bundle: Bundle, worklist: Worklist, fold: str) -> None:
        self._bundle = bundle
        self._worklist = worklist
        self._fold = fold
        self._flat_before: set[int] = set()
        self._flat_is_right = False
        self._reference: Session | None = None

    def fault(self, path: Path, item: Item, meaning: OutputSpec) -> Fault | None:
        """What is wrong with an answer, or None."""
        if meaning.dtype not in ("float32", "float16"):
            return None
        found = fault_of(np.memmap(path, np.dtype(meaning.dtype).newbyteorder("<"), "r"))
        if found != "flat":
            return found
        if self._flat_is_right or not self._worklist.path(item).exists() or is_constant(self._input(item)):
            return None  # without its input, nobody can say better, or do it again
        if item.index in self._flat_before and self._graph_answers_flat(item, meaning):
            self._flat_is_right = True
            return None
        self._flat_before.add(item.index)
        return "flat"

    def close(self) -> None:
        """Close the reference engine, if it was needed."""
        if self._reference is not None:
            self._reference.close()
            self._reference = None

    def _input(self, item: Item) -> np.ndarray:
        data = np.fromfile(self._worklist.path(item), np.dtype(item.dtype).newbyteorder("<"))
        return np.ascontiguousarray(data.reshape(1, *item.shape), np.float32)

    def _graph_answers_flat(self, item: Item, meaning: OutputSpec) -> bool:
        if self._reference is None:
            self._reference = open_reference(checked_graph(self._bundle, self._fold), outputs=(meaning.name,))
        return self._reference is not None and fault_of(self._reference.run(self._input(item))) == "flat"


def numbers_fault(path: Path, item: Item, meaning: OutputSpec) -> Fault | None:
    """What the numbers alone tell: NaN or overflow. Whether one number everywhere is right takes a graph to say."""
    if meaning.dtype not in ("float32", "float16"):
        return None
    found = fault_of(np.memmap(path, np.dtype(meaning.dtype).newbyteorder("<"), "r"))
    return None if found == "flat" else found


def forget_unusable(worklist: Worklist, manifest: OutputsManifest, fold: str, fault: FaultOf) -> dict[str, Fault]:
    """Look at answers that were listed without anybody looking at their numbers, and delete those that cannot be right.

    Older releases, tools run by hand and copied folders leave such entries; each is looked at once.

    Args:
        fault: says what is wrong with one; asked again where it finds one number everywhere, so that it can be sure.

    Returns:
        Stem -> what was wrong; these items have no answer any more.
    """
    unusable: dict[str, Fault] = {}
    looked_at: list[OutputEntry] = []
    for item in worklist.items():
        for output in worklist.header.kept:
            entry = manifest.complete(item.index, fold, output)
            if entry is None or entry.judged:
                continue
            meaning = worklist.header.outputs[output].model_copy(update={"dtype": entry.dtype})
            path = manifest.path(entry)
            found = fault(path, item, meaning)
            if found == "flat":
                found = fault(path, item, meaning)
            if found is None:
                looked_at.append(entry.model_copy(update={"judged": True}))
            else:
                unusable[item.stem] = found
                path.unlink()
    manifest.append(looked_at)
    return unusable


def tell_unusable(unusable: Mapping[str, Fault], sink: Sink) -> None:
    """Say which answers of an earlier run are done again."""
    if unusable:
        stem, fault = next(iter(unusable.items()))
        text = (
            f"{len(unusable)} answers of an earlier run cannot be used ({EXPLANATIONS[fault]}; first: {stem}); "
            "they are done again"
        )
        sink(Event("note", "infer", data={"text": text}))


def told(faults: Mapping[str, Fault], count: int) -> str:
    """What was wrong with a session's answers, for a message: the first one's fault and the way out."""
    stem, fault = next(iter(faults.items()))
    what = f"the answers to {len(faults)} of {count} inputs cannot be used: {EXPLANATIONS[fault]} (first: {stem})"
    return f"{what}; {REMEDIES[fault]}"
