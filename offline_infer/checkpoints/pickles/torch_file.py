"""Reading files written by ``torch.save`` into NumPy arrays, without torch and without executing their pickle.

Two layouts exist: a zip archive (torch 1.6 and later) with one pickle and one member per storage, and the older stream
of five pickles followed by the storages. Opening a file reads its pickle and checks that every storage is complete;
tensors stay on disk as :class:`TensorRef` until :meth:`TorchFile.array` is asked for one, so that an optimiser's state,
usually two thirds of a checkpoint, is never read.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy.typing as npt

from offline_infer.checkpoints.limits import MAX_PICKLE_BYTES, MAX_TENSOR_RATIO, SMALL_TOTAL
from offline_infer.checkpoints.opening import opened
from offline_infer.checkpoints.pickles.reading import load_stream
from offline_infer.checkpoints.pickles.torch_values import (
    TABLE,
    StorageRef,
    TensorRef,
    check_bounds,
    storage_reference,
    strided,
)
from offline_infer.checkpoints.zip_files import opened_zip
from offline_infer.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
ZIP_MAGIC = b"PK\x03\x04"

ByteOrder = Literal["<", ">"]


@dataclass(frozen=True)
class Extent:
    """Where a storage's bytes are in the file. ``crc`` is None where the layout records none."""

    offset: int
    size: int
    crc: int | None = None


@dataclass(frozen=True)
class TorchFile:
    """An opened file: its object, with tensors as references.

    Attributes:
        path: the file.
        content: what was saved; every tensor is a :class:`TensorRef`.
        extents: storage key -> where its bytes are.
        order: byte order of the storages.
        stamp: size and time of change of the file when it was opened.
    """

    path: Path
    content: Any
    extents: Mapping[str, Extent]
    order: ByteOrder
    stamp: tuple[int, int]

    @property
    def has_checksums(self) -> bool:
        """Whether every storage has a checksum, so that a changed number in it is noticed."""
        return all(extent.crc is not None for extent in self.extents.values())

    def check(self, tensors: Mapping[str, TensorRef]) -> None:
        """See that tensors lie within their storages and are, together, of a size this file can hold; nothing is read.

        Raises:
            CheckpointError: a shape, an offset or a stride reaches out of the file, or one storage is used so often
                that the tensors would take many times the file.
        """
        total = 0
        distinct: dict[TensorRef, str] = {}
        for name, tensor in tensors.items():
            distinct.setdefault(tensor, name or tensor.storage.key)
        for tensor, name in distinct.items():
            extent = self.extents.get(tensor.storage.key)
            if extent is None:
                raise CheckpointError(f"{self.path}: storage {tensor.storage.key!r} is missing from the file")
            try:
                total += check_bounds(tensor, extent.size, name)
            except CheckpointError as error:
                raise CheckpointError(f"{self.path}: {error}") from error
        if total > MAX_TENSOR_RATIO * self.stamp[0] + SMALL_TOTAL:
            raise CheckpointError(
                f"{self.path}: its tensors would take {total:,} bytes, the file has {self.stamp[0]:,}"
            )

    def array(self, tensor: TensorRef) -> npt.NDArray[Any]:
        """The tensor as a new C-contiguous array in native byte order; bfloat16 becomes float32.

        Raises:
            CheckpointError: the tensor does not lie within its storage, or the storage is damaged.
        """
        return self.arrays({"": tensor})[""]

    def arrays(self, tensors: Mapping[str, TensorRef]) -> dict[str, npt.NDArray[Any]]:
        """Several tensors. Equal references share one array, and a storage is read once.

        Raises:
            CheckpointError: as :meth:`array`, or the file has changed since it was opened.
        """
        self.check(tensors)
        names: dict[str, dict[TensorRef, str]] = {}
        for name, tensor in tensors.items():
            names.setdefault(tensor.storage.key, {}).setdefault(tensor, name or tensor.storage.key)
        arrays: dict[TensorRef, npt.NDArray[Any]] = {}
        try:
            with opened(self.path) as (stream, _):
                if _stamp(stream) != self.stamp:
                    raise CheckpointError("the file has changed since it was opened")
                for key, wanted in names.items():
                    data = self._read(stream, key)
                    for tensor, name in wanted.items():
                        arrays[tensor] = strided(tensor, data, self.order, name)
        except CheckpointError as error:
            raise (error if str(self.path) in str(error) else CheckpointError(f"{self.path}: {error}")) from error
        return {name: arrays[tensor] for name, tensor in tensors.items()}

    def _read(self, stream: BinaryIO, key: str) -> bytes:
        if key not in self.extents:
            raise CheckpointError(f"storage {key!r} is missing from the file")
        extent = self.extents[key]
        stream.seek(extent.offset)
        data = stream.read(extent.size)
        if len(data) != extent.size:
            raise CheckpointError(f"storage {key!r} is truncated: {len(data)} of {extent.size} bytes")
        if extent.crc is not None and zlib.crc32(data) != extent.crc:
            raise CheckpointError(
                f"storage {key!r} is damaged (its checksum does not match); copy the file again, or re-save it with "
                "torch.save if it was written with checksums turned off"
            )
        return data


