"""The pickle machine: follows a pickle's program opcode by opcode, with nothing to call but what the table holds.

Python's own unpickler can be restricted in what it imports, but not in how much it allocates, hashes or nests. This
machine takes the decoded opcodes from :mod:`pickletools`, keeps a stack of plain values and :class:`Container`, and
knows one kind of callable, :class:`Constructor`. Whatever else a pickle asks for is an :class:`UnsafePickleError`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, BinaryIO, NoReturn, cast

from offline_infer.checkpoints.limits import MAX_INTEGER_BITS, MAX_OBJECTS, MAX_OPCODES, MAX_PICKLE_BYTES
from offline_infer.checkpoints.pickles.values import Constructor, Container, KeyBudget, Kind, Pending, Symbol
from offline_infer.errors import CheckpointError, UnsafePickleError

Table = Mapping[tuple[str, str], "Constructor | Symbol"]
"""(module, name) as a pickle spells them -> what stands for it."""
Persistent = Callable[[Any], Any]
"""Persistent id -> what it stands for."""

NEWEST_PROTOCOL = 5
_MARK = object()


def run(stream: BinaryIO, size: int, table: Table, persistent: Persistent | None = None) -> Any:
    """The plain content of the pickle that begins at the stream's position; the stream is left behind it.

    Args:
        stream: where the pickle is.
        size: bytes from the position to the end of the stream.
        table: the names it may mention.
        persistent: what a persistent id stands for; None refuses them.

    Raises:
        UnsafePickleError: it asks for something outside the table; nothing was executed.
        CheckpointError: truncated, not a pickle, or of an absurd size. The message does not name the file.
    """
    machine = _Machine(table, persistent)
    for count, (opcode, argument) in enumerate(_opcodes(stream, size)):
        if count >= MAX_OPCODES:
            raise CheckpointError(f"the pickle has more than {MAX_OPCODES:,} steps")
        machine.step(opcode.name, argument)
    return machine.result()


def _opcodes(stream: BinaryIO, size: int) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """The opcodes with their arguments, the last one STOP; no announced length is believed."""
    guarded = _Guarded(stream, min(size, MAX_PICKLE_BYTES))
    opcodes = pickletools.genops(cast("IO[bytes]", guarded))
    while True:
        try:
            opcode, argument, _ = next(opcodes)
        except StopIteration:
            return
        except Exception as error:  # whatever damaged text and numbers make of pickletools
            if guarded.left == 0 and size > MAX_PICKLE_BYTES:
                raise CheckpointError(f"the pickle is longer than {MAX_PICKLE_BYTES:,} bytes") from error
            raise CheckpointError(f"not a valid pickle, or a truncated one ({error})") from error
        if opcode.name == "FRAME" and cast("int", argument) > guarded.left:
            raise CheckpointError("the pickle is truncated: a frame is longer than the rest of the file")
        yield opcode, argument


class _Guarded:
    """A stream of limited length; pickletools reports a short read instead of allocating what was announced."""

    def __init__(self, stream: BinaryIO, left: int) -> None:
        self._stream = stream
        self.left = left

    def read(self, count: int) -> bytes:
        data = self._stream.read(max(0, min(count, self.left)))
        self.left -= len(data)
        return data

    def readline(self) -> bytes:
        data = self._stream.readline(self.left)
        self.left -= len(data)
        return data


class _Machine:
    """Stack, memo and budgets of one pickle."""

    def __init__(self, table: Table, persistent: Persistent | None) -> None:
        self._table = table
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._keys = KeyBudget()
        self._given = 0  # objects handed to constructors so far

    def step(self, name: str, argument: Any) -> None:
        """Do what one opcode says."""
        if name in _PUSH_ARGUMENT:
            self._stack.append(_checked(argument))
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _PUT:
            self._memo[len(self._memo) if name == "MEMOIZE" else _index(argument)] = self._top()
        elif name in _GET:
            self._push_memo(_index(argument))
        elif name in _EMPTY:
            self._stack.append(Container(_EMPTY[name]))
        elif name in _FROM_MARK:
            self._stack.append(Container(_FROM_MARK[name], self._pop_mark()))
        elif name in _TUPLES:
            self._stack.append(Container("tuple", self._pop(_TUPLES[name])))
        elif name in _GROW:
            kinds, count = _GROW[name]
            items = self._pop_mark() if count == 0 else self._pop(count)
            self._grow(kinds, items)
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _NOTHING:
            raise UnsafePickleError(f"it uses the opcode {name}, which no checkpoint needs; nothing was executed")

    def result(self) -> Any:
        """What is on the stack at STOP, as plain data."""
        return self._plain(self._pop(1)[0])

    # ---- the stack ----

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise CheckpointError("not a valid pickle: nothing is on its stack where something is needed")
        return self._stack[-1]

    def _pop_raw(self) -> Any:
        top = self._top()
        self._stack.pop()
        return top

    def _pop(self, count: int) -> list[Any]:
        """The topmost values in the order they were pushed, for use in another object."""
        return [_settled(value) for value in reversed([self._pop_raw() for _ in range(count)])]

    def _pop_mark(self) -> list[Any]:
        """The values above the topmost mark, which goes too."""
        values: list[Any] = []
        while self._stack:
            value = self._stack.pop()
            if value is _MARK:
                return [_settled(item) for item in reversed(values)]
            values.append(value)
        raise CheckpointError("not a valid pickle: there is no mark on its stack")

    def _push_memo(self, index: int) -> None:
        if index not in self._memo:
            raise CheckpointError(f"the pickle reads memo slot {index}, which it never filled")
        self._stack.append(self._memo[index])

    def _plain(self, value: Any) -> Any:
        return value.plain(self._keys) if isinstance(value, Container) else value

    # ---- containers ----

    def _grow(self, kinds: tuple[Kind, ...], items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, Container) or target.kind not in kinds:
            raise UnsafePickleError(f"it adds elements to a {type(target).__name__}, which takes none")
        if target.kind == "dict" and len(items) % 2:
            raise CheckpointError("not a valid pickle: a dictionary gets a key without a value")
        target.extend(items)

    # ---- names and calls ----

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise CheckpointError("not a valid pickle: a name is not text")
        try:
            self._stack.append(self._table[module, name])
        except KeyError:
            _refuse(module, name)

    def _stack_global(self, argument: Any) -> None:
        self._named(*self._pop(2))

    def _global(self, argument: Any) -> None:
        self._named(*str(argument).split(" ", 1))

    def _reduce(self, argument: Any) -> None:
        function, arguments = self._pop(2)
        if not isinstance(arguments, Container) or arguments.kind != "tuple":
            raise CheckpointError("not a valid pickle: a call's arguments are not a tuple")
        self._call(function, arguments)

    def _new_object(self, argument: Any) -> None:
        """A trainer's namespace is made in this way; nothing else in a checkpoint is."""
        function, arguments = self._pop(2)
        if not isinstance(function, Constructor) or function.name != "argparse.Namespace":
            raise UnsafePickleError(f"it uses the opcode NEWOBJ on {function!r:.80}; nothing was executed")
        self._call(function, arguments if isinstance(arguments, Container) else Container("tuple", [arguments]))

    def _instance(self, argument: Any) -> None:
        arguments = Container("tuple", self._pop_mark())
        self._named(*str(argument).split(" ", 1))
        self._call(self._pop_raw(), arguments)

    def _object(self, argument: Any) -> None:
        values = self._pop_mark()
        if not values:
            raise CheckpointError("not a valid pickle: an object has no class")
        self._call(values[0], Container("tuple", values[1:]))

    def _call(self, function: Any, arguments: Container) -> None:
        if not isinstance(function, Constructor):
            raise UnsafePickleError(f"it calls {function!r:.80}, which is not callable; nothing was executed")
        self._given += arguments.objects
        if self._given > MAX_OBJECTS:
            raise CheckpointError(f"the pickle hands more than {MAX_OBJECTS:,} objects to constructors")
        made = function(*self._plain(arguments))
        kind = _KINDS.get(type(made))
        self._stack.append(made if kind is None else self._container(kind, made, arguments))

    def _container(self, kind: Kind, made: Any, arguments: Container) -> Container:
        """A container that a constructor made of its arguments: it holds no more objects than they did."""
        container = Container(kind)
        container.items = [part for pair in made.items() for part in pair] if kind == "dict" else list(made)
        container.depth, container.objects = arguments.depth, arguments.objects
        return container

    def _build(self, argument: Any) -> None:
        (state,) = self._pop(1)
        target = self._top()
        if isinstance(target, Pending):
            target.set_state(self._plain(state))
        elif not (isinstance(target, Container) and target.kind == "dict") and not getattr(
            target, "drops_state", False
        ):
            raise UnsafePickleError("it tries to set attributes of an object that takes none; nothing was executed")

    def _persistent_id(self, argument: Any) -> None:
        self._refer(argument)

    def _binary_persistent_id(self, argument: Any) -> None:
        self._refer(self._plain(self._pop(1)[0]))

    def _refer(self, identity: Any) -> None:
        if self._persistent is None:
            raise UnsafePickleError("it refers to data outside itself (a persistent id), which is not expected here")
        self._stack.append(self._persistent(identity))

    # ---- the rest ----

    def _mark(self, argument: Any) -> None:
        self._stack.append(_MARK)

    def _discard(self, argument: Any) -> None:
        if not self._stack:
            raise CheckpointError("not a valid pickle: its stack is empty where something is taken off")
        self._stack.pop()

    def _discard_mark(self, argument: Any) -> None:
        self._pop_mark()

    def _duplicate(self, argument: Any) -> None:
        self._stack.append(self._top())

    def _protocol(self, argument: Any) -> None:
        if argument > NEWEST_PROTOCOL:
            raise CheckpointError(f"the pickle has protocol {argument}; protocols up to {NEWEST_PROTOCOL} are known")


