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
from offline_infer.lifeline import die_first, end_with_parent

_OPENING = 2**30
"""Bytes for the libraries' own needs while a header is read. A damaged length field makes some of them ask for much more."""
_LEAKED = 2**29
"""Bytes more than at its start with which the child ends itself after an answer, to be replaced."""
_PER_FILE_BYTE = 4
_PER_VOXEL = 24
"""Bytes: the shared float32, a copy that is turned, and what a library holds of the stored type meanwhile."""


def main() -> None:
    """Answer requests until the other side closes the socket."""
    end_with_parent(int(sys.argv[2]))
    die_first()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        _limit()
        start = _in_use()
        while True:
            try:
                request = receive(channel)
            except EOFError:
                return
            try:
                final = _answer(channel, request, start)
            except (CaseError, UsageError) as error:
                final = {"error": type(error).__name__, "text": str(error)}
            except MemoryError:
                text = f"{request['paths'][0]}: there is not enough memory to read it"
                final = {"error": "ImageError", "text": text}
            except Exception as error:
                text = (
                    f"{request['paths'][0]}: cannot be read ({type(error).__name__}); it is damaged - export it again"
                )
                final = {"error": "ImageError", "text": text}
            spent = _in_use() > start + _LEAKED  # some parsers leak the memory they took for a damaged file
            send(channel, {**final, "spent": spent})
            if spent:
                return


def _answer(channel: socket.socket, request: dict[str, Any], start: int) -> dict[str, Any]:
    """Do what a request asks for; returns the final answer."""
    paths = [Path(path) for path in request["paths"]]
    opening = _OPENING + _PER_FILE_BYTE * sum(map(_size, paths))
    _allow_memory(start + opening)
    if request["what"] == "geometry":
        geometry = reading.read_geometry(paths, request["reader"], label=request["label"])
        return {"geometry": geometry.to_json()}
    if request["what"] == "labels":
        frame = reading.read_geometry(paths, request["reader"] or reading.label_reader(paths[0]), label=True)
        _allow_memory(start + opening + _PER_VOXEL * prod(frame.shape))
        labels, geometry = reading.read_labels(paths[0], request["reader"])
        send(channel, {"shape": [1, *labels.shape], "dtype": labels.dtype.name, "geometry": geometry.to_json()})
        _memory(channel, (1, *labels.shape), labels.dtype)[0] = labels
        return {}
    sources, shape = reading.open_sources(paths, request["reader"], request["channels"])
    _allow_memory(start + opening + _PER_VOXEL * prod(shape))
    notes = [note for source in sources for note in source.notes]
    send(channel, {"shape": list(shape), "geometry": sources[0].geometry.to_json(), "notes": notes})
    reading.fill_from(sources, _memory(channel, shape, np.dtype(np.float32)))
    return {}


def _memory(channel: socket.socket, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """The shared array."""
    _, handles, _, _ = socket.recv_fds(channel, 1, 1)
    try:
        return np.frombuffer(mmap.mmap(handles[0], prod(shape) * dtype.itemsize), dtype).reshape(shape)
    finally:
        for handle in handles:
            os.close(handle)


def _limit() -> None:
    """No core dump, and no file is written."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _allow_memory(most: int) -> None:
    """Limit the address space to ``most`` bytes."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _in_use() -> int:
    """Bytes of the address space that are taken."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _size(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    files = path.iterdir() if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    main()
