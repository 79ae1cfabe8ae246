"""Making a bundle where it may be already: an export that was killed after its last step, and is given again.

A bundle that is there is never replaced here. It is made once more beside it and compared: two exports of the same checkpoint
with the same settings and versions have the same graphs, to the byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offline_infer.bundles.bundle import BUNDLE_FILE, Bundle, SpecOf, creating, volumes_only
from offline_infer.bundles.checking import check_bundle
from offline_infer.errors import BundleError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import clear_partial, temporary_name
from offline_infer.spec import BundleSpec, GraphRecord

_FILLED_IN = frozenset({"outputs", "graphs", "compiled", "made_with"})  # by the export, or by later commands
_SHOWN = 3


@contextmanager
def making(
    output: Path | str,
    wanted: BundleSpec,
    *,
    overwrite: bool = False,
    spec_of: SpecOf = volumes_only,
    sink: Sink = silent,
) -> Iterator[Path]:
    """As :func:`offline_infer.bundles.bundle.creating`, but ``output`` may be the very bundle that is to be made.

    Args:
        wanted: what the bundle will say; its outputs and graphs need not be filled in.
        sink: told that the bundle was there.

    Raises:
        UsageError: also where ``output`` is a bundle that is damaged, or that differs; before any work where the checkpoint or
            what the specification says of the settings differs.
        BundleError: the block did not make a valid bundle.
    """
    target = Path(output).absolute()
    clear_partial(target.parent)
    if overwrite or not (target / BUNDLE_FILE).is_file():
        with creating(output, overwrite=overwrite, spec_of=spec_of) as folder:
            yield folder
        return
    there = _whole(Path(output), spec_of)
    _refuse(Path(output), _differences(_plain(there.spec), _plain(wanted)))
    temporary = target.parent / temporary_name(target.name)
    temporary.mkdir()
    try:
        yield temporary
        made = Bundle.load(temporary, spec_of=spec_of)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _refuse(Path(output), _differences(_filled_in(there.spec), _filled_in(made.spec)))
    sink(Event("note", "export", data={"text": f"{output} was there, the same checkpoint and settings"}))


def _whole(folder: Path, spec_of: SpecOf) -> Bundle:
    """The bundle that is there.

    Raises:
        UsageError: it is damaged.
    """
    try:
        bundle = Bundle.load(folder, spec_of=spec_of)
        check_bundle(bundle)
    except BundleError as error:
        raise UsageError(
            f"{folder} already holds a bundle, and it is damaged: {error}", remedy="overwrite-bundle"
        ) from error
    return bundle


def _plain(spec: BundleSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude=set(_FILLED_IN))


def _filled_in(spec: BundleSpec) -> dict[str, Any]:
    """What the export itself adds; graphs that were quantised later are none of its own."""
    filled = spec.model_dump(mode="json", include={"outputs", "made_with"})
    return {**filled, "graphs": [_graph(record) for record in spec.graphs if record.precision != "int8"]}


def _graph(record: GraphRecord) -> dict[str, Any]:
    verified = bool((record.verification or {}).get("passed"))
    return {**record.model_dump(mode="json", exclude={"verification"}), "verified": verified}


def _differences(there: Any, now: Any, where: str = "") -> list[str]:
    """``field: what is there, what would be made``, for every leaf that differs."""
    if isinstance(there, dict) and isinstance(now, dict):
        names = sorted({*there, *now})
        prefix = f"{where}." if where else ""
        return [text for name in names for text in _differences(there.get(name), now.get(name), f"{prefix}{name}")]
    if isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        pairs = enumerate(zip(there, now, strict=True))
        return [text for index, (old, new) in pairs for text in _differences(old, new, f"{where}[{index}]")]
    return [] if there == now else [f"{where} is {there!r:.40}, would be {now!r:.40}"]


def _refuse(target: Path, differences: list[str]) -> None:
    """Refuse to leave, or to replace, a bundle that is not the one to be made.

    Raises:
        UsageError: there is a difference.
    """
    if differences:
        more = f" (and {len(differences) - _SHOWN} more)" if len(differences) > _SHOWN else ""
        told = "; ".join(differences[:_SHOWN])
        raise UsageError(f"{target} already holds a bundle, and another one: {told}{more}", remedy="overwrite-bundle")
