"""The child of ``isolation``: reads images as it is told over a socket, into memory it is handed. Run with ``-m`` only."""

from __future__ import annotations

import mmap
import os
import resource
import socket
import sys
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.errors import CaseError, UsageError
from offline_infer.images import reading
from offline_infer.images.isolation import receive, send

_MEMORY_SHARE = 1.0
"""Of the machine's memory, for the child's address space beyond what it has at its start."""


def main() -> None:
    """Answer requests until the other side closes the socket."""
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        _limit()
        while True:
            try:
                request = receive(channel)
            except EOFError:
                return
            try:
                _answer(channel, request)
            except (CaseError, UsageError) as error:
                send(channel, {"error": type(error).__name__, "text": str(error)})
            except MemoryError:
                text = f"{request['paths'][0]}: there is not enough memory to read it"
                send(channel, {"error": "ImageError", "text": text})
            except Exception as error:
                text = (
                    f"{request['paths'][0]}: cannot be read ({type(error).__name__}); it is damaged - export it again"
                )
                send(channel, {"error": "ImageError", "text": text})


def _answer(channel: socket.socket, request: dict[str, Any]) -> None:
    paths = [Path(path) for path in request["paths"]]
    if request["what"] == "geometry":
        geometry = reading.read_geometry(paths, request["reader"], label=request["label"])
        send(channel, {"geometry": geometry.to_json()})
    elif request["what"] == "labels":
        labels, geometry = reading.read_labels(paths[0], request["reader"])
        send(channel, {"shape": [1, *labels.shape], "dtype": labels.dtype.name, "geometry": geometry.to_json()})
        _memory(channel, (1, *labels.shape), labels.dtype)[0] = labels
        send(channel, {})
    else:
        sources, shape = reading.open_sources(paths, request["reader"], request["channels"])
        notes = [note for source in sources for note in source.notes]
        send(channel, {"shape": list(shape), "geometry": sources[0].geometry.to_json(), "notes": notes})
        reading.fill_from(sources, _memory(channel, shape, np.dtype(np.float32)))
        send(channel, {})


def _memory(channel: socket.socket, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """The shared array."""
    _, handles, _, _ = socket.recv_fds(channel, 1, 1)
    try:
        return np.frombuffer(mmap.mmap(handles[0], prod(shape) * dtype.itemsize), dtype).reshape(shape)
    finally:
        for handle in handles:
            os.close(handle)


def _limit() -> None:
    """No core dump, no file written, no more memory than the machine has, no way to gain rights."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = used + int(_MEMORY_SHARE * pages)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
