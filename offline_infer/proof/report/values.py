"""Values of foreign JSON as text and numbers for a reader."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from offline_infer.proof.report.parts import Table

Content = Mapping[str, Any]
Names = Mapping[str, str]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_LONGEST = 400


def figure(value: Any, digits: int = 4) -> str:
    """A number for reading: whole numbers grouped, fractions rounded, very small ones in powers of ten."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)[:_LONGEST]
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.2e}"
    return f"{value:,.{digits}f}" if abs(value) < 1000 else f"{value:,.1f}"


def real(value: Any) -> float:
    """A figure as a float, NaN for null.

    Raises:
        ValueError: neither a number nor null.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{str(value)[:60]!r} stands where a number is expected")
    return float(value)


def whole(value: Any) -> int:
    """A count.

    Raises:
        ValueError: not a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{str(value)[:60]!r} stands where a whole number is expected")
    return value


def name_of(key: str, names: Names) -> str:
    """``liver (1)`` where the name is known, otherwise the key."""
    if key in names:
        return f"{names[key]} ({key})"
    return "background (0)" if key == "0" else f"label {key}" if key.isdigit() else f"region {key}"


def short(value: Any) -> str:
    """A scalar in a few characters."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:_LONGEST]


def count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def percent(agreement: Any, differing: Any) -> str:
    """A percentage that says 100 only when nothing differs."""
    text = f"{100 * real(agreement):.4f}"
    return f"{'99.9999+' if differing and text == '100.0000' else text} %"


def scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def flat(record: Content, prefix: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """The scalars of nested objects, named by their path; a short list of scalars is one text."""
    for key, value in record.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if scalar(value):
            yield name, value
        elif isinstance(value, dict) and depth:
            yield from flat(value, name, depth - 1)
        elif isinstance(value, list) and len(value) <= 8 and all(scalar(item) for item in value):
            yield name, ", ".join(short(item) for item in value)


def table_of(rows: Sequence[Content], caption: str = "") -> tuple[Table, tuple[tuple[str, str], ...]]:
    """A table of the scalars in a list of objects, and what is the same in all of several rows as facts beside it."""
    entries = [dict(flat(row, depth=1)) for row in rows]
    keys = list(dict.fromkeys(key for row in entries for key in row if any(r.get(key) is not None for r in entries)))
    same = [k for k in keys if len(entries) > 1 and len({repr(row.get(k)) for row in entries}) == 1]
    head = [key for key in keys if key not in same] or keys
    table = Table(tuple(head), tuple(tuple(row.get(k) for k in head) for row in entries), caption=caption)
    return table, tuple((key, short(entries[0].get(key))) for key in same if key not in head)


def png_address(data: bytes) -> str:
    """A PNG as a ``data:`` address."""
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def png_of(text: Any) -> str:
    """The ``data:`` address of a PNG that a record holds in base64; empty for None.

    Raises:
        ValueError: no base64, or no PNG.
    """
    if text is None:
        return ""
    try:
        data = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("a picture is no base64") from error
    if not data.startswith(PNG_MAGIC):
        raise ValueError("a picture is no PNG")
    return png_address(data)
