"""Temporary folders: gone at the end, and those of killed processes gone at the next beginning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from offline_infer.scratch import held, scratch_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def _abandoned(place: Path, name: str, age_s: float) -> Path:
    folder = place / name
    folder.mkdir()
    (folder / "graph.onnx").write_bytes(b"x")
    then = folder.stat().st_mtime - age_s
    os.utime(folder, (then, then))
    return folder


def test_it_is_gone_at_the_end_and_what_killed_processes_left_at_the_beginning(temporary: Path) -> None:
    left = _abandoned(temporary, "offline_infer_quantize_abc", 3600)
    with scratch_folder("quantize") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == temporary
        assert not left.exists()
    assert list(temporary.iterdir()) == []


def test_others_are_left_alone(temporary: Path) -> None:
    young = _abandoned(temporary, "offline_infer_quantize_young", 0)
    at_work = _abandoned(temporary, "offline_infer_quantize_held", 3600)
    foreign = _abandoned(temporary, "offline_infer_tune_abc", 3600)
    elsewhere = _abandoned(temporary, "elsewhere", 3600)
    link = temporary / "offline_infer_quantize_link"
    link.symlink_to(elsewhere)
    with held(at_work), scratch_folder("quantize"):
        pass
    assert all(path.exists() for path in (young, at_work, foreign, elsewhere / "graph.onnx"))
