"""Lists for external tools, and what an input folder holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from staged_samples import preprocess, staged_spec, write_case

from offline_infer.errors import UsageError
from offline_infer.staging.lists import describe_cases, main, split_evenly, write_info, write_plain_info
from offline_infer.staging.worklist import Worklist
from offline_infer.tasks.settings import RunSettings


@pytest.fixture
def work(tmp_path: Path) -> Path:
    spec = staged_spec(patch=(8, 12, 16))
    cases = [write_case(tmp_path / "images", name, seed=i) for i, name in enumerate(("b", "a"))]
    preprocess(spec, cases, tmp_path / "work", RunSettings(tta=False), ["0"], threads=1)
    return tmp_path / "work"


def _rows(path: Path) -> list[list[str]]:
    return [line.split(" ") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("shards", [1, 3, 4, 16, 20])
def test_shards_are_ordered_parts_of_the_whole(work: Path, shards: int) -> None:
    write_info(work, 25)
    files = write_info(work, shards)
    whole = _rows(files.whole)
    assert files.whole == work / "info" / "all.info"
    assert [path.name for path in files.shards] == [f"shard_{i}.info" for i in range(1, shards + 1)]
    assert sorted(path.name for path in (work / "info").glob("shard_*")) == sorted(path.name for path in files.shards)
    parts = [_rows(path) for path in files.shards]
    assert [row[1] for part in parts for row in part] == [row[1] for row in whole]
    for part in [whole, *parts]:
        assert [row[0] for row in part] == [str(i) for i in range(len(part))]
    assert max(files.counts) - min(files.counts) <= 1
    assert [len(part) for part in parts] == list(files.counts)


def test_lines_are_the_vendors(work: Path) -> None:
    items = Worklist.load(work).items()
    rows = _rows(write_info(work, 2).whole)
    # index path width height: the last axis is the width.
    assert rows[3] == ["3", str((work / items[3].file).resolve()), "16", "12"]
    assert [Path(row[1]).stat().st_size for row in rows] == [item.bytes for item in items]
    assert _rows(write_info(work, 2, absolute=False).whole)[3][1] == items[3].file


def test_some_items_only(work: Path) -> None:
    items = Worklist.load(work).items("a")[2:5]
    files = write_info(work, 2, items=items)
    assert [Path(row[1]).name for row in _rows(files.whole)] == [Path(item.file).name for item in items]
    assert files.counts == (1, 2)


def test_json_lines_name_the_item(work: Path) -> None:
    items = Worklist.load(work).items()
    files = write_info(work, 3, "jsonl")
    records = [json.loads(line) for line in files.shards[1].read_text().splitlines()]
    assert [record["index"] for record in records] == list(range(files.counts[1]))
    assert records[0]["item"] == files.counts[0]
    assert records[0]["case"] == items[files.counts[0]].case
    assert files.shards[1].name == "shard_2.jsonl"
    json.dumps(files.to_json())


def test_what_cannot_be_listed_is_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown list format 'bench'; legal: benchmark, jsonl"):
        write_info(work, 2, "bench")
    with pytest.raises(UsageError, match="give 1 or more"):
        write_info(work, 0)
    with pytest.raises(UsageError, match="no items to list"):
        write_info(work, 1, items=[])
    moved = work.rename(tmp_path / "my work")
    with pytest.raises(UsageError, match="cannot hold a path with blanks"):
        write_info(moved, 2)
    assert write_info(moved, 2, absolute=False).whole.exists()
    assert write_info(moved, 2, "jsonl").whole.exists()


@pytest.mark.parametrize(("count", "parts"), [(0, 3), (1, 4), (8, 4), (9, 4), (1000, 7)])
def test_splitting(count: int, parts: int) -> None:
    ranges = split_evenly(count, parts)
    assert [i for first, last in ranges for i in range(first, last)] == list(range(count))
    assert max(b - a for a, b in ranges) - min(b - a for a, b in ranges) <= 1


def _bins(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    names = [f"liver_11_{64 * i}_{64 * i + 128}_0_128_0_128_0.bin" for i in range(count)]
    for name in names:
        (folder / name).write_bytes(b"\0" * 8)
    (folder / "all_shape.txt").write_text("x")
    (folder / ".hidden.bin").write_bytes(b"")
    return names


def test_the_published_command_line(tmp_path: Path) -> None:
    names = _bins(tmp_path / "input_bins", 10)
    result = subprocess.run(
        [sys.executable, "-m", "offline_infer.dataset_info",
         "bin", "./input_bins", "nnunetplusplus_prep_bin.info", "128", "128"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    whole = _rows(tmp_path / "nnunetplusplus_prep_bin.info")
    # Tiles in their own order, 64 before 128 before 1088: not the order of the letters.
    assert whole == [[str(i), f"input_bins/{name}", "128", "128"] for i, name in enumerate(names)]
    parts = [_rows(tmp_path / f"sth{i}.info") for i in range(1, 5)]
    assert [row[1] for part in parts for row in part] == [row[1] for row in whole]
    assert all([row[0] for row in part] == [str(i) for i in range(len(part))] for part in parts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bin", "nowhere", "x.info", "128", "128"], "is not a folder"),
        (["bin", "empty", "x.info", "128", "128"], "holds no .bin files"),
        (["bin", "bins", "sth2.info", "128", "128"], "choose another name"),
        (["bin", "bins", "x.info", "0", "128"], "must be positive"),
        (["bin", "a b", "x.info", "128", "128"], "blanks"),
        (["jpg", "bins", "x.info", "128", "128"], "invalid choice"),
        (["bin", "bins", "x.info", "a", "128"], "invalid int"),
    ],
)
def test_the_published_command_line_refuses(
    tmp_path: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    _bins(tmp_path / "bins", 2)
    _bins(tmp_path / "a b", 2)
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as error:  # argparse
        status = int(error.code or 0)
    assert status == 2
    assert said in capsys.readouterr().err


def test_fewer_bins_than_devices(tmp_path: Path) -> None:
    _bins(tmp_path / "bins", 2)
    files = write_plain_info(tmp_path / "bins", tmp_path / "x.info", 128, 128)
    assert sum(files.counts) == 2
    assert all(path.exists() for path in files.shards)


def test_a_folder_is_described(tmp_path: Path) -> None:
    case = write_case(tmp_path / "images", "good", (10, 14, 20), channels=2)
    write_case(tmp_path / "images", "half", channels=1)
    bad = write_case(tmp_path / "images", "torn", channels=2)
    bad.channels[1].write_bytes(bad.channels[1].read_bytes()[:300])
    found = describe_cases(tmp_path / "images", 2, ".nii.gz", "SimpleITKIO")
    json.dumps(found, allow_nan=False)
    by_case = {record["case"]: record for record in found["cases"]}
    assert found["usable"] == 1
    assert by_case["good"]["shape"] == [10, 14, 20]
    np.testing.assert_allclose(by_case["good"]["spacing"], [1.5] * 3)
    assert len(by_case["good"]["ranges"]) == 2
    assert by_case["good"]["files"] == [str(path) for path in case.channels]
    assert "channel _0001 is missing" in by_case["half"]["problem"]
    assert str(bad.channels[1]) in by_case["torn"]["problem"]
    headers = describe_cases(tmp_path / "images", 2, ".nii.gz", "SimpleITKIO", intensities=False)
    assert "ranges" not in next(record for record in headers["cases"] if record["case"] == "good")
