"""Unpacking a zip archive of trained models into a temporary folder, trusting none of its names or sizes."""

from __future__ import annotations

import shutil
import stat
import weakref
import zipfile
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from offline_infer.checkpoints import limits
from offline_infer.checkpoints.folders import LAYOUTS
from offline_infer.checkpoints.opening import opened
from offline_infer.checkpoints.zip_files import opened_zip
from offline_infer.errors import CheckpointError
from offline_infer.scratch import scratch_folder

_SMALL_SUFFIXES = (".json", ".pkl")
_WEIGHT_SUFFIXES = tuple(layout.suffix for layout in LAYOUTS)


class TemporaryFolder:
    """A folder that is removed when the last reference to this object is gone, or at exit."""

    def __init__(self) -> None:
        held = ExitStack()
        self.path = held.enter_context(scratch_folder("archive"))
        self._finalizer = weakref.finalize(self, held.close)

    def remove(self) -> None:
        """Remove it now."""
        self._finalizer()


def is_model_archive(path: Path) -> bool:
    """Whether a file is a zip archive other than the one ``torch.save`` writes."""
    if not path.is_file():
        return False
    try:
        with opened(path) as (stream, _), opened_zip(path, stream) as archive:
            return not any(name.endswith("/data.pkl") for name in archive.namelist())
    except CheckpointError:
        return False


def unpack(path: Path) -> TemporaryFolder:
    """Unpack what a model reader needs (plans, JSON, pickles, weights); everything else stays in the archive.

    Raises:
        CheckpointError: damaged, encrypted, a name that leaves the folder, a link, or more data than is plausible.
    """
    folder = TemporaryFolder()
    try:
        with opened(path) as (stream, size), opened_zip(path, stream) as archive:
            wanted = [info for info in archive.infolist() if _wanted(path, info)]
            _check_total(path, size, wanted, folder.path)
            for info in wanted:
                _extract(path, archive, info, folder.path)
    except BaseException:
        folder.remove()
        raise
    return folder


def _check_total(path: Path, size: int, wanted: list[zipfile.ZipInfo], folder: Path) -> None:
    """Members may share their bytes in the archive, so each may be plausible and their sum absurd."""
    total = sum(info.file_size for info in wanted)
    if total > limits.MAX_TOTAL_RATIO * size + limits.SMALL_TOTAL:
        raise CheckpointError(f"{path} has {size:,} bytes and would unpack to {total:,}; it is not a model")
    free = shutil.disk_usage(folder).free
    if total > free:
        raise CheckpointError(
            f"unpacking {path} needs {total / 1e9:.1f} GB in {folder.parent}, where {free / 1e9:.1f} GB are free",
            remedy="name-temporary-folder",
        )


def _wanted(path: Path, info: zipfile.ZipInfo) -> bool:
    """Whether a member is to be unpacked; every member's name is checked, wanted or not."""
    name = PurePosixPath(info.filename)
    windows_like = "\\" in info.filename or ":" in info.filename
    if name.is_absolute() or windows_like or any(part in ("..", "") for part in name.parts) or "\0" in info.filename:
        raise CheckpointError(f"{path}: the member name {info.filename!r} would leave the folder; nothing was unpacked")
    mode = info.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise CheckpointError(f"{path}: {info.filename!r} is a link or a device; nothing was unpacked")
    if info.is_dir():
        return False
    if info.flag_bits & 0x1:
        raise CheckpointError(f"{path}: {info.filename!r} is encrypted; decrypt the archive first")
    if name.suffix in _SMALL_SUFFIXES:
        limit = limits.MAX_SMALL_BYTES
    elif name.suffix in _WEIGHT_SUFFIXES:
        limit = limits.MAX_WEIGHT_BYTES
    else:
        return False
    if info.file_size > limit:
        raise CheckpointError(f"{path}: {info.filename!r} has {info.file_size} bytes, more than the {limit} accepted")
    if info.file_size > 2**20 and info.file_size > limits.MAX_RATIO * max(info.compress_size, 1):
        raise CheckpointError(
            f"{path}: {info.filename!r} is compressed more than {limits.MAX_RATIO} times; it is not a model"
        )
    return True


def _extract(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> None:
    target = folder.joinpath(*PurePosixPath(info.filename).parts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except OSError as error:
        raise CheckpointError(f"{path}: {info.filename!r} cannot be unpacked: {error.strerror or error}") from error
