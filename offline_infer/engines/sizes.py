"""Whether what a graph computes fits into this machine, asked before an engine allocates it.

Shapes that are known when the graph is opened tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from offline_infer.errors import BundleError
from offline_infer.graph.liveness import Step, most_alive
from offline_infer.machine import memory_total

MOST_VALUES = 1 << 32
"""Of one tensor; the largest of a network on the largest admitted input come near it."""


def check_sizes(graph: Path, steps: Sequence[Step]) -> None:
    """Refuse a graph whose tensors cannot be held.

    Args:
        graph: for the message.
        steps: its nodes, in an order in which they can be done.

    Raises:
        BundleError: a tensor is absurd, or those that exist at one time are larger than the memory there is.
    """
    memory = memory_total()
    has = f"this machine or container has {memory / 2**30:,.0f} GiB of memory"
    for tensor in (tensor for step in steps for tensor in step.makes):
        if tensor.values > MOST_VALUES or tensor.size > memory:
            raise BundleError(
                f"{graph} is not opened: it computes a tensor of shape {list(tensor.shape)[:8]} ({tensor.size / 2**30:,.0f} GiB), "
                f"{tensor.name[:80]!a}; {has}"
            )
    together = most_alive(steps)
    if together > memory:
        raise BundleError(f"{graph} is not opened: its tensors need {together / 2**30:,.0f} GiB at one time; {has}")
