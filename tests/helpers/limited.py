"""Running something in a child process with little memory and processor time, so that a hang or a blow-up is a failure."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

GIB = 1 << 30


def limited(function: Callable[..., Any], *arguments: Any, memory: int = GIB, cpu_seconds: int = 120) -> Any:
    """What the function returns, run in a forked child.

    Args:
        function: its answer and its exceptions must be picklable.
        arguments: for it.
        memory: bytes it may take beyond what this process has.
        cpu_seconds: of processor time, far more than it needs.

    Raises:
        AssertionError: the child was killed (by a signal, or for its limits).
        Exception: whatever the function raised.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        status = 1
        sys.settrace(None)  # coverage would count lines here for nobody, at several times the price of the code itself
        try:
            limit = _address_space() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            try:
                answer = (True, function(*arguments))
            except BaseException as error:
                answer = (False, error)
            with os.fdopen(write, "wb") as stream:
                pickle.dump(answer, stream)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    if status or not data:
        died = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        raise AssertionError(f"the child ended with {died}: it took too much memory or processor time, or crashed")
    done, answer = pickle.loads(data)
    if done:
        return answer
    raise answer


def _address_space() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
