"""The few kinds of object a restricted pickle machine handles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NoReturn

import numpy as np

from offline_infer.checkpoints.limits import MAX_DEPTH, MAX_OBJECTS, MAX_UNUSUAL_KEYS
from offline_infer.errors import CheckpointError, UnsafePickleError

Kind = Literal["dict", "list", "tuple", "set", "frozenset"]

_ORDINARY_INTEGER = 1 << 60  # below it, different integers have different hashes
_CHARACTERS_PER_OBJECT = 32


class Constructor:
    """A function of ours that stands for a class or function a pickle names.

    Args:
        name: how messages call it.
        function: takes plain data and gives plain data; it checks its arguments.
    """

    __slots__ = ("function", "name")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "function", function)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnsafePickleError(f"it tries to change {self.name}")

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self.function(*arguments)
        except TypeError as error:
            raise CheckpointError(f"{self.name} is built from unexpected arguments ({error})") from error

    def __repr__(self) -> str:
        return f"Constructor({self.name})"

    name: str
    function: Callable[..., Any]


class Symbol:
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


class Pending:
    """An object whose content arrives with a later BUILD; it becomes its :meth:`value` where it is used."""

    __slots__ = ()

    def set_state(self, state: Any) -> None:
        """Take the content.

        Raises:
            CheckpointError: not the state such an object has.
        """
        raise NotImplementedError

    def value(self) -> Any:
        """What this stands for.

        Raises:
            CheckpointError: its content is missing or inconsistent.
        """
        raise NotImplementedError


class Container:
    """A dict, list, tuple or set under construction.

    It knows how deep and how large the tree below it is, every shared part counted as often as it occurs: nested pairs
    of one and the same tuple are a hundred bytes in a file, and 2**30 steps for whoever hashes, compares or prints them.

    Attributes:
        kind: what it becomes.
        items: its elements; for a dict keys and values in turn.
        depth: levels of containers, itself included.
        objects: in its tree.
        used: whether another object already holds it; it takes no more elements then.
    """

    __slots__ = ("_plain", "depth", "items", "kind", "objects", "used")

    def __init__(self, kind: Kind, items: Iterable[Any] = ()) -> None:
        self.kind = kind
        self.items: list[Any] = []
        self.depth = 1
        self.objects = 1
        self.used = False
        self._plain: Any = None
        self.extend(items)

    def extend(self, items: Iterable[Any]) -> None:
        """Add elements.

        Raises:
            CheckpointError: the tree becomes too deep or too large, or this container is already part of another.
        """
        if self.used:
            raise CheckpointError("the pickle changes a container that is already part of another or contains itself")
        for item in items:
            if isinstance(item, Container):
                if item is self:
                    raise CheckpointError("the pickle holds a container that contains itself")
                item.used = True
                self.depth = max(self.depth, 1 + item.depth)
            self.objects += object_count(item)
            self.items.append(item)
        if self.depth > MAX_DEPTH:
            raise CheckpointError(f"the pickle nests deeper than {MAX_DEPTH} levels")
        if self.objects > MAX_OBJECTS:
            raise CheckpointError(f"the pickle stands for more than {MAX_OBJECTS:,} objects")

    def plain(self, keys: KeyBudget) -> Any:
        """The container it stands for; the same one every time.

        Raises:
            CheckpointError: a key that cannot be one.
        """
        self.used = True
        if self._plain is None:
            self._plain = self._make(keys)
        return self._plain

    def _make(self, keys: KeyBudget) -> Any:
        items = [item.plain(keys) if isinstance(item, Container) else item for item in self.items]
        if self.kind == "list":
            return items
        if self.kind == "tuple":
            return tuple(items)
        try:
            if self.kind == "dict":
                keys.spend(items[::2])
                return dict(zip(items[::2], items[1::2], strict=True))
            keys.spend(items)
            return set(items) if self.kind == "set" else frozenset(items)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the pickle's {self.kind} cannot be built ({error})") from error


class KeyBudget:
    """Counts the keys whose hashes an attacker can choose; thousands of equal ones make a dict quadratic."""

    def __init__(self) -> None:
        self._left = MAX_UNUSUAL_KEYS

    def spend(self, keys: Iterable[Any]) -> None:
        """Account for the keys of one dict or set.

        Raises:
            CheckpointError: too many unusual ones in one pickle.
        """
        self._left -= sum(not _is_ordinary(key) for key in keys)
        if self._left < 0:
            raise CheckpointError(
                f"the pickle has more than {MAX_UNUSUAL_KEYS} dictionary keys that are neither text nor small integers"
            )


def object_count(value: Any) -> int:
    """How many objects a value counts for."""
    if isinstance(value, Container):
        return value.objects
    if isinstance(value, (str, bytes, bytearray)):
        return 1 + len(value) // _CHARACTERS_PER_OBJECT
    if isinstance(value, np.ndarray):
        return 1 + value.size
    return 1


def _is_ordinary(key: Any) -> bool:
    if key is None or isinstance(key, (str, bytes, Symbol)):
        return True
    return isinstance(key, (int, np.integer)) and abs(int(key)) < _ORDINARY_INTEGER
