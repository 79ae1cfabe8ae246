"""Checkpoint -> ONNX -> verified bundle. torch is needed here, and nowhere on the machine that runs the bundle.

Every graph is run on each engine that is installed and compared with the network it was made from before the bundle
appears; if one does not agree, nothing is left behind.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offline_infer import graph as passes
from offline_infer.bundles import bundle as bundles
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.canary import KEY, canary_input, make_canary
from offline_infer.bundles.repeats import making
from offline_infer.errors import ExportError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.exporting.comparing import Trial, compare_engines, usable_engines
from offline_infer.exporting.materials import made_with, save_made
from offline_infer.exporting.options import ExportOptions
from offline_infer.exporting.reference_run import References, reference_run
from offline_infer.exporting.torch_export import require_packages
from offline_infer.exporting.tracing import trace
from offline_infer.exporting.verification import probe_inputs
from offline_infer.files import sha256_file
from offline_infer.spec import GraphRecord, OutputSpec, VolumeSpec

if TYPE_CHECKING:
    from torch import nn

    from offline_infer.checkpoints import Selection

MakeNetwork = Callable[[str], "nn.Module"]
"""Fold name -> its network with weights, in evaluation mode: (n, c, *patch) to logits, or to a sequence of heads."""

FloatArray = npt.NDArray[np.float32]

SEED = 0


def export_bundle(
    checkpoint: Path | str,
    output: Path | str,
    selection: Selection | None = None,
    options: ExportOptions | None = None,
    sink: Sink = silent,
) -> Bundle:
    """Export a model folder of nnU-Net v1, UNet++ or nnU-Net v2 (or a zip archive of one) to a bundle.

    Args:
        checkpoint: the model folder.
        output: the bundle's folder; it appears only when everything is done and verified.
        selection: which part of the checkpoint; None takes what the framework's own predictor would take.
        options: how to export; None takes the defaults.
        sink: told about progress.

    Raises:
        UsageError: a wrong option, or ``output`` is taken.
        CheckpointError: the checkpoint cannot be read, or is not the expected one.
        ExportError: a graph could not be made, or does not give the network's answer.
    """
    from offline_infer import networks
    from offline_infer.checkpoints import Selection, read_selected

    require_packages()
    chosen = options or ExportOptions()
    description = read_selected(Path(checkpoint), selection or Selection())
    for note in description.notes:
        sink(Event("note", "export", data={"text": note}))

    def make_network(fold: str) -> nn.Module:
        network = networks.build(description.network, deep_supervision=chosen.keep_deep_supervision)
        networks.load_weights(network, description.load_weights(fold))
        return network

    return export_network(description.spec, make_network, output, chosen, sink)


def export_network(
    spec: VolumeSpec,
    make_network: MakeNetwork,
    output: Path | str,
    options: ExportOptions | None = None,
    sink: Sink = silent,
) -> Bundle:
    """Export networks of one's own; :func:`export_bundle` for those of a checkpoint folder.

    Args:
        spec: how the network is to be used; its ``outputs`` and ``graphs`` are filled in here.
        make_network: called once per fold of ``spec.source.folds``; one network is in memory at a time.
        output, options, sink: see :func:`export_bundle`.
    """
    chosen = options or ExportOptions()
    folds = [source.fold for source in spec.source.folds]
    engines = tuple(usable_engines()) if chosen.verify else ()
    with making(output, spec, overwrite=chosen.overwrite, sink=sink) as folder:
        job = _Job(folder, chosen, engines, sink, total=len(folds) * (2 + len(engines)))
        data = {"folds": folds, "precision": chosen.precision, "opset": chosen.opset}
        sink(Event("stage-started", "export", data=data))
        records = []
        for fold in folds:
            spec, record = _export_fold(spec, fold, make_network, job)
            records.append(record)
        save_made(spec.model_copy(update={"graphs": tuple(records), "compiled": ()}), folder)
    return Bundle.load(output)


@dataclass
class _Job:
    """What every fold's export needs, and the progress so far."""

    folder: Path
    options: ExportOptions
    engines: tuple[str, ...]
    sink: Sink
    total: int
    done: int = 0

    def step(self, fold: str, what: str) -> None:
        self.done += 1
        self.sink(Event("progress", "export", done=self.done, total=self.total, data={"fold": fold, "step": what}))


