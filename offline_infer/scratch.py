"""Temporary folders of long work. A killed process leaves its folder behind; whoever works next deletes it."""

from __future__ import annotations

import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from offline_infer.locks import locked

_YOUNG_S = 60.0  # a folder may not be held yet


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder in the place for temporary files, held by this process and deleted at the end.

    Args:
        purpose: a word that becomes part of the folder's name; abandoned folders of the same purpose are deleted.
    """
    prefix = f"offline_infer_{purpose}_"
    _delete_abandoned(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name, held(Path(name)):
        yield Path(name)


@contextmanager
def held(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder against other processes that do so too; freed when the process ends.

    Raises:
        BlockingIOError: without ``wait``, another process holds it.
    """
    with locked(folder.resolve(), wait=math.inf if wait else 0.0):
        yield


def _delete_abandoned(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):  # another user's, or one that is at work
            facts = folder.lstat()
            ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
            if ours and time.time() - facts.st_mtime > _YOUNG_S:
                with held(folder, wait=False):
                    shutil.rmtree(folder, ignore_errors=True)
