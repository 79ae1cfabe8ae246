"""From a checked ONNX file to a compiled graph: read, rewritten, compiled, or taken from the cache of compiled graphs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.digests import digest_of
from offline_infer.engines.base import CacheUse, EngineOptions, Norms, telling_line
from offline_infer.engines.compiled_cache import CompiledCache, open_cache
from offline_infer.engines.openvino.bf16_norms import VERSION as BF16_NORMS_VERSION
from offline_infer.engines.openvino.bf16_norms import keep_ends_float32, make_norms_float32, rounded_node
from offline_infer.engines.openvino.indices import VERSION as INDICES_VERSION
from offline_infer.engines.openvino.indices import UnsafeNodeError, bound_indices
from offline_infer.engines.openvino.norms import VERSION as NORMS_VERSION
from offline_infer.engines.openvino.norms import make_norms_exact
from offline_infer.engines.openvino.ports import input_port
from offline_infer.engines.openvino.settings import HINTS
from offline_infer.engines.openvino.winograd.choice import Convolutions
from offline_infer.engines.sizes import check_sizes
from offline_infer.errors import BundleError, EngineUnavailable
from offline_infer.graph.liveness import IN_PLACE, Step, Tensor

_OTHERS_S = 120.0
"""To wait for another process that compiles; it may have been stopped."""

_IN_PLACE = IN_PLACE | {
    "Add", "Clamp", "Convert", "Divide", "FakeQuantize", "HSigmoid", "HSwish", "LogicalAnd", "LogicalNot", "LogicalOr",
    "Maximum", "Minimum", "MVN", "Multiply", "Negative", "PRelu", "Power", "Select", "SoftPlus", "Sqrt", "Subtract",
}  # fmt: skip
"""The same under OpenVINO's names."""


@dataclass(frozen=True)
class Compiled:
    """A compiled graph.

    Attributes:
        model: ``openvino.CompiledModel``.
        norms: how it computes them.
        cache: what the cache did.
        memory: what the model's weights lie in, where it came out of the cache; has to live as long as the model.
    """

    model: Any
    norms: Norms
    cache: CacheUse
    memory: Any = None


def compile_graph(
    ov: Any,
    core: Any,
    graph: Path,
    config: Mapping[str, str],
    norms: Norms,
    convolutions: Convolutions,
    options: EngineOptions,
) -> Compiled:
    """The compiled graph, perhaps out of the cache.

    OpenVINO's own CACHE_DIR is not used: a file there is written in place, so another process may read half of it, and is
    trusted whoever wrote it.
    """
    cache, unusable = open_cache(options.cache, shared=options.shared_cache)
    if cache is None:
        use = CacheUse("off") if unusable is None else CacheUse("not stored", unusable)
        return Compiled(*_compile_afresh(ov, core, graph, config, norms, convolutions), use)
    machine = _machine_facts(ov, core, config)
    facts = {**machine, "graph": digest_of(graph), "norms": _norms_fact(norms), "convolution": convolutions.fact}
    convolutions.remember(cache, machine)

    def imported() -> Compiled | None:
        kept = cache.read(facts)
        found = None if kept is None else _imported(ov, core, kept, config, convolutions)
        return None if found is None else Compiled(found, norms, CacheUse("hit"), kept)

    if (found := imported()) is None:
        # One process measures and compiles, undisturbed by the others, which then have the same graph.
        with cache.making(_OTHERS_S):
            if (found := imported()) is None:
                model, made = _compile_afresh(ov, core, graph, config, norms, convolutions)
                if made != norms:
                    return Compiled(model, made, CacheUse("not stored", "the norms are not those that were asked for"))
                return Compiled(model, made, _keep(model, cache, facts, convolutions))
    return found


def _imported(
    ov: Any, core: Any, kept: memoryview, config: Mapping[str, str], convolutions: Convolutions
) -> Any | None:
    """A compiled graph from a cache's entry, whose memory it goes on using; None where another build made the entry."""
    try:
        blob = ov.Tensor(np.frombuffer(convolutions.recall(kept), np.uint8), shared_memory=True)
        return core.import_model(blob, "CPU", dict(config))
    except (RuntimeError, ValueError, KeyError):
        return None


