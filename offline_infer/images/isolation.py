"""Reading untrusted images in a process of their own, so that a crash in a native library costs one case.

ITK, GDCM and the TIFF libraries are large C++ parsers. A crash, a hang or runaway memory use in one of them must not end the
run. So a child process with limits reads the file and writes the voxels straight into memory it shares with this one; it is
used again for the next file, and replaced when it dies. Between the two go JSON records that are checked like a file's, never
pickles: a child that a file has compromised can only return wrong voxels.

::

    with isolated_readers():
        image = read_image(paths, "SimpleITKIO")  # as everywhere else; any thread may call it

Without a child (not on Linux, or no process can be started), reading goes on in this process.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.budgets import CHANNELS, check_voxels
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import CaseError, GeometryError, ImageError, UsageError
from offline_infer.files import printable
from offline_infer.images.image import Image

SECONDS = 600
"""How long the child may take for one file before it is given up."""
_MESSAGE_LIMIT = 1 << 20
_ERRORS: Mapping[str, type[CaseError] | type[UsageError]] = {
    "ImageError": ImageError,
    "GeometryError": GeometryError,
    "UsageError": UsageError,
}
_LABEL_DTYPES = ("uint8", "uint16", "int32")

Answer = dict[str, Any]


def can_isolate() -> bool:
    """Whether this system has what the child needs: anonymous shared memory that is passed on as a descriptor."""
    return hasattr(os, "memfd_create") and hasattr(socket, "send_fds") and bool(sys.executable)


class IsolatedReader:
    """Reads images in child processes: one for each thread that reads at the same time. Several threads may use it."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._closed = False

    def read_image(self, paths: Sequence[Path], reader: str, *, channels: int | None = None) -> Image:
        """As :func:`offline_infer.images.read_image`.

        Raises:
            ImageError: also where the child crashed, took too long or could not be started.
        """
        request = {"what": "image", "paths": [str(path) for path in paths], "reader": reader, "channels": channels}
        answer, voxels = self._ask(request, np.dtype(np.float32))
        assert voxels is not None
        return Image(voxels, ImageGeometry.from_json(answer["geometry"]), tuple(map(printable, answer["notes"])))

    def read_geometry(self, paths: Sequence[Path], reader: str, *, label: bool = False) -> ImageGeometry:
        """As :func:`offline_infer.images.read_geometry`."""
        request = {"what": "geometry", "paths": [str(path) for path in paths], "reader": reader, "label": label}
        return ImageGeometry.from_json(self._ask(request, None)[0]["geometry"])

    def read_labels(self, path: Path, reader: str | None = None) -> tuple[npt.NDArray[np.integer[Any]], ImageGeometry]:
        """As :func:`offline_infer.images.read_labels`."""
        request = {"what": "labels", "paths": [str(path)], "reader": reader}
        answer, voxels = self._ask(request, np.dtype(np.int32))
        assert voxels is not None
        return voxels[0], ImageGeometry.from_json(answer["geometry"])

    def close(self) -> None:
        """End the children."""
        with self._lock:
            self._closed, children, self._idle = True, self._idle, []
        for child in children:
            child.end()

    def _ask(self, request: Mapping[str, Any], dtype: np.dtype[Any] | None) -> tuple[Answer, npt.NDArray[Any] | None]:
        try:
            return self._ask_once(request, dtype)
        except _KilledError:  # which may not have been the file's fault
            try:
                return self._ask_once(request, dtype)
            except _KilledError as error:
                raise ImageError(str(error)) from None

    def _ask_once(
        self, request: Mapping[str, Any], dtype: np.dtype[Any] | None
    ) -> tuple[Answer, npt.NDArray[Any] | None]:
        path = request["paths"][0] if request["paths"] else "."
        child = self._take(path)
        done = False
        try:
            result = child.ask(request, dtype)
            done = True
        except _RefusedError as error:
            done = True
            raise error.reason from None
        except TimeoutError:
            raise ImageError(
                f"{printable(path)}: reading took more than {self._seconds:.0f} s; is it damaged?"
            ) from None
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            how = child.end() if isinstance(error, OSError | EOFError) else "answered nonsense"
            kind = _KilledError if child.was_killed else ImageError
            raise kind(
                f"{printable(path)}: the process that read it {how}; the file is damaged, or needs more memory than there is"
            ) from None
        finally:
            if done and not child.spent:
                self._give_back(child)
            else:
                child.end()
        return result

    def _take(self, path: str) -> _Child:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        try:
            return _Child(self._seconds)
        except OSError as error:
            raise ImageError(
                f"{printable(path)}: no process can be started to read it ({error.strerror or error})"
            ) from error

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(child)
                return
        child.end()


