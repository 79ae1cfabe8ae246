"""The published guide's final tables, from records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline_infer.ascend.guide_tables import read_tables
from offline_infer.errors import UsageError


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def summary(liver: float, tumour: float) -> dict[str, object]:
    mean = {"0": {"Dice": 0.99}, "1": {"Dice": liver}, "2": {"Dice": tumour}}
    return {"name": "x", "results": {"mean": mean, "all": [{"test": "a", "reference": "a", **mean}]}}


def test_both_tables_come_from_records(tmp_path: Path) -> None:
    tables = read_tables(
        [
            ("published", "1=95.80,2=65.60"),
            ("GPU", write(tmp_path / "gpu.json", summary(0.9655, 0.7194))),
            ("NPU", write(tmp_path / "npu.json", summary(0.9655123, 0.7197))),
        ],
        [
            (
                "Ascend310",
                write(
                    tmp_path / "performance.json",
                    {"soc": "Ascend310", "throughput_per_device_per_s": 0.235349, "latency_ms": 4249.14},
                ),
            )
        ],
        ("T4", write(tmp_path / "t4.json", {"average_s": 2.68})),
        names={"1": "liver", "2": "tumour"},
    )
    text = tables.to_text()
    assert "| liver | 95.80 | 96.55 | 96.55 |" in text
    assert "| tumour | 65.60 | 71.94 | 71.97 |" in text
    assert "| Ascend310 | 4249.14 | 0.235349 | 0.941396 | 2.52 x |" in text
    assert "| T4 | 2680 | 0.373134 | 0.373134 | 1.00 x |" in text
    assert tables.to_json()["performance"][0]["ratio"] == pytest.approx(2.5229, abs=1e-3)


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    for arguments in (
        ([("x", str(tmp_path / "nowhere.json"))], []),
        ([], [("x", write(tmp_path / "other.json", {"a": 1}))]),
        ([("x", write(tmp_path / "list.json", [1]))], []),
    ):
        with pytest.raises(UsageError):
            read_tables(*arguments)
    with pytest.raises(UsageError, match="no baseline"):
        read_tables([], [], ("x", write(tmp_path / "other.json", {"a": 1})))
