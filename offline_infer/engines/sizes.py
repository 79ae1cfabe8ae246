"""Whether what a graph computes fits into this machine, asked before an engine allocates it.

A small file can ask for any amount of memory: thirty concatenations of a tensor with itself are a billion times the tensor.
Shapes that are known when the graph is opened tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from offline_infer.errors import BundleError

MOST_VALUES = 1 << 32
"""Of one tensor; the largest of a network on the largest admitted input come near it."""


def check_sizes(graph: Path, tensors: Iterable[tuple[str, Sequence[int], int]]) -> None:
    """Refuse a graph with a tensor that cannot be held.

    Args:
        graph: for the message.
        tensors: name, shape (open sizes as 1 or less) and bytes a value of every tensor that is computed.

    Raises:
        BundleError: a tensor is absurd, or larger than this machine's memory.
    """
    memory = int(psutil.virtual_memory().total)
    for name, shape, width in tensors:
        values = math.prod(max(int(size), 1) for size in shape)
        if values > MOST_VALUES or values * width > memory:
            raise BundleError(
                f"{graph} is not opened: it computes a tensor of shape {list(shape)[:8]} ({values * width / 2**30:,.0f} GiB), "
                f"{name[:80]!a}; this machine has {memory / 2**30:,.0f} GiB of memory"
            )
