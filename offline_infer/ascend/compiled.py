"""Which OM of a bundle may be used: made from the graph the bundle holds now, for this chip, and unchanged since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offline_infer.bundles.bundle import Bundle
from offline_infer.engines.om.npu_smi import DeviceQuery
from offline_infer.errors import BundleError, Remedy, UsageError
from offline_infer.files import sha256_file
from offline_infer.spec import CompiledRecord, OutputSpec


@dataclass(frozen=True)
class Compiled:
    """A usable OM.

    Attributes:
        path: the file.
        record: as in the bundle.
        outputs: what it gives, in its own order.
        positions: for each of ``outputs``, its 0-based position among the graph's outputs.
    """

    path: Path
    record: CompiledRecord
    outputs: tuple[OutputSpec, ...]
    positions: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether it gives every output of the graph, in the graph's order."""
        return self.positions == tuple(range(len(self.positions))) and len(self.positions) > 0


def select(bundle: Bundle, fold: str, soc: str | None, query: DeviceQuery, devices: Sequence[int]) -> Compiled:
    """The OM to use for a fold.

    Args:
        soc: chip the user named, or None: the only one there is, or the one of the devices.
        query: what ``npu-smi`` says of this machine.
        devices: numbers of the devices that will run it.

    Raises:
        UsageError: none was compiled, or for another chip, or it is not clear which is meant.
        BundleError: the file was changed, or the graph was exported again after it was compiled.
    """
    hashes = {graph.file: graph for graph in bundle.spec.graphs if graph.fold == fold}
    mine = [record for record in bundle.spec.compiled if record.graph in hashes]
    compile_it = Remedy("compile-for-chip", {"chip": soc} if soc else {})
    if not mine:
        raise UsageError(f"{bundle.name}: fold {fold} has no OM", remedy=compile_it)
    present = {device.soc for device in query.devices if device.device in devices}
    wanted = soc or (next(iter(present)) if len(present) == 1 else None)
    if wanted is None:
        socs = sorted({record.soc for record in mine})
        if len(socs) > 1:
            raise UsageError(
                f"nothing says which chip the devices have; {bundle.name} has OMs for {', '.join(socs)}",
                remedy="name-chip",
            )
        wanted = socs[0]
    fitting = [record for record in mine if record.soc == wanted]
    if not fitting:
        made = ", ".join(sorted({record.soc for record in mine}))
        why = "" if soc else " (npu-smi)"
        raise UsageError(
            f"{bundle.name}: fold {fold} has OMs for {made}, the devices are {wanted}{why}; an OM runs on the chip it "
            "was compiled for only",
            remedy=Remedy("compile-for-chip", {"chip": wanted}),
        )
    valid = [record for record in fitting if record.graph_sha256 == hashes[record.graph].sha256]
    if not valid:
        raise BundleError(
            f"{bundle.name}: the OM for {wanted} was made from an older {fitting[0].graph}; compile again"
        )
    # Where both a float32 and a float16 graph were compiled, the float32 one is the model as exported.
    record = min(valid, key=lambda each: hashes[each.graph].precision != "fp32")
    path = bundle.compiled_path(record)
    if sha256_file(path) != record.sha256:
        raise BundleError(f"{path} was changed after it was compiled", remedy=compile_it)
    return _resolve(bundle, record, path)


def _resolve(bundle: Bundle, record: CompiledRecord, path: Path) -> Compiled:
    outputs = record.outputs or bundle.spec.outputs
    names = [output.name for output in bundle.spec.outputs]
    try:
        positions = tuple(names.index(output.name) for output in outputs)
    except ValueError as error:
        given = ", ".join(output.name for output in outputs)
        raise BundleError(f"{path} gives {given}; the bundle knows {', '.join(names)}; compile again") from error
    kept = {position for position, output in enumerate(bundle.spec.outputs) if output.keep}
    if not kept <= set(positions):
        lost = ", ".join(names[position] for position in sorted(kept - set(positions)))
        raise BundleError(
            f"{path} does not give the output inference needs ({lost}); compile again without --out-nodes"
        )
    return Compiled(path, record, outputs, positions)
