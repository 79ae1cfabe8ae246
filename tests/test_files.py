"""Atomic writing: a path is either the old content or the complete new one."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from offline_infer import files
from offline_infer.errors import UsageError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def half_a_file(target: Path) -> None:
    with files.replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("stop")


def half_a_folder(target: Path, error: BaseException, *, overwrite: bool = False) -> None:
    with files.replacing_folder(target, overwrite=overwrite) as folder:
        (folder / "new").write_text("new")
        raise error


def test_replacing_writes_the_whole_file_and_leaves_no_partial(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "case.nii.gz"
    with files.replacing(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith(".nii.gz")
        assert files.is_partial(temporary)
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["case.nii.gz"]


def test_a_failing_block_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"):
        half_a_file(target)
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), files.replacing(target):
        pass
    assert target.read_bytes() == b"old"


def test_replacing_a_folder_by_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError), files.replacing(tmp_path / "a"):
        pass


def test_permissions_of_the_replaced_file_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    files.write_text(target, "one")
    target.chmod(0o600)
    files.write_text(target, "zwei ü\n")
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.read_text(encoding="utf-8") == "zwei ü\n"


def test_write_json_round_trip_and_refusal_of_nan(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    files.write_json(target, {"b": [1, 2.5, None], "a": "ü"})
    assert json.loads(target.read_text(encoding="utf-8")) == {"b": [1, 2.5, None], "a": "ü"}
    assert list(json.loads(target.read_text(encoding="utf-8"))) == ["b", "a"]
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(target, {"x": float("nan")})
    assert json.loads(target.read_text(encoding="utf-8"))["a"] == "ü"
    assert names(tmp_path) == ["a.json"]


def test_sha256(tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(data)
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "name", ["a", "case.nii.gz", "x" * 255, "ü" * 127, "a.b.c", "p.averylongsuffixwithdots.andmore"]
)
def test_temporary_names_are_short_hidden_and_fresh(name: str, tmp_path: Path) -> None:
    first, second = files.temporary_name(name), files.temporary_name(name)
    assert first != second
    assert first.startswith(".")
    assert len(first.encode()) <= 255
    assert files.is_partial(first)
    assert not files.is_partial(name)
    files.write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


def test_only_what_no_living_process_of_this_machine_holds_is_cleared(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    killed.wait()
    mine = files.temporary_name("case.nii.gz")
    theirs = mine.replace(f"-{os.getpid()}-", f"-{killed.pid}-")
    machine = theirs.split("-")[0].rpartition(".")[2]
    elsewhere = theirs.replace(machine, "00000000")
    kept = [mine, elsewhere, "case.nii.gz", ".case.partial.nii.gz"]
    abandoned = theirs.replace("case", "folder")
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in (theirs, *kept):
        for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
            (folder / name).write_bytes(b"half")
    (tmp_path / abandoned).mkdir()
    (tmp_path / abandoned / "in").symlink_to(tmp_path / "a")
    (tmp_path / theirs.replace("case", "link")).symlink_to(tmp_path / "case.nii.gz")
    assert files.clear_partial(tmp_path / "missing") == 0
    assert files.clear_partial(tmp_path, depth=1) == 3
    assert set(names(tmp_path / "a")) == {*kept, "b"}
    assert (tmp_path / "a" / "b" / theirs).exists()
    left = {*kept, "a", theirs.replace("case", "link")}
    assert set(names(tmp_path)) == left


def test_folder_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with files.replacing_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "1"
    assert names(tmp_path) == ["bundle"]


def test_folder_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        half_a_folder(tmp_path / "b", KeyboardInterrupt())
    assert names(tmp_path) == []


def test_folder_refuses_or_replaces_an_existing_one(tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(FileExistsError), files.replacing_folder(target):
        pass
    with pytest.raises(RuntimeError, match="stop"):
        half_a_folder(target, RuntimeError("stop"), overwrite=True)
    assert names(target) == ["old"]
    with files.replacing_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("atomic", [True, False])
def test_folder_exchange_with_and_without_the_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool
) -> None:
    if not atomic:
        monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **options: object())  # a C library without renameat2
    target = tmp_path / "b"
    target.mkdir()
    (target / "old").write_text("old")
    with files.replacing_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["b"]


def test_folder_made_meanwhile_by_somebody_else_is_not_lost(tmp_path: Path) -> None:
    target = tmp_path / "b"

    def make() -> None:
        with files.replacing_folder(target) as folder:
            (folder / "mine").write_text("1")
            target.mkdir()
            (target / "theirs").write_text("2")

    with pytest.raises(FileExistsError):
        make()
    assert names(target) == ["theirs"]
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("name", ["case_1", "a", "liver 12", "Ünal", "x" * 255, "scan.2024", "a..b", "名前"])
def test_plain_names_are_kept(name: str) -> None:
    assert files.plain_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "/a",
        "../x",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x1b[2J",
        "\udcff",
        "x" * 256,
        "ü" * 128,
        None,
    ],
)
def test_what_is_no_plain_name_is_refused_in_a_message_that_can_be_printed(name: object) -> None:
    with pytest.raises(UsageError, match="the case's name") as refused:
        files.plain_name(name, "case's name")
    assert str(refused.value).isprintable()


def test_inside_follows_links(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (other / "secret").write_text("x")
    (root / "link").symlink_to(other)
    (root / "file").symlink_to(other / "secret")
    (root / "here").symlink_to(root / "real")
    (root / "loop").symlink_to(root / "loop")
    for good in ("a", "a/b", "here", "a/../b", "loop"):
        assert files.inside(root, root / good) == root / good
    for bad in ("", "..", "../other/x", "link", "link/secret", "file", "a/../../other"):
        with pytest.raises(UsageError, match="outside"):
            files.inside(root, root / bad)


def test_inside_takes_relative_paths_and_linked_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    assert files.inside("root", "root/a") == Path("root/a")
    assert files.inside(tmp_path / "alias", tmp_path / "root" / "a")
    with pytest.raises(UsageError, match="outside"):
        files.inside("root", "rootless/a")


def test_printable() -> None:
    assert files.printable("plain ü") == "plain ü"
    assert files.printable("a\x1b[2J\udcffb") == "a\\x1b[2J\\udcffb"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": \xff}', "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 400, "400 digits"),
        (b"{", "Expecting"),
        (b" " * 300, "300 bytes"),
    ],
)
def test_json_is_read_without_trust(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        files.read_json(path, largest=200 if words.endswith("bytes") else files.LARGEST_JSON)
    path.write_text('\ufeff{"a": [1, 2.5, "\u00e9"]}', encoding="utf-8")
    assert files.read_json(path) == {"a": [1, 2.5, "\u00e9"]}


def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="regular file"):
            files.read_json(path)


def test_a_folder_that_was_replaced_keeps_nothing_that_was_meant_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    held, file = files.HeldFolder(folder), folder / "deep" / "a.json"
    with held.writing([file]):
        files.write_json(file, 1)

    def vanish_and_write() -> None:
        folder.rename(tmp_path / "away")
        files.write_json(file, 2)

    with pytest.raises(UsageError, match="unmounted"), held.writing([file]):
        vanish_and_write()
    assert not folder.exists()
    assert files.read_json(tmp_path / "away" / "deep" / "a.json") == 1
    with pytest.raises(UsageError, match="unmounted"), held.writing([file]):
        raise AssertionError("the block is not entered")
    (tmp_path / "away").rename(folder)
    held.refuse_another()


def test_a_failure_in_a_folder_that_vanished_is_called_by_its_cause(tmp_path: Path) -> None:
    held = files.HeldFolder(tmp_path / "absent")
    with pytest.raises(ZeroDivisionError), held.writing([]):
        raise ZeroDivisionError
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "somebody's").write_text("stays")
    with pytest.raises(UsageError, match="replaced"):
        held.refuse_another()
    assert (tmp_path / "absent" / "somebody's").exists()
