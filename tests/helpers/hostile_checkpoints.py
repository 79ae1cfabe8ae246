"""Checkpoints made to hang, to fill the memory or to run a command: each of a few bytes, each refused by name.

``ATTACKS`` maps a name to a function that turns a good model folder (of nnU-Net v1 with two folds, or v2) into a bad
one. Nothing here harms whoever reads the files with this package; do not open them with anything else.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VICTIM = "offline_infer_victim"
"""File that every payload would make in the working folder."""
COMMAND = f"touch {VICTIM}"

Attack = Callable[[Path], None]


# ---- pickles --------------------------------------------------------------------------------------------------------


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def long_integer(value: int) -> bytes:
    """LONG1 or LONG4."""
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data if len(data) < 256 else b"\x8b" + struct.pack("<i", len(data)) + data


def doubled(opening: bytes, pair: bytes, times: int) -> bytes:
    """A value, then a pair of it and itself, and so on: 2**times values for whoever walks the tree."""
    return opening + b"q\x000" + (b"h\x00h\x00" + pair + b"q\x000") * times + b"h\x00"


HOSTILE_PICKLES: dict[str, bytes] = {
    "tuples that take 2**40 steps to hash": b"\x80\x02}" + doubled(b")", b"\x86", 40) + b"Ns.",
    "lists that take 2**40 steps to print": b"\x80\x02" + doubled(b"]", b"\x86", 40) + b".",
    "integers of one hash": b"\x80\x02}("
    + b"".join(long_integer((k + 1) * (2**61 - 1)) + b"N" for k in range(60_000))
    + b"u.",
    "floats of few hashes": b"\x80\x02}("
    + b"".join(
        b"G" + struct.pack(">d", (k % 30 + 1) * 2.0 ** (61 * (k % 15) - 400) * (1 + k // 450)) + b"N"
        for k in range(60_000)
    )
    + b"u.",
    "a large list a hundred thousand times": b"\x80\x02]("
    + b"K\x01" * 100_000
    + b"eq\x00]q\x01("
    + b"h\x00" * 100_000
    + b"e.",
    "a large list given to a constructor again and again": b"\x80\x02]("
    + b"K\x01" * 100_000
    + b"eq\x000"
    + (name("builtins", "set") + b"h\x00\x85R0") * 100_000
    + b"N.",
    "ten million opcodes": b"\x80\x02" + b"N0" * 5_000_000 + b"N.",
    "ten million elements": b"\x80\x02](" + b"K\x01" * 5_000_000 + b"e.",
    "an integer of ten megabytes": b"\x80\x02" + long_integer(1 << 80_000_000) + b".",
    "an integer of 400 digits": b"I" + b"9" * 400 + b"\n.",
    "an integer of 5000 digits": b"L" + b"9" * 5000 + b"L\n.",
    "a hundred thousand levels": b")" + b"\x85" * 100_000 + b".",
    "a hundred thousand levels, built from outside": b"".join(
        b"]q\x00" if k == 0 else b"](h\x00eq\x00" for k in range(100_000)
    )
    + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "a huge memo index": b"Nr\xff\xff\xff\xff0](" + b"j\xff\xff\xff\x7fe.",
    "an announced length of 2**62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "bytes(2**31)": name("builtins", "bytes") + b"(J\xff\xff\xff\x7ftR.",
}


def array_program(shape: tuple[int, ...], dtype: str) -> bytes:
    """An array without data."""
    kind = name("numpy", "dtype") + b"(" + text(dtype) + b"I00\nI01\ntR"
    kind += (
        b"(K\x03U\x01|NNN" + (b"K\x00K\x01" if dtype[0] == "S" else b"J\xff\xff\xff\xffJ\xff\xff\xff\xff") + b"K\x00tb"
    )
    begin = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85U\x01b\x87R"
    sizes = b"(" + b"".join(long_integer(size) for size in shape) + b"t"
    return b"\x80\x02" + begin + b"(K\x01" + sizes + kind + b"I00\nU\x00tb."


HOSTILE_PICKLES["an array of 2**30 empty rows"] = array_program((2**30, 0), "u1")
HOSTILE_PICKLES["an array of 2**31 elements without width"] = array_program((2**31,), "S0")

PAYLOADS: dict[str, bytes] = {
    "REDUCE": b"\x80\x02" + name("os", "system") + text(COMMAND) + b"\x85R.",
    "REDUCE, posix": b"\x80\x02" + name("posix", "system") + text(COMMAND) + b"\x85R.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text(COMMAND) + b"\x85R.",
    "STACK_GLOBAL, dotted": b"\x80\x04\x8c\x02os\x8c\x0fsystem.__call__\x93" + text(COMMAND) + b"\x85R.",
    "INST": b"(" + text(COMMAND) + b"ios\nsystem\n.",
    "OBJ": b"(" + name("os", "system") + text(COMMAND) + b"o.",
    "NEWOBJ": b"\x80\x02" + name("subprocess", "Popen") + text(COMMAND) + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04" + name("subprocess", "Popen") + text(COMMAND) + b"\x85}\x92.",
    "BUILD": b"\x80\x02" + name("collections", "OrderedDict") + b"}" + text("__reduce__") + text(COMMAND) + b"sb.",
    "BUILD, slots": b"\x80\x02" + name("numpy", "ndarray") + b"N}" + text("name") + text(COMMAND) + b"s\x86b.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"P" + COMMAND.encode() + b"\n.",
    "BINPERSID": text(COMMAND) + b"Q.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05\x97\x98.",
    "eval through builtins": b"\x80\x02"
    + name("builtins", "eval")
    + text(f"__import__('os').system({COMMAND!r})")
    + b"\x85R.",
    "eval, the old spelling": b"\x80\x02" + name("__builtin__", "eval") + text("1") + b"\x85R.",
    "getattr": b"\x80\x02" + name("builtins", "getattr") + name("collections", "OrderedDict") + text("x") + b"\x86R.",
    "a pickle in a pickle": b"\x80\x02" + name("pickle", "loads") + text("cos\nsystem\n(S'true'\ntR.") + b"\x85R.",
    "torch.load": b"\x80\x02" + name("torch", "load") + text("x.pth") + b"\x85R.",
    "torch.hub": b"\x80\x02" + name("torch.hub", "load") + text("x/y") + b"\x85R.",
    "runpy": b"\x80\x02" + name("runpy", "run_path") + text("x.py") + b"\x85R.",
    "an array of objects": pickle.dumps(np.array([print], dtype=object), 2),
    "codecs.open": b"\x80\x02" + name("codecs", "open") + text(VICTIM) + text("w") + b"\x86R.",
    "calling what a constructor gave": b"\x80\x02" + name("collections", "OrderedDict") + b")R)R.",
    "calling a symbol": b"\x80\x02" + name("numpy", "ndarray") + b")R.",
}


def nested(program: bytes) -> bytes:
    """The program's value inside a list inside a dict."""
    body = program[2:] if program[:1] == b"\x80" else program
    return b"\x80\x05}" + text("plans") + b"](" + body[:-1] + b"es."


