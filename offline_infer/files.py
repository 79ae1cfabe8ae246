"""Files that are either absent or complete, and names from untrusted files that become paths.

A file is written to a temporary name beside its place, flushed and renamed. The temporary name starts with a dot and holds
``.partial``, so a glob for results never meets it. It carries the machine, the process id and a random part: two processes may
write the same file, and the last rename wins with a complete file; and what a killed process left can be told from what a
living one is writing.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from offline_infer.errors import UsageError

PARTIAL = ".partial"
"""Part of every temporary name; what a killed process leaves behind holds it (see :func:`is_partial`)."""

LARGEST_JSON = 256 << 20
"""Bytes of the largest record that is read: a summary of a hundred thousand cases stays below."""

_CHUNK = 1 << 20
_MOST_DIGITS = 40  # of an integer
_TEMPORARY = re.compile(
    rf"\..*\.(?P<machine>[0-9a-f]{{8}})-(?P<pid>[0-9]+)-[0-9a-f]{{8}}{re.escape(PARTIAL)}.*", re.DOTALL
)
_NAME_MAX = 255  # bytes a file name may have on common file systems
_RENAME_EXCHANGE = 2  # of renameat2(2)
_AT_FDCWD = -100


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in ``path``'s folder; on success flush it and rename it to ``path``.

    The caller creates a file at the yielded path. The last two suffixes of ``path`` stay at the end of the temporary
    name, for writers that choose a format by them (``.nii.gz``). Missing parent folders are made. On any exception the
    temporary file is removed and an older ``path`` stays as it was.

    Raises:
        FileNotFoundError: the block ended without creating the file.
        IsADirectoryError: ``path`` is a folder.
        OSError: with its number (``ENOSPC`` and others) also where the block failed because the disk cannot be written,
            and a library did not say so; the block's own exception is its cause.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; a file is to be written there")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / temporary_name(target.name)
    try:
        yield temporary
        flush_file(temporary)
        if target.exists():  # a replaced file keeps its permissions
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except BaseException as error:
        reason = _why_not_written(temporary, error)
        with suppress(OSError):
            temporary.unlink()
        if reason is not None:
            raise OSError(reason, os.strerror(reason), str(target)) from error
        raise
    flush_folder(target.parent)


@contextmanager
def replacing_folder(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new, empty temporary folder beside ``path``; on success flush its files and put it in ``path``'s place.

    With ``overwrite`` an existing folder stays intact until the new one is complete; both are then exchanged and the
    old one is deleted. Whether an existing folder may be replaced at all is the caller's decision.

    Raises:
        FileExistsError: without ``overwrite``, ``path`` exists and is not an empty folder; or ``path`` is a file.
    """
    target = Path(path).absolute()
    _refuse_existing(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / temporary_name(target.name)
    temporary.mkdir()
    try:
        yield temporary
        for entry in sorted(temporary.rglob("*")):
            if entry.is_file():
                flush_file(entry)
            elif entry.is_dir():
                flush_folder(entry)
        flush_folder(temporary)
        _refuse_existing(target, overwrite)  # somebody may have made it meanwhile
        old = _swap_folder(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush_folder(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


class HeldFolder:
    """A folder that has to stay the one it was: a drive may be unmounted under a run, or a folder removed or replaced.

    What is written then would lie in two places, perhaps below the mount point of a drive that is gone.

    Args:
        path: of the folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = self._found()

    def refuse_another(self) -> None:
        """
        Raises:
            UsageError: it is not the same folder any more.
        """
        if self._found() != self._identity:
            raise UsageError(
                f"{self._path} was removed, replaced or unmounted during the run; put it back, then give the same "
                "command again: it goes on from there"
            )

    @contextmanager
    def writing(self, files: Sequence[Path]) -> Iterator[None]:
        """Around the writing of files in it; what came into another folder in its place is removed again.

        Args:
            files: that are written in the block.

        Raises:
            UsageError: it was not the same folder before or after the block.
        """
        self.refuse_another()
        try:
            yield
        except Exception:  # most often because of just that
            self._refuse_written(files)
            raise
        self._refuse_written(files)

    def _refuse_written(self, files: Sequence[Path]) -> None:
        if self._found() == self._identity:
            return
        with suppress(OSError):
            for file in files:
                file.unlink(missing_ok=True)
            for folder in (*sorted({file.parent for file in files}, reverse=True), self._path):
                folder.rmdir()  # where nothing else lies in it
        self.refuse_another()

    def _found(self) -> tuple[int, int] | None:
        try:
            facts = self._path.stat()
        except OSError:
            return None
        return facts.st_dev, facts.st_ino


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write ``data`` so that ``path`` is either the old file or the complete new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text, line ends as they are, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any, *, indent: int | None = 2) -> None:
    """Write ``value`` as JSON (UTF-8, keys in their own order, a final newline), atomically.

    Bytes of a file name that are not UTF-8 are lone surrogates in ``value``; they are written as JSON's own escapes
    (``\\udce9``), so that :func:`read_json` gives the same name back.

    Raises:
        ValueError: the value holds NaN or infinity, which are not JSON.
        TypeError: the value holds something JSON cannot say.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # which writes a surrogate just as JSON escapes it


def keep_json(path: Path, value: Any) -> None:
    """:func:`write_json`, but a file that says so already is left alone: it may lie where nothing can be written."""
    try:
        same = read_json(path) == json.loads(json.dumps(value))
    except (OSError, ValueError):
        same = False
    if not same:
        write_json(path, value)


def read_json(path: Path | str, *, largest: int = LARGEST_JSON) -> Any:
    """What a JSON file holds, read without trusting it.

    Args:
        largest: bytes it may have.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: not a regular file, too large, not UTF-8, not JSON, nested too deeply, or with an integer no figure has; the
            text says which.
    """
    return parse_json(read_utf8(path, largest=largest))


def parse_json(text: str) -> Any:
    """What a JSON text holds, read without trusting it; its length is the caller's concern.

    Raises:
        ValueError: not JSON, nested too deeply, or with an integer no figure has; the text says which.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_utf8(path: Path | str, *, largest: int = LARGEST_JSON) -> str:
    """A text file, read without trusting it.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: not a regular file, too large, or not UTF-8.
    """
    place = Path(path)
    facts = place.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("it is not a regular file")
    if facts.st_size > largest:
        raise ValueError(f"it has {facts.st_size:,} bytes, expected at most {largest:,}")
    try:
        return place.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from error


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def plain_name(text: object, what: str = "name") -> str:
    """``text``, if it can be one part of a path: the only way in which a name from an untrusted file becomes a path.

    Args:
        text: a case's name, the name of a file inside a folder, a file's ending...
        what: what to call it in the message.

    Raises:
        UsageError: not text, empty, longer than a file name may be, hidden (``.x``, ``.``, ``..``), or with a separator of
            any system, a control character or a character that is no Unicode.
    """
    if not isinstance(text, str):
        raise UsageError(f"the {what} is {type(text).__name__}, expected text that can be a file's name")
    if not text or text.startswith(".") or not text.isprintable() or any(c in text for c in "/\\"):
        raise UsageError(f"the {what} {text[:80]!a} is no plain file name; rename it")
    if len(text.encode()) > _NAME_MAX:
        raise UsageError(f"the {what} {text[:40]!a}... is longer than the {_NAME_MAX} bytes of a file name; shorten it")
    return text


def inside(root: Path | str, path: Path | str) -> Path:
    """``path``, if it lies in ``root`` once all symbolic links are followed; neither needs to exist.

    Args:
        path: a whole path, not one relative to ``root``.

    Raises:
        UsageError: it lies elsewhere.
    """
    real_root, real_path = Path(os.path.realpath(root)), Path(os.path.realpath(path))
    if real_path == real_root or real_root not in real_path.parents:
        raise UsageError(f"{printable(path)}: lies outside {printable(root)}; refused")
    return Path(path)


def is_unicode(path: Path | str) -> bool:
    """Whether a path can be written as UTF-8. Native libraries take others for something else, or abort the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: object) -> str:
    """A path or a foreign text for a message: what a terminal cannot show, or would obey, is written as an escape."""
    shown = str(text)
    return shown if shown.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def temporary_name(name: str) -> str:
    """A fresh hidden name for something that will be called ``name``, its last two suffixes kept at the end.

    ``case.nii.gz`` gives ``.case.<machine>-<pid>-<random>.partial.nii.gz``: short enough for any file system, and a shell's
    ``*`` does not match it.
    """
    suffixes = "".join(Path(name).suffixes[-2:])
    if len(suffixes) > 16:  # dots of a case name rather than a file type
        suffixes = ""
    stem = name[: len(name) - len(suffixes)]
    tail = f".{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}{suffixes}"
    room = _NAME_MAX - 1 - len(tail.encode())
    return f".{stem.encode()[:room].decode(errors='ignore')}{tail}"


def is_partial(path: Path | str) -> bool:
    """Whether ``path`` is a temporary name made here: something a killed process left behind."""
    name = Path(path).name
    return name.startswith(".") and PARTIAL in name


def clear_partial(folder: Path | str, *, depth: int = 0) -> int:
    """Delete the temporary files and folders in a folder that were left by killed processes of this machine; returns their
    number.

    What a living process holds, or a process of another machine or container that shares the folder, stays; so do links.

    Args:
        depth: levels of folders below that are cleared as well; links are not followed.
    """
    removed = 0
    with suppress(OSError):  # gone, or not ours to read
        for entry in list(os.scandir(folder)):
            is_folder = entry.is_dir(follow_symlinks=False)
            if _is_abandoned(entry.name):
                removed += is_folder or entry.is_file(follow_symlinks=False)
                _remove(entry, is_folder)
            elif depth and is_folder:
                removed += clear_partial(entry.path, depth=depth - 1)
    return removed


def _remove(entry: os.DirEntry[str], is_folder: bool) -> None:
    if is_folder:
        shutil.rmtree(entry.path, ignore_errors=True)
    elif entry.is_file(follow_symlinks=False):
        with suppress(OSError):
            os.unlink(entry.path)


def _is_abandoned(name: str) -> bool:
    """Whether this is a temporary name that a process of this machine gave, and the process is gone."""
    found = _TEMPORARY.fullmatch(name)
    if found is None or found["machine"] != _machine():
        return False
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's
        return False
    return False


@functools.cache
def _machine() -> str:
    """Eight digits for where process ids mean the same: this machine and this container."""
    facts = [socket.gethostname()]
    with suppress(OSError):
        facts.append(Path("/etc/machine-id").read_text())
    with suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def flush_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable; a no-op where a folder cannot be opened or flushed (some network drives)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _why_not_written(unfinished: Path, error: BaseException) -> int | None:
    """The operating system's number for why no more can be written where a file could not be finished.

    None where more can be written, or the error has a number itself. Image libraries say that they failed, not why; the
    system says why when it is asked for a little more.
    """
    if not isinstance(error, Exception) or (isinstance(error, OSError) and error.errno is not None):
        return None
    try:
        with unfinished.open("ab") as stream:
            stream.write(bytes(_CHUNK))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as refused:
        return refused.errno
    return None


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file; a folder is to be made there")
    if not overwrite and any(target.iterdir()):
        raise FileExistsError(f"{target} exists and is not empty")


def _swap_folder(new: Path, target: Path) -> Path | None:
    """Put ``new`` in ``target``'s place; returns where the old folder is now, if there was one."""
    if not target.exists():
        new.rename(target)
        return None
    if _exchange(new, target):
        return new
    # No atomic exchange here: two renames, the first undone if the second fails.
    aside = target.parent / temporary_name(target.name)
    target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    return aside


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step (Linux, most local file systems); False where that cannot be done."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    result = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return int(result) == 0
