"""Records that are kept in a bundle beside its graphs: how INT8 graphs were made and judged, which settings were chosen.

They are part of the bundle: ``MANIFEST.sha256`` holds their digests, and a record that does not agree with it is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from offline_infer.bundles.bundle import QUANTIZATION, TUNING, Bundle, save
from offline_infer.bundles.manifest import MANIFEST, SIGNATURE, read_manifest
from offline_infer.errors import BundleError, UsageError
from offline_infer.files import read_json, sha256_file, write_json

KINDS = {QUANTIZATION: "offline_infer.quantization", TUNING: "offline_infer.tuning"}
"""File -> what the record says under ``kind``."""
_LARGEST = 1 << 24  # bytes


def keep_record(bundle: Bundle, file: str, record: dict[str, Any]) -> None:
    """Write a record into a bundle folder and its digest into the manifest.

    Args:
        file: one of :data:`KINDS`.
        record: without its ``kind``.

    Raises:
        UsageError: the bundle is a lone file.
        BundleError: the bundle's files do not agree with their records.
    """
    refuse_lone(bundle)
    write_json(bundle.folder / file, {"kind": KINDS[file], "schema_version": 1, **record})
    save(bundle.spec, bundle.folder)


def read_record(bundle: Bundle, file: str) -> dict[str, Any] | None:
    """A record of a bundle; None where it has none, or where the manifest does not know it: a process was killed before it had
    finished.

    Raises:
        BundleError: it is damaged, was changed since it was kept, or is of another kind.
    """
    path = bundle.folder / file
    if bundle.lone is not None or not path.is_file():
        return None
    wanted = (read_manifest(bundle.folder) or {}).get(file)
    if wanted is None:
        return None
    if wanted != sha256_file(path):
        raise BundleError(
            f"{path} was changed after it was kept: it is not the file that {MANIFEST} lists; make it again, or copy the "
            "bundle again"
        )
    try:
        record = read_json(path, largest=_LARGEST)
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict) or record.get("kind") != KINDS[file] or record.get("schema_version") != 1:
        raise BundleError(f"{path} is not a record of the kind {KINDS[file]}, version 1")
    return record


def tell_signed(bundle: Bundle, tell: Callable[[str], None]) -> None:
    """Say that a signature does not hold any more, where there is one: the bundle has gained files."""
    if (bundle.folder / SIGNATURE).exists():
        tell("the bundle was signed before and has changed: sign it again")


def refuse_lone(bundle: Bundle) -> None:
    """Refuse a bundle that is one file.

    Raises:
        UsageError: a lone file cannot keep a record.
    """
    if bundle.lone is not None:
        raise UsageError(f"{bundle.name} is a lone file, which cannot keep records; name the bundle's folder")