# ---- files of torch -------------------------------------------------------------------------------------------------


def torch_zip(program: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """A file as ``torch.save`` writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def torch_legacy(program: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """A file as ``torch.save`` wrote it before torch 1.6, around any pickle; storages are of float32."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    parts = [pickle.dumps(value, 2) for value in head] + [program, pickle.dumps(list(storages or {}), 2)]
    parts += [struct.pack("<q", len(data) // 4) + data for data in (storages or {}).values()]
    return b"".join(parts)


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4, key: str = "0") -> bytes:
    """A float32 tensor of a storage of ``count`` elements."""
    reference = (
        b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu") + long_integer(count) + b"tQ"
    )
    sizes = b"".join(b"(" + b"".join(long_integer(n) for n in numbers) + b"t" for numbers in (shape, stride))
    hooks = name("collections", "OrderedDict") + b")R"
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + reference
        + long_integer(offset)
        + sizes
        + b"\x89"
        + hooks
        + b"tR"
    )


def state(*tensors: bytes) -> bytes:
    """A state dict of these tensors, where both generations of nnU-Net look for it."""
    items = b"".join(text(f"w{index}") + made for index, made in enumerate(tensors))
    weights = b"}(" + items + b"uq\x63"
    return b"\x80\x02}(" + text("state_dict") + weights + text("network_weights") + b"h\x63" + b"u."


HOSTILE_TENSORS: dict[str, bytes] = {
    "a terabyte from four numbers": state(tensor((2**20, 2**18), (0, 0))),
    "an empty tensor of absurd shape": state(tensor((2**47, 2**47, 0), (0, 0, 0))),
    "a stride that leaves the storage": state(tensor((2, 2), (2**40, 1))),
    "an offset behind the storage": state(tensor((1,), (1,), offset=4)),
    "a negative size": state(tensor((-1,), (1,))),
    "a negative stride": state(tensor((2,), (-1,))),
    "a storage of 2**60 elements": state(tensor((1,), (1,), count=2**60)),
    "a million-fold storage": state(*(tensor((250_000 - k,), (1,), count=250_000) for k in range(3000))),
    "a storage without data": state(tensor((1,), (1,), key="absent")),
}


# ---- zip archives ---------------------------------------------------------------------------------------------------


def many_members(count: int) -> bytes:
    """An archive of empty members, made directly: Python's own writer is slow."""
    local = b"PK\x03\x04" + struct.pack("<5H3I2H", 20, 0, 0, 0, 33, 0, 0, 0, 1, 0) + b"a"
    entry = b"PK\x01\x02" + struct.pack("<6H3I5H2I", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    size = len(entry) * count
    total = min(count, 0xFFFF)
    return local + entry * count + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, total, total, size, len(local), 0)


def with_version(data: bytes, version: int) -> bytes:
    """The archive with every directory entry asking for that version of the format."""
    changed = bytearray(data)
    position = -1
    while (position := data.find(b"PK\x01\x02", position + 1)) >= 0:
        changed[position + 6 : position + 8] = struct.pack("<H", version)
    return bytes(changed)


def overlapping(count: int, size: int) -> bytes:
    """Members that share one compressed kernel of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/plans.json", bytes(size))
    data = buffer.getvalue()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[start:end]
    entries = b"".join(entry.replace(b"m/plans.json", f"m/p{k:04}.json\x00"[:12].encode()) for k in range(count))
    tail = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, count, count, len(entries), start, 0)
    return data[:start] + entries + tail


# ---- model folders --------------------------------------------------------------------------------------------------


def _edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _plans(**changes: Any) -> Attack:
    """Plans of nnU-Net v2 with other values in the configuration."""
    return lambda folder: _edit_json(
        folder / "plans.json", lambda plans: plans["configurations"]["3d_fullres"].update(changes)
    )


def _architecture(**changes: Any) -> Attack:
    return lambda folder: _edit_json(
        folder / "plans.json",
        lambda plans: plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(changes),
    )


def _write(place: str, data: bytes | str) -> Attack:
    content = data.encode() if isinstance(data, str) else data
    return lambda folder: (folder / place).write_bytes(content) and None


def _pipe(place: str) -> Attack:
    def attack(folder: Path) -> None:
        (folder / place).unlink(missing_ok=True)
        os.mkfifo(folder / place)

    return attack


def _link(place: str, target: str) -> Attack:
    def attack(folder: Path) -> None:
        (folder / place).unlink(missing_ok=True)
        (folder / place).symlink_to(target)

    return attack


WEIGHTS_1, INFO_1, WEIGHTS_2 = (
    "fold_0/model_final_checkpoint.model",
    "fold_0/model_final_checkpoint.model.pkl",
    "fold_0/checkpoint_final.pth",
)

ATTACKS_V1: dict[str, Attack] = {
    **{f"{INFO_1}: {what}": _write(INFO_1, data) for what, data in HOSTILE_PICKLES.items()},
    **{
        f"legacy weights: {what}": _write(WEIGHTS_1, torch_legacy(data, {"0": bytes(16)}))
        for what, data in HOSTILE_TENSORS.items()
    },
    **{f"{place} is a pipe": _pipe(place) for place in (WEIGHTS_1, INFO_1)},
    **{f"{place} is a link to itself": _link(place, Path(place).name) for place in (WEIGHTS_1, INFO_1)},
    f"{INFO_1} is a link to /dev/zero": _link(INFO_1, "/dev/zero"),
    "min_valid_object_sizes is a long expression": _write(
        "postprocessing.json", json.dumps({"for_which_classes": [1], "min_valid_object_sizes": "-" * 1_000_000 + "1"})
    ),
    "a label of 400 digits": _write("postprocessing.json", '{"for_which_classes": [' + "9" * 400 + "]}"),
}

ATTACKS_V2: dict[str, Attack] = {
    **{
        f"weights: {what}": _write(WEIGHTS_2, torch_zip(HOSTILE_PICKLES[what]))
        for what in ("tuples that take 2**40 steps to hash", "integers of one hash")
    },
    **{
        f"weights: {what}": _write(WEIGHTS_2, torch_zip(data, {"0": bytes(16)}))
        for what, data in HOSTILE_TENSORS.items()
    },
    "a million empty members": _write(WEIGHTS_2, many_members(1_000_000)),
    "format version 25.5": lambda folder: (
        (folder / WEIGHTS_2).write_bytes(with_version((folder / WEIGHTS_2).read_bytes(), 255)) and None
    ),
    **{f"{place} is a pipe": _pipe(place) for place in (WEIGHTS_2, "plans.json", "dataset.json")},
    **{
        f"{place} is a link to itself": _link(place, Path(place).name)
        for place in (WEIGHTS_2, "plans.json", "dataset.json")
    },
    **{f"{place} is a link to /dev/zero": _link(place, "/dev/zero") for place in ("plans.json", WEIGHTS_2)},
    "an integer of 400 digits": _write("plans.json", '{"transpose_forward": [' + "9" * 400 + "]}"),
    "an integer of 5000 digits": _write("plans.json", '{"transpose_forward": [' + "9" * 5000 + "]}"),
    "a hundred thousand levels of JSON": _write("plans.json", "[" * 100_000),
    "64 MB of JSON": _write("plans.json", '{"a": [' + "[]," * 21_000_000 + "[]]}"),
    "a patch of a million by a million": _plans(patch_size=[10**6, 10**6], spacing=[1, 1]),
    "a patch of 400 digits": _plans(patch_size=[10**400, 8, 8]),
    "a patch of 10**30": _plans(patch_size=[10**30, 8, 8]),
    "a patch of 1e300": _plans(patch_size=[1e300, 8, 8]),
    "a spacing of 1e-320": _plans(spacing=[1e-320, 1, 1]),
    "a spacing of NaN": _plans(spacing=[float("nan"), 1, 1]),
    "a billion convolutions": _architecture(n_conv_per_stage=[10**9, 2, 2]),
    "a billion features": _architecture(features_per_stage=[4, 8, 10**9]),
    "16384 features": _architecture(features_per_stage=[16384, 16384, 16384]),
    "kernels of ten thousand": _architecture(kernel_sizes=[[10_000, 10_000, 10_000]] * 3),
    "a million stages": _architecture(n_stages=10**6, features_per_stage=[4] * 10**6),
    "a circle of configurations": lambda folder: _edit_json(
        folder / "plans.json",
        lambda plans: plans["configurations"].update(
            {"3d_fullres": {"inherits_from": "x"}, "x": {"inherits_from": "3d_fullres"}}
        ),
    ),
    "a label of 10**18": lambda folder: _edit_json(
        folder / "dataset.json", lambda dataset: dataset["labels"].update(tumour=10**18)
    ),
    "a file ending that leaves the folder": lambda folder: _edit_json(
        folder / "dataset.json", lambda dataset: dataset.update(file_ending="/../../x.nii.gz")
    ),
    "a network class of another package": lambda folder: _edit_json(
        folder / "plans.json",
        lambda plans: plans["configurations"]["3d_fullres"]["architecture"].update(network_class_name="os.system"),
    ),
    "a layer that is no layer": _architecture(conv_op="torch.nn.functional.os.system"),
}

PAYLOAD_PLACES: dict[str, Callable[[bytes], Attack]] = {
    "v1 plans.pkl": lambda program: _write("plans.pkl", program),
    "v1 model.pkl": lambda program: _write(INFO_1, program),
    "v1 weights": lambda program: _write(WEIGHTS_1, torch_zip(program)),
    "v1 legacy weights": lambda program: _write(WEIGHTS_1, torch_legacy(program)),
    "v2 weights": lambda program: _write(WEIGHTS_2, torch_zip(program)),
    "v2 postprocessing.pkl": lambda program: _write("postprocessing.pkl", program),
}
"""Generation and place of a payload -> what puts a program there."""

ARCHIVES: dict[str, Callable[[], bytes]] = {
    "a million empty members": lambda: many_members(1_000_000),
    "seventy thousand empty members": lambda: many_members(70_000),
    "members that share their bytes": lambda: overlapping(3000, 1_000_000),
    "format version 25.5": lambda: with_version(many_members(1), 255),
    "nothing but an end": lambda: b"PK\x05\x06" + bytes(18),
}
