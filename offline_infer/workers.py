"""A function called in processes of their own: one that dies or hangs costs its own call, which is made once more.

A process may be killed by the operating system for want of memory, crash in a library, be stopped, or wait for a drive that
is gone. Its call is repeated once, in a fresh process and after all the others: alone it has all the memory there is.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

import psutil

from offline_infer.errors import OfflineInferError
from offline_infer.lifeline import die_first, end_with_parent

T = TypeVar("T")

SILENT_S = 600.0
"""How long a process may use no processor time at all while it has a call to make."""
_LOOK_S = 1.0
_SPAWN = multiprocessing.get_context("spawn")
"""Spawned, not forked: the parent may hold threads of NumPy or SimpleITK, whose locks a fork would leave locked."""


class WorkerDied(OfflineInferError):
    """The process that made a call died or had to be ended; the text says which."""


def in_processes(
    function: Callable[..., T],
    arguments: Mapping[str, tuple[Any, ...]],
    jobs: int,
    *,
    silent_s: float = SILENT_S,
    repeated: Callable[[str, str], None] = lambda name, reason: None,
) -> Iterator[tuple[str, T | WorkerDied]]:
    """Call ``function(*arguments[name])`` for every name, in ``jobs`` processes.

    Args:
        function: a function of a module, so that a process can find it by name; it does not raise.
        silent_s: a process that uses no processor time for so long, while this one runs, is ended.
        repeated: told (name, reason) of every call that is to be made again.

    Yields:
        Each name with the answer, or with the reason why it has none, as they come.
    """
    workers = [_Worker(silent_s) for _ in range(min(jobs, len(arguments)))]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def call(values: tuple[Any, ...]) -> T | WorkerDied:
        worker = idle.get()
        try:
            return _answer(worker, function, values)
        finally:
            idle.put(worker)

    died: list[str] = []
    threads = ThreadPoolExecutor(len(workers))  # one feeds each process, so that a death points at one call
    try:
        futures: dict[Future[T | WorkerDied], str] = {
            threads.submit(call, values): name for name, values in arguments.items()
        }
        for future in as_completed(futures):
            answer, name = future.result(), futures[future]
            if isinstance(answer, WorkerDied):
                died.append(name)
                repeated(name, str(answer))
            else:
                yield name, answer
        for worker in workers[1:]:
            worker.end()
        for name in died:
            yield name, _answer(workers[0], function, arguments[name])
    finally:
        for worker in workers:
            worker.end()  # one that is busy too: after an interruption nobody waits for its answer
        threads.shutdown(cancel_futures=True)


def _answer(worker: _Worker, function: Callable[..., T], values: tuple[Any, ...]) -> T | WorkerDied:
    try:
        result: T = worker.call(function, values)
    except WorkerDied as error:
        return error
    return result


class _Worker:
    """A process that is started for the first call, and again for the one after its death."""

    def __init__(self, silent_s: float) -> None:
        self._silent_s = silent_s
        self._process: SpawnProcess | None = None
        self._channel: Connection | None = None
        self._ended = False

    def call(self, function: Callable[..., T], values: tuple[Any, ...]) -> T:
        """
        Raises:
            WorkerDied: the process died, or hung and was ended.
        """
        try:
            process, channel = self._started()
            channel.send((function, values))
            self._wait(process, channel)
            answer: T = channel.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied(self._death(error)) from None
        return answer

    def end(self) -> None:
        """End the process, busy or not; another thread that waits for it gets :class:`WorkerDied`. No other is started."""
        self._ended = True
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _started(self) -> tuple[SpawnProcess, Connection]:
        if self._ended:
            raise EOFError
        if self._process is not None and not self._process.is_alive():
            self._death(EOFError())  # after its last answer, so that no call was lost
        if self._process is None or self._channel is None:
            self._channel, theirs = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
            try:
                self._process.start()
            finally:
                theirs.close()  # so that its end is noticed
        return self._process, self._channel

    def _wait(self, process: SpawnProcess, channel: Connection) -> None:
        """Wait for an answer, as long as the process works for it. A time in which this process is stopped does not count."""
        used, silent = -1.0, 0.0
        while not wait([channel, process.sentinel], min(_LOOK_S, self._silent_s)):
            silent += min(_LOOK_S, self._silent_s)
            now = _processor_s(process)
            if now != used:
                used, silent = now, 0.0
            elif silent >= self._silent_s:
                raise TimeoutError
        if not channel.poll():
            raise EOFError

    def _death(self, error: EOFError | OSError) -> str:
        """End what is left of the process; how it ended, in words."""
        process, channel = self._process, self._channel
        self._process = self._channel = None
        if channel is not None:
            channel.close()
        if process is None or process.pid is None:
            return f"no process can be started for this case: {error}"
        if isinstance(error, TimeoutError):
            process.kill()
            process.join()
            return f"the process working on this case did nothing for {self._silent_s:g} s and was ended"
        process.join(_LOOK_S)
        process.kill()
        process.join()
        how = _described(process.exitcode)
        return f"the process working on this case died{how}; most often the machine ran out of memory"


def _described(status: int | None) -> str:
    if status is None or status >= 0:
        return f" (exit status {status})"
    with suppress(ValueError):
        return f" ({signal.Signals(-status).name})"
    return ""


def _processor_s(process: SpawnProcess) -> float:
    """Seconds of processor time that a process has used, -1 where it is gone."""
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:
        return -1.0
    return float(times.user + times.system)


def _serve(channel: Connection) -> None:
    """What the process does: answer calls until it is ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        end_with_parent(parent.sentinel)
    die_first()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with suppress(EOFError):
        while True:
            function, values = channel.recv()
            channel.send(function(*values))
