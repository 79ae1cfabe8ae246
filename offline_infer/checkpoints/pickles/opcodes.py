"""A dry run over a pickle's opcodes that refuses what could exhaust memory or the C stack before anything is built.

Python's unpickler trusts three kinds of numbers in the stream: memo indices (it allocates a table that large),
announced lengths (it allocates before it reads) and the nesting of tuples (hashing and comparing them recurses in C).
This module reads the opcodes, which builds nothing, and checks all three.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

from offline_infer.errors import CheckpointError

MAX_DEPTH = 200
"""Deepest nesting of immutable containers; checkpoints need about ten."""

_PUT = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})
_GROWS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
_MARK = -1


def scan(stream: BinaryIO, size: int) -> None:
    """Check the pickle that begins at the stream's position; the position is put back.

    Args:
        stream: seekable.
        size: bytes from the position to the end of the stream.

    Raises:
        CheckpointError: truncated, not a pickle, or of an absurd shape. The message does not name the file.
    """
    start = stream.tell()
    try:
        _run(_opcodes(stream, size), size)
    finally:
        stream.seek(start)


def _opcodes(stream: BinaryIO, size: int) -> Iterator[tuple[pickletools.OpcodeInfo, object]]:
    """The opcodes with their arguments; announced lengths are checked before they are read."""
    end = stream.tell() + size
    guarded = cast("IO[bytes]", _Guarded(stream, end))
    try:
        for opcode, argument, _ in pickletools.genops(guarded):
            if opcode.name == "FRAME" and isinstance(argument, int) and argument > end - stream.tell():
                raise CheckpointError("the pickle is truncated: a frame is longer than the rest of the file")
            yield opcode, argument
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"not a valid pickle, or a truncated one ({error})") from error


def _run(opcodes: Iterator[tuple[pickletools.OpcodeInfo, object]], size: int) -> None:
    """Follow the stack with nothing on it but nesting depths."""
    stack: list[int] = []
    memo: dict[int, int] = {}
    for opcode, argument in opcodes:
        name = opcode.name
        if name in _PUT or name == "MEMOIZE":
            index = len(memo) if name == "MEMOIZE" else _index(argument)
            if index > size:
                raise CheckpointError(f"the pickle uses memo slot {index}, more than it has bytes")
            memo[index] = _top(stack)
            continue
        if name in _GET:
            index = _index(argument)
            if index not in memo:
                raise CheckpointError(f"the pickle reads memo slot {index}, which it never filled")
            stack.append(memo[index])
            continue
        if name == "DUP":
            stack.append(_top(stack))
            continue
        consumed = _consume(stack, opcode)
        if name in _GROWS and consumed:  # the container was there before; it does not move up by one per batch
            container = consumed.pop()
            depth = max(container, 1 + max(consumed, default=0))
        else:
            depth = 1 + max(consumed, default=0)
        if depth > MAX_DEPTH:
            raise CheckpointError(f"the pickle nests deeper than {MAX_DEPTH} levels")
        for produced in opcode.stack_after:
            stack.append(_MARK if produced.name == "mark" else depth)


def _consume(stack: list[int], opcode: pickletools.OpcodeInfo) -> list[int]:
    """Pop what the opcode takes and return the depths (marks left out), topmost first."""
    names = [item.name for item in opcode.stack_before]
    consumed: list[int] = []
    if "stackslice" in names or opcode.name == "POP_MARK":
        while stack and stack[-1] != _MARK:
            consumed.append(stack.pop())
        if not stack:
            raise CheckpointError(f"not a valid pickle: {opcode.name} without a mark")
        stack.pop()
        names = names[: names.index("mark")] if "mark" in names else []
    for _ in names:
        if not stack:
            raise CheckpointError(f"not a valid pickle: {opcode.name} on an empty stack")
        top = stack.pop()
        if top != _MARK:
            consumed.append(top)
    return consumed


def _top(stack: list[int]) -> int:
    if not stack or stack[-1] == _MARK:
        raise CheckpointError("not a valid pickle: nothing to remember on the stack")
    return stack[-1]


def _index(argument: object) -> int:
    if not isinstance(argument, int) or argument < 0:
        raise CheckpointError("not a valid pickle: a memo index is not a number")
    return argument


class _Guarded:
    """A stream that never reads past ``end``; genops then reports the short read instead of allocating."""

    def __init__(self, stream: BinaryIO, end: int) -> None:
        self._stream = stream
        self._end = end

    def read(self, count: int) -> bytes:
        return self._stream.read(max(0, min(count, self._end - self._stream.tell())))

    def readline(self) -> bytes:
        return self._stream.readline(max(0, self._end - self._stream.tell()))

    def tell(self) -> int:
        return self._stream.tell()
