"""A process that must not outlive another, even while it is stuck in native code.

The parent keeps the writing end of a pipe, which nothing else holds. When the parent ends, however it ends, the kernel closes
that end and sends the child SIGIO, whose default action ends a process at once; no Python code has to run for it. Linux's
``PR_SET_PDEATHSIG`` is no substitute: it fires when the *thread* ends that started the child, and a child that reads files
serves several threads one after the other.

This file imports the standard library only.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from contextlib import suppress
from pathlib import Path


def end_with_parent(handle: int) -> None:
    """Have this process ended when the other end of a pipe is closed, at once if it is closed already. Linux.

    Args:
        handle: the reading end; nothing is ever written to the other one.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # whoever started us may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    fcntl.fcntl(handle, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(handle, 0)
    if poll.poll(0):  # the parent was quicker
        os._exit(1)


def die_first() -> None:
    """Have this process chosen when the system ends one for want of memory: it costs one case, its parent the whole run.

    In a container the system would else choose the larger one, most often the parent.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
