"""Cleaning deletes what it may, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from specimens import tiny_spec, with_outputs
from staged_samples import FIVE_HEADS

from offline_infer.errors import UsageError
from offline_infer.staging.clean import clean_outputs
from offline_infer.staging.outputs import WRITERS, OutputEntry, OutputsManifest
from offline_infer.staging.work_folder import WORK_MARKER
from offline_infer.staging.worklist import CaseRecord, Item, Worklist, WorklistWriter, header_for
from offline_infer.tasks.volume.tiles import tile_name

SIZE = 3 * 8 * 12 * 16 * 4
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "clear_outputs.sh"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder with four items of a model with five heads."""
    spec = with_outputs(tiny_spec(), FIVE_HEADS)
    writer = WorklistWriter(tmp_path / "my work", header_for(spec, {"step_size": 0.5, "tta": True}, ["0"]))
    items = [
        Item(
            index=i, case="c", file=f"inputs/c_{tile_name((0, 0, i), (8, 12, 16), 0)}.bin",
            geometry={"mode": "tile", "start": [0, 0, i], "mirror": 0}, shape=(1, 8, 12, 16), dtype="float32", bytes=6144, crc32=0,
        )
        for i in range(4)
    ]  # fmt: skip
    record = CaseRecord(
        case_id="c", safe_name="c", files=(), geometry={}, network_shape=(8, 12, 19), items=4, first_item=0
    )
    writer.add(record, items)
    return tmp_path / "my work"


def _write(work: Path, tool: str, *, listed: bool, age: float = 60.0, folder: str = "outputs") -> None:
    writer = WRITERS[tool].model_copy(update={"folder": folder})
    (work / folder).mkdir(parents=True, exist_ok=True)
    entries = []
    for item in Worklist.load(work).items():
        for position in range(5):
            file = f"{folder}/{writer.file_name(item.stem, position)}"
            (work / file).write_bytes(bytes(SIZE))
            os.utime(work / file, (time.time() - age,) * 2)
            entries.append(
                OutputEntry(
                    item=item.index,
                    fold="0",
                    output=position,
                    file=file,
                    bytes=SIZE,
                    dtype="float32",
                    keep=position == 0,
                )
            )
    OutputsManifest.load(work).append(entries if listed else [], writer)


def _left(work: Path) -> set[str]:
    return {path.name for path in (work / "outputs").rglob("*.bin")}


def _final(work: Path, tool: str) -> set[str]:
    return {WRITERS[tool].file_name(item.stem, 0) for item in Worklist.load(work).items()}


@pytest.mark.parametrize("tool", ["benchmark", "msame", "ais_bench"])
@pytest.mark.parametrize("listed", [True, False])
def test_only_unneeded_heads_go(work: Path, tool: str, listed: bool) -> None:
    _write(work, tool, listed=listed)
    everything = _left(work)
    report = clean_outputs(work)
    assert (report.applied, report.files, report.bytes) == (False, 16, 16 * SIZE)
    assert _left(work) == everything
    done = clean_outputs(work, apply=True)
    assert (done.files, done.bytes, done.waiting) == (16, 16 * SIZE, 0)
    assert _left(work) == _final(work, tool)
    assert clean_outputs(work, apply=True).files == 0


