"""A process that has imported the package and forks a run of the command line whenever it is told to.

Killing a program a hundred times costs a hundred starts, most of whose time goes into imports, where nothing can be lost.
A forked run begins where its work begins. It is a program of its own in every other respect: it leads a session, its
standard streams are files, and its children are started as ever.

Orders come as JSON lines on standard input; the answers are ``{"pid": ...}`` and, when the run has ended, ``{"status": ...}``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

WORTH_A_KILL = frozenset(
    {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "fcntl.flock", "shutil.rmtree"}
)
"""Audit events between which files are in different states; ``os.fsync`` has none and is counted by hand."""


class Countdown:
    """Counts events that change files; at one of them the process does harm to itself or its surroundings.

    The harm is ``["kill"]`` of itself and its group, ``["signal", number]`` to itself, or ``["move", from, to]`` of a folder.
    """

    def __init__(self, harm_at: int | None, harm: list[Any], tell: Path | None) -> None:
        self._left, self._harm, self._seen, self._tell = harm_at, harm, 0, tell
        self._owner = os.getpid()
        sys.addaudithook(self._heard)
        flush = os.fsync

        def counted(handle: Any) -> None:
            self._count()
            flush(handle)

        os.fsync = counted

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in WORTH_A_KILL or (event == "open" and _writes(arguments)):
            self._count()

    def _count(self) -> None:
        if os.getpid() != self._owner:
            return
        self._seen += 1
        if self._seen - 1 != self._left:
            return
        what, *how = self._harm
        if what == "kill":
            os.killpg(self._owner, signal.SIGKILL)
        elif what == "signal":
            os.kill(self._owner, how[0])
        elif os.path.exists(how[0]):
            os.rename(*how)

    def tell(self) -> None:
        if self._tell is not None:
            self._tell.write_text(str(self._seen))


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return bool((mode and set(mode) & set("wxa")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR))


def run(order: dict[str, Any]) -> int:
    """Become the program that the order names."""
    os.setsid()
    os.environ.update(order["environment"])
    sys.path[:0] = order["path"]
    null = os.open(os.devnull, os.O_RDWR)
    errors = os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for handle, stream in ((null, 0), (null, 1), (errors, 2)):
        os.dup2(handle, stream)
    countdown = Countdown(
        order.get("harm_at"), order.get("harm", ["kill"]), Path(order["tell"]) if order.get("tell") else None
    )
    from offline_infer.cli import main

    try:
        return main(order["arguments"])
    finally:
        countdown.tell()


def serve() -> int | None:
    """Fork a run for each order; returns in a run, with its exit status, and at the end of the orders."""
    from offline_infer.engines import fake

    fake.register()
    for line in sys.stdin:
        order = json.loads(line)
        for name in order["imports"]:
            importlib.import_module(name)
        pid = os.fork()
        if pid == 0:
            return run(order)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)
    return None


if __name__ == "__main__":
    sys.exit(serve())
