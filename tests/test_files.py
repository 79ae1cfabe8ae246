"""Atomic writing: a path is either the old content or the complete new one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from offline_infer import files


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
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
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
