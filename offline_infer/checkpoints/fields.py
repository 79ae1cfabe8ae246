"""Reading values out of plans, with a readable error where one is missing or of the wrong kind."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pydantic import ValidationError

from offline_infer.checkpoints.limits import MAX_JSON_BYTES, MAX_TEXT
from offline_infer.checkpoints.opening import read_bytes
from offline_infer.errors import CheckpointError

_MAX_INTEGER = 1 << 63
_ABSENT = object()


class Fields:
    """A mapping of unknown content.

    Args:
        content: as read from a file.
        origin: how messages call it, e.g. ``"plans.json, configuration 3d_fullres"``.

    Every accessor raises CheckpointError where the value is missing (and no default is given) or of the wrong kind.
    NumPy numbers and arrays count as Python's.
    """

    def __init__(self, content: Any, origin: str) -> None:
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{origin}: a dictionary was expected, not a {type(content).__name__}")
        self.content: Mapping[Any, Any] = content
        self.origin = origin

    def __contains__(self, key: object) -> bool:
        return key in self.content

    def __iter__(self) -> Iterator[Any]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def raw(self, key: Any, default: Any = _ABSENT) -> Any:
        """The value as stored."""
        if key in self.content:
            return self.content[key]
        if default is _ABSENT:
            raise CheckpointError(f"{self.origin}: {key!r} is missing; it has {self._keys()}")
        return default

    def fields(self, key: Any) -> Fields:
        """A dictionary below this one."""
        return Fields(self.raw(key), f"{self.origin}, {key}")

    def text(self, key: Any, default: Any = _ABSENT) -> str:
        value = self.raw(key, default)
        if not isinstance(value, str):
            self._wrong(key, value, "text")
        return self._printable(key, value)

    def name(self, key: Any, default: Any = _ABSENT) -> str:
        """A name: text, or a number as text."""
        return self._printable(key, str(plain(self.raw(key, default))))

    def integer(self, key: Any, default: Any = _ABSENT) -> int:
        value = plain(self.raw(key, default))
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or not _is_number(value):
            self._wrong(key, value, "a whole number")
        return value

    def number(self, key: Any, default: Any = _ABSENT) -> float:
        value = plain(self.raw(key, default))
        if not _is_number(value) or not math.isfinite(value):
            self._wrong(key, value, "a number")
        return float(value)

    def numbers(self, key: Any) -> tuple[float, ...]:
        """A list of numbers; infinities and NaN are left to the caller."""
        value = plain(self.raw(key))
        if not isinstance(value, list) or not all(_is_number(item) for item in value):
            self._wrong(key, value, "a list of numbers")
        return tuple(float(item) for item in value)

    def integers(self, key: Any) -> tuple[int, ...]:
        """A list of whole numbers."""
        values = self.numbers(key)
        if not all(value.is_integer() and abs(value) < _MAX_INTEGER for value in values):
            self._wrong(key, values, "a list of whole numbers")
        return tuple(int(value) for value in values)

    def integer_lists(self, key: Any) -> list[list[int]]:
        """A list of lists of whole numbers, such as kernel sizes per stage."""
        value = plain(self.raw(key))
        if not isinstance(value, list) or not value:
            self._wrong(key, value, "a list of lists of whole numbers")
        return [list(Fields({key: item}, self.origin).integers(key)) for item in value]

    def choice(self, key: Any, known: Mapping[str, Any], what: str, default: Any = _ABSENT) -> Any:
        """What ``known`` has for the text under ``key``.

        Raises:
            CheckpointError: an unknown text; the message lists the known ones.
        """
        value = self.text(key, default)
        if value not in known:
            raise CheckpointError(f"{self.origin}: unknown {what} {shown(value)}; known: {', '.join(sorted(known))}")
        return known[value]

    def _keys(self) -> str:
        keys = [shown(key, 40).strip("'") for key in list(self.content)[:12]]
        return ", ".join(keys) + (", ..." if len(self.content) > 12 else "") if keys else "no entries"

    def _printable(self, key: Any, text: str) -> str:
        return printable(text, f"{self.origin}: {shown(key)}")

    def _wrong(self, key: Any, value: Any, expected: str) -> NoReturn:
        raise CheckpointError(f"{self.origin}: {shown(key)} must be {expected}, not {shown(value)}")


def plain(value: Any) -> Any:
    """The value with NumPy scalars and arrays as Python numbers and lists, tuples as lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def read_json(path: Path) -> Fields:
    """A JSON file that holds a dictionary.

    Raises:
        CheckpointError: missing, truncated or not JSON. The message names the file.
    """
    try:
        content = json.loads(read_bytes(path, MAX_JSON_BYTES).decode("utf-8"), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated or not JSON: {error}") from error
    return Fields(content, str(path))


def shown(value: Any, length: int = 80) -> str:
    """An untrusted value as a message shows it: control characters escaped, and not all of a long one."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def printable(value: Any, origin: str) -> str:
    """The value as text that may stand in messages and records: one short line without control characters.

    Raises:
        CheckpointError: it is not.
    """
    text = str(value)
    if len(text) > MAX_TEXT or not text.isprintable():
        raise CheckpointError(
            f"{origin} must be one line of at most {MAX_TEXT} printable characters, not {shown(text)}"
        )
    return text


def first_fault(error: ValidationError) -> str:
    """What is wrong with a specification that was made from the plans, in one line."""
    fault = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(step) for step in fault["loc"]) or "the whole"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')} (found {shown(fault.get('input'))})"


def _is_number(value: Any) -> bool:
    """Whether it is an int or a float that converts to the other."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < _MAX_INTEGER
    return isinstance(value, float)


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)
