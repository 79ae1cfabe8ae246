"""STAND-IN for ``ais_bench.infer.interface``: InferSession of both generations.

``OFFLINE_INFER_STANDIN_GENERATION`` chooses v2023 or v2024 (default). What differs: v2023 works only in the thread that
constructed it, runs static whatever mode it is given, reads arrays by their address and lets float16 overflow to
infinity; v2024 sets its context on every call, knows its modes, makes arrays contiguous and saturates. Neither looks at
the dtype of an input, frees device memory after an error, or lets another thread run meanwhile.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from standin import BANNER
from standin.faults import fault
from standin.om import Om, OmError, tensor_bytes
from standin.runtime import Device, bytes_at

MODES = ("static", "dymbatch", "dymhw", "dymdims", "dymshape")
_devices: dict[int, Device] = {}


@dataclass(frozen=True)
class TensorDesc:
    """An input or output as the session describes it."""

    name: str
    datatype: Any
    format: int
    shape: list[int]
    size: int
    realsize: int


class _Session:
    """What both generations do."""

    saturates = False

    def __init__(self, device_id: int, model_path: str, acl_json_path: Any = None, debug: bool = False, loop: int = 1):
        self.device_id, self.model_path, self.loop = device_id, model_path, loop
        self._thread = threading.get_ident()
        self._times: list[tuple[float, float]] = []
        try:
            if device_id not in _devices:
                _devices[device_id] = Device(device_id, "session")
            self._device = _devices[device_id]
            self._model: Om | None = self._device.load(Path(model_path))
        except OmError as error:
            raise _failed("load model", error) from None
        print(f"[INFO] load model {model_path} success {BANNER}", flush=True)

    def get_inputs(self) -> list[TensorDesc]:
        return [_describe(entry) for entry in self._loaded().meta["inputs"]]

    def get_outputs(self) -> list[TensorDesc]:
        return [_describe(entry) for entry in self._loaded().meta["outputs"]]

    def _loaded(self) -> Om:
        if self._model is None:
            raise RuntimeError("[1][ACL:invalid parameter]")
        return self._model

    def _infer(self, feeds: Any) -> list[np.ndarray]:
        model = self._loaded()
        given = [self._bytes(feed) for feed in feeds]
        wanted = [tensor_bytes(entry) for entry in model.meta["inputs"]]
        if len(given) < len(wanted):
            print(f"[WARN] {len(given)} inputs were given, the model has {len(wanted)}", flush=True)
            given += [bytes(size) for size in wanted[len(given) :]]
        for position, (data, size) in enumerate(zip(given, wanted, strict=False)):
            if len(data) != size:
                print(f"[ERROR] check i:{position} name:{model.meta['inputs'][position]['name']} in size:{len(data)} "
                      f"needsize:{size} not match", flush=True)  # fmt: skip
                raise RuntimeError("[1][ACL:invalid parameter]")
        begun = time.perf_counter()
        try:
            answers = self._device.run(model, given[: len(wanted)], saturates=self.saturates)
        except OmError as error:
            raise _failed("execute model", error) from None
        self._times.append((begun, time.perf_counter()))
        return self._arrays(model, answers)

    def _arrays(self, model: Om, answers: list[bytes]) -> list[np.ndarray]:
        faults = self._device.faults
        found = []
        for entry, answer in zip(model.meta["outputs"], answers, strict=True):
            array = np.frombuffer(answer, entry["dtype"]).copy()
            found.append(array if fault(faults, "flat") else array.reshape(entry["shape"]))
        if fault(faults, "channels-last"):
            found = [np.ascontiguousarray(np.moveaxis(array, 1, -1)) for array in found]
        if fault(faults, "short"):
            found[-1] = found[-1].reshape(-1)[: found[-1].size // 2]
        return found[:-1] if fault(faults, "fewer") else found

    def _bytes(self, feed: Any) -> bytes:
        raise NotImplementedError


class Session2023(_Session):
    """Ascend/tools, 2023."""

    def infer(self, feeds: Any, mode: str = "static", custom_sizes: int = 100000) -> list[np.ndarray]:
        if threading.get_ident() != self._thread:
            print("[ERROR] context is null in this thread, errorCode is 107002", flush=True)
            raise RuntimeError("[1][ACL:context null]")
        return self._infer(feeds)  # a mode it does not know runs static

    def run(self, feeds: Any, out_array: bool = False) -> list[np.ndarray]:
        return self.infer(feeds)

    def sumary(self) -> Any:
        return SimpleNamespace(exec_time_list=[1000 * (end - begin) for begin, end in self._times])

    def reset_sumaryinfo(self) -> None:
        self._times.clear()

    def finalize(self) -> None:
        self._model = None
        _devices.clear()  # ends ACL for the whole process

    def _bytes(self, feed: Any) -> bytes:
        return bytes_at(feed, feed.nbytes)


class Session2024(_Session):
    """Ascend/msit, 2024."""

    saturates = True

    def infer(
        self, feeds: Any, mode: str = "static", custom_sizes: Any = 100000, out_array: bool = True
    ) -> list[np.ndarray]:
        if mode not in MODES:
            raise RuntimeError(f"wrong infer_mode:{mode}, only support {MODES}")
        return self._infer(feeds)

    def infer_iteration(
        self, feeds: Any, in_out_list: Any = None, iteration_times: int = 1, mode: str = "static",
        custom_sizes: Any = 100000, mem_copy: bool = True,
    ) -> list[np.ndarray]:  # fmt: skip
        return [self.infer(feeds, mode) for _ in range(iteration_times)][-1]

    def free_resource(self) -> None:
        self._model = None

    def summary(self) -> Any:
        return SimpleNamespace(exec_time_list=list(self._times))

    def reset_summaryinfo(self) -> None:
        self._times.clear()

    @staticmethod
    def finalize() -> None:
        _devices.clear()

    def _bytes(self, feed: Any) -> bytes:
        return np.ascontiguousarray(feed).tobytes()


def _describe(entry: dict[str, Any]) -> TensorDesc:
    size = tensor_bytes(entry)
    datatype = SimpleNamespace(name=entry["dtype"])
    return TensorDesc(entry["name"], datatype, 2, list(entry["shape"]), size, size)


def _failed(what: str, error: OmError) -> RuntimeError:
    """The code stands on standard output; the exception says little."""
    print(f"[ERROR] {what} failed: {error}", flush=True)
    return RuntimeError("[1][ACL:invalid parameter]" if error.code != 507011 else "[1][ACL:internal error]")


InferSession = {"v2023": Session2023, "v2024": Session2024}[os.environ.get("OFFLINE_INFER_STANDIN_GENERATION", "v2024")]
