"""Which of a tool's numbered files is the output inference needs: one input through the graph itself decides.

All heads of a graph have the same shape, and the tools number them differently, so a wrong guess gives a wrong
segmentation without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.reference import open_reference
from offline_infer.errors import UsageError

FileKind = tuple[str, int]
"""(naming style, number in the name): ``("plain", 0)`` for ``<stem>_0.bin``, ``("output", 0)`` for ``<stem>_output_0.bin``."""

CLOSE = 0.1
"""Root-mean-square difference to the graph's answer, relative to its spread, that half precision stays well below."""
MOSTLY = 0.9
"""Share of whole numbers, such as labels, that half precision leaves as they are."""
CLEARLY = 3.0
"""Another file must be so many times further away."""


def decide_by_graph(
    graph: Path, output: str, batch: npt.NDArray[np.float32], candidates: Mapping[FileKind, Path]
) -> FileKind | None:
    """The file that holds what the graph answers to an input.

    Args:
        output: name of the output that is looked for.
        batch: the input, (1, c, *patch).
        candidates: kind -> file of that input.

    Returns:
        None where no engine on this machine can run the graph.

    Raises:
        UsageError: no file, or more than one, holds that answer.
    """
    session = open_reference(graph, outputs=(output,))
    if session is None:
        return None
    with session:
        answer = np.array(session.answer(np.ascontiguousarray(batch, np.float32))[output])
    distances = {kind: distance(path, answer) for kind, path in candidates.items()}
    ranked = sorted(distances, key=lambda kind: distances[kind])
    told = ", ".join(f"{candidates[kind].name} {distances[kind]:.3g}" for kind in ranked)
    if not ranked or not distances[ranked[0]] < CLOSE:
        raise UsageError(
            f"none of the files of one input holds what {graph.name} answers to it (relative differences: {told}); they "
            "are of another model, fold or image, or of another output"
        )
    if len(ranked) > 1 and distances[ranked[1]] < CLEARLY * max(distances[ranked[0]], 1e-6):
        raise UsageError(
            f"more than one file of one input could hold what {graph.name} answers to it (relative differences: {told}); "
            "say which tool wrote them"
        )
    return ranked[0]


def distance(path: Path, answer: npt.NDArray[Any]) -> float:
    """Root-mean-square difference between a bin (float32 or float16) and an answer, relative to the answer's spread.

    Whole numbers differ, or they do not: 0 where they are mostly the same, else infinity.
    """
    size = path.stat().st_size
    if answer.dtype.kind != "f":
        if size != answer.nbytes:
            return float("inf")
        same = np.fromfile(path, answer.dtype.newbyteorder("<")) == answer.ravel()
        return 0.0 if same.mean() > MOSTLY else float("inf")
    dtype = {4 * answer.size: "<f4", 2 * answer.size: "<f2"}.get(size)
    if dtype is None:
        return float("inf")
    theirs = np.fromfile(path, dtype).astype(np.float64)
    ours = answer.astype(np.float64).ravel()
    spread = float(ours.std()) or 1.0
    found = float(np.sqrt(np.mean((theirs - ours) ** 2))) / spread
    return found if np.isfinite(found) else float("inf")
