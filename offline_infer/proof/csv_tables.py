"""CSV files that are safe to open in a spreadsheet.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula and runs it. Case names come from
other people's files, so such text gets an apostrophe in front, which spreadsheets hide.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offline_infer.files import write_bytes

_WIDE_SIGNS = "\uff1d\uff0b\uff0d\uff20"  # = + - @ as East Asian keyboards have them
_FORMULA = (*"=+-@", *_WIDE_SIGNS, *"\t\n")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a carriage return would begin a row of its own


def safe_cell(value: Any) -> str:
    """A value as the text of a cell: numbers with all their digits, nothing for None and NaN, text made harmless."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int | float):
        return repr(value) if isinstance(value, bool | int) else repr(float(value))
    return safe_text(str(value))


def safe_text(text: str) -> str:
    """A text as a cell of any spreadsheet, CSV or not: no formula, no control characters, nothing that is no Unicode."""
    plain = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.encode(errors="backslashreplace").decode())
    return f"'{plain}" if plain.lstrip(" ").startswith(_FORMULA) else plain


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV (UTF-8, comma, a heading), atomically. The columns are all keys in the order they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([safe_cell(column) for column in columns])
    writer.writerows([safe_cell(row.get(column)) for column in columns] for row in rows)
    # Bytes of a file name that are not UTF-8 arrive here as lone surrogates.
    write_bytes(path, text.getvalue().encode("utf-8", errors="backslashreplace"))
