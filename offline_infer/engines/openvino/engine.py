"""OpenVINO on the CPU: the default engine of a machine without an accelerator.

Three habits of the library are worked around here. Importing it sends a usage event and writes files into the home folder;
its telemetry package is hidden from it. A precision the processor lacks is silently replaced by another one; what was
compiled is compared with what was asked for. And its instance normalisation is inexact on large tiles, so it is written
out: see :mod:`offline_infer.engines.openvino.norms` for float32 and :mod:`offline_infer.engines.openvino.bf16_norms` for
bfloat16, where its statistics stay float32. On request, float32 convolutions are written with fewer multiplications:
:mod:`offline_infer.engines.openvino.winograd`.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from offline_infer.digests import digest_of
from offline_infer.engines.base import (
    OPEN,
    OUTPUT_TYPES,
    AnyArray,
    CacheUse,
    EngineOptions,
    FloatArray,
    Norms,
    SessionInfo,
    as_answer,
    check_batch,
    kept_outputs,
    single_input,
    telling_line,
)
from offline_infer.engines.compiled_cache import open_cache
from offline_infer.engines.openvino.bf16_norms import VERSION as BF16_NORMS_VERSION
from offline_infer.engines.openvino.bf16_norms import keep_ends_float32, make_norms_float32, rounded_node
from offline_infer.engines.openvino.indices import VERSION as INDICES_VERSION
from offline_infer.engines.openvino.indices import UnsafeNodeError, bound_indices
from offline_infer.engines.openvino.norms import VERSION as NORMS_VERSION
from offline_infer.engines.openvino.norms import make_norms_exact
from offline_infer.engines.openvino.winograd.choice import Convolutions
from offline_infer.engines.ports import Port
from offline_infer.engines.self_test import check_arithmetic
from offline_infer.engines.sizes import check_sizes
from offline_infer.errors import BundleError, EngineFailed, EngineUnavailable
from offline_infer.graph.admission import admit
from offline_infer.graph.liveness import IN_PLACE, Step, Tensor
from offline_infer.threads import PerThread, engine_threads

OLDEST = (2026, 4)
_HINTS = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16")}
_OWN_OPTIONS = ("output", "norms", "convolution")
"""Entries of ``EngineOptions.extra`` that are not the plugin's."""
_OWN = {
    "INFERENCE_PRECISION_HINT": "precision",
    "INFERENCE_NUM_THREADS": "threads",
    "CACHE_DIR": "cache",
    "DEVICE_ID": "device",
}


_IN_PLACE = IN_PLACE | {
    "Add", "Clamp", "Convert", "Divide", "FakeQuantize", "HSigmoid", "HSwish", "LogicalAnd", "LogicalNot", "LogicalOr",
    "Maximum", "Minimum", "MVN", "Multiply", "Negative", "PRelu", "Power", "Select", "SoftPlus", "Sqrt", "Subtract",
}  # fmt: skip
"""The same under OpenVINO's names."""


class OpenVinoEngine:
    """See the module."""

    name = "openvino"
    computes_float32 = True

    def __init__(self) -> None:
        self._trusted: set[Hashable] = set()

    def available(self) -> str | None:
        """None when OpenVINO can be used here, otherwise the reason and the remedy."""
        try:
            ov = _library()
        except ImportError as error:
            return f"OpenVINO cannot be imported ({error}); pip install 'openvino>={OLDEST[0]}.{OLDEST[1]}'"
        version = _version(ov)
        if version < OLDEST:
            return f"OpenVINO {ov.__version__} is too old; pip install -U 'openvino>={OLDEST[0]}.{OLDEST[1]}'"
        return None

    def graph_precision(self, precision: str) -> str:
        """``int8`` for ``int8``; otherwise ``fp32``, for OpenVINO lowers the precision by itself."""
        return "int8" if precision == "int8" else "fp32"

    def open(self, graph: Path, options: EngineOptions) -> OpenVinoSession:
        """Open a graph; see :class:`offline_infer.engines.base.Engine`.

        ``options.extra``: ``output`` names the one output that is kept, over ``options.outputs``;
        ``norms`` is ``exact`` (default, in float32 and bfloat16: float32 statistics, summed axis by axis; in bfloat16 the
        first and last convolutions stay float32 as well) or ``native`` (the plugin's kernel); ``convolution`` is ``direct``
        (default), or in float32 with exact norms ``f2`` or ``f4`` (wherever that can be) or ``auto`` (where it was measured
        to pay); every other entry is passed on as a property of OpenVINO's CPU plugin.

        Raises:
            EngineUnavailable: OpenVINO, the device, the precision or a property is unavailable.
            BundleError: the graph cannot be read, or has inputs or outputs of an unknown kind.
        """
        reason = self.available()
        if reason is not None:
            raise EngineUnavailable(f"openvino: {reason}")
        if options.device != "cpu":
            raise EngineUnavailable(
                f"openvino: no device {options.device!r}; this engine runs on cpu, the engine onnxruntime on others"
            )
        admitted = admit(graph, control_flow=options.control_flow)
        if options.precision != "fp32":
            self._check_arithmetic(options)
        return OpenVinoSession(graph, options, [port.name for port in admitted.outputs])

    def _check_arithmetic(self, options: EngineOptions) -> None:
        """Once for every precision and way of computing; with native norms nothing is kept in float32."""
        passed_on = {key: value for key, value in options.extra.items() if key not in _OWN_OPTIONS}
        own = replace(options, cache=None, outputs=(), compiled=(), extra={**passed_on, "norms": "native"})
        key = (own.precision, own.around, own.threads, tuple(sorted(passed_on.items())))
        if key not in self._trusted:
            what = f"openvino, {options.precision}"
            check_arithmetic(what, lambda path: OpenVinoSession(path, own, ["logits"]), half_graph=False)
            self._trusted.add(key)


