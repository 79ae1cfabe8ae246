"""The parent's end of a worker: started, asked, and ended without a trace."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from offline_infer.engines.om.error_codes import sentences
from offline_infer.engines.om.worker import LARGEST_MESSAGE
from offline_infer.guardian import GUARDIAN
from offline_infer.processes import describe_status, last_lines

_LOG_TAIL = 1 << 16
_LOG_LIMIT = 1 << 20
_GRACE_S = 3.0


class WorkerFailed(Exception):
    """A worker reported an error, died or hung; the text says what is known, with code and remedy.

    Attributes:
        killed: somebody ended it by SIGKILL, which says nothing of the device.
    """

    def __init__(self, text: str, *, killed: bool = False) -> None:
        super().__init__(text)
        self.killed = killed


class WorkerProcess:
    """One worker.

    It must be started in a thread that lives as long as the worker: on Linux the worker ends with that very thread.
    """

    def __init__(self, device: int) -> None:
        """
        Raises:
            WorkerFailed: it cannot be started.
        """
        self.device = device
        self._ended = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The search path goes along as it is; the child would put its own working directory first.
        code = (
            f"import sys; sys.path[:] = {[str(entry) for entry in sys.path]!r}; "
            f"from offline_infer.engines.om.worker import main; main({theirs.fileno()}, {os.getpid()})"
        )
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is the parent's business
            )
        except OSError as error:
            self.channel.close()
            self._log.close()
            raise WorkerFailed(f"the worker process cannot be started: {error.strerror or error}") from error
        finally:
            theirs.close()
        GUARDIAN.watch_group(self._process.pid)  # the kernel ends the worker with us, but not what the worker started

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: dict[str, Any], handle: int | None = None) -> None:
        """Send a message, with a file descriptor where one belongs to it.

        Raises:
            WorkerFailed: the worker is gone.
        """
        data = json.dumps(message).encode()
        try:
            socket.send_fds(self.channel, [data], [] if handle is None else [handle])
        except OSError as error:
            raise self._death() from error

    def receive(self) -> dict[str, Any]:
        """The reply that is there; call it once the channel is readable.

        Raises:
            WorkerFailed: the worker reported an error, or is gone.
        """
        try:
            data = self.channel.recv(LARGEST_MESSAGE)
        except OSError as error:
            raise self._death() from error
        if not data:
            raise self._death()
        reply: dict[str, Any] = json.loads(data)
        if not reply["ok"]:
            raise WorkerFailed(self._explained(reply["error"]))
        self._trim_log()
        return reply

    def ask(self, message: dict[str, Any], limit_s: float, handle: int | None = None) -> dict[str, Any]:
        """Send a message and wait for its reply.

        Raises:
            WorkerFailed: an error, a death, or no reply within ``limit_s``.
        """
        self.send(message, handle)
        if not readable([self.channel], limit_s):
            raise WorkerFailed(f"no reply to {message['do']!r} within {limit_s:g} s")
        return self.receive()

    def signal(self) -> None:
        """Kill the process and leave the rest to whoever looks after it: for another thread."""
        with suppress(ProcessLookupError, PermissionError):
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Ask it to end, and see to it that it does. May be called twice."""
        with suppress(WorkerFailed, OSError):
            self.send({"do": "end"})
            self._process.wait(_GRACE_S)
        self.kill()

    def kill(self) -> None:
        """End it now, with everything it may have started. May be called twice."""
        if self._ended:
            return
        self._ended = True
        with suppress(ProcessLookupError, PermissionError):  # even where it has crashed: its group may live on
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        GUARDIAN.forget_group(self._process.pid)
        self.channel.close()
        self._log.close()

    def _death(self) -> WorkerFailed:
        try:
            status: int | None = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            status = None
        said = self._explained(f"the worker process died ({describe_status(status)})")
        return WorkerFailed(said, killed=status == -signal.SIGKILL)

    def _explained(self, said: str) -> str:
        """An error with what the binding printed, which is where its code stands, and the way out."""
        printed = self._printed()
        detail = sentences(f"{said}\n{printed}") or last_lines(printed, 2)
        return f"{said}: {detail}" if detail else said

    def _printed(self) -> str:
        if self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        return os.pread(self._log.fileno(), _LOG_TAIL, max(0, size - _LOG_TAIL)).decode("utf-8", errors="replace")

    def _trim_log(self) -> None:
        """Keep what a binding prints from filling the disk over days; the file position is shared with the worker."""
        if os.fstat(self._log.fileno()).st_size > _LOG_LIMIT:
            self._log.seek(0)
            self._log.truncate(0)


def readable(sources: Sequence[Any], limit_s: float | None) -> list[Any]:
    """Those of some channels or file descriptors that can be read, after ``limit_s`` at the latest (None: wait)."""
    poll = select.poll()
    by_number = {source if isinstance(source, int) else source.fileno(): source for source in sources}
    for number in by_number:
        poll.register(number, select.POLLIN)
    ready = poll.poll(None if limit_s is None else max(0.0, limit_s) * 1000)
    return [by_number[number] for number, _ in ready]
