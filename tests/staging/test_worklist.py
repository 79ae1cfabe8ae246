"""The on-disk contract of a staged run."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer.arithmetic.sliding_window import mirror_code, mirror_sets
from offline_infer.bundles.fingerprint import fingerprint
from offline_infer.cli import main
from offline_infer.errors import UsageError
from offline_infer.files import temporary_name
from offline_infer.staging.outputs import OUTPUTS_FILE, WRITERS, OutputEntry, OutputsManifest, append_lines
from offline_infer.staging.work_folder import (
    WORK_MARKER,
    exclusive,
    inside,
    is_work_folder,
    mark_work_folder,
    safe_name,
)
from offline_infer.staging.worklist import (
    WORKLIST_FILE,
    CaseRecord,
    Item,
    Worklist,
    WorklistHeader,
    WorklistWriter,
    header_for,
)
from offline_infer.tasks.volume.tiles import tile_name

SETTINGS = {"step_size": 0.5, "tta": True}


def _header(**changes: object) -> WorklistHeader:
    spec = with_outputs(tiny_spec(), ("class", "head_1"))
    return header_for(spec, SETTINGS, ("0",)).model_copy(update=changes)


def _items(writer: WorklistWriter, case: str, count: int) -> list[Item]:
    return [
        Item(
            index=writer.next_index + i,
            case=case,
            file=f"inputs/{safe_name(case)}_{tile_name((0, 0, i), (8, 12, 16), 0)}.bin",
            geometry={"mode": "tile", "start": [0, 0, i], "mirror": 0},
            shape=(1, 8, 12, 16),
            dtype="float32",
            bytes=8 * 12 * 16 * 4,
            crc32=i,
        )
        for i in range(count)
    ]


def _add(writer: WorklistWriter, case: str, count: int = 3) -> CaseRecord:
    record = CaseRecord(
        case_id=case,
        safe_name=safe_name(case),
        files=(f"{case}_0000.nii.gz",),
        geometry={},
        network_shape=(8, 12, 18),
        items=count,
        first_item=writer.next_index,
    )
    writer.add(record, _items(writer, case, count))
    return record


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    writer = WorklistWriter(tmp_path / "work", _header())
    first, second = _add(writer, "liver_2", 3), _add(writer, "a.b-c d", 2)
    worklist = Worklist.load(tmp_path / "work")
    assert worklist.header == _header()
    assert worklist.cases == (first, second)
    assert [item.index for item in worklist.items()] == [0, 1, 2, 3, 4]
    assert [item.index for item in worklist.items("a.b-c d")] == [3, 4]
    assert worklist.items()[1].geometry["start"] == [0, 0, 1]
    assert worklist.header.item_bytes((1, 8, 12, 16)) == 8 * 12 * 16 * 4
    assert worklist.header.kept == (0,)
    assert worklist.output_bytes(0) == 3 * 8 * 12 * 16 * 4


def test_the_single_file_holds_everything_in_order(tmp_path: Path) -> None:
    writer = WorklistWriter(tmp_path / "work", _header())
    _add(writer, "z", 2)
    _add(writer, "a", 1)
    lines = [json.loads(line) for line in (tmp_path / "work" / WORKLIST_FILE).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["header", "case", "item", "item", "case", "item"]
    assert lines[2]["geometry"] == {"mode": "tile", "start": [0, 0, 0], "mirror": 0}


def test_a_killed_run_leaves_no_half_case(tmp_path: Path) -> None:
    work = tmp_path / "work"
    writer = WorklistWriter(work, _header())
    _add(writer, "one")
    # Killed after the case file was renamed, before the single file was derived, and while writing another one.
    (work / WORKLIST_FILE).write_text(_header().model_dump_json() + "\n")
    (work / "cases" / ".two.1-ab.partial.jsonl").write_text('{"kind":"ca')
    again = WorklistWriter(work, _header())
    assert list(again.cases) == ["one"]
    assert again.next_index == 3
    assert len((work / WORKLIST_FILE).read_text().splitlines()) == 5


def test_numbers_are_never_given_out_twice(tmp_path: Path) -> None:
    work = tmp_path / "work"
    writer = WorklistWriter(work, _header())
    _add(writer, "one", 3)
    entry = OutputEntry(item=2, fold="0", output=0, file="outputs/x.bin", bytes=4, dtype="float32", keep=True)
    OutputsManifest.load(work).append([entry])
    for item in Worklist.load(work).items():
        (work / item.file).write_bytes(b"x")
    writer.remove("one")
    assert list((work / "inputs").iterdir()) == []
    assert WorklistWriter(work, _header()).next_index == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "f" * 64}, "another model"),
        ({"settings": {"step_size": 0.25, "tta": True}}, "other settings.*step_size"),
        ({"input_dtype": "float16"}, "other settings.*input_dtype"),
        ({"folds": ("0", "1")}, "other settings.*folds"),
    ],
)
def test_runs_are_not_mixed(tmp_path: Path, change: dict[str, object], said: str) -> None:
    WorklistWriter(tmp_path / "work", _header())
    with pytest.raises(UsageError, match=said):
        WorklistWriter(tmp_path / "work", _header(**change))


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        WorklistWriter(tmp_path / "mine", _header())
    with pytest.raises(UsageError, match="run preprocess first"):
        Worklist.load(tmp_path / "mine")
    with pytest.raises(UsageError, match="does not exist"):
        Worklist.load(tmp_path / "nowhere")
    (tmp_path / "mine" / WORK_MARKER).symlink_to(tmp_path / "elsewhere")
    assert not is_work_folder(tmp_path / "mine")


def test_damage_is_named(tmp_path: Path) -> None:
    work = tmp_path / "work"
    _add(WorklistWriter(work, _header()), "one")
    file = work / "cases" / "one.jsonl"
    whole = file.read_text()
    file.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    with pytest.raises(UsageError, match=r"one\.jsonl is damaged: it lists 2 items, 3 were expected"):
        Worklist.load(work)
    file.write_text(whole.replace('"crc32":1', '"crc32":-1'))
    with pytest.raises(UsageError, match=r"one\.jsonl is damaged.*crc32"):
        Worklist.load(work)


def test_bytes_that_are_no_text_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for damaged in ("worklist.jsonl", "cases/*.jsonl", ".offline-infer-work.json"):
        work = tmp_path / f"work_{len(damaged)}"
        _add(WorklistWriter(work, _header()), "liver_2", 3)
        (path,) = work.glob(damaged)
        content = path.read_bytes()
        for bad in (b"\xff\xfe", b"[" * 100_000):
            path.write_bytes(content[:20] + bad + content[20:] if bad[0] == 255 else bad)
            for arguments in (["info", str(work)], ["clean", str(work)]):
                assert main(arguments) == 2, (damaged, arguments)
            assert "Traceback" not in capsys.readouterr().err


def test_records_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    record = json.loads(_items(WorklistWriter(tmp_path / "w", _header()), "a", 1)[0].model_dump_json())
    with pytest.raises(ValueError, match="surprise"):
        Item.model_validate({**record, "surprise": 1})
    placed = {"mode": "letterbox", "size": [480, 640], "box": [0, 96, 512, 416], "mirror": 0}
    item = Item.model_validate({**record, "geometry": placed})
    assert item.geometry == placed


def test_names_are_the_published_ones() -> None:
    assert tile_name((0, 64, 128), (128, 128, 128), 7) == "0_128_64_192_128_256_7"


@pytest.mark.parametrize("case", ["a.b", "a-b", "a b", "ä", "a/b", "", "x" * 300])
def test_names_are_made_safe_and_stay_apart(case: str) -> None:
    name = safe_name(case)
    assert name.isascii()
    assert name.replace("_", "").isalnum()
    assert len(name) < 140
    assert safe_name("a.b") != safe_name("a-b") != safe_name("a b")
    assert safe_name("liver_3") == "liver_3"


def test_mirror_bits_are_the_published_ones() -> None:
    # Published: code -> flipped axes of (c, d, h, w).
    published = {0: (), 1: (3,), 2: (2,), 3: (2, 3), 4: (1,), 5: (1, 3), 6: (1, 2), 7: (1, 2, 3)}
    for code, axes in published.items():
        assert mirror_code(tuple(axis - 1 for axis in axes)) == code
    assert {mirror_code(mirror) for mirror in mirror_sets((0, 1, 2), 3)} == set(range(8))


def test_the_fingerprint_is_of_the_model_alone(tmp_path: Path) -> None:
    spec = with_graphs(with_outputs(tiny_spec()), tmp_path)
    verified = spec.graphs[0].model_copy(update={"verification": {"labels": 0}})
    assert fingerprint(spec.model_copy(update={"graphs": (verified,)})) == fingerprint(spec)
    other = spec.graphs[0].model_copy(update={"sha256": "1" * 64})
    assert fingerprint(spec.model_copy(update={"graphs": (other,)})) != fingerprint(spec)
    assert fingerprint(spec.model_copy(update={"spacing": (1.0, 1.0, 1.0)})) != fingerprint(spec)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "inputs/../../x", "", "a\x00b"])
def test_paths_cannot_leave_the_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match="not a path inside"):
        inside(tmp_path, path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "work" / "outputs").symlink_to(tmp_path / "other")
    with pytest.raises(UsageError, match="through a link"):
        inside(tmp_path / "work", "outputs/x.bin")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    mark_work_folder(tmp_path / "work")
    with exclusive(tmp_path / "work"), pytest.raises(UsageError, match="another process"), exclusive(tmp_path / "work"):
        pass
    with exclusive(tmp_path / "work"):
        pass


# ---- outputs manifest ------------------------------------------------------------------------------------------------


def _entry(item: int, **changes: object) -> OutputEntry:
    values = {"item": item, "fold": "0", "output": 0, "file": f"outputs/{item}.bin", "bytes": 3, "dtype": "float32"}
    return OutputEntry.model_validate({**values, "keep": True, **changes})


def test_the_same_head_has_other_names_with_other_tools() -> None:
    stem = "liver_3_0_128_0_128_0_128_0"
    assert WRITERS["benchmark"].file_name(stem, 0) == f"{stem}_1.bin"
    assert WRITERS["ais_bench"].file_name(stem, 0) == f"{stem}_0.bin"
    assert WRITERS["msame"].file_name(stem, 0) == f"{stem}_output_0.bin"


def test_a_torn_last_line_is_ignored_and_cut_off(tmp_path: Path) -> None:
    manifest = OutputsManifest.load(tmp_path)
    manifest.append([_entry(0), _entry(1)], WRITERS["msame"])
    path = tmp_path / OUTPUTS_FILE
    with path.open("ab") as stream:
        stream.write(b'{"kind":"output","item":2,"fo')
    read = OutputsManifest.load(tmp_path)
    assert len(read) == 2
    assert read.writers == (WRITERS["msame"],)
    read.append([_entry(3)])
    assert sorted(entry.item for entry in OutputsManifest.load(tmp_path)) == [0, 1, 3]
    path.write_bytes(b"torn from the start")
    append_lines(path, ["{}"])
    assert path.read_bytes() == b"{}\n"


def test_damage_in_the_middle_is_not_ignored(tmp_path: Path) -> None:
    (tmp_path / OUTPUTS_FILE).write_text('{"kind":"output"}\n')
    with pytest.raises(UsageError, match="line 1 is damaged"):
        OutputsManifest.load(tmp_path)


def test_later_entries_win_and_sizes_are_checked(tmp_path: Path) -> None:
    manifest = OutputsManifest.load(tmp_path)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "b.bin").write_bytes(b"1234")
    manifest.append([_entry(0), _entry(0, file="outputs/b.bin", bytes=4)])
    read = OutputsManifest.load(tmp_path)
    assert read.complete(0, "0", 0) is not None
    (tmp_path / "outputs" / "b.bin").write_bytes(b"12")
    assert read.complete(0, "0", 0) is None
    assert read.complete(0, "1", 0) is None


def test_an_entry_cannot_point_outside(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a path inside"):
        OutputsManifest.load(tmp_path).append([_entry(0, file="../x.bin")])
    assert not (tmp_path / OUTPUTS_FILE).exists()


def _append_many(folder: Path, first: int) -> None:
    manifest = OutputsManifest.load(folder)
    for item in range(first, first + 50):
        manifest.append([_entry(item)])


def test_several_processes_append(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(tmp_path, 50 * i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(entry.item for entry in OutputsManifest.load(tmp_path)) == list(range(150))


def test_a_run_killed_while_it_marked_its_folder_can_be_given_again(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / temporary_name(WORK_MARKER)).write_text("{")
    mark_work_folder(work)
    assert is_work_folder(work)