ENGINE = OpenVinoEngine()


class _Lane:
    """One thread's request with its buffers, which live as long as the session: fresh memory is slow to touch."""

    def __init__(self, ov: Any, compiled: Any, source: Port, outputs: Sequence[Port]) -> None:
        self._ov = ov
        self._request = compiled.create_infer_request()
        self._source = source
        self._outputs = outputs
        self._buffers: list[AnyArray | None] = []
        for index, port in enumerate(outputs):
            buffer = None if port.fixed is None else np.empty(port.fixed, port.dtype)
            self._buffers.append(buffer)
            if buffer is not None:
                self._request.set_output_tensor(index, ov.Tensor(buffer, shared_memory=True))
        # What a half-precision output is widened into.
        self._wide = [
            np.empty(port.fixed, np.float32) if port.fixed is not None and port.dtype == np.float16 else None
            for port in outputs
        ]
        self._copy: AnyArray | None = None
        self._held: AnyArray | None = None

    def infer(self, batch: FloatArray) -> None:
        """Run the graph on a checked batch.

        Raises:
            EngineFailed: OpenVINO failed.
        """
        array: AnyArray = batch
        if not batch.flags.writeable or self._source.dtype != np.float32:
            # OpenVINO refuses memory that it could not write to; otherwise the batch is read in place.
            if self._copy is None or self._copy.shape != batch.shape:
                self._copy = np.empty(batch.shape, self._source.dtype)
            np.copyto(self._copy, batch, casting="same_kind")
            array = self._copy
        try:
            if array is not self._held:
                self._request.set_input_tensor(0, self._ov.Tensor(array, shared_memory=True))
                self._held = array  # the request points into it
            # Not infer(): that would copy every output.
            self._request.start_async()
            self._request.wait()
        except RuntimeError as error:
            raise EngineFailed(f"openvino: {telling_line(error)}") from error

    def output(self, index: int) -> AnyArray:
        """An output of the last call, as :meth:`OpenVinoSession.answer` gives it."""
        buffer, wide = self._buffers[index], self._wide[index]
        if buffer is None:
            return as_answer(self._request.get_output_tensor(index).data)
        if wide is None:
            return buffer
        np.copyto(wide, buffer)
        return wide


