"""Whether the answers a tool wrote can be believed, file by file, before they are listed.

The rules are those of :mod:`offline_infer.engines.om.answers`. An answer that is the same number everywhere is first
requested again from another device; if the second answer is the same, the graph itself is run on that input and decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.opening import checked_graph
from offline_infer.engines.base import Session
from offline_infer.engines.om.answers import EXPLANATIONS, REMEDIES, Fault, fault_of, is_constant
from offline_infer.engines.reference import open_reference
from offline_infer.spec import OutputSpec
from offline_infer.staging.worklist import Item, Worklist


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
        if self._flat_is_right or is_constant(self._input(item)):
            return None
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


def told(faults: Mapping[str, Fault], count: int) -> str:
    """What was wrong with a session's answers, for a message: the first one's fault and the way out."""
    stem, fault = next(iter(faults.items()))
    what = f"the answers to {len(faults)} of {count} inputs cannot be used: {EXPLANATIONS[fault]} (first: {stem})"
    return f"{what}; {REMEDIES[fault]}"
