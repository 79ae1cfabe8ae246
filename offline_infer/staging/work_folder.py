"""Work folders: the mark that says one is ours, names that every tool can take, paths that cannot leave."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from offline_infer.errors import UsageError
from offline_infer.files import HeldFolder, clear_partial, is_partial, read_json, write_json
from offline_infer.locks import locked_or_refused

WORK_MARKER = ".offline-infer-work.json"
_MARK = "offline-infer staged run"
_LONGEST_SAFE_NAME = 120


def is_work_folder(work: Path | str) -> bool:
    """Whether the folder carries our marker (a real file, not a link)."""
    marker = Path(work) / WORK_MARKER
    try:
        if marker.is_symlink() or not marker.is_file():
            return False
        record = read_json(marker)
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("folder") == _MARK


def mark_work_folder(work: Path | str) -> None:
    """Make the folder (it must be absent or empty) and mark it as ours.

    Raises:
        UsageError: it holds files that are not ours.
    """
    folder = Path(work)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name a new or empty folder for the staged run")
    # What a run left that was killed while it made the mark is ours.
    if folder.is_dir() and not all(is_partial(entry) for entry in folder.iterdir()):
        raise UsageError(f"{folder} is not empty and was not made by a staged run; name a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / WORK_MARKER, {"folder": _MARK, "schema_version": 1})


@contextmanager
def exclusive(work: Path | str) -> Iterator[HeldFolder]:
    """Hold the folder against other processes that would change its list of cases; freed when the process ends.

    Yields:
        The folder, which can tell whether it is still the same one.

    Raises:
        UsageError: not a work folder, or another process is at work in it.
    """
    folder = Path(work)
    if not is_work_folder(folder):
        raise UsageError(f"{folder} is not the work folder of a staged run")
    taken = f"another process is at work in {folder}; wait for it, or name another folder"
    with locked_or_refused(folder / WORK_MARKER, taken):
        held = HeldFolder(folder)
        clear_partial(folder, depth=2)  # outputs/fold_0/
        yield held


def inside(work: Path | str, relative: str) -> Path:
    """``relative`` as a path under ``work``, refusing everything that would leave it.

    Raises:
        UsageError: absolute path, ``..``, or a folder on the way that is a link out of the work folder.
    """
    root = Path(work)
    pure = PurePosixPath(relative)
    if not relative or pure.is_absolute() or ".." in pure.parts or "\x00" in relative:
        raise UsageError(f"{relative!r} is not a path inside the work folder {root}")
    path = root / pure
    resolved_root = root.resolve()
    if not path.parent.resolve().is_relative_to(resolved_root):
        raise UsageError(f"{path} leads out of the work folder {root} through a link")
    return path


def safe_name(case_id: str) -> str:
    """A case id made safe for tools that split names on ``.``, ``-`` or blanks; a hash keeps changed ids apart."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", case_id)[:_LONGEST_SAFE_NAME]
    if plain == case_id and plain:
        return plain
    return f"{plain or 'case'}_h{hashlib.sha256(case_id.encode()).hexdigest()[:8]}"
