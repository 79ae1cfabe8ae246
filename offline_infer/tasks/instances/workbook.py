"""The figures as tables: an Excel workbook and CSV.

The first sheet has exactly the twelve columns of the experiment that set the form, one row an object; the others hold what an
image and the whole set come to.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from offline_infer.errors import UsageError
from offline_infer.files import replacing, write_text
from offline_infer.proof.csv_tables import safe_text

OBJECT_COLUMNS = (
    "image name",
    "num objects",
    "object index",
    "iou",
    "mean iou",
    "f1-score",
    "mean f1-score",
    "mean inference time for each object",
    "bg iou",
    "mean iou with bg",
    "bg f1-score",
    "mean f1-score with bg",
)
IMAGE_COLUMNS = (
    "image name",
    "num objects",
    "num predictions",
    "matched",
    "missed",
    "invented",
    "mean iou",
    "mean f1-score",
    "bg iou",
    "mean iou with bg",
    "bg f1-score",
    "mean f1-score with bg",
    "picture",
)
_DIGITS = 6

Row = Sequence[Any]


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a table; numbers to six decimals, empty where there is none."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_text(value) for value in row] for row in rows)
    write_text(path, stream.getvalue())


def write_workbook(
    path: Path,
    objects: Sequence[Row],
    images: Sequence[Row],
    summary: Mapping[str, Any],
) -> None:
    """Write the workbook: objects, images, summary.

    Args:
        objects: rows of :data:`OBJECT_COLUMNS`.
        images: rows of :data:`IMAGE_COLUMNS`; the last value is a picture's path or None.
        summary: name -> figure.

    Raises:
        UsageError: openpyxl is not installed.
    """
    try:
        from openpyxl import Workbook
    except ImportError as error:
        raise UsageError(f"a workbook needs openpyxl ({error}); pip install 'offline-infer[instances]'") from error
    book = Workbook(write_only=True)
    sheet = book.create_sheet("objects")
    sheet.append(list(OBJECT_COLUMNS))
    for row in objects:
        sheet.append([_cell(value) for value in row])
    sheet = book.create_sheet("images")
    sheet.append(list(IMAGE_COLUMNS))
    for row in images:
        sheet.append([*(_cell(value) for value in row[:-1]), _link(sheet, row[-1], path.parent)])
    sheet = book.create_sheet("summary")
    for name, value in summary.items():
        sheet.append([_cell(name), _cell(value)])
    with replacing(path) as temporary:
        book.save(temporary)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    return safe_text(value) if isinstance(value, str) else value


def _link(sheet: Any, picture: Path | None, folder: Path) -> Any:
    """A cell that opens the picture, by its path from the workbook's folder."""
    if picture is None:
        return None
    from openpyxl.cell import WriteOnlyCell

    relative = quote(Path(os.path.relpath(picture, folder)).as_posix(), errors="surrogatepass")
    cell = WriteOnlyCell(sheet, value=_cell(picture.name))
    cell.hyperlink = relative
    return cell


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.{_DIGITS}f}" if isinstance(value, float) else str(_cell(value))