def _keep(model: Any, cache: CompiledCache, facts: Mapping[str, Any], convolutions: Convolutions) -> CacheUse:
    """Put a compiled graph into a cache."""
    try:
        exported = model.export_model()
        blob = exported.getbuffer() if isinstance(exported, io.BytesIO) else memoryview(exported)
        cache.write(facts, convolutions.note(), blob)
    except (OSError, RuntimeError) as error:
        return CacheUse("not stored", telling_line(error))
    return CacheUse("stored")


def _compile_afresh(
    ov: Any, core: Any, graph: Path, config: Mapping[str, str], norms: Norms, convolutions: Convolutions
) -> tuple[Any, Norms]:
    """The compiled graph, and its norms: as asked for, or native with the reason."""
    model = _read(ov, graph)
    half = config["INFERENCE_PRECISION_HINT"] != HINTS["fp32"][0]
    try:
        if norms.mode == "exact" and half:
            return _compile_half(core, model, config)
    except (RuntimeError, AttributeError, TypeError) as error:
        # Such errors come from marking nodes as float32, which needs more of OpenVINO than its documented interface.
        model, norms = _read(ov, graph), Norms("native", telling_line(error))
    convolutions.rewrite(ov, core, model, config)
    if norms.mode == "exact":
        left = make_norms_exact(model)
        norms = Norms("native", _open_sizes(left)) if left else norms
    try:
        return core.compile_model(model, "CPU", dict(config)), norms
    except RuntimeError as error:
        raise EngineUnavailable(f"openvino: {graph.name} cannot be compiled: {telling_line(error)}") from error


def _compile_half(core: Any, model: Any, config: Mapping[str, str]) -> tuple[Any, Norms]:
    """The graph compiled for reduced precision with what must stay float32 marked.

    Raises:
        RuntimeError, AttributeError, TypeError: this OpenVINO has no such mark, or ignores it.
    """
    left = make_norms_float32(core, model)
    keep_ends_float32(core, model)
    compiled = core.compile_model(model, "CPU", dict(config))
    rounded = rounded_node(compiled)
    if rounded:
        raise RuntimeError(rounded)
    return compiled, Norms("native", _open_sizes(left)) if left else Norms("exact")


def _open_sizes(count: int) -> str:
    return f"{count} normalisations have open sizes"


def _read(ov: Any, graph: Path) -> Any:
    """The graph as OpenVINO's model.

    Raises:
        BundleError: it cannot be read, or has another input than one image.
    """
    try:
        # The ONNX reader by name: otherwise a damaged file is offered to every other reader, each with its own error.
        reader = ov.frontend.FrontEndManager().load_by_framework("onnx")
        model = reader.convert(reader.load(str(graph)))
    except Exception as error:  # the reader's exceptions share no base class
        raise BundleError(f"{graph} cannot be read by OpenVINO: {telling_line(error)}") from error
    input_port(model.inputs, graph)
    check_sizes(graph, _steps(model))
    try:
        bound_indices(model)
    except (UnsafeNodeError, RuntimeError) as error:
        raise BundleError(f"{graph} is not opened: it may leave its tensors: {telling_line(error)}") from error
    return model


def _steps(model: Any) -> list[Step]:
    """What the graph computes, with open sizes as small as they may be."""
    steps = []
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Constant", "Parameter", "Result"):
            makes = tuple(_made(output) for output in node.outputs() if not output.get_partial_shape().rank.is_dynamic)
            takes = tuple(_tensor_name(value) for value in node.input_values())
            steps.append(Step(takes, makes, node.get_type_name() in _IN_PLACE))
    return steps


def _made(output: Any) -> Tensor:
    shape = tuple(int(size) for size in output.get_partial_shape().get_min_shape())
    return Tensor(_tensor_name(output), shape, output.get_element_type().size)


def _tensor_name(output: Any) -> str:
    return f"{output.get_node().get_friendly_name()}:{output.get_index()}"


def _machine_facts(ov: Any, core: Any, config: Mapping[str, str]) -> dict[str, Any]:
    """Everything a compiled graph depends on besides the graph and how it is rewritten."""
    return {
        "engine": "openvino",
        "openvino": str(ov.__version__),
        "processor": str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        "capabilities": sorted(str(item) for item in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "config": dict(sorted(config.items())),
        "indices": INDICES_VERSION,
        "note": True,  # before the compiled graph
    }


def _norms_fact(norms: Norms) -> str:
    return f"{norms.mode} {NORMS_VERSION} {BF16_NORMS_VERSION}"
