"""Runs of the command line that are killed at a chosen moment, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import random
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

LIMIT_S = 900
MARK = "OFFLINE_INFER_TEST_RUN"
"""An environment variable by which every process of a run is recognised, whatever session it moved to."""
Way = Literal["group", "parent", "child", "stopped", "everything"]
WAYS: tuple[Way, ...] = ("group", "parent", "child", "stopped", "everything")
EVENT_SHARE = 0.5
_LOOK_S = 0.02


@dataclass(frozen=True)
class Moment:
    """When a run is killed, and how.

    Attributes:
        seconds: after its start; None: at an event.
        event: number of the file operation before which it kills itself and its group.
        way: ``group``: the program and what shares its process group; ``parent``: the program alone; ``child``: one of its
            workers or tools; ``stopped``: as ``group``, but
            stopped first; ``everything``: every process at once, the guardian of tools included.
        again: how many times the resumed run is killed as well.
    """

    seconds: float | None
    event: int | None = None
    way: Way = "group"
    again: int = 0


@dataclass(frozen=True)
class Environment:
    """What a route's runs need beside their arguments."""

    variables: dict[str, str] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    imports: tuple[str, ...] = ("offline_infer.predict.folder", "offline_infer.staging.rounds", "SimpleITK")


class Programs:
    """Starts runs one at a time; see :mod:`kill_server`."""

    def __init__(self, folder: Path) -> None:
        self._errors = folder / f"stderr_{secrets.token_hex(4)}.txt"
        self._told = folder / f"events_{secrets.token_hex(4)}.txt"
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kill_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._mark = ""

    def start(
        self,
        arguments: Sequence[str],
        environment: Environment,
        harm_at: int | None = None,
        harm: Sequence[str | int] = ("kill",),
    ) -> int:
        """Start a run; returns its process id, which is that of its group and session too.

        Args:
            harm_at: number of the file operation before which the run does harm to itself.
            harm: which; see :class:`kill_server.Countdown`.
        """
        self._mark = secrets.token_hex(8)
        order = {
            "arguments": list(arguments),
            "environment": {**environment.variables, MARK: self._mark},
            "path": environment.path,
            "imports": environment.imports,
            "errors": str(self._errors),
            "tell": str(self._told),
            "harm_at": harm_at,
            "harm": list(harm),
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        self._server.stdin.flush()
        answer = self._answer(LIMIT_S)
        assert answer is not None
        return int(answer["pid"])

    def wait(self, seconds: float = LIMIT_S) -> int | None:
        """Exit status of the run, negative for a signal; None if it is still running."""
        answer = self._answer(seconds)
        return None if answer is None else int(answer["status"])

    def said(self) -> str:
        """Standard error of the last run."""
        return self._errors.read_text(errors="replace")

    def events(self) -> int:
        """How many file operations the last run had, if it came to its end."""
        return int(self._told.read_text())

    def relatives(self, pid: int) -> list[int]:
        """Processes of the last run besides the program itself."""
        wanted = f"{MARK}={self._mark}".encode()
        return [other for other in _processes() if other != pid and wanted in _environment(other)]

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(LIMIT_S)

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        stream = self._server.stdout
        assert stream is not None
        ready, _, _ = select.select([stream], [], [], seconds)
        if not ready:
            return None
        line = stream.readline()
        assert line, "the server of runs has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def programs(folder: Path) -> Iterator[Programs]:
    server = Programs(folder)
    try:
        yield server
    finally:
        server.close()


def moments(name: str, count: int, seconds: float, events: int) -> list[Moment]:
    """``count`` moments of a run that takes ``seconds`` and has so many ``events``: at file operations, and at any time."""
    draw = random.Random(f"{name} {count}")
    at_events = sorted(draw.sample(range(events), min(events, max(1, round(count * EVENT_SHARE)))))
    found = [Moment(None, event, again=draw.choice((0, 0, 0, 1))) for event in at_events]
    for number in range(count - len(found)):
        way = WAYS[number % len(WAYS)]
        found.append(Moment(draw.uniform(0.02, 1.05) * seconds, way=way, again=draw.choice((0, 0, 0, 2))))
    return found


def kill_at(server: Programs, arguments: Sequence[str], environment: Environment, moment: Moment) -> int:
    """Start a run and kill it; returns its exit status, which is a good one where it ended earlier or survived.

    Raises:
        AssertionError: it did not end, ended without an orderly message, or left a process behind.
    """
    pid = server.start(arguments, environment, moment.event)
    status = server.wait(LIMIT_S if moment.seconds is None else moment.seconds)
    if status is None:
        _kill(server, pid, moment.way)
        status = server.wait()
    assert status is not None, "the run did not end"
    said = server.said()
    assert status in (0, 2, 3, -signal.SIGKILL), f"{moment}: exit status {status}: {said}"
    assert "Traceback" not in said, said
    assert "internal error" not in said, said
    _all_gone(server, pid, str(moment))
    return status


def finish(server: Programs, arguments: Sequence[str], environment: Environment) -> float:
    """Run to the end, which must be a good one; returns the seconds."""
    begun = time.monotonic()
    pid = server.start(arguments, environment)
    status = server.wait()
    assert status == 0, f"{arguments}: exit status {status}: {server.said()}"
    seconds = time.monotonic() - begun
    _all_gone(server, pid, "an undisturbed run")
    return seconds


def _kill(server: Programs, pid: int, way: Way) -> None:
    others = server.relatives(pid)
    with suppress(ProcessLookupError):
        if way == "child" and others:
            os.kill(random.Random(pid).choice(others), signal.SIGKILL)
        elif way == "everything":
            os.kill(pid, signal.SIGSTOP)  # so that it starts nothing more
            for other in [*server.relatives(pid), pid]:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
        elif way == "stopped":
            os.killpg(pid, signal.SIGSTOP)
            time.sleep(0.1)
            os.killpg(pid, signal.SIGKILL)
        elif way == "parent":
            os.kill(pid, signal.SIGKILL)
        else:
            os.killpg(pid, signal.SIGKILL)


def _all_gone(server: Programs, pid: int, after: str, patience_s: float = 60) -> None:
    looks = 0  # counted, not timed: the machine may have stood still
    while left := server.relatives(pid):
        looks += 1
        if looks * _LOOK_S > patience_s:
            told = [Path(f"/proc/{other}/cmdline").read_bytes().replace(b"\0", b" ")[:200] for other in left]
            for other in left:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
            raise AssertionError(f"left behind by {after}: {told}")
        time.sleep(_LOOK_S)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _environment(pid: int) -> bytes:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return b"" if state == "Z" else Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
