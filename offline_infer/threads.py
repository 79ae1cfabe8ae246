"""Threads: how many, a team that shares small jobs, and what each thread keeps for itself."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from offline_infer.machine import processors

Single = npt.NDArray[np.float32]
T = TypeVar("T")


def worker_count(threads: int | None) -> int:
    """Threads to use: the number given, or for 0 and None all processors this process may use."""
    return threads or processors()


def engine_threads(threads: int) -> int:
    """Threads to ask an engine for; 0 leaves it to the engine.

    An engine looks at the machine, not at this process's share of it. Left to itself in a container of four processors on a
    machine of 64 it starts 64 threads, which the system then lets run for a sixteenth of the time.
    """
    return threads or (processors() if processors() < (os.cpu_count() or 1) else 0)


class Team:
    """Threads that share a list of small jobs, the caller among them; with one thread, no other."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "team") if threads > 1 else None

    def each(self, work: Callable[[int], None], items: Iterable[int]) -> None:
        """Run ``work`` on every item and wait; the first error is raised."""
        todo = list(items)
        if self._pool is None or len(todo) < 2:
            one_after_the_other(work, todo)
            return
        size = -(-len(todo) // self.threads)
        shares = [todo[first : first + size] for first in range(0, len(todo), size)]
        others = [self._pool.submit(one_after_the_other, work, share) for share in shares[1:]]
        try:
            one_after_the_other(work, shares[0])
        finally:
            wait(others)  # nobody works on the arrays any more when this returns
        for other in others:
            other.result()

    def close(self) -> None:
        """End the threads; the caller alone works from now on."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def one_after_the_other(work: Callable[[int], None], items: Iterable[int]) -> None:
    """Run ``work`` on every item."""
    for item in items:
        work(item)


class PerThread(Generic[T]):
    """One value for every thread that asks, made at its first call and freed when the thread ends."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._held = threading.local()

    def get(self) -> T:
        """The calling thread's value."""
        held = self._held
        if not hasattr(held, "value"):
            held.value = self._make()
        value: T = held.value
        return value

    def clear(self) -> None:
        """Forget every thread's value."""
        self._held = threading.local()


class ThreadBuffers:
    """Each thread's memory for results: fresh memory for every part would cost more than the arithmetic."""

    def __init__(self) -> None:
        self._held = threading.local()

    def take(self, name: str, shape: tuple[int, ...]) -> Single:
        """An array of that shape with any content; the next call by the same thread and name gives it again."""
        size = math.prod(shape)
        held: Single | None = getattr(self._held, name, None)
        if held is None or held.size < size:
            held = np.empty(size, np.float32)
            setattr(self._held, name, held)
        return held[:size].reshape(shape)

    def constant(self, value: float, shape: tuple[int, ...]) -> Single:
        """An array full of one value: NumPy's minimum and maximum are five times as fast with an array as with a number."""
        name, size = f"constant {value!r}", math.prod(shape)
        held: Single | None = getattr(self._held, name, None)
        if held is None or held.size < size:
            held = np.full(size, value, np.float32)
            setattr(self._held, name, held)
        return held[:size].reshape(shape)
