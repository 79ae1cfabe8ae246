"""A folder that belongs to the user alone, for what is believed without being checked again: digests and a key.

Whoever can write there decides what counts as verified, so a folder that somebody else owns or may write is not used.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

KEY_BYTES = 32


class NotPrivateError(Exception):
    """A folder or file is not the user's alone; the text says why."""


def private_home() -> Path:
    """Where private records are kept: ``offline_infer`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "offline_infer" / "private"


def private_folder(folder: Path) -> Path:
    """The folder, made with mode 0700, as its parents are, where it is missing.

    Raises:
        NotPrivateError: it is a link, belongs to another user, may be written by others, or cannot be made.
    """
    try:
        for missing in reversed([parent for parent in (folder, *folder.parents) if not parent.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)  # with parents=True they would have the mode of the umask
        facts = folder.lstat()
    except (OSError, RuntimeError) as error:
        raise NotPrivateError(f"{folder} cannot be made ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISDIR(facts.st_mode):
        raise NotPrivateError(f"{folder} is a link or a file")
    _refuse_foreign(folder, facts)
    return folder


def user_key() -> bytes:
    """A random key of this user, made at the first call; it never leaves the machine.

    Raises:
        NotPrivateError: there is no private folder to keep it in.
    """
    path = private_folder(private_home()) / "key"
    try:
        return _read_key(path)
    except FileNotFoundError:
        pass
    temporary = path.with_name(f".key.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):  # another process was first: its key is the key
            os.link(temporary, path)
    except OSError as error:
        raise NotPrivateError(f"{path} cannot be made ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return _read_key(path)


def _read_key(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotPrivateError(f"{path} cannot be read ({error.strerror or error})") from error
    with os.fdopen(handle, "rb") as stream:
        _refuse_foreign(path, os.fstat(stream.fileno()))
        key = stream.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise NotPrivateError(f"{path} is damaged; remove it")
    return key


def _refuse_foreign(path: Path, facts: os.stat_result) -> None:
    if hasattr(os, "geteuid") and facts.st_uid != os.geteuid():
        raise NotPrivateError(f"{path} belongs to another user")
    if stat.S_IMODE(facts.st_mode) & 0o022:
        raise NotPrivateError(f"{path} may be written by other users (mode {stat.S_IMODE(facts.st_mode):04o})")