class _KilledError(ImageError):
    """Somebody killed the child: a person, or the operating system for want of memory."""


class _RefusedError(Exception):
    """The child read the file and refuses it."""

    def __init__(self, reason: CaseError | UsageError) -> None:
        self.reason = reason
        super().__init__(str(reason))


class _Child:
    """A process that runs ``reader_process``, and the socket to it."""

    def __init__(self, seconds: float) -> None:
        self.spent = self.was_killed = False
        self._socket, theirs = socket.socketpair()
        watched, self._lifeline = os.pipe()
        try:
            self._socket.settimeout(seconds)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "offline_infer.images.reader_process", str(theirs.fileno()), str(watched)],
                pass_fds=[theirs.fileno(), watched],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the libraries' own messages are discarded
                stderr=subprocess.DEVNULL,
            )
        except BaseException:
            self._socket.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(watched)

    def ask(self, request: Mapping[str, Any], dtype: np.dtype[Any] | None) -> tuple[Answer, npt.NDArray[Any] | None]:
        """Send a request; give the last answer, and the voxels (c, z, y, x) if there are any.

        Raises:
            _RefusedError: the file is refused.
            OSError, EOFError, ValueError, KeyError, TypeError: the child has ended, timed out, or sent an invalid answer.
        """
        send(self._socket, request)
        answer = self._receive()
        if dtype is None:
            return answer, None
        if request["what"] == "labels":
            if answer["dtype"] not in _LABEL_DTYPES:
                raise ValueError("an unknown type of label")
            dtype = np.dtype(answer["dtype"])
        count, z, y, x = (int(size) for size in answer["shape"])
        if min(count, z, y, x) < 1 or count > CHANNELS:
            raise ValueError("an impossible shape")
        check_voxels((z, y, x), "the image", "is its header right?")
        memory = self._share(prod((count, z, y, x)) * dtype.itemsize)
        answer.update(self._receive())
        return answer, np.frombuffer(memory, dtype).reshape(count, z, y, x)

    def _share(self, size: int) -> mmap.mmap:
        handle = os.memfd_create("voxels", os.MFD_CLOEXEC)
        try:
            os.ftruncate(handle, size)
            memory = mmap.mmap(handle, size)
            socket.send_fds(self._socket, [b"m"], [handle])
        finally:
            os.close(handle)
        return memory

    def _receive(self) -> Answer:
        answer = receive(self._socket)
        self.spent = bool(answer.get("spent"))
        if "error" in answer:
            kind = _ERRORS.get(str(answer["error"]), ImageError)
            raise _RefusedError(kind(printable(str(answer["text"])[:2000])))
        return answer

    def end(self) -> str:
        """End the process, and say how it ended by itself if it did."""
        self._socket.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        running = self._process.returncode is None
        self.was_killed = self._process.returncode == -signal.SIGKILL
        if running:
            self._process.kill()
            self._process.wait()
        self._let_go()
        if running:
            return "was ended"
        code = self._process.returncode
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"

    def _let_go(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def send(channel: socket.socket, record: Mapping[str, Any]) -> None:
    """Send a record with its length before it."""
    data = json.dumps(record).encode()
    channel.sendall(struct.pack("<I", len(data)) + data)


def receive(channel: socket.socket) -> Answer:
    """Receive what :func:`send` sent.

    Raises:
        EOFError: the other side is gone.
        ValueError: no JSON object, or an implausibly long one.
    """
    (length,) = struct.unpack("<I", _exactly(channel, 4))
    if length > _MESSAGE_LIMIT:
        raise ValueError("the answer is too long")
    record = json.loads(_exactly(channel, length))
    if not isinstance(record, dict):
        raise ValueError("the answer is no record")
    return record


def _exactly(channel: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = channel.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


_lock = threading.Lock()
_readers: list[IsolatedReader] = []


def current_reader() -> IsolatedReader | None:
    """The reader of the innermost :func:`isolated_readers`, if there is one."""
    with _lock:
        return _readers[-1] if _readers else None


@contextmanager
def isolated_readers(seconds: float = SECONDS) -> Iterator[bool]:
    """Within this context every image is read in a child process, whichever thread asks; yields whether that is so."""
    if not can_isolate():
        yield False
        return
    reader = IsolatedReader(seconds)
    with _lock:
        _readers.append(reader)
    try:
        yield True
    finally:
        with _lock:
            _readers.remove(reader)
        reader.close()
