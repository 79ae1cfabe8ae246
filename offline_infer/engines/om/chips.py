"""Which OM runs on the devices: the one compiled for their chip, unchanged since."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from offline_infer.digests import digest_of
from offline_infer.engines.compiled import CompiledGraph
from offline_infer.engines.om.npu_smi import DeviceQuery, list_devices
from offline_infer.errors import BundleError, EngineUnavailable, Remedy, UsageError


def choose(
    compiled: Sequence[CompiledGraph],
    graph: str,
    chips: Mapping[int, str | None],
    soc: str | None,
    query: Callable[[], DeviceQuery] = list_devices,
) -> CompiledGraph:
    """The OM for the devices' chip.

    Args:
        compiled: what the bundle has compiled from the graph.
        graph: what to call it in messages.
        chips: device -> chip as the binding says, None where it does not.
        soc: chip the user named, or None.
        query: asks ``npu-smi``, where the binding does not tell.

    Raises:
        EngineUnavailable: none was compiled, or for other chips only.
        UsageError: the devices are of different chips, or nobody says which they are.
        BundleError: the file was changed after it was compiled.
    """
    if not compiled:
        raise EngineUnavailable(f"om: {graph} has no OM", remedy="compile-for-chip")
    made = sorted({each.chip for each in compiled})
    wanted = soc or _chip_of(chips, query, made)
    fitting = [each for each in compiled if each.chip == wanted]
    if not fitting:
        raise EngineUnavailable(
            f"om: {graph} has OMs for {', '.join(made)}, the devices are {wanted}; an OM runs on the chip it was compiled "
            "for only",
            remedy=Remedy("compile-for-chip", {"chip": wanted}),
        )
    chosen = fitting[0]
    if not chosen.path.is_file() or digest_of(chosen.path) != chosen.sha256:
        raise BundleError(f"{chosen.path} is missing or was changed after it was compiled; compile it again")
    return chosen


def _chip_of(chips: Mapping[int, str | None], query: Callable[[], DeviceQuery], made: Sequence[str]) -> str:
    known = {device: chip for device, chip in chips.items() if chip}
    if not known:
        known = {device.device: device.soc for device in query().devices if device.device in chips}
    present = sorted(set(known.values()))
    if len(present) > 1:
        told = ", ".join(f"device {device}: {chip}" for device, chip in sorted(known.items()))
        raise UsageError(f"om: the devices are of different chips ({told}); run them apart")
    if present:
        return present[0]
    if len(made) > 1:
        raise UsageError(
            f"om: nothing says which chip the devices have; the bundle has OMs for {', '.join(made)}",
            remedy="name-chip",
        )
    return made[0]
