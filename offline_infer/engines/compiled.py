"""What a bundle has compiled from a graph, for engines that run a compiled artefact instead of the ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """One input or output: its name, NumPy dtype (``float32``, ``float16``, ...) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes, without padding."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; see :meth:`from_json`."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Tensor:
        """The inverse of :meth:`to_json`."""
        return cls(str(record["name"]), str(record["dtype"]), tuple(int(size) for size in record["shape"]))


@dataclass(frozen=True)
class CompiledGraph:
    """An artefact that was compiled from the graph an engine is asked to open.

    Attributes:
        path: the file.
        sha256: recorded when it was compiled; whoever runs the file compares it.
        chip: what it runs on, e.g. ``Ascend310P3``.
        precision: what it computes in, e.g. ``fp16``; settled when it was compiled.
        input: what it takes.
        outputs: what it gives, in its own order.
    """

    path: Path
    sha256: str
    chip: str
    precision: str
    input: Tensor
    outputs: tuple[Tensor, ...]
