"""Commands in a process that cannot make a network socket: ``python -m no_network '[["predict", ...], ...]'``.

The kernel ends any thread or child of this process that asks for an internet socket (a seccomp filter, so that native
libraries and external programs are covered as well), and Python code that connects or looks up a name is caught by an
audit hook, which says where. Prints the exit status of every command, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import sys
import traceback
from typing import Any

_SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _KILL_PROCESS = 0x7FFF0000, 0x80000000
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # of prctl(2)
_EVENTS = frozenset(
    ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")
)


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction))]


def forbid_sockets() -> bool:
    """From now on an internet socket ends the process; False where the kernel cannot do that."""
    call = _SOCKET_CALL.get(platform.machine())
    if call is None or not sys.platform.startswith("linux"):
        return False
    lines = [
        (_LOAD, 0, 0, 0),  # number of the system call
        (_JUMP_IF_EQUAL, 0, 4, call),
        (_LOAD, 0, 0, 16),  # its first argument, the family
        (_JUMP_IF_EQUAL, 1, 0, int(socket.AF_INET)),
        (_JUMP_IF_EQUAL, 0, 1, int(socket.AF_INET6)),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_RETURN, 0, 0, _ALLOW),
    ]
    program = _Program(len(lines), (_Instruction * len(lines))(*(_Instruction(*line) for line in lines)))
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program)) == 0


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS:
        return
    if isinstance(arguments[0], socket.socket) and arguments[0].family == socket.AF_UNIX:
        return
    sys.stderr.write(f"NETWORK: {event} {arguments[1:]!r}\n")
    traceback.print_stack()
    sys.stderr.flush()
    os._exit(99)


def _main() -> None:
    from offline_infer.cli import main
    from offline_infer.engines import fake

    fake.register()
    sys.addaudithook(_watch)
    if not forbid_sockets():
        sys.stderr.write("no filter in the kernel; Python code alone is watched\n")
    if sys.argv[1] == "probe":  # the guard itself
        socket.socket(socket.AF_INET).close()
        socket.create_connection(("127.0.0.1", 9))
    statuses = []
    for arguments in json.loads(sys.argv[1]):
        sys.stderr.write(f"COMMAND: {arguments[0]}\n")
        sys.stderr.flush()
        try:
            statuses.append(main(arguments))
        except SystemExit as end:
            statuses.append(end.code)
    print(json.dumps(statuses))


if __name__ == "__main__":
    _main()