@dataclass(frozen=True)
class _Graph:
    """A graph that was written: its file, what is in it, and what halving its weights did to them."""

    path: Path
    facts: passes.GraphFacts
    half: Any | None


def _export_fold(spec: VolumeSpec, fold: str, make_network: MakeNetwork, job: _Job) -> tuple[VolumeSpec, GraphRecord]:
    """Write and verify one graph; returns the specification with its outputs filled in, and the graph's record."""
    network = make_network(fold).eval()
    spec, graph = _write_graph(spec, fold, network, job)
    job.step(fold, "graph")
    verification = None
    if job.engines:
        answers = _ask(spec, network, job.options.precision)
        del network
        gc.collect()  # an engine needs about as much memory as torch did
        job.step(fold, "reference")
        verification = _verify(spec, fold, graph, answers, job)
    record = GraphRecord.model_validate(
        {
            "file": graph.path.name,
            "fold": fold,
            "precision": job.options.precision,
            "opset": graph.facts.opset,
            "sha256": sha256_file(graph.path),
            "verification": verification,
        }
    )
    return spec, record


def _write_graph(spec: VolumeSpec, fold: str, network: nn.Module, job: _Job) -> tuple[VolumeSpec, _Graph]:
    options = job.options
    model = trace(network, spec, options.opset, all_heads=options.keep_deep_supervision)
    outputs = _outputs(model)
    if spec.outputs and job.done and spec.outputs != outputs:
        raise ExportError(f"fold {fold} has other outputs than the folds before it: {outputs}, not {spec.outputs}")
    spec = spec.model_copy(update={"outputs": outputs, "made_with": made_with()})
    half = None
    if options.precision == "fp16":
        model, half = passes.to_float16(model)
    digest = passes.graph_sha256(model)
    model = passes.set_metadata(model, bundles.embedded(spec, fold, options.precision, options.opset, digest))
    path = job.folder / _file_name(fold, options.precision)
    passes.save_model(model, path)
    return spec, _Graph(path, passes.inspect_graph(model), half)


@dataclass(frozen=True)
class _Answers:
    """What the network itself answers: ``asked`` is the name of the input that is also the canary's."""

    probes: dict[str, FloatArray]
    asked: str
    references: References


def _ask(spec: VolumeSpec, network: nn.Module, precision: str) -> _Answers:
    probes = probe_inputs(spec, SEED)
    image = canary_input(spec.input_shape, SEED)
    asked = "normal" if np.array_equal(image, probes["normal"]) else KEY  # a cascade's probe has one-hot channels
    probes.setdefault(asked, image)
    return _Answers(probes, asked, reference_run(network, probes, precision))


def _verify(spec: VolumeSpec, fold: str, graph: _Graph, answers: _Answers, job: _Job) -> dict[str, Any]:
    """The verification record of a graph.

    Raises:
        ExportError: an engine does not give the network's answer.
    """
    references = answers.references
    canary = {spec.outputs[0].name: references.heads[answers.asked][0]}
    trial = Trial(
        path=graph.path,
        fold=fold,
        precision=job.options.precision,
        outputs=tuple(output.name for output in spec.outputs),
        regions=spec.labels.regions_class_order is not None,
        probes=answers.probes,
        references=references,
    )
    half = graph.half
    return {
        "passed": True,
        "opset": graph.facts.opset,
        "ops": graph.facts.ops,
        "parameters": graph.facts.parameters,
        **({"half": {**asdict(half), "vanished": sum(half.vanished.values())}} if half is not None else {}),
        "torch": references.torch,
        "activation_peak": references.peak,
        "inputs": {name: {"seed": SEED} for name in answers.probes},
        KEY: make_canary(answers.probes[answers.asked], canary, SEED),
        "engines": compare_engines(trial, job.engines, lambda name: job.step(fold, name)),
    }


def _file_name(fold: str, precision: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", fold):
        raise UsageError(f"a fold is called {fold!r}; its name becomes a file's name, use letters, digits, _ . + -")
    return f"fold_{fold}.onnx" if precision == "fp32" else f"fold_{fold}_{precision}.onnx"


def _outputs(model: Any) -> tuple[OutputSpec, ...]:
    return tuple(
        OutputSpec.model_validate({"name": port.name, "dtype": port.dtype, "shape": port.shape, "keep": i == 0})
        for i, port in enumerate(passes.inspect_graph(model).outputs)
    )