def open_torch_file(path: Path) -> TorchFile:
    """Open a ``.pth``, ``.pt`` or ``.model`` file.

    Raises:
        UnsafePickleError: its pickle names something outside the closed table; nothing was executed.
        CheckpointError: missing, truncated, damaged, or not written by ``torch.save``. The message names the file.
    """
    with opened(path) as (stream, size):
        magic = stream.read(4)
        stream.seek(0)
        if magic == ZIP_MAGIC:
            return _open_zip(path, stream, size)
        if magic[:1] == b"\x80":
            return _open_legacy(path, stream, size)
    if size == 0:
        raise CheckpointError(f"{path} is empty; copy the checkpoint again")
    raise CheckpointError(
        f"{path} is not a file written by torch.save (neither a zip archive nor a pickle stream), or its beginning is "
        "damaged"
    )


# --- zip layout ------------------------------------------------------------------------------------------------------


def _open_zip(path: Path, stream: BinaryIO, size: int) -> TorchFile:
    with opened_zip(path, stream) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if any(name.endswith("/constants.pkl") for name in members):
            raise CheckpointError(f"{path} is a TorchScript archive; a checkpoint written by torch.save is needed")
        if len(pickles) != 1:
            raise CheckpointError(f"{path} is a zip archive but not one written by torch.save (no single data.pkl)")
        root = pickles[0][: -len("data.pkl")]
        order = _byte_order(path, archive, members.get(f"{root}byteorder"))
        pickle_bytes = _member(path, archive, members[pickles[0]], MAX_PICKLE_BYTES)
        prefix = f"{root}data/"
        extents = {
            name[len(prefix) :]: _extent(path, stream, size, info)
            for name, info in members.items()
            if name.startswith(prefix)
        }
    storages = _Storages()
    source = io.BytesIO(pickle_bytes)
    content = load_stream(source, len(pickle_bytes), f"{path} (data.pkl)", TABLE, storages.resolve)
    for storage in storages.seen.values():
        extent = extents.get(storage.key)
        if extent is None:
            raise CheckpointError(f"{path}: storage {storage.key!r} is missing from the archive")
        if extent.size != storage.nbytes:
            raise CheckpointError(
                f"{path}: storage {storage.key!r} has {extent.size} bytes, its pickle says {storage.nbytes}"
            )
    return TorchFile(path, content, extents, order, _stamp(stream))


