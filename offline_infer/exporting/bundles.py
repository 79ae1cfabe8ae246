"""Checkpoint -> ONNX -> verified bundle. torch is needed here, and nowhere on the machine that runs the bundle.

Every graph is run on each engine that is installed and compared with the network it was made from before the bundle
appears; if one does not agree, nothing is left behind.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offline_infer import graph as passes
from offline_infer.bundles import bundle as bundles
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.canary import KEY, canary_input, make_canary
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import EngineFailed, ExportError, Remedy, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.exporting.materials import made_with
from offline_infer.exporting.reference_run import References, reference_run
from offline_infer.exporting.tracing import OPSETS, trace
from offline_infer.exporting.verification import HALF_MAX, compare, probe_inputs, verdict
from offline_infer.files import sha256_file
from offline_infer.spec import GraphRecord, OutputSpec, VolumeSpec

if TYPE_CHECKING:
    from torch import nn

FloatArray = npt.NDArray[np.float32]
MakeNetwork = Callable[[str], "nn.Module"]
"""Fold name -> its network with weights, in evaluation mode: (n, c, *patch) to logits, or to a sequence of heads."""

PRECISIONS = ("fp32", "fp16")
ENGINES = ("openvino", "onnxruntime")
SEED = 0


def export_bundle(
    checkpoint: Path | str,
    output: Path | str,
    *,
    folds: Sequence[str] | None = None,
    checkpoint_name: str | None = None,
    configuration: str | None = None,
    opset: int = 17,
    precision: str = "fp32",
    keep_deep_supervision: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    sink: Sink = silent,
) -> Bundle:
    """Export a model folder of nnU-Net v1, UNet++ or nnU-Net v2 (or a zip archive of one) to a bundle.

    Args:
        checkpoint: the model folder.
        output: the bundle's folder; it appears only when everything is done and verified.
        folds, checkpoint_name, configuration: see :func:`offline_infer.checkpoints.read_checkpoint`.
        opset: 11 to 17.
        precision: ``fp32``, or ``fp16`` (weights and most operators half precision, normalisation float32).
        keep_deep_supervision: keep all heads as outputs ``logits``, ``logits_1``, ...; the first is the final one.
        verify: compare every graph with the checkpoint's network.
        overwrite: replace an existing bundle; it stays intact until the new one is complete.
        sink: told about progress.

    Raises:
        UsageError: a wrong option, or ``output`` is taken.
        CheckpointError: the checkpoint cannot be read.
        ExportError: a graph could not be made, or does not give the network's answer.
    """
    _check_options(opset, precision)
    from offline_infer import networks
    from offline_infer.checkpoints import read_checkpoint

    description = read_checkpoint(checkpoint, folds=folds, checkpoint_name=checkpoint_name, configuration=configuration)
    for note in description.notes:
        sink(Event("note", "export", data={"text": note}))

    def make_network(fold: str) -> nn.Module:
        network = networks.build(description.network, deep_supervision=keep_deep_supervision)
        networks.load_weights(network, description.load_weights(fold))
        return network

    return export_network(
        description.spec,
        make_network,
        output,
        opset=opset,
        precision=precision,
        keep_deep_supervision=keep_deep_supervision,
        verify=verify,
        overwrite=overwrite,
        sink=sink,
    )


def export_network(
    spec: VolumeSpec,
    make_network: MakeNetwork,
    output: Path | str,
    *,
    opset: int = 17,
    precision: str = "fp32",
    keep_deep_supervision: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    sink: Sink = silent,
) -> Bundle:
    """Export networks of one's own; :func:`export_bundle` for those of a checkpoint folder.

    Args:
        spec: how the network is to be used; its ``outputs`` and ``graphs`` are filled in here.
        make_network: called once per fold of ``spec.source.folds``; one network is in memory at a time.
        output, opset, precision, keep_deep_supervision, verify, overwrite, sink: see :func:`export_bundle`.
    """
    _check_options(opset, precision)
    folds = [source.fold for source in spec.source.folds]
    engines = _engines() if verify else []
    job = _Job(opset, precision, keep_deep_supervision, tuple(engines), sink, total=len(folds) * (2 + len(engines)))
    sink(Event("stage-started", "export", data={"folds": folds, "precision": precision, "opset": opset}))
    with bundles.creating(output, overwrite=overwrite) as folder:
        records = []
        for fold in folds:
            spec, record = _export_fold(spec, fold, make_network, folder, job)
            records.append(record)
        bundles.save(spec.model_copy(update={"graphs": tuple(records), "compiled": ()}), folder)
    return Bundle.load(output)


@dataclass
class _Job:
    """What every fold's export needs, and the progress so far."""

    opset: int
    precision: str
    all_heads: bool
    engines: tuple[str, ...]
    sink: Sink
    total: int
    done: int = 0

    def step(self, fold: str, what: str) -> None:
        self.done += 1
        self.sink(Event("progress", "export", done=self.done, total=self.total, data={"fold": fold, "step": what}))


