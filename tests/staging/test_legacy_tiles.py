"""Reading the published scripts' folders: names, shape file, numbering of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline_infer.arithmetic.sliding_window import lay_tiles
from offline_infer.errors import UsageError
from offline_infer.staging.legacy_tiles import (
    LEGACY_TOOLS,
    differences,
    find_results,
    legacy_stem,
    parse_tile_name,
    read_shape_file,
    write_shape_file,
)

STEMS = [legacy_stem("liver_11", (0, 0, x), (128, 128, 128), f) for x in (0, 64) for f in range(8)]


def test_tile_names_are_taken_apart_from_the_right() -> None:
    tile = parse_tile_name("liver_11_0_128_64_192_128_256_7.bin")
    assert tile is not None
    assert (tile.case, tile.bounds, tile.mirror) == ("liver_11", ((0, 128), (64, 192), (128, 256)), 7)
    odd = parse_tile_name("my case-3_1_2_3_0_128_0_128_0_128_0")
    assert odd is not None
    assert odd.case == "my case-3_1_2_3"
    assert parse_tile_name("liver_11_0_128_0_128_0_128_8.bin") is None
    assert parse_tile_name("notes.bin") is None


@pytest.mark.parametrize("case", ["liver_11", "my-case-3", "two words", "7"])
def test_the_shape_file_is_read(tmp_path: Path, case: str) -> None:
    (tmp_path / "all_shape.txt").write_text(f"{case} 161 256 320-0,33-0,64,128-0,64,128,192\n")
    record = read_shape_file(tmp_path)
    assert record.case == case
    assert record.shape == (161, 256, 320)
    assert record.starts == ((0, 33), (0, 64, 128), (0, 64, 128, 192))
    assert record.tiles == 24
    assert read_shape_file(tmp_path / "all_shape.txt") == record


@pytest.mark.parametrize(
    "text",
    [
        "",
        "liver_1 1 2 3",
        "liver_1 1 2-0-0-0",
        "liver_1 1 2 3-0-0-a",
        "liver_1 1 2 3-0--0",
        "a 1 2 3-0-0-0\nb 1 2 3-0-0-0",
    ],
)
def test_a_damaged_shape_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "all_shape.txt").write_text(text)
    with pytest.raises(UsageError, match="does not read"):
        read_shape_file(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_shape_file(tmp_path / "nowhere.txt")


def test_the_shape_file_is_written_for_the_published_reader(tmp_path: Path) -> None:
    grid = lay_tiles((100, 200, 300), (128, 128, 128), 0.5)
    path = write_shape_file(tmp_path, "liver_11", grid)
    assert path.read_text() == "liver_11 128 200 300-0-0,36,72-0,57,115,172\n"
    assert differences(read_shape_file(path), grid, "liver_11") == []
    # Its reader splits on blanks and on hyphens.
    name, depth, height, width = path.read_text().split("-")[0].split(" ")
    assert (name, depth, height, width) == ("liver_11", "128", "200", "300")
    with pytest.raises(UsageError, match="cannot take"):
        write_shape_file(tmp_path, "liver-11", grid)


def test_differences_are_named(tmp_path: Path) -> None:
    record = read_shape_file(write_shape_file(tmp_path, "liver_11", lay_tiles((100, 200, 300), (128, 128, 128), 0.5)))
    other = differences(record, lay_tiles((100, 200, 301), (128, 128, 128), 0.5), "liver_12")
    assert len(other) == 3
    assert other[0] == "case 'liver_11', not 'liver_12'"
    assert "padded shape (128, 200, 300), the model gives (128, 200, 301)" in other[1]
    assert "along x" in other[2]


def _results(folder: Path, names: str, numbers: range | list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in STEMS:
        for number in numbers:
            (folder / names.format(stem=stem, n=number)).write_bytes(b"%d" % number)


@pytest.mark.parametrize(
    ("place", "names", "numbers", "tool"),
    [
        ("result/dumpOutput_device0", "{stem}_{n}.bin", range(1, 6), "benchmark"),
        ("result/dumpOutput_device0", "{stem}_{n}.bin", [1], "benchmark"),
        ("collected", "{stem}_{n}.bin", [1], "benchmark"),
        ("20211217_11_36_6_921476", "{stem}_output_{n}.bin", range(5), "msame"),
        ("20211217_11_36_6_921476", "{stem}_output_{n}.bin", [0], "msame"),
        ("bs1", "{stem}_{n}.bin", [0], "ais_bench"),
    ],
)
def test_what_leaves_no_doubt_is_detected(
    tmp_path: Path, place: str, names: str, numbers: range | list[int], tool: str
) -> None:
    _results(tmp_path / place, names, numbers)
    (tmp_path / place / "notes_1.bin").write_bytes(b"")
    for folder in (tmp_path / place, tmp_path / place.split("/")[0]):
        found = find_results(folder, STEMS, None)
        assert found.tool == tool
        assert found.heads == len(numbers)
        final = LEGACY_TOOLS[tool][1]
        assert {found.files[stem][0].read_bytes() for stem in STEMS} == {b"%d" % final}


@pytest.mark.parametrize("numbers", [range(5), range(2), [0, 1, 2, 3, 4, 5]])
def test_both_candidates_are_refused_unless_the_tool_is_stated(tmp_path: Path, numbers: range | list[int]) -> None:
    _results(tmp_path / "bs1", "{stem}_{n}.bin", numbers)
    with pytest.raises(UsageError, match=r"both <tile>_0.bin and <tile>_1.bin.*say which tool it was"):
        find_results(tmp_path / "bs1", STEMS)
    assert find_results(tmp_path / "bs1", STEMS, "ais_bench").files[STEMS[3]][0].read_bytes() == b"0"
    assert find_results(tmp_path / "bs1", STEMS, "benchmark").files[STEMS[3]][0].read_bytes() == b"1"


def test_the_renamed_head_of_the_published_driver(tmp_path: Path) -> None:
    """infer.py deletes _1 to _4 of ais_bench and renames _0 to _1."""
    _results(tmp_path / "bs1", "{stem}_{n}.bin", [1])
    (tmp_path / "bs1_summary.json").write_text("{}")
    with pytest.raises(UsageError, match=r"written by ais_bench but only <tile>_1.bin is left"):
        find_results(tmp_path / "bs1", STEMS)
    assert find_results(tmp_path / "bs1", STEMS, "infer_py").files[STEMS[0]][0].read_bytes() == b"1"
    with pytest.raises(UsageError, match="no final head as ais_bench would name it"):
        find_results(tmp_path / "bs1", STEMS, "ais_bench")


def test_several_devices_and_duplicates(tmp_path: Path) -> None:
    for device, stems in enumerate((STEMS[:6], STEMS[6:])):
        folder = tmp_path / f"result/dumpOutput_device{device}"
        folder.mkdir(parents=True)
        for stem in stems:
            for number in range(1, 6):
                (folder / f"{stem}_{number}.bin").write_bytes(b"%d" % number)
    found = find_results(tmp_path / "result", STEMS)
    assert found.tool == "benchmark"
    assert all(found.files[stem][0].read_bytes() == b"1" for stem in STEMS)
    (tmp_path / "result/dumpOutput_device0" / f"{STEMS[-1]}_1.bin").write_bytes(b"again")
    with pytest.raises(UsageError, match="results of the same input"):
        find_results(tmp_path / "result", STEMS)


def test_other_doubts_are_refused(tmp_path: Path) -> None:
    _results(tmp_path / "a", "{stem}_{n}.bin", [2, 3])
    with pytest.raises(UsageError, match=r"numbered \[2, 3\]; that fits more than one tool"):
        find_results(tmp_path / "a", STEMS)
    _results(tmp_path / "b", "{stem}_{n}.bin", [1])
    _results(tmp_path / "b", "{stem}_output_{n}.bin", [0])
    with pytest.raises(UsageError, match=r"msame.*and of another tool"):
        find_results(tmp_path / "b", STEMS)
    _results(tmp_path / "dumpOutput_device0", "{stem}_{n}.bin", [0])
    with pytest.raises(UsageError, match="never writes <tile>_0"):
        find_results(tmp_path / "dumpOutput_device0", STEMS)
    with pytest.raises(UsageError, match="unknown tool 'atc'; legal: benchmark, msame, ais_bench, infer_py"):
        find_results(tmp_path / "a", STEMS, "atc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no results of these 16 inputs"):
        find_results(tmp_path / "empty", STEMS)


def test_inputs_beside_results_are_not_taken_for_results(tmp_path: Path) -> None:
    for stem in STEMS:
        (tmp_path / f"{stem}.bin").write_bytes(b"input")
    with pytest.raises(UsageError, match="holds no results"):
        find_results(tmp_path, STEMS)