class OpenVinoSession:
    """A compiled graph. Every thread that calls it has its own request and buffers; the requests queue in OpenVINO."""

    def __init__(self, graph: Path, options: EngineOptions, output_names: Sequence[str]) -> None:
        """
        Args:
            output_names: as the graph has them. OpenVINO may know an output by other names too: those of tensors that are
                passed on unchanged.
        """
        ov = _library()
        start = time.perf_counter()
        core = ov.Core()
        capabilities = [str(item) for item in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
        convolution = Convolutions(options)
        int8 = options.precision == "int8"
        if int8:  # stands in the graph; everything around it is computed as if it were not there
            options = replace(options, precision=_around(options, capabilities))
        config = _config(options, capabilities)
        compiled, norms, cache = _compile(ov, core, graph, config, _norms(options), convolution, options)
        _check_precision(compiled, options.precision)
        source = _input(compiled.inputs, graph)
        outputs = _outputs(compiled.outputs, output_names, graph)
        self._names = tuple(port.name for port in outputs)
        self._kept = kept_outputs(self._names, options, ENGINE.name)
        self._lanes: PerThread[_Lane] | None = PerThread(lambda: _Lane(ov, compiled, source, outputs))
        self._lanes.get()  # the opening thread's, now: what cannot be allocated fails here
        assert source.shape is not None
        self._shape = source.shape
        self.info = SessionInfo(
            engine=ENGINE.name,
            version=str(ov.__version__),
            device="cpu",
            precision=_int8_name(options.precision) if int8 else options.precision,
            input_shape=self._shape,
            output_names=self._names,
            kept=tuple(self._names[index] for index in self._kept),
            processor=str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            threads=int(compiled.get_property("INFERENCE_NUM_THREADS")),
            norms=norms,
            cache=cache,
            open_seconds=round(time.perf_counter() - start, 3),
            weights=convolution.weights,
            details={"capabilities": capabilities, "convolution": convolution.told},
        )

    def answer(self, batch: FloatArray) -> dict[str, AnyArray]:
        """All kept outputs by name; the calling thread's next call overwrites the arrays.

        Raises:
            EngineFailed: a wrong input, or OpenVINO failed.
        """
        lane = self._inferred(batch)
        return {self._names[index]: lane.output(index) for index in self._kept}

    def run(self, batch: FloatArray) -> FloatArray:
        """The first kept output; the calling thread's next call overwrites the array."""
        return self._inferred(batch).output(self._kept[0])

    def run_all(self, batch: FloatArray) -> dict[str, AnyArray]:
        """All outputs by name, copies."""
        lane = self._inferred(batch)
        return {name: lane.output(index).copy() for index, name in enumerate(self._names)}

    def _inferred(self, batch: FloatArray) -> _Lane:
        """The calling thread's lane after it has run the batch."""
        if self._lanes is None:
            raise EngineFailed("openvino: the session is closed")
        check_batch(batch, self._shape, "openvino")
        lane = self._lanes.get()
        lane.infer(batch)
        return lane

    def close(self) -> None:
        """Free the compiled graph. May be called twice; arrays that ``run`` gave stay valid."""
        self._lanes = None

    def __enter__(self) -> OpenVinoSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _library() -> Any:
    """OpenVINO's module, imported without its telemetry."""
    if "openvino" not in sys.modules:
        # Importing openvino imports this package where it is installed, which sends an event and writes ~/intel. With
        # this entry its import fails and OpenVINO takes the stub it has for that case.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _version(ov: Any) -> tuple[int, int]:
    parts = str(ov.__version__).split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return OLDEST  # a development build without a version number


def _config(options: EngineOptions, capabilities: list[str]) -> dict[str, str]:
    """OpenVINO's properties for these options."""
    if options.precision not in _HINTS:
        raise EngineUnavailable(f"openvino: unknown precision {options.precision!r}; legal: {', '.join(_HINTS)}")
    hint, capability = _HINTS[options.precision]
    if capability not in capabilities:
        raise EngineUnavailable(_lacks(options.precision, capabilities))
    if options.threads < 0:
        raise EngineUnavailable(f"openvino: threads is {options.threads}; 0 means all cores")
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    if threads := engine_threads(options.threads):
        config["INFERENCE_NUM_THREADS"] = str(threads)
        if threads < (os.cpu_count() or 1):
            # Pinned threads start at the first core in every process: workers side by side would share those.
            config["ENABLE_CPU_PINNING"] = "NO"
    for key, value in options.extra.items():
        if key in _OWN_OPTIONS:
            continue
        if key in _OWN:
            raise EngineUnavailable(f"openvino: {key} is set by the option {_OWN[key]}; use that")
        config[key] = value
    return config


def _around(options: EngineOptions, capabilities: list[str]) -> str:
    """What the layers around INT8 ones compute in: as asked for where the processor has it, else float32."""
    return options.around if _HINTS[options.around][1] in capabilities else "fp32"


def _int8_name(around: str) -> str:
    """What a session calls INT8 among layers of another precision."""
    return "int8" if around == "fp32" else f"int8+{around}"


def _norms(options: EngineOptions) -> Norms:
    """``exact`` or ``native``. In float16 the plugin's own kernel stays."""
    default = "native" if options.precision == "fp16" else "exact"
    norms = options.extra.get("norms", default)
    if norms not in ("exact", "native") or (norms == "exact" and default != "exact"):
        raise EngineUnavailable(
            f"openvino: norms is {norms!r} at {options.precision}; legal: native, and exact in fp32 and bf16"
        )
    return Norms("exact" if norms == "exact" else "native")


def _compile(
    ov: Any,
    core: Any,
    graph: Path,
    config: Mapping[str, str],
    norms: Norms,
    convolutions: Convolutions,
    options: EngineOptions,
) -> tuple[Any, Norms, CacheUse]:
    """The compiled graph, its norms, and what the cache did.

    OpenVINO's own CACHE_DIR is not used: a file there is written in place, so another process may read half of it, and is
    trusted whoever wrote it.
    """
    cache, unusable = open_cache(options.cache, shared=options.shared_cache)
    if cache is None:
        use = CacheUse("off") if unusable is None else CacheUse("not stored", unusable)
        return *_compile_afresh(ov, core, graph, config, norms, convolutions), use
    machine = _machine_facts(ov, core, config)
    facts = {**machine, "graph": digest_of(graph), "norms": _norms_fact(norms), "convolution": convolutions.fact}
    convolutions.remember(cache, machine, facts)
    blob = cache.read(facts)
    if blob is not None:
        try:
            imported = core.import_model(io.BytesIO(blob), "CPU", dict(config))
            convolutions.recall()
            return imported, norms, CacheUse("hit")
        except RuntimeError:
            pass  # another build wrote it although the facts agree; it is compiled again below
    compiled, made = _compile_afresh(ov, core, graph, config, norms, convolutions)
    if made != norms:
        return compiled, made, CacheUse("not stored", "the norms are not those that were asked for")
    try:
        exported = compiled.export_model()
        cache.write(facts, exported.getvalue() if isinstance(exported, io.BytesIO) else bytes(exported))
    except (OSError, RuntimeError) as error:
        return compiled, made, CacheUse("not stored", telling_line(error))
    return compiled, made, CacheUse("stored")


def _compile_afresh(
    ov: Any, core: Any, graph: Path, config: Mapping[str, str], norms: Norms, convolutions: Convolutions
) -> tuple[Any, Norms]:
    """The compiled graph, and its norms: as asked for, or native with the reason."""
    model = _read(ov, graph)
    half = config["INFERENCE_PRECISION_HINT"] != _HINTS["fp32"][0]
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
    _input(model.inputs, graph)
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
    }