def test_while_the_tool_is_writing(work: Path) -> None:
    _write(work, "benchmark", listed=False, folder="outputs/device0")
    stem = Worklist.load(work).items()[0].stem
    young, short = work / f"outputs/device0/{stem}_2.bin", work / f"outputs/device0/{stem}_3.bin"
    unborn = work / f"outputs/device0/{stem}_4.bin"
    os.utime(young)
    short.write_bytes(bytes(SIZE // 3))
    os.utime(short, (time.time() - 60,) * 2)
    os.utime(unborn, (time.time() + 3600,) * 2)
    done = clean_outputs(work, apply=True)
    assert (done.files, done.waiting) == (13, 3)
    assert young.exists()
    assert short.exists()
    assert unborn.exists()
    short.write_bytes(bytes(SIZE // 2))  # half precision, complete
    assert clean_outputs(work, apply=True, settle_seconds=0).files == 2


def test_a_listed_file_that_is_written_again_waits(work: Path) -> None:
    _write(work, "msame", listed=True)
    path = work / "outputs" / WRITERS["msame"].file_name(Worklist.load(work).items()[0].stem, 2)
    path.write_bytes(b"begun")
    done = clean_outputs(work, apply=True)
    assert (done.files, done.waiting) == (15, 1)
    assert path.exists()


def test_foreign_files_stay(work: Path) -> None:
    _write(work, "ais_bench", listed=False)
    stem = Worklist.load(work).items()[0].stem
    foreign = [f"{stem}_1.npy", f"{stem}_7.bin", "other_1.bin", "notes.txt", f"x{stem}_1.bin", f"{stem}_output_1.bin"]
    for name in foreign:
        (work / "outputs" / name).write_bytes(bytes(SIZE))
        os.utime(work / "outputs" / name, (0, 0))
    (work / f"{stem}_1.bin").write_bytes(bytes(SIZE))
    clean_outputs(work, apply=True)
    assert all((work / "outputs" / name).exists() for name in foreign)
    assert (work / f"{stem}_1.bin").exists()


def test_without_a_writer_nothing_is_guessed(work: Path) -> None:
    _write(work, "ais_bench", listed=False)
    (work / "outputs.jsonl").unlink()
    assert clean_outputs(work, apply=True).files == 0


def test_two_tools_in_one_folder_are_not_guessed_about(work: Path) -> None:
    _write(work, "ais_bench", listed=False)
    OutputsManifest.load(work).append([], WRITERS["benchmark"])
    report = clean_outputs(work, apply=True)
    assert report.files == 0
    assert "both ais_bench and benchmark" in report.notes[0]


def test_a_file_that_is_needed_under_another_entry_stays(work: Path) -> None:
    _write(work, "msame", listed=True)
    needed = OutputsManifest.load(work).entries[(0, "0", 0)]
    liar = needed.model_copy(update={"output": 3, "keep": False})
    OutputsManifest.load(work).append([liar])
    clean_outputs(work, apply=True)
    assert _left(work) >= _final(work, "msame")


def test_links_are_not_followed(work: Path, tmp_path: Path) -> None:
    _write(work, "benchmark", listed=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    names = [path.name for path in (work / "outputs").iterdir()]
    for name in names:
        shutil.copy(work / "outputs" / name, precious / name)
    # One redundant file is a link, and a folder of redundant files is a link.
    victim = work / "outputs" / next(name for name in names if name.endswith("_2.bin"))
    victim.unlink()
    victim.symlink_to(precious / victim.name)
    (work / "outputs" / "device1").symlink_to(precious)
    clean_outputs(work, apply=True)
    assert sorted(path.name for path in precious.iterdir()) == sorted(names)
    assert victim.is_symlink()
    shutil.rmtree(work / "outputs")
    (work / "outputs").symlink_to(precious)
    clean_outputs(work, apply=True)
    assert sorted(path.name for path in precious.iterdir()) == sorted(names)


def test_only_marked_folders(work: Path, tmp_path: Path) -> None:
    _write(work, "benchmark", listed=True)
    (work / WORK_MARKER).unlink()
    with pytest.raises(UsageError, match="does not carry the mark"):
        clean_outputs(work, apply=True)
    with pytest.raises(UsageError, match="does not exist"):
        clean_outputs(tmp_path / "nowhere", apply=True)
    assert len(_left(work)) == 20


# ---- the shell wrapper -----------------------------------------------------------------------------------------------


def _script(*arguments: str, cwd: Path | None = None, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SCRIPT), *arguments], capture_output=True, text=True, cwd=cwd, timeout=60,
        env={**os.environ, "PYTHON": python},
    )  # fmt: skip


def _echo(tmp_path: Path) -> str:
    """An interpreter that says what it was asked to do, one argument per line."""
    path = tmp_path / "echo python"
    path.write_text('#!/bin/sh\nfor a in "$@"; do printf "[%s]\\n" "$a"; done\n')
    path.chmod(0o755)
    return str(path)


def test_the_script_explains_itself() -> None:
    result = _script("--help")
    assert result.returncode == 0
    assert "--apply" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name the work folder"),
        (("--aply", "x"), "unknown option '--aply'"),
        (("a", "b"), "exactly one work folder"),
        (("no such folder",), "is not a folder"),
        (("--every", "0", "."), "whole number"),
        (("--every",), "needs a number"),
    ],
)
def test_the_script_refuses(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = _script(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_the_script_keeps_odd_names_whole(tmp_path: Path) -> None:
    echo = _echo(tmp_path)
    for name in ("my work $(touch owned) *", "-dash"):
        (tmp_path / name).mkdir()
    plain = _script("--apply", "my work $(touch owned) *", cwd=tmp_path, python=echo)
    assert plain.stdout.splitlines() == [
        "[-m]",
        "[offline_infer]",
        "[clean]",
        "[my work $(touch owned) *]",
        "[--apply]",
    ]
    dashed = _script("--", "-dash", cwd=tmp_path, python=echo)
    assert dashed.stdout.splitlines()[-1] == "[./-dash]"
    assert not (tmp_path / "owned").exists()


def test_the_script_passes_the_exit_status_on(tmp_path: Path) -> None:
    fails = tmp_path / "fails"
    fails.write_text("#!/bin/sh\nexit 2\n")
    fails.chmod(0o755)
    assert _script(".", cwd=tmp_path, python=str(fails)).returncode == 2
