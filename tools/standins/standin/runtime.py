"""What the bindings share: a device, its memory, and a model on it, failing on request.

The bindings never release the interpreter's lock. A network run here ends with a pause that holds it too, so that a
program that calls a binding beside other threads is seen to stall. ONNX Runtime itself releases the lock: without
``OFFLINE_INFER_STANDIN_SECONDS`` the stand-in is kinder than the real thing.
"""

from __future__ import annotations

import ctypes
import subprocess
import time
from pathlib import Path

import numpy as np

from standin.faults import Fault, before_call, fault, faults_for, spoiled
from standin.om import Om, OmError, left_of_run, load

_DEVICE_BUSY, _DEVICE_MEMORY, _RUN_FAILED = 507033, 207001, 507011


class Device:
    """One device as one process sees it; memory that a failed call did not give back stays taken until it ends."""

    def __init__(self, number: int, tool: str) -> None:
        self.number = number
        self.faults: list[Fault] = faults_for(tool, number)
        self.calls = 0
        self._leaked = False
        if fault(self.faults, "busy"):
            raise OmError(_DEVICE_BUSY, f"open device {number} failed, the device is busy")
        if fault(self.faults, "helper"):
            subprocess.Popen(["sleep", "3600"])

    def load(self, path: Path) -> Om:
        """Put a model onto the device."""
        if self._leaked:
            raise OmError(_DEVICE_MEMORY, "malloc device memory failed")
        return load(path, self.number)

    def run(self, model: Om, data: list[bytes], *, saturates: bool) -> list[bytes]:
        """The outputs of one run.

        Args:
            saturates: what becomes of float16 overflow: the largest finite number, or infinity.
        """
        call, self.calls = self.calls, self.calls + 1
        if self._leaked:
            raise OmError(_DEVICE_MEMORY, "malloc device memory failed")
        before_call(self.faults, call)
        failing = fault(self.faults, "fail-call")
        if failing and call == failing.count:
            self._leaked = True
            raise OmError(_RUN_FAILED, "execute model failed, aicore exception")
        begun = time.perf_counter()
        answers, _ = model.run_all(data)
        hold_the_lock(left_of_run(begun))
        dtypes = [output["dtype"] for output in model.meta["outputs"]]
        return [
            spoiled(self.faults, call, answer, dtype, saturates=saturates)
            for answer, dtype in zip(answers, dtypes, strict=True)
        ]


def hold_the_lock(seconds: float) -> None:
    """Wait without letting any other thread of this interpreter run, as a binding does while the device works."""
    if seconds:
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def bytes_at(array: np.ndarray, size: int) -> bytes:
    """The bytes a binding finds at an array's address: in memory order, whatever the array's strides say."""
    low = array.ctypes.data
    for count, stride in zip(array.shape, array.strides, strict=True):
        low += min(0, stride * (count - 1))
    return ctypes.string_at(low, size)