def _export_fold(
    spec: VolumeSpec, fold: str, make_network: MakeNetwork, folder: Path, job: _Job
) -> tuple[VolumeSpec, GraphRecord]:
    """Write and verify one graph; returns the specification with its outputs filled in, and the graph's record."""
    network = make_network(fold).eval()
    model = trace(network, spec, job.opset, all_heads=job.all_heads)
    outputs = _outputs(model, spec)
    if spec.outputs and job.done and spec.outputs != outputs:
        raise ExportError(f"fold {fold} has other outputs than the folds before it: {outputs}, not {spec.outputs}")
    spec = spec.model_copy(update={"outputs": outputs, "made_with": made_with()})
    half = None
    if job.precision == "fp16":
        model, half = passes.to_float16(model)
    model = passes.set_metadata(
        model, bundles.embedded(spec, fold, job.precision, job.opset, passes.graph_sha256(model))
    )
    name = _file_name(fold, job.precision)
    passes.save_model(model, folder / name)
    facts = passes.inspect_graph(model)
    del model
    job.step(fold, "graph")
    verification = None
    if job.engines:
        probes = probe_inputs(spec, SEED)
        image = canary_input(spec.input_shape, SEED)
        asked = "normal" if np.array_equal(image, probes["normal"]) else KEY  # a cascade's probe has one-hot channels
        probes.setdefault(asked, image)
        references = reference_run(network, probes, job.precision)
        del network
        gc.collect()  # an engine needs about as much memory as torch did
        job.step(fold, "reference")
        verification = {
            "passed": True,
            "opset": facts.opset,
            "ops": facts.ops,
            "parameters": facts.parameters,
            **({"half": {**asdict(half), "vanished": sum(half.vanished.values())}} if half is not None else {}),
            "torch": references.torch,
            "activation_peak": references.peak,
            "inputs": {name: {"seed": SEED} for name in probes},
            KEY: make_canary(image, {outputs[0].name: references.heads[asked][0]}, SEED),
            "engines": _verify(folder / name, fold, spec, probes, references, job),
        }
    record = GraphRecord.model_validate(
        {
            "file": name,
            "fold": fold,
            "precision": job.precision,
            "opset": facts.opset,
            "sha256": sha256_file(folder / name),
            "verification": verification,
        }
    )
    return spec, record


def _file_name(fold: str, precision: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", fold):
        raise UsageError(f"a fold is called {fold!r}; its name becomes a file's name, use letters, digits, _ . + -")
    return f"fold_{fold}.onnx" if precision == "fp32" else f"fold_{fold}_{precision}.onnx"


def _outputs(model: Any, spec: VolumeSpec) -> tuple[OutputSpec, ...]:
    return tuple(
        OutputSpec.model_validate({"name": port.name, "dtype": port.dtype, "shape": port.shape, "keep": i == 0})
        for i, port in enumerate(passes.inspect_graph(model).outputs)
    )


# ---- verification ----------------------------------------------------------------------------------------------------


def _verify(
    path: Path, fold: str, spec: VolumeSpec, probes: dict[str, FloatArray], references: References, job: _Job
) -> list[dict[str, Any]]:
    """Compare the graph on every engine, one at a time; the records of those that agree.

    Raises:
        ExportError: one does not.
    """
    records: list[dict[str, Any]] = []
    regions = spec.labels.regions_class_order is not None
    names = [output.name for output in spec.outputs]

    def judge(engine: str, probe: str, answers: Sequence[FloatArray]) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for name, reference, answer in zip(names, references.heads[probe], answers, strict=False):
            result = compare(reference, answer, regions=regions)
            reason = verdict(result, job.precision)
            if reason is not None:
                raise ExportError(
                    f"fold {fold}, {job.precision}, input {probe!r}, output {name!r}: {engine} does not give the "
                    f"checkpoint's answer: {reason}; nothing was written"
                )
            told = {**result.to_json(), **told} if name == names[0] else {**told, name: result.to_json()}
        return told

    if job.precision == "fp16":
        if references.peak["value"] > HALF_MAX:
            raise ExportError(
                f"fold {fold}: {references.peak['module']} gives values up to {references.peak['value']:.6g}, "
                f"half precision ends at {HALF_MAX:g}; export this checkpoint as fp32"
            )
        simulated = {
            name: judge("float16 storage (simulated)", name, [answer]) for name, answer in references.half.items()
        }
        arithmetic = "float16 between layers, simulated; float32 sums"
        records.append(
            {
                "engine": "torch",
                "version": references.torch,
                "device": "cpu",
                "arithmetic": arithmetic,
                "inputs": simulated,
            }
        )
    for name in job.engines:
        inputs = {}
        with get_engine(name).open(path, EngineOptions()) as session:
            for probe, image in probes.items():
                try:
                    answers = [session.run(image)] if len(names) == 1 else list(session.run_all(image).values())
                except EngineFailed as error:
                    raise ExportError(f"fold {fold}: {error}; nothing was written") from error
                inputs[probe] = judge(f"{name} {session.info.version}", probe, answers)
            records.append(
                {
                    "engine": name,
                    "version": session.info.version,
                    "device": session.info.device,
                    "arithmetic": "float32" if job.precision == "fp32" else "float32, with half-precision weights",
                    "norms": None if session.info.norms is None else session.info.norms.mode,
                    "inputs": inputs,
                }
            )
        gc.collect()
        job.step(fold, name)
    return records


def _engines() -> list[str]:
    """Engines that can run here.

    Raises:
        ExportError: none; an export that nobody ran is not verified.
    """
    reasons = {name: get_engine(name).available() for name in ENGINES}
    usable = [name for name, reason in reasons.items() if reason is None]
    if not usable:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        install = Remedy("install-engine")
        raise ExportError(
            f"no engine is available to verify the export with ({told}) {install}", remedy="export-unverified"
        )
    return usable


def _check_options(opset: int, precision: str) -> None:
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} cannot be written; legal: {OPSETS[0]} to {OPSETS[-1]}")
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; legal: {', '.join(PRECISIONS)}")
