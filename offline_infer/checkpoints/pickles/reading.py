"""Reading pickles without executing anything they name.

A pickle may name any importable function and call it. Here a name is looked up in a closed table; what stands in the
table are constructors of this package that check their arguments and build plain data. No class or function a pickle
names is ever imported, and everything outside the table is an :class:`UnsafePickleError`.

What comes back is made of dicts, lists, tuples, sets, numbers, strings, bytes, NumPy arrays and scalars, and
:class:`Symbol` for names that are allowed to be mentioned but not to do anything.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from offline_infer.checkpoints.opening import opened
from offline_infer.checkpoints.pickles import machine, numpy_values
from offline_infer.checkpoints.pickles.machine import Persistent, Table
from offline_infer.checkpoints.pickles.values import Constructor, Symbol
from offline_infer.errors import CheckpointError, UnsafePickleError


def read_pickle(path: Path, symbols: Mapping[tuple[str, str], str] | None = None) -> Any:
    """The content of a pickle file.

    Args:
        path: the file.
        symbols: further (module, name) pairs that may be mentioned, and the :class:`Symbol` name each one gets.

    Raises:
        UnsafePickleError: it names something outside the table; nothing was executed.
        CheckpointError: missing, unreadable, truncated or damaged. The message names the file.
    """
    extra = {key: Symbol(name) for key, name in (symbols or {}).items()}
    with opened(path) as (stream, size):
        return load_stream(stream, size, str(path), extra)


def load_bytes(data: bytes, origin: str, extra: Table | None = None) -> Any:
    """The content of a pickle held in memory; ``origin`` is how messages call it. Raises as :func:`read_pickle`."""
    return load_stream(io.BytesIO(data), len(data), origin, extra)


def load_stream(
    stream: BinaryIO, size: int, origin: str, extra: Table | None = None, persistent: Persistent | None = None
) -> Any:
    """The content of the pickle that begins at the stream's position; the stream is left behind it.

    Args:
        stream: where the pickle is.
        size: bytes from the position to the end of the stream.
        origin: how messages call the stream.
        extra: entries that add to the table.
        persistent: what a persistent id stands for; None refuses them.

    Raises:
        UnsafePickleError: it names something outside the table.
        CheckpointError: truncated or damaged.
    """
    try:
        return machine.run(stream, size, {**TABLE, **(extra or {})}, persistent)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{origin}: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:  # of a constructor's arguments
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise CheckpointError(f"{origin} is not a valid pickle, or it is damaged ({reason})") from error


# --- the table -------------------------------------------------------------------------------------------------------


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """dict(), OrderedDict(), OrderedDict([(k, v), ...]), defaultdict(factory)."""
    if len(arguments) > 1:
        raise CheckpointError("a dictionary is built from more than one argument")
    pairs = arguments[0] if arguments else ()
    return dict(pairs) if isinstance(pairs, (dict, list, tuple)) else {}


def _default_mapping(*arguments: Any) -> dict[Any, Any]:
    """defaultdict(factory): the factory is dropped, lookups of absent keys then fail."""
    return {}


def _namespace() -> dict[Any, Any]:
    """``argparse.Namespace``, in which trainers keep their settings beside the weights: an empty dict, they are dropped."""
    return {}


def _set(values: Any = ()) -> set[Any]:
    return set(_sequence(values))


def _frozenset(values: Any = ()) -> frozenset[Any]:
    return frozenset(_sequence(values))


def _list(values: Any = ()) -> list[Any]:
    return list(_sequence(values))


def _tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(_sequence(values))


def _sequence(values: Any) -> list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any]:
    if not isinstance(values, (list, tuple, set, frozenset)):
        raise CheckpointError(f"a collection is built from a {type(values).__name__}")
    return values


def _complex(real: Any = 0.0, imag: Any = 0.0) -> complex:
    if not isinstance(real, (int, float)) or not isinstance(imag, (int, float)):
        raise CheckpointError("a complex number is built from something that is not a number")
    return complex(real, imag)


def _bytes(*arguments: Any) -> bytes:
    """bytes() and bytes(b"..."), bytes([1, 2]); never bytes(n), which would allocate n zeros."""
    if not arguments:
        return b""
    if isinstance(arguments[0], str):
        return _encode(*arguments)
    if not isinstance(arguments[0], (bytes, bytearray, list)):
        raise CheckpointError(f"bytes are built from a {type(arguments[0]).__name__}")
    return bytes(arguments[0])


def _bytearray(*arguments: Any) -> bytearray:
    return bytearray(_bytes(*arguments))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """``codecs.encode`` as protocol 2 uses it to carry bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise CheckpointError("codecs.encode is used on something other than text in a plain encoding")
    return text.encode(encoding)


def _path(*parts: Any) -> str:
    """A path becomes text; it is never opened."""
    if not all(isinstance(part, str) for part in parts):
        raise CheckpointError("a path is built from something that is not text")
    separator = "" if parts and parts[0] in ("/", "\\") else "/"
    return separator.join([str(parts[0]), "/".join(parts[1:])]) if len(parts) > 1 else "".join(parts)


def _torch_device(kind: Any = "cpu", index: Any = None) -> str:
    """torch.device as text: ``cpu``, ``cuda:0``."""
    return str(kind) if index is None else f"{kind}:{index}"


def _table() -> dict[tuple[str, str], Constructor | Symbol]:
    constructors: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
        "OrderedDict": (("collections",), _mapping),
        "defaultdict": (("collections",), _default_mapping),
        "Namespace": (("argparse",), _namespace),
        "device": (("torch",), _torch_device),
        "Size": (("torch",), _tuple),
        "encode": (("_codecs", "codecs"), _encode),
    }
    # Protocols 0 to 2 spell builtins the Python 2 way.
    builtin: dict[str, Callable[..., Any]] = {
        "dict": _mapping,
        "set": _set,
        "frozenset": _frozenset,
        "list": _list,
        "tuple": _tuple,
        "complex": _complex,
        "bytes": _bytes,
        "bytearray": _bytearray,
    }
    for name, function in builtin.items():
        constructors[name] = (("builtins", "__builtin__"), function)
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath"):
        constructors[name] = (("pathlib", "pathlib._local"), _path)
    table: dict[tuple[str, str], Constructor | Symbol] = {
        (module, name): Constructor(f"{module}.{name}", function)
        for name, (modules, function) in constructors.items()
        for module in modules
    }
    # Factories of a defaultdict are mentioned, not called.
    for module in ("builtins", "__builtin__"):
        for name in ("int", "float", "str", "bool"):
            table[module, name] = Symbol(name)
    return {**table, **numpy_values.TABLE}


TABLE: Table = _table()

__all__ = [
    "Table",
    "load_bytes",
    "load_stream",
    "read_pickle",
]
