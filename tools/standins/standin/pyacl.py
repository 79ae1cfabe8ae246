"""STAND-IN for pyACL: the calls a program needs to load a model, run it and go.

Pointers are numbers without meaning here, so a program that computes with them fails. A call that the run time would
refuse returns its code. Loading, running and unloading need the context they were begun in, in the same thread.
"""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from standin.om import Om, OmError, tensor_bytes
from standin.runtime import Device

OK, INVALID, NO_CONTEXT, NOT_INITIALISED, NO_MEMORY = 0, 100000, 107002, 100001, 207001
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "uint8": 4, "int64": 9}

_numbers = itertools.count(1000)
_state: dict[str, Any] = {"ready": False, "device": None}
_contexts: dict[int, int] = {}
_current = threading.local()
_device: dict[int, bytearray] = {}
_host: dict[int, Any] = {}
_models: dict[int, Om] = {}
_descriptions: dict[int, Om] = {}
_datasets: dict[int, list[int]] = {}
_buffers: dict[int, tuple[int, int]] = {}


def init(config: str | None = None) -> int:
    _state["ready"] = True
    return OK


def finalize() -> int:
    _state["ready"] = False
    return OK


def get_soc_name() -> str:
    return os.environ.get("OFFLINE_INFER_STANDIN_SOC", "Ascend310P3")


def create_data_buffer(pointer: int, size: int) -> int:
    number = next(_numbers)
    _buffers[number] = (pointer, size)
    return number


def destroy_data_buffer(buffer: int) -> int:
    return OK if _buffers.pop(buffer, None) else INVALID


# ---- acl.rt ----------------------------------------------------------------------------------------------------------


def _set_device(device: int) -> int:
    if not _state["ready"]:
        return NOT_INITIALISED
    if not 0 <= device < int(os.environ.get("OFFLINE_INFER_STANDIN_DEVICES", "4")):
        return 507033
    try:
        _state["device"] = _state["device"] or Device(device, "acl")
    except OmError as error:
        print(f"[ERROR] {error}", flush=True)
        return error.code
    return OK


def _create_context(device: int) -> tuple[int, int]:
    number = next(_numbers)
    _contexts[number] = device
    _current.context = number
    return number, OK


def _set_context(context: int) -> int:
    if context not in _contexts:
        return INVALID
    _current.context = context
    return OK


def _has_context() -> bool:
    return getattr(_current, "context", None) in _contexts


def _malloc(size: int, policy: int) -> tuple[int, int]:
    if not _has_context():
        return 0, NO_CONTEXT
    number = next(_numbers)
    _device[number] = bytearray(size)
    return number, OK


def _malloc_host(size: int) -> tuple[int, int]:
    number = next(_numbers)
    _host[number] = bytearray(size)
    return number, OK


def _memcpy(target: int, room: int, source: int, size: int, kind: int) -> int:
    if not _has_context():
        return NO_CONTEXT
    into, outof = (_device, _host) if kind == HOST_TO_DEVICE else (_host, _device)
    if kind not in (HOST_TO_DEVICE, DEVICE_TO_HOST) or target not in into or source not in outof:
        return INVALID
    data = memoryview(outof[source]).cast("B")
    if size > room or size > len(into[target]) or size > len(data):
        return INVALID
    into[target][:size] = data[:size]
    return OK


def _drop(table: dict[int, Any], number: int) -> int:
    return OK if table.pop(number, None) is not None else INVALID


# ---- acl.mdl ---------------------------------------------------------------------------------------------------------


def _load_from_file(path: str) -> tuple[int, int]:
    if not _has_context():
        return 0, NO_CONTEXT
    try:
        model = _state["device"].load(Path(path))
    except OmError as error:
        print(f"[ERROR] {error}", flush=True)
        return 0, error.code
    number = next(_numbers)
    _models[number] = model
    return number, OK


def _create_desc() -> int:
    return next(_numbers)


def _get_desc(description: int, model: int) -> int:
    if model not in _models:
        return INVALID
    _descriptions[description] = _models[model]
    return OK