def _byte_order(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo | None) -> ByteOrder:
    text = _member(path, archive, info, 64).strip() if info is not None else b"little"
    if text not in (b"little", b"big"):
        raise CheckpointError(f"{path}: unknown byte order {text!r}")
    return "<" if text == b"little" else ">"


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    if info.file_size > limit:
        raise CheckpointError(
            f"{path}: {info.filename!r} has {info.file_size} bytes, more than the {limit} a checkpoint needs"
        )
    with archive.open(info) as member:
        data = member.read(limit + 1)
    if len(data) != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename} has {len(data)} of {info.file_size} bytes")
    return data


def _extent(path: Path, stream: BinaryIO, size: int, info: zipfile.ZipInfo) -> Extent:
    """Where a stored member's data begin: behind its local header, whose lengths differ from the directory's."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
        raise CheckpointError(f"{path}: {info.filename!r} is compressed or encrypted, which torch.save never does")
    if info.compress_size != info.file_size:
        raise CheckpointError(f"{path}: {info.filename!r} is recorded with two different sizes")
    stream.seek(info.header_offset)
    header = stream.read(30)
    if len(header) != 30 or header[:4] != ZIP_MAGIC:
        raise zipfile.BadZipFile(f"no local header for {info.filename}")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name_length + extra_length
    if start + info.file_size > size:
        raise zipfile.BadZipFile(f"{info.filename} reaches beyond the end of the file")
    return Extent(start, info.file_size, info.CRC)


# --- legacy layout ---------------------------------------------------------------------------------------------------


def _open_legacy(path: Path, stream: BinaryIO, size: int) -> TorchFile:
    def load(storages: _Storages | None = None) -> Any:
        resolve = storages.resolve if storages else None
        return load_stream(stream, size - stream.tell(), str(path), TABLE, resolve)

    if not _is(load(), LEGACY_MAGIC):
        raise CheckpointError(f"{path} is a plain pickle, not a file written by torch.save")
    if not _is(load(), LEGACY_PROTOCOL):
        raise CheckpointError(f"{path} was written by a torch.save of an unknown version")
    system = load()
    order: ByteOrder = ">" if isinstance(system, dict) and system.get("little_endian") is False else "<"
    storages = _Storages()
    content = load(storages)
    keys = load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"{path}: the list of storages is damaged")
    extents: dict[str, Extent] = {}
    for key in keys:
        storage = storages.seen.get(key)
        if storage is None:
            raise CheckpointError(f"{path}: holds storage {key!r}, which no tensor uses; its size is unknown")
        header = stream.read(8)
        if len(header) != 8:
            raise CheckpointError(f"{path} is truncated: storage {key!r} is missing")
        (count,) = struct.unpack(f"{order}q", header)
        if count != storage.count:
            raise CheckpointError(f"{path}: storage {key!r} has {count} elements, its pickle says {storage.count}")
        extents[key] = Extent(stream.tell(), storage.nbytes)
        if stream.tell() + storage.nbytes > size:
            raise CheckpointError(f"{path} is truncated: storage {key!r} needs {storage.nbytes} bytes")
        stream.seek(storage.nbytes, 1)
    absent = set(storages.seen) - set(keys)
    if absent:
        raise CheckpointError(f"{path}: storage {sorted(absent)[0]!r} is missing from the file")
    return TorchFile(path, content, extents, order, _stamp(stream))


def _is(value: Any, number: int) -> bool:
    return isinstance(value, int) and value == number


def _stamp(stream: BinaryIO) -> tuple[int, int]:
    facts = os.fstat(stream.fileno())
    return facts.st_size, facts.st_mtime_ns


class _Storages:
    """Turns persistent ids into storage references and remembers them."""

    def __init__(self) -> None:
        self.seen: dict[str, StorageRef] = {}

    def resolve(self, identity: Any) -> StorageRef:
        reference = storage_reference(identity)
        known = self.seen.setdefault(reference.key, reference)
        if (known.dtype, known.count) != (reference.dtype, reference.count):
            raise CheckpointError(f"storage {reference.key!r} is described in two ways")
        return reference


__all__ = ["TensorRef", "TorchFile", "open_torch_file"]
