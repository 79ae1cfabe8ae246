"""The two ways to run an OM from Python, behind one face. Only a worker process imports a binding.

``ais_bench`` comes in two generations with one signature for what is used here. Both hold the interpreter's lock while
the device works and check the size of an input in bytes, never its type; the older one works only in the thread that
opened the model and reads an array by its address. ``acl`` (pyACL) is the layer below: models, buffers and copies by
hand, every call with a return code.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

BINDINGS = ("ais_bench", "acl")
"""In order of preference."""
_MODULES = {"ais_bench": "ais_bench.infer.interface", "acl": "acl"}
_ACL_TYPES = {
    0: "float32",
    1: "float16",
    2: "int8",
    3: "int32",
    4: "uint8",
    6: "int16",
    7: "uint16",
    8: "uint32",
    9: "int64",
    10: "uint64",
    11: "float64",
    12: "bool",
}
_HUGE_PAGES_FIRST, _HOST_TO_DEVICE, _DEVICE_TO_HOST = 0, 1, 2


class BindingFailed(Exception):
    """A binding reported an error; the text is the binding's own, with its code where it gave one."""


@dataclass(frozen=True)
class Port:
    """An input or output as the model itself describes it; ``dtype`` is None where the binding does not tell."""

    name: str
    dtype: str | None
    nbytes: int


