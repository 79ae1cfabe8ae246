"""Names from other people's files in tables, workbooks and pages: shown, never computed, obeyed or run."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from offline_infer.proof.report.page import write_report
from offline_infer.tasks.image.sweeping import write_rows
from offline_infer.tasks.instances.workbook import IMAGE_COLUMNS, OBJECT_COLUMNS, write_csv, write_workbook

FORMULAS = [
    "=1+1", "=HYPERLINK(\"http://x\",\"y\")", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1",
    "\uff1d1+1", "=\x1b]0;x\x07", "=\ud800",
]  # fmt: skip
MARKUP = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"><svg onload=alert(1)>", "'-alert(1)-'", "{{7*7}}",
    "</title><script>x</script>", "]]><x>", "<!--", "javascript:alert(1)", "&lt;b&gt;", "\x1b[31mred", "a\ud800b",
]  # fmt: skip
HARMLESS = re.compile(r"\s*[^=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20\s]|$")


def cells_of(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [cell for row in csv.reader(stream) for cell in row]


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("text", [*FORMULAS, *MARKUP])
def test_tables(text: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "sweep.csv", [["model", text], [text, 0.5], [None, -1]])
    write_csv(tmp_path / "objects.csv", ("name", "value"), [(text, -0.5), (text, None)])
    for path in tmp_path.glob("*.csv"):
        cells = cells_of(path)
        assert all(HARMLESS.match(cell) or is_number(cell) for cell in cells), cells
        assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]", "".join(cells))


@pytest.mark.parametrize("text", [*FORMULAS, *MARKUP])
def test_a_workbook(text: str, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    row: list[Any] = [text, 1, 0.5, *[None] * (len(OBJECT_COLUMNS) - 3)]
    image: list[Any] = [
        text,
        *[None] * (len(IMAGE_COLUMNS) - 2),
        tmp_path / "pictures" / (text.replace("/", "_") + ".png"),
    ]
    path = tmp_path / "objects.xlsx"
    write_workbook(path, [row], [image], {text: 0.5, "AP": text})
    found = [cell for sheet in openpyxl.load_workbook(path) for line in sheet.iter_rows() for cell in line]
    assert not [cell.value for cell in found if cell.data_type == "f"]


class Tags(HTMLParser):
    """Every tag and its attributes' names."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, ...]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add((tag, *sorted(name for name, _ in attrs)))
        assert tag != "script"
        assert not any(name.startswith("on") for name, _ in attrs)
        assert not any(
            (value or "").lstrip().startswith("javascript:") for name, value in attrs if name in ("href", "src")
        )


def page_of(folder: Path, text: str) -> str:
    """A report on a summary, a comparison and a bundle in which every name is the text."""
    folder.mkdir()
    mean = {"Dice": 0.9, "IoU": 0.8, "n_ref": 10, "n_pred": 9, "TP": 8, "FP": 1, "FN": 2, "TN": 50}
    case = {"prediction_file": f"{text}.nii.gz", "reference_file": f"{text}.nii.gz", "metrics": {"1": mean, text: mean}}
    (folder / "summary.json").write_text(
        json.dumps(
            {
                "metric_per_case": [case],
                "mean": {"1": mean, text: mean},
                "foreground_mean": mean,
                "failed": {text: text},
            }
        )
    )
    (folder / "offline_infer_run.json").write_text(
        json.dumps(
            {
                "kind": "offline_infer.run", "stage": "predict", "task": text, "bundle": text, "labels": {text: 1, "b": text},
                "source": {"framework": text, "trainer": text, "dataset": text, "configuration": text, "network": text},
                "engine": {"name": text, "version": text, "device": text, "precision": text}, "settings": {text: text},
                "cases": [{"case": text, "status": "failed", "reason": text, "outcome": {"notes": [text]}}], "folds": [text],
            }
        )
    )  # fmt: skip
    output = folder / "page.html"
    write_report([folder], output, title=text, names={"1": text, "2": text})
    return output.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", MARKUP)
def test_a_page(text: str, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pages = []
    for name, content in (("hostile", text), ("plain", "plain")):
        tags = Tags()
        page = page_of(tmp_path / name, content)
        tags.feed(page)
        pages.append(tags.seen)
    assert pages[0] == pages[1]  # the same tags, whatever the names are