def _create_dataset() -> int:
    number = next(_numbers)
    _datasets[number] = []
    return number


def _add_dataset_buffer(dataset: int, buffer: int) -> tuple[int, int]:
    if dataset not in _datasets or buffer not in _buffers:
        return 0, INVALID
    _datasets[dataset].append(buffer)
    return dataset, OK


def _execute(model: int, inputs: int, outputs: int) -> int:
    if not _has_context():
        return NO_CONTEXT
    loaded = _models[model]
    wanted = loaded.meta["inputs"]
    given = [_buffers[buffer] for buffer in _datasets[inputs]]
    taken = [_buffers[buffer] for buffer in _datasets[outputs]]
    if len(given) != len(wanted) or any(size != tensor_bytes(e) for (_, size), e in zip(given, wanted, strict=True)):
        return INVALID
    try:
        data = [bytes(_device[pointer][:size]) for pointer, size in given]
        answers = _state["device"].run(loaded, data, saturates=False)
    except OmError as error:
        print(f"[ERROR] {error}", flush=True)
        return error.code
    for (pointer, size), answer in zip(taken, answers, strict=True):
        _device[pointer][: min(size, len(answer))] = answer[:size]
    return OK


def _current_dims(description: int, index: int) -> tuple[dict[str, Any], int]:
    entry = _descriptions[description].meta["outputs"][index]
    return {"name": entry["name"], "dimCount": len(entry["shape"]), "dims": list(entry["shape"])}, OK


def _input_dims(description: int, index: int) -> tuple[dict[str, Any], int]:
    entry = _descriptions[description].meta["inputs"][index]
    return {"name": entry["name"], "dimCount": len(entry["shape"]), "dims": list(entry["shape"])}, OK


def _entries(description: int, kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = _descriptions[description].meta[kind]
    return entries


# ---- acl.util --------------------------------------------------------------------------------------------------------


def _bytes_to_ptr(data: bytes) -> int:
    number = next(_numbers)
    _host[number] = data
    return number


def _numpy_to_ptr(array: np.ndarray) -> int:
    return _bytes_to_ptr(array.tobytes())


rt = SimpleNamespace(
    set_device=_set_device,
    reset_device=lambda device: OK,
    create_context=_create_context,
    set_context=_set_context,
    destroy_context=lambda context: _drop(_contexts, context),
    get_device_count=lambda: (int(os.environ.get("OFFLINE_INFER_STANDIN_DEVICES", "4")), OK),
    malloc=_malloc,
    free=lambda pointer: _drop(_device, pointer),
    malloc_host=_malloc_host,
    free_host=lambda pointer: _drop(_host, pointer),
    memcpy=_memcpy,
)
mdl = SimpleNamespace(
    load_from_file=_load_from_file,
    unload=lambda model: _drop(_models, model),
    create_desc=_create_desc,
    get_desc=_get_desc,
    destroy_desc=lambda description: _drop(_descriptions, description),
    get_num_inputs=lambda description: len(_entries(description, "inputs")),
    get_num_outputs=lambda description: len(_entries(description, "outputs")),
    get_input_size_by_index=lambda description, index: tensor_bytes(_entries(description, "inputs")[index]),
    get_output_size_by_index=lambda description, index: tensor_bytes(_entries(description, "outputs")[index]),
    get_input_dims=_input_dims,
    get_cur_output_dims=_current_dims,
    get_input_data_type=lambda description, index: TYPES[_entries(description, "inputs")[index]["dtype"]],
    get_output_data_type=lambda description, index: TYPES[_entries(description, "outputs")[index]["dtype"]],
    create_dataset=_create_dataset,
    destroy_dataset=lambda dataset: OK if _datasets.pop(dataset, None) is not None else INVALID,
    add_dataset_buffer=_add_dataset_buffer,
    execute=_execute,
)
util = SimpleNamespace(
    bytes_to_ptr=_bytes_to_ptr,
    numpy_to_ptr=_numpy_to_ptr,
    ptr_to_bytes=lambda pointer, size: bytes(memoryview(_host[pointer]).cast("B")[:size]),
)
