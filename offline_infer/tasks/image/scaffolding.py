"""A folder to start a model of one's own in: every file works as it is."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from offline_infer.errors import UsageError
from offline_infer.files import write_text

FILES = (
    "README.md",
    "config.json",
    "datasets.json",
    "drawn_data.py",
    "grid.json",
    "mymodel.py",
    "run.sh",
    "train.py",
)


def make_scaffold(folder: Path, *, force: bool = False) -> list[Path]:
    """Write the files; returns them.

    Args:
        force: replace files that are there; otherwise nothing is written where one is.

    Raises:
        UsageError: a file exists, or the folder's name is impossible.
    """
    if not re.fullmatch(r"[^\x00-\x1f/]+", folder.name) or folder.is_file():
        raise UsageError(f"{folder}: expected the name of a folder to make")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not force:
        raise UsageError(
            f"{folder} holds {', '.join(there)} already; nothing was written. Replace them on purpose (force)"
        )
    source = resources.files("offline_infer.tasks.image") / "scaffold"
    written = []
    for name in FILES:
        text = (source / f"{name}.txt").read_text(encoding="utf-8")
        write_text(folder / name, text.replace("# NAME\n", f"# {folder.name}\n"))
        written.append(folder / name)
    (folder / "run.sh").chmod(0o755)
    return written
