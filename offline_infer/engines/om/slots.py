"""Shared memory between this process and its workers: slots, each with room for one input and its outputs.

The memory has no name in the file system, so a killed process leaves nothing behind. Any worker can serve any slot: the
input stays in it until the answer is good, whoever gives it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.compiled import Tensor

_PAGE = 4096


class Slots:
    """Views into the shared memory of one model. Both sides make one, from the same tensors."""

    def __init__(self, handle: int, count: int, tensors: Sequence[Tensor]) -> None:
        """
        Args:
            handle: file descriptor of the memory; stays the caller's.
            tensors: the input, then the outputs.
        """
        offsets = [0]
        for tensor in tensors:
            offsets.append(offsets[-1] + -(-tensor.nbytes // _PAGE) * _PAGE)
        self._memory = mmap.mmap(handle, count * offsets[-1])
        self._arrays: list[list[npt.NDArray[Any]]] = [
            [
                np.frombuffer(
                    self._memory,
                    tensor.dtype,
                    tensor.nbytes // np.dtype(tensor.dtype).itemsize,
                    slot * offsets[-1] + offset,
                ).reshape(tensor.shape)
                for tensor, offset in zip(tensors, offsets, strict=False)
            ]
            for slot in range(count)
        ]

    def input(self, slot: int) -> npt.NDArray[Any]:
        """The input of a slot."""
        return self._arrays[slot][0]

    def outputs(self, slot: int) -> list[npt.NDArray[Any]]:
        """The outputs of a slot, in the model's order."""
        return self._arrays[slot][1:]


def shared_memory(count: int, tensors: Sequence[Tensor]) -> int:
    """File descriptor of memory for ``count`` slots; pages take room only once they are written."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("offline_infer_slots", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, count * sum(-(-tensor.nbytes // _PAGE) * _PAGE for tensor in tensors))
    return handle
