"""The few kinds of object a restricted unpickler puts on its stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from offline_infer.errors import CheckpointError, UnsafePickleError


class _Sealed:
    """Base of what a pickle may hold but not change: a pickle's BUILD opcode would otherwise set attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError("it tries to set attributes of an object that takes none")


class Constructor(_Sealed):
    """A function of ours that stands for a class or function a pickle names.

    It is an instance of a class without writable attributes rather than the function itself, so that a pickle cannot
    alter it, and it is no type, so that a pickle cannot make objects of it other than by calling it.
    """

    __slots__ = ("_function", "_name")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnsafePickleError(f"it tries to change {self._name}")

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self._function(*arguments)
        except TypeError as error:
            raise CheckpointError(f"{self._name} is built from unexpected arguments ({error})") from error

    def __repr__(self) -> str:
        return f"Constructor({self._name})"

    _name: str
    _function: Callable[..., Any]


class Symbol(_Sealed):
    """A name a pickle may mention: it cannot be called and has no content."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnsafePickleError(f"it tries to change {self.name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Symbol) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Symbol({self.name})"

    name: str


class PlainDict(dict[Any, Any]):
    """A dict that ignores attributes a pickle gives it (torch puts ``_metadata`` on state dicts)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Drop the state."""


class Pending:
    """An object whose content arrives with a later BUILD; :func:`finish` puts :meth:`value` in its place."""

    __slots__ = ()

    def value(self) -> Any:
        """What this stands for.

        Raises:
            CheckpointError: its content is missing or inconsistent.
        """
        raise NotImplementedError


def finish(tree: Any) -> Any:
    """The tree with every :class:`Pending` replaced and every container a plain one.

    A container that occurs twice is converted once, so shared references cost nothing.

    Raises:
        CheckpointError: a container that holds itself, or nesting too deep.
    """
    try:
        return _finish(tree, {}, set())
    except RecursionError:
        raise CheckpointError("the pickle nests too deep") from None


def _finish(node: Any, done: dict[int, Any], open_ids: set[int]) -> Any:
    if not isinstance(node, (dict, list, tuple, set, frozenset, Pending)):
        return node
    key = id(node)
    if key in done:
        return done[key]
    if key in open_ids:
        raise CheckpointError("the pickle holds a container that contains itself")
    open_ids.add(key)
    result: Any
    if isinstance(node, Pending):
        result = node.value()
    elif isinstance(node, dict):
        result = {_finish(k, done, open_ids): _finish(v, done, open_ids) for k, v in node.items()}
    elif isinstance(node, list):
        result = [_finish(item, done, open_ids) for item in node]
    elif isinstance(node, tuple):
        result = tuple(_finish(item, done, open_ids) for item in node)
    else:
        result = type(node)(_finish(item, done, open_ids) for item in node)
    open_ids.remove(key)
    done[key] = result
    return result
