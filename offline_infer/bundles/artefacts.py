"""A bundle's compiled artefacts as engines see them."""

from __future__ import annotations

from offline_infer.bundles.bundle import Bundle
from offline_infer.engines.compiled import CompiledGraph, Tensor
from offline_infer.spec import CompiledRecord

_PRECISION_FLAGS = ("--precision_mode=", "--precision_mode_v2=")
_DEFAULT_PRECISION = "fp16"
"""What ``atc`` computes in unless told otherwise."""


def compiled_graphs(bundle: Bundle, fold: str) -> tuple[CompiledGraph, ...]:
    """What was compiled from the graphs of a fold as they are now; artefacts of older graphs are left out.

    An artefact of the float32 graph comes before one of the float16 graph: it is the model as exported.
    """
    graphs = {graph.file: graph for graph in bundle.spec.graphs if graph.fold == fold}
    valid = [
        record
        for record in bundle.spec.compiled
        if record.graph in graphs and record.graph_sha256 == graphs[record.graph].sha256
    ]
    valid.sort(key=lambda record: graphs[record.graph].precision != "fp32")
    return tuple(_compiled_graph(bundle, record) for record in valid)


def _compiled_graph(bundle: Bundle, record: CompiledRecord) -> CompiledGraph:
    return CompiledGraph(
        path=bundle.compiled_path(record).absolute(),
        sha256=record.sha256,
        chip=record.soc,
        precision=precision_of(record),
        input=Tensor(bundle.spec.input_name, record.input_dtype, tuple(bundle.spec.input_shape)),
        outputs=tuple(
            Tensor(each.name, each.dtype, tuple(each.shape)) for each in record.outputs or bundle.spec.outputs
        ),
    )


def precision_of(record: CompiledRecord) -> str:
    """What an artefact computes in: ``fp16``, or the compiler's own word for another mode, e.g. ``allow_mix_precision``."""
    for flag in record.flags:
        for name in _PRECISION_FLAGS:
            if flag.startswith(name):
                mode = flag.removeprefix(name)
                return _DEFAULT_PRECISION if mode in ("force_fp16", "fp16") else mode
    return _DEFAULT_PRECISION