class LoadedModel(Protocol):
    """A model on a device."""

    @property
    def inputs(self) -> Sequence[Port]: ...

    @property
    def outputs(self) -> Sequence[Port]: ...

    def run(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """The outputs, in the model's order, for one C-contiguous input.

        Raises:
            BindingFailed: the binding or the device reported an error.
        """
        ...

    def close(self) -> None:
        """Take the model off the device."""
        ...


class Binding(Protocol):
    """An opened binding; everything is called from the thread that made it."""

    name: str
    generation: str
    version: str

    def chip(self) -> str | None:
        """The chip of the device, e.g. ``Ascend310P3``; None where it cannot be asked."""
        ...

    def load(self, path: str) -> LoadedModel:
        """Put a model onto the device.

        Raises:
            BindingFailed: it cannot be loaded.
        """
        ...

    def close(self) -> None:
        """Let go of the device."""
        ...


def installed() -> tuple[str, ...]:
    """The bindings that are installed, in order of preference; nothing of theirs is run."""
    return tuple(name for name in BINDINGS if _is_installed(name))


def open_binding(name: str, device: int) -> Binding:
    """The binding of that name on a device.

    Raises:
        BindingFailed: it cannot be imported, or the device cannot be opened.
    """
    try:
        module = importlib.import_module(_MODULES[name])
    except Exception as error:  # a native half that does not fit this Python may raise anything
        raise BindingFailed(f"{name} cannot be imported: {error}") from error
    return AisBench(module, device) if name == "ais_bench" else Acl(module, device)


class AisBench:
    """``ais_bench.infer.interface.InferSession``."""

    name = "ais_bench"

    def __init__(self, module: Any, device: int) -> None:
        self._class = module.InferSession
        self._device = device
        parameters = inspect.signature(self._class.infer).parameters
        self.generation = "v2024" if "out_array" in parameters else "v2023"
        self.version = _version("ais_bench")

    def chip(self) -> str | None:
        """Asked of ``acl``, which comes with the toolkit and may be installed beside."""
        with suppress(Exception):  # only a help; npu-smi is asked otherwise
            return _soc_name(importlib.import_module("acl"))
        return None

    def load(self, path: str) -> LoadedModel:
        try:
            return AisBenchModel(self._class(self._device, path))
        except Exception as error:  # its exceptions share no base class
            raise BindingFailed(_text(error)) from error

    def close(self) -> None:
        """Nothing: the older generation's ``finalize`` belongs to a model, and the process ends anyway."""


class AisBenchModel:
    """One InferSession."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = [_described(port) for port in session.get_inputs()]
        self.outputs = [_described(port) for port in session.get_outputs()]

    def run(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        try:
            # A mode the older generation does not know would run static without a word.
            return [np.asarray(output) for output in self._session.infer([array], mode="static")]
        except Exception as error:  # its exceptions share no base class
            raise BindingFailed(_text(error)) from error

    def close(self) -> None:
        if hasattr(self._session, "free_resource"):
            self._session.free_resource()
        self._session = None


class Acl:
    """pyACL: one context, made here and used for everything."""

    name = "acl"
    generation = ""

    def __init__(self, module: Any, device: int) -> None:
        self._acl = module
        self._device = device
        self.version = _version("acl")
        _check(module.init(), "acl.init")
        _check(module.rt.set_device(device), "acl.rt.set_device")
        self._context = _value(module.rt.create_context(device), "acl.rt.create_context")

    def chip(self) -> str | None:
        return _soc_name(self._acl)

    def load(self, path: str) -> LoadedModel:
        return AclModel(self._acl, path)

    def close(self) -> None:
        self._acl.rt.destroy_context(self._context)
        self._acl.rt.reset_device(self._device)
        self._acl.finalize()


class AclModel:
    """A model with one buffer on the device for each of its inputs and outputs."""

    def __init__(self, acl: Any, path: str) -> None:
        self._acl = acl
        self._model = _value(acl.mdl.load_from_file(path), "acl.mdl.load_from_file")
        self._description = _value(acl.mdl.create_desc(), "acl.mdl.create_desc")
        _check(acl.mdl.get_desc(self._description, self._model), "acl.mdl.get_desc")
        self.inputs = self._ports("input")
        self.outputs = self._ports("output")
        self._input_set, self._input_buffers = self._dataset(self.inputs)
        self._output_set, self._output_buffers = self._dataset(self.outputs)
        self._landings = [self._landing(port) for port in self.outputs]

    def run(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        acl = self._acl
        source, _held = _host_pointer(acl, array)
        pointer, _ = self._input_buffers[0]
        _check(acl.rt.memcpy(pointer, array.nbytes, source, array.nbytes, _HOST_TO_DEVICE), "acl.rt.memcpy")
        _check(acl.mdl.execute(self._model, self._input_set, self._output_set), "acl.mdl.execute")
        return [self._fetch(index, port) for index, port in enumerate(self.outputs)]

    def close(self) -> None:
        acl = self._acl
        for dataset, buffers in (
            (self._input_set, self._input_buffers),
            (self._output_set, self._output_buffers),
        ):
            acl.mdl.destroy_dataset(dataset)
            for pointer, buffer in buffers:
                acl.destroy_data_buffer(buffer)
                acl.rt.free(pointer)
        for landing, held in self._landings:
            if held is None:
                acl.rt.free_host(landing)
        acl.mdl.unload(self._model)
        acl.mdl.destroy_desc(self._description)

    def _ports(self, kind: str) -> list[Port]:
        models = self._acl.mdl
        count = _value(getattr(models, f"get_num_{kind}s")(self._description), f"acl.mdl.get_num_{kind}s")
        return [Port(f"{kind} {index}", self._dtype(kind, index), self._size(kind, index)) for index in range(count)]

    def _size(self, kind: str, index: int) -> int:
        ask = getattr(self._acl.mdl, f"get_{kind}_size_by_index")
        return int(_value(ask(self._description, index), f"acl.mdl.get_{kind}_size_by_index"))

    def _dtype(self, kind: str, index: int) -> str | None:
        ask = getattr(self._acl.mdl, f"get_{kind}_data_type", None)
        if ask is None:
            return None
        return _ACL_TYPES.get(_value(ask(self._description, index), f"acl.mdl.get_{kind}_data_type"))

    def _dataset(self, ports: Sequence[Port]) -> tuple[Any, list[tuple[Any, Any]]]:
        acl = self._acl
        dataset = _value(acl.mdl.create_dataset(), "acl.mdl.create_dataset")
        buffers = []
        for port in ports:
            pointer = _value(acl.rt.malloc(port.nbytes, _HUGE_PAGES_FIRST), "acl.rt.malloc")
            buffer = _value(acl.create_data_buffer(pointer, port.nbytes), "acl.create_data_buffer")
            added = acl.mdl.add_dataset_buffer(dataset, buffer)
            _check(added[-1] if isinstance(added, tuple) else added, "acl.mdl.add_dataset_buffer")
            buffers.append((pointer, buffer))
        return dataset, buffers

    def _landing(self, port: Port) -> tuple[Any, Any]:
        """Memory of the host for one output, kept for all answers, and what must be kept alive with it."""
        acl = self._acl
        if hasattr(acl.rt, "malloc_host"):
            return _value(acl.rt.malloc_host(port.nbytes), "acl.rt.malloc_host"), None
        return _host_pointer(acl, np.zeros(port.nbytes, np.uint8))

    def _fetch(self, index: int, port: Port) -> npt.NDArray[Any]:
        """One output as an array; flat where the model does not say its shape."""
        acl = self._acl
        (pointer, _), (target, _) = self._output_buffers[index], self._landings[index]
        _check(acl.rt.memcpy(target, port.nbytes, pointer, port.nbytes, _DEVICE_TO_HOST), "acl.rt.memcpy")
        data = acl.util.ptr_to_bytes(target, port.nbytes)
        if port.dtype is None:
            raise BindingFailed(f"acl does not tell the type of output {index}")
        array = np.frombuffer(data, port.dtype)
        dims = _value(acl.mdl.get_cur_output_dims(self._description, index), "acl.mdl.get_cur_output_dims")
        shape = dims.get("dims") if isinstance(dims, dict) else None
        return array.reshape(shape) if shape and np.prod(shape) == array.size else array


def _host_pointer(acl: Any, array: npt.NDArray[Any]) -> tuple[Any, Any]:
    """A pointer to an array's bytes, and what must be kept alive as long as it is used."""
    if hasattr(acl.util, "bytes_to_ptr"):
        data = array.tobytes()
        return acl.util.bytes_to_ptr(data), data
    return acl.util.numpy_to_ptr(array), array  # releases before 5.0


def _check(code: Any, call: str) -> None:
    """Refuse any return code but 0."""
    if isinstance(code, tuple):
        code = code[-1]
    if code:
        raise BindingFailed(f"{call} failed, error code {code}")


def _value(returned: Any, call: str) -> Any:
    """The value of a call that returns a value, with a return code behind it in some calls and releases."""
    if isinstance(returned, tuple):
        *values, code = returned
        _check(code, call)
        return values[0] if len(values) == 1 else tuple(values)
    return returned


def _soc_name(acl: Any) -> str | None:
    name = _value(acl.get_soc_name(), "acl.get_soc_name")
    return str(name) if name else None


def _described(port: Any) -> Port:
    text = str(getattr(port.datatype, "name", port.datatype)).lower()
    match = re.search(r"bfloat16|float(?:16|32|64)|u?int(?:8|16|32|64)|bool", text)
    short = {"float": "float32", "half": "float16", "fp16": "float16", "fp32": "float32"}
    dtype = match[0] if match else short.get(text.rpartition(".")[2])
    if dtype is None and text.isdigit():
        dtype = _ACL_TYPES.get(int(text))
    return Port(str(port.name), dtype, int(port.realsize or port.size))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _text(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
