"""SHA-256 of a checkpoint's files: recorded in the bundle, and compared with what a publisher gives."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from offline_infer.checkpoints.opening import opened
from offline_infer.errors import CheckpointError, UsageError
from offline_infer.spec import SourceFile


def sha256(path: Path) -> str:
    """Digest of a file's bytes, as 64 hexadecimal digits.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with opened(path) as (stream, _):
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checked_sha256(path: Path, expected: Sequence[str]) -> str:
    """Digest of a weights file, which has to be among those expected, if any are.

    The file is hashed before anything in it is interpreted. Weights that nnU-Net v1 wrote with torch before 1.6 carry no
    checksum of their own, so this is the only way to notice a changed number in them.

    Raises:
        UsageError: something expected is not a SHA-256 digest.
        CheckpointError: the digest is another one.
    """
    wanted = [text.lower().removeprefix("sha256:") for text in expected]
    for text in wanted:
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise UsageError(f"{text!r:.80} is not a SHA-256 digest, which has 64 hexadecimal digits")
    actual = sha256(path)
    if wanted and actual not in wanted:
        raise CheckpointError(
            f"{path} has the SHA-256 {actual}, expected {' or '.join(wanted)}; it is not the file that was published",
            remedy="correct-expected-hash",
        )
    return actual


def source_files(folder: Path, names: Iterable[str]) -> tuple[SourceFile, ...]:
    """Records of the files of a model folder that are there, in the order given.

    Raises:
        CheckpointError: one cannot be read.
    """
    present = [name for name in names if (folder / name).is_file()]
    return tuple(SourceFile(path=name, sha256=sha256(folder / name)) for name in present)
