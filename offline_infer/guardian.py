"""A small process that outlives this one just long enough to end the external tools a killed program leaves running.

A tool runs in a process group of its own, so that Ctrl-C reaches this program first; nothing else would end it when this
program is killed and cannot act. The guardian holds the other end of a pipe that closes, whatever happens, with this
process. It is started with the first tool and ends by itself.

This file is also the guardian's own program: it must import the standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any


class Guardian:
    """This process's end of the pipe; the guardian is started when something is first entrusted to it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def ready(self) -> None:
        """Be there before a tool is started, so that no moment is long in which a killed program leaves it running."""
        with self._lock:
            self._ensure()

    def watch_group(self, group: int) -> None:
        """Kill this process group if the program is killed."""
        self._say({"kill": group})

    def forget_group(self, group: int) -> None:
        """The group has ended."""
        self._say({"spare": group})

    def watch_path(self, path: Path) -> None:
        """Delete this file or folder if the program is killed."""
        self._say({"delete": str(path)})

    def forget_path(self, path: Path) -> None:
        """The file or folder is gone, or is to stay."""
        self._say({"keep": str(path)})

    def _say(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._ensure()
            try:
                if self._process is not None and self._process.stdin is not None:
                    self._process.stdin.write(json.dumps(message).encode() + b"\n")
                    self._process.stdin.flush()
            except OSError:
                self._process = None

    def _ensure(self) -> None:
        """Start the guardian unless it runs. Without one, a killed program leaves its tools to the next run."""
        if os.getpid() != self._owner:  # after a fork the pipe is the parent's
            self._process, self._owner = None, os.getpid()
        if self._process is None or self._process.poll() is not None:
            try:
                self._process = _start()
            except OSError:
                self._process = None


GUARDIAN = Guardian()
"""The one of this process."""


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # it must survive whatever ends this program's group
    )


def main() -> None:
    """Note what is entrusted, and act on what is left of it when the pipe closes."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    groups: set[int] = set()
    paths: dict[str, None] = {}
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "kill" in message:
            groups.add(message["kill"])
        elif "spare" in message:
            groups.discard(message["spare"])
        elif "delete" in message:
            paths[message["delete"]] = None
        elif "keep" in message:
            paths.pop(message["keep"], None)
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(path)


if __name__ == "__main__":
    main()