def _norms_fact(norms: Norms) -> str:
    return f"{norms.mode} {NORMS_VERSION} {BF16_NORMS_VERSION}"


def _check_precision(compiled: Any, precision: str) -> None:
    names = {"float32": "fp32", "f32": "fp32", "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "f16": "fp16"}
    got = compiled.get_property("INFERENCE_PRECISION_HINT")
    name = str(got.to_string() if hasattr(got, "to_string") else got)
    if names.get(name, name) != precision:
        raise EngineUnavailable(f"openvino: {precision} was asked for, OpenVINO would compute in {name}; use fp32")


def _lacks(precision: str, capabilities: list[str]) -> str:
    can = [name for name, (_, capability) in _HINTS.items() if capability in capabilities]
    return (
        f"openvino: this processor has no {precision} arithmetic (it has {', '.join(can)}); "
        "use one of those; a half-precision bundle also runs in fp32"
    )


def _input(ports: Any, graph: Path) -> Port:
    """The only input: a number of axes, some of them perhaps open.

    Raises:
        BundleError: not exactly one, of open rank, or not floating point.
    """
    single_input(len(ports), graph)
    port = _port(ports[0])
    if port.shape is None:
        raise BundleError(f"{graph}: the rank of {port.name} is open, expected (n, c, sizes ...); export it again")
    if port.dtype not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise BundleError(f"{graph}: {port.name} is {port.dtype}, expected float32 or float16")
    return port


def _outputs(ports: Any, names: Sequence[str], graph: Path) -> list[Port]:
    found = [replace(_port(port), name=name) for port, name in zip(ports, names, strict=True)]
    for port in found:
        if port.dtype.name not in OUTPUT_TYPES:
            raise BundleError(f"{graph}: {port.name} is {port.dtype}, expected one of {', '.join(OUTPUT_TYPES)}")
    return found


def _port(port: Any) -> Port:
    partial = port.partial_shape
    shape = None
    if not partial.rank.is_dynamic:
        shape = tuple(OPEN if size.is_dynamic else int(size.get_length()) for size in partial)
    return Port(str(port.any_name), shape, np.dtype(port.element_type.to_dtype()))
