"""Unpacking a zip archive of trained models into a temporary folder, trusting none of its names or sizes."""

from __future__ import annotations

import shutil
import stat
import tempfile
import weakref
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from offline_infer.checkpoints.folders import LAYOUTS
from offline_infer.errors import CheckpointError

MAX_SMALL_BYTES = 512 * 1024 * 1024
"""Limit of one plans, JSON or pickle file."""
MAX_WEIGHT_BYTES = 32 * 1024**3
"""Limit of one weights file."""
MAX_RATIO = 100
"""Weights hardly compress; a member that claims more than this (and is large) is a trap."""
MAX_MEMBERS = 100_000

_SMALL_SUFFIXES = (".json", ".pkl")
_WEIGHT_SUFFIXES = tuple(layout.suffix for layout in LAYOUTS)


class TemporaryFolder:
    """A folder that is removed when the last reference to this object is gone, or at exit."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="offline-infer-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.path, True)

    def remove(self) -> None:
        """Remove it now."""
        self._finalizer()


def is_model_archive(path: Path) -> bool:
    """Whether a file is a zip archive other than the one ``torch.save`` writes."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def unpack(path: Path) -> TemporaryFolder:
    """Unpack what a model reader needs (plans, JSON, pickles, weights); everything else stays in the archive.

    Raises:
        CheckpointError: damaged, encrypted, a name that leaves the folder, a link, or more data than is plausible.
    """
    folder = TemporaryFolder()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise CheckpointError(f"{path} has {len(members)} members, more than the {MAX_MEMBERS} accepted")
            wanted = [info for info in members if _wanted(path, info)]
            total = sum(info.file_size for info in wanted)
            free = shutil.disk_usage(folder.path).free
            if total > free:
                raise CheckpointError(
                    f"unpacking {path} needs {total / 1e9:.1f} GB in {folder.path.parent}, where {free / 1e9:.1f} GB "
                    "are free",
                    remedy="name-temporary-folder",
                )
            for info in wanted:
                _extract(archive, info, folder.path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        folder.remove()
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    except OSError as error:
        folder.remove()
        raise CheckpointError(f"{path} cannot be unpacked: {error.strerror or error}") from error
    except CheckpointError:
        folder.remove()
        raise
    return folder


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
        limit = MAX_SMALL_BYTES
    elif name.suffix in _WEIGHT_SUFFIXES:
        limit = MAX_WEIGHT_BYTES
    else:
        return False
    if info.file_size > limit:
        raise CheckpointError(f"{path}: {info.filename!r} has {info.file_size} bytes, more than the {limit} accepted")
    if info.file_size > 2**20 and info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise CheckpointError(f"{path}: {info.filename!r} is compressed more than {MAX_RATIO} times; it is not a model")
    return True


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> None:
    target = folder.joinpath(*PurePosixPath(info.filename).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, target.open("xb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
