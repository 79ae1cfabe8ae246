"""The restricted unpickler: what it reads, and that nothing a hostile pickle tries has any effect."""

from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import fractions
import os
import pickle
import pickletools
import struct
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from offline_infer.checkpoints.pickles.reading import TABLE, load_bytes, read_pickle
from offline_infer.checkpoints.pickles.values import Constructor, Symbol
from offline_infer.errors import CheckpointError, UnsafePickleError

ORIGIN = "sample.pkl"


class Reduces:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def same(a: Any, b: Any) -> bool:
    """Equality that looks into arrays and wants the same plain types."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))
    if isinstance(b, dict):
        return type(a) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_survive_every_protocol(protocol: int) -> None:
    value = {
        "numbers": [1, -(2**70), 2.5, True, None, 3 + 4j],
        "text": "µ" * 300,
        "bytes": b"\x00\xff" * 200,
        "array": np.arange(12, dtype=np.float32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        "strided": np.arange(24, dtype=np.uint8)[::3],
        "empty": np.zeros((0, 3)),
        "scalar": [np.float64(1.5), np.float32(2.5), np.int64(-3), np.bool_(True), np.str_("ab")],
        "words": np.array(["liver", "spleen"]),
        "ordered": OrderedDict([(0, "CT"), (1, "MR")]),
        "nested": {(1, (2, 3)): {"a": ({"b"}, frozenset({1}))}},
        "bytearray": bytearray(b"xyz"),
    }
    loaded = load_bytes(pickle.dumps(value, protocol), ORIGIN)
    expected = dict(value, ordered=dict(value["ordered"]))  # type: ignore[call-overload]
    assert same(loaded, expected)
    assert loaded["fortran"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_numpy_2_and_1_spellings_are_the_same() -> None:
    data = pickle.dumps([np.arange(3), np.float32(1)], 2)
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    assert new in data or old in data
    renamed = data.replace(new, old) if new in data else data.replace(old, new)
    assert renamed != data
    assert same(load_bytes(renamed, ORIGIN), load_bytes(data, ORIGIN))


def test_paths_devices_and_factories_become_plain() -> None:
    torch = pytest.importorskip("torch")
    value = [PurePosixPath("/a/b"), torch.device("cuda", 1), torch.Size([2, 3]), defaultdict(list, {"k": [1]})]
    # list is the factory of the defaultdict; torch.Size and the path are mentioned by their classes.
    assert load_bytes(pickle.dumps(value, 2), ORIGIN) == ["/a/b", "cuda:1", (2, 3), {"k": [1]}]


def test_shared_and_repeated_references_are_resolved_once() -> None:
    level: list[Any] = [np.zeros(4)]
    for _ in range(16):  # 2**16 paths through the tree, 16 lists in the file
        level = [level, level]
    loaded = load_bytes(pickle.dumps(level), ORIGIN)
    assert loaded[0] is loaded[1]


# --- hostile pickles -------------------------------------------------------------------------------------------------


def test_a_command_is_not_run_and_its_name_is_reported(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    data = pickle.dumps(Reduces(os.system, f"touch {victim}"))
    with pytest.raises(UnsafePickleError, match=rf"sample\.pkl: .*{os.system.__module__}\.system"):
        load_bytes(data, ORIGIN)
    assert not victim.exists()


@pytest.mark.parametrize(
    "hostile",
    [
        Reduces(eval, "1+1"),
        Reduces(exec, "x = 1"),
        Reduces(getattr, {}, "keys"),
        Reduces(setattr, "object", "x", 1),
        Reduces(builtins.__import__, "os"),
        Reduces(open, "/etc/hostname"),
        Reduces(os.remove, "/nonexistent"),
        Reduces(type, "X", (), {}),
        Reduces(print, "hello"),
        Reduces(np.load, "/nonexistent"),
        Reduces(pickle.loads, b"N."),
        Reduces(collections.namedtuple, "X", "a"),
        fractions.Fraction(1, 3),
        np.random.default_rng(0),
        np.array([Reduces(os.getcwd)], dtype=object),
        np.array([1, 2], dtype=object),
        np.zeros(2, dtype=[("a", "f4")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.ma.masked_array([1, 2]),
    ],
    ids=lambda hostile: type(hostile).__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_anything_outside_the_table_is_refused(hostile: Any, protocol: int) -> None:
    for wrapped in (hostile, {"plans": [1, (hostile,)]}):
        with pytest.raises(UnsafePickleError, match=r"sample\.pkl"):
            load_bytes(pickle.dumps(wrapped, protocol), ORIGIN)


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize(
    ("program", "why"),
    [
        # Change attributes of what the table holds: BUILD with a state, and with slots.
        (_global("collections", "OrderedDict") + b"}(U\x01aK\x01ub.", "set attributes"),
        (_global("collections", "OrderedDict") + b"N}(U\x09_functionK\x01u\x86b.", "set attributes"),
        (_global("numpy", "ndarray") + b"}(U\x04nameU\x02osub.", "set attributes"),
        # Call a symbol; make an instance through __new__; inherit from a table entry.
        (_global("numpy", "ndarray") + b"(K\x01tR.", "not callable|callable"),
        (b"\x80\x02" + _global("collections", "OrderedDict") + b")\x81.", "NEWOBJ|type"),
        # Dotted names reach into modules in protocol 4; the table is looked up as spelt.
        (b"\x80\x04\x8c\x0bcollections\x8c\x15OrderedDict.__class__\x93.", "OrderedDict.__class__"),
        # The extension registry is another way to name things.
        (b"\x80\x02\x82\x01.", "extension|code"),
        # A persistent id outside a torch file.
        (b"Pabc\n.", "persistent id"),
        (b"(K\x01K\x02tQ.", "persistent id"),
    ],
)
def test_tricks_with_opcodes_have_no_effect(program: bytes, why: str) -> None:
    before = {key: repr(entry) for key, entry in TABLE.items()}
    with pytest.raises(CheckpointError, match=why):
        load_bytes(program, ORIGIN)
    assert {key: repr(entry) for key, entry in TABLE.items()} == before


def test_table_entries_cannot_be_changed() -> None:
    entry = TABLE["collections", "OrderedDict"]
    assert isinstance(entry, Constructor)
    for attribute in ("function", "anything"):
        with pytest.raises(UnsafePickleError):
            setattr(entry, attribute, os.system)
    with pytest.raises(UnsafePickleError):
        Symbol("ndarray").name = "other"
    assert not any(callable(found) for found in TABLE.values() if isinstance(found, Symbol))


def test_no_entry_of_the_table_is_a_foreign_object() -> None:
    assert all(type(entry) in (Constructor, Symbol) for entry in TABLE.values())
    assert all(
        entry.function.__module__.startswith("offline_infer.")
        for entry in TABLE.values()
        if isinstance(entry, Constructor)
    )


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".", "not a valid pickle"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".", "not a valid pickle"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".", "not a valid pickle"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.", "frame"),
        (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".", "not a valid pickle"),
        (b")" + b"\x85" * 100_000 + b".", "nests deeper"),
        (b"}" + b")" + b"\x85" * 100_000 + b"Ns.", "nests deeper"),
        (_global("builtins", "bytearray") + b"(J\xff\xff\xff\x7ftR.", "built from"),
        (_global("builtins", "bytes") + b"(J\xff\xff\xff\x7ftR.", "built from"),
        (_global("builtins", "set") + b"(U\x05aaaaatR.", "built from"),
        (_global("_codecs", "encode") + b"(U\x01aU\x03hextR.", "plain encoding"),
    ],
)
def test_announced_sizes_are_checked_before_memory_is_taken(program: bytes, why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        load_bytes(program, ORIGIN)


def test_a_container_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append({"a": loop})
    with pytest.raises(CheckpointError, match="contains itself"):
        load_bytes(pickle.dumps(loop), ORIGIN)


def test_long_mutable_nesting_is_an_error_not_a_crash() -> None:
    # Each list is put into the one before after that one was remembered, so no single step nests deeply.
    parts = [b"]r" + struct.pack("<I", 0)]
    for index in range(1, 20_000):
        parts.append(b"]r" + struct.pack("<I", index))
        parts.append(b"0j" + struct.pack("<I", index - 1) + b"j" + struct.pack("<I", index) + b"a0")
    parts.append(b"0j" + struct.pack("<I", 0) + b".")
    with pytest.raises(CheckpointError, match="already part of another"):
        load_bytes(b"".join(parts), ORIGIN)


def _array_program(shape: str, data: bytes, dtype: str = "f4", order: str = "<") -> bytes:
    """A protocol 2 pickle of one array with the given parts."""
    kind = _global("numpy", "dtype") + b"(U" + bytes([len(dtype)]) + dtype.encode() + b"K\x00K\x01tR"
    kind += b"(K\x03U\x01" + order.encode() + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    begin = _global("numpy.core.multiarray", "_reconstruct") + _global("numpy", "ndarray") + b"K\x00\x85U\x01b\x87R"
    text = b"X" + struct.pack("<I", len(data)) + data  # Latin-1 text, as protocol 2 may hold bytes
    return b"\x80\x02" + begin + b"(K\x01" + shape.encode("latin1") + kind + b"\x89" + text + b"tb."


def test_array_sizes_must_match_their_data() -> None:
    assert load_bytes(_array_program("K\x02\x85", b"abcdefgh"), ORIGIN).shape == (2,)
    for shape, data, dtype in [
        ("K\x03\x85", b"abcdefgh", "f4"),
        ("J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"abcdefgh", "f4"),
        ("J\xff\xff\xff\xff\x85", b"abcdefgh", "f4"),
        ("K\x02\x85", b"abcdefgh", "f8"),
        ("N", b"abcdefgh", "f4"),
    ]:
        with pytest.raises(CheckpointError, match="shape"):
            load_bytes(_array_program(shape, data, dtype), ORIGIN)
    for dtype in ("O8", "V8", "f16", "M8"):
        with pytest.raises(UnsafePickleError, match="only plain numbers"):
            load_bytes(_array_program("K\x01\x85", b"abcdefgh", dtype), ORIGIN)


def test_every_truncation_is_a_readable_error() -> None:
    data = pickle.dumps({"plans": OrderedDict(a=np.arange(4.0), b=[(1, "x"), np.float32(2)])}, 4)
    assert load_bytes(data, ORIGIN)
    for length in range(len(data)):
        with pytest.raises(CheckpointError, match=r"sample\.pkl"):
            load_bytes(data[:length], ORIGIN)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_random_damage_never_escapes_the_error_tree() -> None:
    data = pickle.dumps({"plans": OrderedDict(a=np.arange(4.0), b=[(1, "x"), np.float32(2)]), "c": {1, 2}}, 2)
    generator = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(data)
        for position in generator.integers(0, len(data), size=int(generator.integers(1, 4))):
            damaged[position] = int(generator.integers(0, 256))
        with contextlib.suppress(CheckpointError):
            load_bytes(bytes(damaged), ORIGIN)


def test_opcodes_unknown_to_the_machine_do_not_exist() -> None:
    """The machine was written for these opcodes; a new one has to be looked at."""
    known = {opcode.name for opcode in pickletools.opcodes}
    assert len(known) == 68


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pkl cannot be read: No such file"):
        read_pickle(tmp_path / "absent.pkl")
    for content in (b"", b"PK\x03\x04", b"hello world", b"\x80\x63N."):
        (tmp_path / "foreign.pkl").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"foreign\.pkl"):
            read_pickle(tmp_path / "foreign.pkl")


def test_symbols_are_mentioned_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "functions.pkl"
    path.write_bytes(b"\x80\x02" + _global("some.module", "function") + b".")
    with pytest.raises(UnsafePickleError, match=r"some\.module\.function"):
        read_pickle(path)
    assert read_pickle(path, {("some.module", "function"): "known"}) == Symbol("known")


def test_a_trainers_namespace_is_dropped() -> None:
    inner = argparse.Namespace(epochs=3, nested={"lr": [1e-3]})
    assert load_bytes(pickle.dumps({"args": inner, "epoch": 3}, protocol=2), "x") == {"args": {}, "epoch": 3}
    for attack in (b"cargparse\nNamespace\n}X\x01\x00\x00\x00aK\x01sb.", b"cargparse\nNamespace\n(K\x05tR."):
        with pytest.raises(CheckpointError):
            load_bytes(attack, "x")
