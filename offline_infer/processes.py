"""External tools as processes: each in a group of its own, its output in a log file, never left behind.

``atc`` is a shell wrapper around another program, and benchmarks start threads and helpers: ending the process that was
started is not enough, its whole group has to go.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from offline_infer.errors import EngineUnavailable, ToolError, UsageError
from offline_infer.guardian import GUARDIAN

FOLDER_VARIABLE = "OFFLINE_INFER_TOOL_FOLDER"
"""In a tool's environment: the folder it was started in, by which a later run knows one that was left running."""
UMASK = 0o027
"""Newer Ascend tools refuse models and inputs that others may write."""

_GRACE_S = 5.0  # between asking a group to end and making it end
_POLL_S = 0.05


@dataclass(frozen=True)
class Finished:
    """How a tool ended.

    Attributes:
        status: exit status; negative for the signal that ended it; None when it was stopped at the time limit.
        seconds: wall time.
    """

    status: int | None
    seconds: float

    @property
    def timed_out(self) -> bool:
        return self.status is None


def start(
    command: Sequence[str], *, cwd: Path, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a tool in its own process group; standard output and error go to ``log`` (appended), input is empty.

    It ends with this program, even if that is killed; see :mod:`offline_infer.guardian`.

    Raises:
        ToolError: it cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    GUARDIAN.ready()
    with log.open("ab") as stream:
        try:
            process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env={**(environment if environment is not None else os.environ), FOLDER_VARIABLE: str(cwd.absolute())},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=UMASK,
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise ToolError(f"{command[0]} cannot be started: {reason}; is it made for this machine?") from error
    GUARDIAN.watch_group(process.pid)
    return process


def stop(process: subprocess.Popen[bytes], grace_s: float | None = None) -> int:
    """End a tool and everything it started; gives its exit status. Harmless when it has ended already."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + (_GRACE_S if grace_s is None else grace_s)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    # A wrapper may be gone while the program behind it lives on in the same group.
    _signal_group(process.pid, signal.SIGKILL)
    status = process.wait()
    GUARDIAN.forget_group(process.pid)
    return status


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Ask a tool and everything it started to end; returns at once."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)


def end_leftovers(folder: Path) -> int:
    """Kill the tools of this user that were started in a folder, or below it, and live on; returns how many processes.

    The guardian does so when a program is killed. This is for the case that it was killed too: call it only where no other
    program is at work in the folder.
    """
    place = folder.absolute()
    ended = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.uids().real == os.getuid() and process.pid != os.getpid():
                started_in = process.environ().get(FOLDER_VARIABLE)
                if started_in is not None and Path(started_in).is_relative_to(place):
                    process.kill()
                    ended += 1
    return ended


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    log: Path,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a tool to its end, or to the time limit; on any exception (an interrupt) its whole group is ended.

    Raises:
        ToolError: it cannot be started.
    """
    begun = time.monotonic()
    process = start(command, cwd=cwd, log=log, environment=environment)
    try:
        status: int | None = process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        stop(process)
    return Finished(status, time.monotonic() - begun)


def ask(command: Sequence[str], *, timeout_s: float = 30.0) -> tuple[int | None, str]:
    """Run a short query such as ``npu-smi info``: exit status (None: absent, or no answer in time) and its text."""
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return None, f"{command[0]}: {error.strerror or error}"
    try:
        text, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        stop(process, grace_s=1.0)
        return None, f"{command[0]}: no answer in {timeout_s:g} s"
    except BaseException:
        stop(process, grace_s=1.0)
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()
    return process.returncode, text.decode("utf-8", errors="replace")


def find_program(name: str | Path, *, purpose: str, remedy: str) -> str:
    """Absolute path of an executable given by name (searched on PATH) or by path.

    Raises:
        UsageError: a path was given, and no executable file is there.
        EngineUnavailable: a bare name was given, and PATH does not have it.
    """
    text = str(name)
    if os.sep in text:
        path = Path(text)
        if not path.is_file():
            raise UsageError(f"{text}: no such file; expected {purpose}; {remedy}")
        if not os.access(path, os.X_OK):
            raise UsageError(f"{text} is not executable; expected {purpose}; run: chmod +x {text}")
        return str(path.absolute())
    found = shutil.which(text)
    if found is None:
        raise EngineUnavailable(f"{text} ({purpose}) is not on PATH; {remedy}")
    return str(Path(found).absolute())


def describe_status(status: int | None) -> str:
    """An exit status in words: ``exit status 255``, ``ended by SIGSEGV``, ``stopped``."""
    if status is None:
        return "stopped"
    if status < 0:
        with suppress(ValueError):
            return f"ended by {signal.Signals(-status).name}"
    return f"exit status {status}"


def read_log(log: Path, limit: int = 1 << 20) -> str:
    """The last ``limit`` bytes of a log, as text; empty when there is none."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - limit))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def last_lines(text: str, count: int = 3) -> str:
    """The last non-empty lines of a log, joined by `` | ``, for an error message."""
    # A progress bar rewrites its line with carriage returns; only its last state is of interest.
    lines = [line.rsplit("\r", 1)[-1].strip() for line in text.splitlines(keepends=False)]
    return " | ".join([line for line in lines if line][-count:])


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
