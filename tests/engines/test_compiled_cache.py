"""Compiled graphs are used again by the one who made them, for what they were made from, and nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from offline_infer import private
from offline_infer.engines.compiled_cache import CompiledCache, clear, entries, open_cache, trim
from offline_infer.private import NotPrivateError

FACTS = {"graph": "a" * 64, "engine": "openvino", "config": {"threads": "1"}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "offline_infer" / "private"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_what_was_written_is_found_for_the_same_facts_only(folder: Path) -> None:
    cache = CompiledCache(folder)
    cache.write(FACTS, b"compiled")
    assert CompiledCache(folder).read(FACTS) == b"compiled"
    assert cache.read({**FACTS, "graph": "b" * 64}) is None
    assert cache.read({**FACTS, "config": {"threads": "2"}}) is None
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_entry_moved_to_another_graphs_place_is_not_used(folder: Path) -> None:
    cache = CompiledCache(folder)
    cache.write(FACTS, b"one")
    (first,) = folder.iterdir()
    cache.write({**FACTS, "graph": "b" * 64}, b"two")
    (second,) = set(folder.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    assert cache.read({**FACTS, "graph": "b" * 64}) is None
    assert cache.read(FACTS) == b"one"


def test_an_entry_that_another_user_made_is_not_used(folder: Path, home: Path) -> None:
    CompiledCache(folder).write(FACTS, b"theirs")
    (home / "key").unlink()  # this user has another key
    assert CompiledCache(folder).read(FACTS) is None
    CompiledCache(folder).write(FACTS, b"mine")
    assert CompiledCache(folder).read(FACTS) == b"mine"


def test_a_folder_that_others_may_write_is_refused_unless_it_is_named_as_shared(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(NotPrivateError, match="may be written by other users"):
        CompiledCache(folder)
    cache, reason = open_cache(folder, shared=False)
    assert cache is None
    assert reason is not None
    assert "may be written by other users" in reason
    CompiledCache(folder, shared=True).write(FACTS, b"ours")
    assert CompiledCache(folder, shared=True).read(FACTS) == b"ours"
    folder.chmod(0o700)
    assert CompiledCache(folder).read(FACTS) is None  # no key was needed to make it


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give a folder away")
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(NotPrivateError, match="belongs to another user"):
        CompiledCache(folder)


def test_without_a_private_key_nothing_is_kept(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private.private_folder(home)
    home.chmod(0o777)
    with pytest.raises(NotPrivateError):
        CompiledCache(folder)
    assert open_cache(None, shared=False) == (None, None)


def test_damage_is_a_miss(folder: Path) -> None:
    cache = CompiledCache(folder)
    cache.write(FACTS, b"compiled" * 10)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], whole[:-1] + b"x", b"x" * len(whole)):
        path.write_bytes(damaged)
        assert cache.read(FACTS) is None
    path.write_bytes(whole)
    assert cache.read(FACTS) == b"compiled" * 10


def test_it_is_bounded_by_size_and_age(folder: Path) -> None:
    cache = CompiledCache(folder)
    for number in range(5):
        cache.write({"graph": number}, bytes(1000))
        for path in folder.iterdir():  # every entry is a day older than the next
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 86_400))
    (folder / "somebody_else.txt").write_text("stays")
    assert [round(entry.idle_days) for entry in entries(folder)] == [5, 4, 3, 2, 1]
    assert len(trim(folder, most_days=4.5)) == 1
    size = entries(folder)[0].size
    assert len(trim(folder, most_bytes=2 * size)) == 2
    assert cache.read({"graph": 4}) is not None
    assert entries(folder)[-1].idle_days < 0.1  # used just now
    newest = entries(folder)[-1].path
    assert len(trim(folder, most_bytes=0, keep=newest)) == 1
    assert len(clear(folder)) == 1
    assert [path.name for path in folder.iterdir()] == ["somebody_else.txt"]
    assert entries(folder / "missing") == ()


def test_links_are_no_entries(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(mode=0o700)
    target = tmp_path / "target.compiled"
    target.write_bytes(b"x")
    (folder / "a.compiled").symlink_to(target)
    assert entries(folder) == ()
    assert clear(folder) == ()
    assert target.exists()
