"""How much memory the tensors between a graph's nodes need at once, from their shapes alone.

A small file can ask for any amount of memory: thirty concatenations of a tensor with itself are a billion times the tensor, and a
hundred tensors that each fit may not fit together. A tensor lives from the node that makes it to the last one that takes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from offline_infer.graph.admission import ITEM_BYTES
from offline_infer.graph.model import Model
from offline_infer.graph.operators import ELEMENTWISE
from offline_infer.graph.shapes import infer_shapes, ranked

IN_PLACE = ELEMENTWISE | {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
"""Operators whose result may take the place of an input that nobody needs after them."""

_FLOAT32 = 1  # element type


@dataclass(frozen=True)
class Tensor:
    """A tensor that a node makes. ``shape``: an open size as 1 or less; ``width``: bytes a value."""

    name: str
    shape: tuple[int, ...]
    width: int

    @property
    def values(self) -> int:
        """How many there are at least."""
        return math.prod(max(size, 1) for size in self.shape)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.values * self.width


@dataclass(frozen=True)
class Step:
    """A node: the names of the tensors it takes, the tensors it makes, and whether those may take the place of an input."""

    takes: tuple[str, ...]
    makes: tuple[Tensor, ...]
    in_place: bool


def most_alive(steps: Sequence[Step]) -> int:
    """The most bytes of tensors that exist at one time while the steps are done in this order.

    Weights and the graph's own inputs are not counted; what nobody takes is counted while it is made.
    """
    last = {name: number for number, step in enumerate(steps) for name in step.takes}
    alive: dict[str, int] = {}
    held = most = 0
    for number, step in enumerate(steps):
        ending = {name: alive[name] for name in step.takes if name in alive and last[name] == number}
        made = sum(tensor.size for tensor in step.makes)
        reused = max(ending.values(), default=0) if step.in_place else 0
        most = max(most, held + max(made - reused, 0))
        for name, size in ending.items():
            del alive[name]
            held -= size
        for tensor in step.makes:
            if last.get(tensor.name, -1) > number and tensor.name not in alive:
                alive[tensor.name] = tensor.size
                held += tensor.size
    return most


def steps_of(model: Model) -> list[Step]:
    """The nodes of an ONNX graph in its own order, with the shapes that can be told without running it.

    Graphs inside nodes, and sizes that depend on the values of the input, are left out (their sizes count as 1).

    Raises:
        ExportError: the shapes contradict each other.
    """
    found = infer_shapes(model)
    tensors = {
        name: Tensor(name, shape, ITEM_BYTES.get(kind, 1))
        for name, (shape, kind) in ranked(*found.graph.value_info, *found.graph.output).items()
    }
    return [
        Step(
            tuple(filter(None, node.input)),
            tuple(tensors.get(name) or Tensor(name, (), ITEM_BYTES[_FLOAT32]) for name in filter(None, node.output)),
            node.op_type in IN_PLACE,
        )
        for node in found.graph.node
    ]