_PUSH_ARGUMENT = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
        "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    }
)  # fmt: skip
_CONSTANTS: dict[str, bool | None] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUT = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})
_EMPTY: dict[str, Kind] = {"EMPTY_DICT": "dict", "EMPTY_LIST": "list", "EMPTY_TUPLE": "tuple", "EMPTY_SET": "set"}
_FROM_MARK: dict[str, Kind] = {"DICT": "dict", "LIST": "list", "TUPLE": "tuple", "FROZENSET": "frozenset"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GROW: dict[str, tuple[tuple[Kind, ...], int]] = {
    "APPEND": (("list",), 1),
    "APPENDS": (("list",), 0),
    "SETITEM": (("dict",), 2),
    "SETITEMS": (("dict",), 0),
    "ADDITEMS": (("set",), 0),
}
"""Opcode -> what it adds to, and how many values it takes; 0 for all above the mark."""
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._discard,
    "POP_MARK": _Machine._discard_mark,
    "DUP": _Machine._duplicate,
    "PROTO": _Machine._protocol,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._new_object,
    "INST": _Machine._instance,
    "OBJ": _Machine._object,
    "BUILD": _Machine._build,
    "PERSID": _Machine._persistent_id,
    "BINPERSID": _Machine._binary_persistent_id,
}
_NOTHING = frozenset({"FRAME", "STOP"})
_KINDS: dict[type, Kind] = {dict: "dict", list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}


def _settled(value: Any) -> Any:
    """The value as another object holds it."""
    return value.value() if isinstance(value, Pending) else value


def _checked(argument: Any) -> Any:
    if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
        raise CheckpointError(f"the pickle holds an integer of {argument.bit_length()} bits")
    return argument


def _index(argument: Any) -> int:
    if not isinstance(argument, int) or argument < 0:
        raise CheckpointError("not a valid pickle: a memo index is not a number")
    return argument


def _refuse(module: str, name: str) -> NoReturn:
    raise UnsafePickleError(
        f"it asks for {f'{module}.{name}'!r:.200}, which is not among the plain data types a checkpoint needs; nothing "
        "was executed. If you trust the file, re-save it with plain numbers, strings and arrays instead of that object"
    )
