"""Networks with several named outputs: traced, verified, written. Knows no kind of model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offline_infer import graph as passes
from offline_infer.bundles import bundle as bundles
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.repeats import making
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import EngineFailed, ExportError
from offline_infer.events import Event, Sink, silent
from offline_infer.exporting.comparing import usable_engines
from offline_infer.exporting.materials import save_made
from offline_infer.exporting.torch_export import import_torch, write_onnx
from offline_infer.exporting.tracing import OPSETS
from offline_infer.files import sha256_file
from offline_infer.spec import BundleSpec, GraphRecord, OutputSpec

if TYPE_CHECKING:
    from torch import nn

FloatArray = npt.NDArray[np.float32]
Arrays = Mapping[str, FloatArray]
Judge = Callable[[Arrays, Arrays], tuple[dict[str, Any], str | None]]
"""(reference, answer) -> figures for the record, and the reason for refusing, or None."""

TOLERANCE = 1e-3
"""Largest difference allowed, relative to the largest value (or to 1, if that is larger)."""


@dataclass(frozen=True)
class GraphJob:
    """How to make a bundle of one network.

    Attributes:
        output: folder to make; it appears only when everything is verified.
        opset: of the ONNX file.
        verify: compare with the network on every engine that is installed.
        overwrite: replace an existing bundle.
        free_axes: the input's height and width may be anything; the traced size is only an example.
    """

    output: Path
    opset: int = 17
    verify: bool = True
    overwrite: bool = False
    free_axes: bool = False


def export_named(
    spec: BundleSpec,
    network: nn.Module,
    names: Sequence[str],
    probes: Mapping[str, FloatArray],
    job: GraphJob,
    judge: Judge,
    sink: Sink = silent,
) -> Bundle:
    """Export a network of one image and several outputs.

    Args:
        spec: its ``outputs`` and ``graphs`` are filled in here.
        network: (1, c, y, x) -> a tuple of tensors, in evaluation mode.
        names: of the outputs, all kept.
        probes: inputs to compare on, (1, c, y, x); the first is traced.
        judge: whether an engine's answer is the network's.

    Raises:
        ExportError: the graph could not be made, or does not give the network's answer; nothing was written.
    """
    if job.opset not in OPSETS:
        raise ExportError(f"opset {job.opset} cannot be written; legal: {OPSETS[0]} to {OPSETS[-1]}")
    engines = usable_engines() if job.verify else []
    fold = spec.source.folds[0].fold
    sink(Event("stage-started", "export", data={"folds": [fold], "precision": "fp32", "opset": job.opset}))
    with making(job.output, spec, overwrite=job.overwrite, spec_of=lambda task: type(spec), sink=sink) as folder:
        model = trace_named(network, next(iter(probes.values())), spec.input_name, names, job)
        facts = passes.inspect_graph(model)
        spec = spec.model_copy(update={"outputs": tuple(output_spec(port) for port in facts.outputs)})
        path = folder / f"fold_{fold}.onnx"
        passes.save_model(passes.set_metadata(model, bundles.embedded(spec, fold, "fp32", job.opset)), path)
        del model
        verification = None
        if engines:
            references = {name: run_torch(network, names, probe) for name, probe in probes.items()}
            verification = {
                "passed": True,
                "opset": facts.opset,
                "ops": facts.ops,
                "parameters": facts.parameters,
                "torch": import_torch().__version__,
                "engines": verify_graph(path, probes, references, engines, judge),
            }
        record = GraphRecord(
            file=path.name, fold=fold, opset=facts.opset, sha256=sha256_file(path), verification=verification
        )
        save_made(spec.model_copy(update={"graphs": (record,), "compiled": ()}), folder)
    return Bundle.load(job.output, spec_of=lambda task: type(spec))


def output_spec(port: passes.Port, *, keep: bool = True) -> OutputSpec:
    """An output's record; sizes that stay open are -1.

    Raises:
        ExportError: not even the number of axes is known.
    """
    if port.shape is None:
        raise ExportError(f"output {port.name!r} has no known number of axes")
    shape = [size if isinstance(size, int) else -1 for size in port.shape]
    return OutputSpec.model_validate({"name": port.name, "dtype": port.dtype, "shape": shape, "keep": keep})


def trace_named(network: nn.Module, image: FloatArray, input_name: str, names: Sequence[str], job: GraphJob) -> Any:
    """The network as a clean ONNX model with named outputs.

    Raises:
        ExportError: torch cannot trace it, or the result is not valid.
    """
    torch = import_torch()
    axes = {0: "batch", 2: "height", 3: "width"}
    del axes[0]  # one image at a time, on every engine and device alike
    free = {input_name: axes, **{name: axes for name in names if name == "mask"}} if job.free_axes else None
    written = write_onnx(network, torch.from_numpy(image), job.opset, input_name, names, free)
    model = passes.clean(passes.onnx_package().load_from_string(written))
    if not job.free_axes:
        shapes = {name: output.shape for name, output in run_torch(network, names, image).items()}
        model = passes.fix_shapes(model, image.shape, shapes)
    try:
        passes.onnx_package().checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError
        raise ExportError(f"the exported graph is not valid ONNX: {' '.join(str(error).split())[:400]}") from error
    given = [port.name for port in passes.inspect_graph(model).outputs]
    if given != list(names) or [value.name for value in model.graph.input] != [input_name]:
        raise ExportError(f"the exported graph has the outputs {given}, expected {list(names)}")
    return model


def run_torch(network: nn.Module, names: Sequence[str], image: FloatArray) -> dict[str, FloatArray]:
    """The network's own answer."""
    torch = import_torch()
    with torch.inference_mode():
        outputs = network(torch.from_numpy(image))
    return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}


