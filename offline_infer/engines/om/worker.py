"""The worker: a process of its own that opens one device and answers what is put into shared memory.

A binding never lets another thread run while the device works, may crash, hang, and loses device memory on an error:
in a process of its own none of this reaches the program. Messages are JSON, one per datagram; what a binding prints goes
to the worker's standard output, which the parent reads when something fails.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from offline_infer.engines.compiled import Tensor
from offline_infer.engines.om.bindings import Binding, BindingFailed, LoadedModel, Port, open_binding
from offline_infer.engines.om.slots import Slots

LARGEST_MESSAGE = 1 << 16
_PR_SET_PDEATHSIG = 1


@dataclass
class _Opened:
    """A model with its slots."""

    model: LoadedModel
    slots: Slots
    outputs: tuple[Tensor, ...]


def main(handle: int, parent: int) -> None:
    """Serve until the parent says so, or is gone.

    Args:
        handle: file descriptor of this end of the channel.
        parent: process id of the parent.
    """
    _die_with(parent)
    channel = socket.socket(fileno=handle)
    worker = _Worker()
    while True:
        data, handles, _, _ = socket.recv_fds(channel, LARGEST_MESSAGE, 1)
        if not data:
            break
        message = json.loads(data)
        if message["do"] == "end":
            break
        try:
            reply = {"ok": True, **worker.serve(message, handles)}
        except BindingFailed as error:
            reply = {"ok": False, "error": str(error)[: LARGEST_MESSAGE // 4]}
            _flush()
        except Exception as error:
            reply = {"ok": False, "error": f"{type(error).__name__}: {error}"[: LARGEST_MESSAGE // 4]}
            _flush()
        channel.send(json.dumps(reply).encode())
    worker.close()
    _flush()
    os._exit(0)  # the models are off the device; taking the interpreter down would only keep the parent waiting


class _Worker:
    """What the messages ask for."""

    def __init__(self) -> None:
        self._binding: Binding | None = None
        self._models: dict[int, _Opened] = {}

    def serve(self, message: dict[str, Any], handles: list[int]) -> dict[str, Any]:
        """Do what one message asks for; what is returned goes into the reply."""
        what = message["do"]
        if what == "start":
            return self._start(message["binding"], message["device"])
        if what == "open":
            return self._open(message, handles[0])
        if what == "run":
            return self._run(self._models[message["model"]], message["slot"])
        if what == "close":
            self._models.pop(message["model"]).model.close()
            return {}
        raise ValueError(f"unknown message {what!r}")

    def close(self) -> None:
        """Take the models off the device and let it go."""
        with suppress(Exception):  # the process ends in any case, and the driver frees what is left
            for opened in self._models.values():
                opened.model.close()
            if self._binding is not None:
                self._binding.close()

    def _start(self, name: str, device: int) -> dict[str, Any]:
        self._binding = open_binding(name, device)
        return {
            "binding": self._binding.name,
            "generation": self._binding.generation,
            "version": self._binding.version,
            "chip": self._binding.chip(),
        }

    def _open(self, message: dict[str, Any], handle: int) -> dict[str, Any]:
        assert self._binding is not None
        tensors = [Tensor.from_json(record) for record in message["tensors"]]
        try:
            slots = Slots(handle, message["slots"], tensors)
        finally:
            os.close(handle)
        model = self._binding.load(message["path"])
        _compare("input", model.inputs, tensors[:1])
        _compare("output", model.outputs, tensors[1:])
        self._models[message["model"]] = _Opened(model, slots, tuple(tensors[1:]))
        return {}

    def _run(self, opened: _Opened, slot: int) -> dict[str, Any]:
        answers = opened.model.run(opened.slots.input(slot))
        if len(answers) != len(opened.outputs):
            raise BindingFailed(f"the model gave {len(answers)} outputs, expected {len(opened.outputs)}")
        for answer, tensor, place in zip(answers, opened.outputs, opened.slots.outputs(slot), strict=True):
            if answer.dtype != np.dtype(tensor.dtype) or answer.nbytes != tensor.nbytes:
                raise BindingFailed(
                    f"output {tensor.name} came as {answer.dtype} of {answer.nbytes} bytes, "
                    f"expected {tensor.dtype} of {tensor.nbytes} bytes"
                )
            if not _same_layout(answer.shape, tensor.shape):
                raise BindingFailed(
                    f"output {tensor.name} came in the shape {answer.shape}, expected {tensor.shape}; was the OM "
                    "compiled from another graph?"
                )
            np.copyto(place, answer.reshape(tensor.shape))
        return {}


def _same_layout(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether the numbers lie in the expected order: axes of size 1 do not matter, and a flat array has no order of its own."""
    return len(shape) == 1 or [size for size in shape if size != 1] == [size for size in expected if size != 1]


def _compare(kind: str, ports: Sequence[Port], tensors: Sequence[Tensor]) -> None:
    """Refuse a model that is not what the bundle says: the bindings look at the size of an input, never at its type."""
    if len(ports) != len(tensors):
        raise BindingFailed(f"the OM has {len(ports)} {kind}s, the bundle says {len(tensors)}; compile again")
    for port, tensor in zip(ports, tensors, strict=True):
        if port.nbytes != tensor.nbytes or (port.dtype is not None and port.dtype != tensor.dtype):
            raise BindingFailed(
                f"the OM's {kind} {port.name} is {port.dtype or 'of unknown type'}, {port.nbytes} bytes; the bundle says "
                f"{tensor.dtype}, {tensor.nbytes} bytes; compile again"
            )


def _die_with(parent: int) -> None:
    """Have the kernel end this process with its parent, however that ends; a stuck binding cannot prevent it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it was quicker
        os._exit(1)


def _flush() -> None:
    """Have the binding's own words written, before the parent reads them."""
    sys.stdout.flush()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
