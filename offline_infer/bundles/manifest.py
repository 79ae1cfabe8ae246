"""``MANIFEST.sha256``: one digest for every file of a bundle, ``bundle.json`` itself included.

``bundle.json`` holds the digests of graphs and artefacts; nothing in it can hold its own. The manifest closes that gap. It is
written in the format of ``sha256sum``, so ``sha256sum -c MANIFEST.sha256`` checks a bundle on a machine without this program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offline_infer.errors import BundleError
from offline_infer.files import inside, is_partial, sha256_file, write_text

MANIFEST = "MANIFEST.sha256"
SIGNATURE = "model.sig"
"""Name of a signature (see :mod:`offline_infer.bundles.signature`)."""

_LARGEST = 1 << 22  # bytes of a manifest
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>[A-Za-z0-9_][A-Za-z0-9_.+/-]*)")


@dataclass(frozen=True)
class ManifestCheck:
    """What comparing a bundle with its manifest gave: names of files.

    ``unlisted`` files lie in the folder without being part of the bundle; nothing reads them.
    """

    agreeing: tuple[str, ...]
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()

    @property
    def faults(self) -> list[str]:
        """What is wrong, for a message."""
        return [f"{name} was changed" for name in self.changed] + [f"{name} is missing" for name in self.missing]


def write_manifest(folder: Path, digests: Mapping[str, str]) -> None:
    """Write the manifest atomically.

    Args:
        digests: path inside the folder -> SHA-256.
    """
    lines = (f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    write_text(folder / MANIFEST, "".join(lines))


def read_manifest(folder: Path) -> dict[str, str] | None:
    """Path inside the folder -> SHA-256; None where the bundle has no manifest.

    Raises:
        BundleError: the manifest is damaged, or names a file outside the bundle.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _LARGEST:
            raise BundleError(f"{path} is too large for a list of a bundle's files")
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not ASCII'}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or ".." in Path(match["name"]).parts or match["name"] in found:
            raise BundleError(f"{path}, line {number}: expected a SHA-256 and the plain name of a file, each file once")
        found[match["name"]] = match["digest"]
    return found


def check_manifest(folder: Path, ignored: frozenset[str]) -> ManifestCheck | None:
    """Read every file of a bundle and compare it; None where the bundle has no manifest.

    Args:
        ignored: names of files in the folder that are no part of the bundle proper.

    Raises:
        BundleError: the manifest is damaged.
    """
    wanted = read_manifest(folder)
    if wanted is None:
        return None
    agreeing, changed, missing = [], [], []
    for name, digest in wanted.items():
        path = inside(folder, folder / name)
        if not path.is_file():
            missing.append(name)
        elif sha256_file(path) == digest:
            agreeing.append(name)
        else:
            changed.append(name)
    others = set(files_of(folder)) - set(wanted) - ignored - {MANIFEST, SIGNATURE}
    return ManifestCheck(tuple(agreeing), tuple(changed), tuple(missing), tuple(sorted(others)))


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, as sorted paths inside it; what a killed process left behind is not counted."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and not is_partial(path)
    )