def verify_graph(
    path: Path, probes: Arrays, references: Mapping[str, Arrays], engines: Sequence[str], judge: Judge
) -> list[dict[str, Any]]:
    """Compare a graph on every engine, one at a time; the records of those that agree.

    Raises:
        ExportError: one does not.
    """
    records = []
    for name in engines:
        inputs = {}
        with get_engine(name).open(path, EngineOptions()) as session:
            for probe, image in probes.items():
                try:
                    answer = session.run_all(image)
                except EngineFailed as error:
                    raise ExportError(f"{error}; nothing was written") from error
                figures, reason = judge(references[probe], answer)
                if reason is not None:
                    raise ExportError(
                        f"input {probe!r}: {name} {session.info.version} does not give the network's answer: {reason}; "
                        "nothing was written"
                    )
                inputs[probe] = figures
            records.append(
                {
                    "engine": name,
                    "version": session.info.version,
                    "device": session.info.device,
                    "arithmetic": "float32",
                    "inputs": inputs,
                }
            )
        gc.collect()
    return records


def write_adopted(
    spec: BundleSpec, model: Any, probes: Arrays, job: GraphJob, judge: Judge, sink: Sink = silent
) -> Bundle:
    """Write a bundle around a graph that somebody else exported.

    There is no network to compare it with, so the engines are compared with each other; the record says so.

    Args:
        spec: complete but for its ``graphs``.
        model: the graph, already looked at; its shapes are final.

    Raises:
        ExportError: an engine cannot run it, or two engines disagree; nothing was written.
    """
    engines = usable_engines()
    fold = spec.source.folds[0].fold
    facts = passes.inspect_graph(model)
    sink(Event("stage-started", "adopt", data={"folds": [fold], "opset": facts.opset}))
    with making(job.output, spec, overwrite=job.overwrite, spec_of=lambda task: type(spec), sink=sink) as folder:
        path = folder / f"fold_{fold}.onnx"
        passes.save_model(passes.set_metadata(model, bundles.embedded(spec, fold, "fp32", facts.opset)), path)
        with get_engine(engines[0]).open(path, EngineOptions()) as session:
            references = {name: session.run_all(image) for name, image in probes.items()}
            first = f"{engines[0]} {session.info.version}"
        records = verify_graph(path, probes, references, engines, judge)
        record = GraphRecord(
            file=path.name,
            fold=fold,
            opset=facts.opset,
            sha256=sha256_file(path),
            verification={
                "passed": True,
                "compared_with": f"{first}, for lack of the original network",
                "ops": facts.ops,
                "parameters": facts.parameters,
                "engines": records,
            },
        )
        done = spec.model_copy(update={"graphs": (record,), "compiled": ()})
        save_made(done, folder)
    return Bundle.load(job.output, spec_of=lambda task: type(spec))
