"""OpenVINO on the CPU: the default engine of a machine without an accelerator.

Three habits of the library are countered here. Importing it sends a usage event and writes files into the home folder;
its telemetry package is hidden from it. A precision the processor lacks is replaced by another one in silence; what was
compiled is compared with what was asked for. And its instance normalisation is inexact on large tiles, so it is written
out: see :mod:`offline_infer.engines.openvino.norms` for float32 and :mod:`offline_infer.engines.openvino.bf16_norms` for
bfloat16, where its statistics stay float32.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from offline_infer.engines.base import (
    EngineOptions,
    FloatArray,
    SessionInfo,
    check_batch,
    check_graph_file,
    kept_output,
    single_input,
    telling_line,
)
from offline_infer.engines.openvino.bf16_norms import VERSION as BF16_NORMS_VERSION
from offline_infer.engines.openvino.bf16_norms import keep_ends_float32, make_norms_float32, rounded_node
from offline_infer.engines.openvino.norms import VERSION as NORMS_VERSION
from offline_infer.engines.openvino.norms import make_norms_exact
from offline_infer.errors import BundleError, EngineFailed, EngineUnavailable
from offline_infer.files import sha256_file, write_bytes

OLDEST = (2025, 0)
_HINTS = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16")}
_OWN = {
    "INFERENCE_PRECISION_HINT": "precision",
    "INFERENCE_NUM_THREADS": "threads",
    "CACHE_DIR": "cache",
    "DEVICE_ID": "device",
}
_MAGIC = b"offline_infer openvino 1\n"  # a cached file: this, SHA-256 of the rest (32 bytes), the compiled graph


class OpenVinoEngine:
    """See the module."""

    name = "openvino"

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

    def open(self, graph: Path, options: EngineOptions) -> OpenVinoSession:
        """Open a graph; see :class:`offline_infer.engines.base.Engine`.

        ``options.extra``: ``output`` names the output :meth:`OpenVinoSession.run` gives (default: the first);
        ``norms`` is ``exact`` (default, in float32 and bfloat16: float32 statistics, summed axis by axis; in bfloat16 the
        first and last convolutions stay float32 as well) or ``native`` (the plugin's kernel); every other entry is passed
        on as a property of OpenVINO's CPU plugin.

        Raises:
            EngineUnavailable: OpenVINO, the device, the precision or a property is not to be had.
            BundleError: the graph cannot be read, or its shapes are not fixed.
        """
        reason = self.available()
        if reason is not None:
            raise EngineUnavailable(f"openvino: {reason}")
        if options.device != "cpu":
            raise EngineUnavailable(
                f"openvino: no device {options.device!r}; this engine runs on cpu, use --engine onnxruntime for others"
            )
        check_graph_file(graph)
        return OpenVinoSession(graph, options)


ENGINE = OpenVinoEngine()


class OpenVinoSession:
    """A compiled graph with one request and buffers that are used again. Not for two threads at once."""

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        ov = _library()
        start = time.perf_counter()
        core = ov.Core()
        capabilities = [str(item) for item in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
        config = _config(options, capabilities)
        norms = _norms(options)
        compiled, norms, cache = _compile(ov, core, graph, config, norms, options.cache)
        _check_precision(compiled, options.precision)
        self._ov = ov
        self._request: Any = compiled.create_infer_request()
        self._shape, self._input_type = _fixed(compiled.inputs, graph)[0]
        self._names = tuple(str(output.any_name) for output in compiled.outputs)
        self._kept = kept_output(self._names, options.extra.get("output"), ENGINE.name)
        # Buffers live as long as the session: fresh memory is slow to touch, so nothing is allocated per tile.
        self._outputs = [np.empty(shape, dtype) for shape, dtype in _fixed(compiled.outputs, graph)]
        for index, buffer in enumerate(self._outputs):
            self._request.set_output_tensor(index, ov.Tensor(buffer, shared_memory=True))
        kept = self._outputs[self._kept]
        self._answer: FloatArray = kept if kept.dtype == np.float32 else np.empty(kept.shape, np.float32)
        self._copy: Any = None
        self._held: Any = None
        self.info = SessionInfo(
            engine=ENGINE.name,
            version=str(ov.__version__),
            device="cpu",
            precision=options.precision,
            input_shape=self._shape,
            output_names=self._names,
            details={
                "kept": self._names[self._kept],
                "processor": str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
                "capabilities": capabilities,
                "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
                "norms": norms,
                "cache": cache,
                "open_seconds": round(time.perf_counter() - start, 3),
            },
        )

    def run(self, batch: FloatArray) -> FloatArray:
        """Logits (n, k, *patch) of the kept output; the next call overwrites the array.

        Raises:
            EngineFailed: a wrong input, or OpenVINO failed.
        """
        self._infer(batch)
        if self._answer is not self._outputs[self._kept]:
            np.copyto(self._answer, self._outputs[self._kept])
        return self._answer

    def run_all(self, batch: FloatArray) -> dict[str, FloatArray]:
        """All outputs by name, copies."""
        self._infer(batch)
        return {name: array.astype(np.float32) for name, array in zip(self._names, self._outputs, strict=True)}

    def _infer(self, batch: FloatArray) -> None:
        if self._request is None:
            raise EngineFailed("openvino: the session is closed")
        check_batch(batch, self._shape, "openvino")
        if batch.flags.writeable and self._input_type == np.float32:
            array: Any = batch  # read in place, not copied
        else:  # OpenVINO refuses memory that it could not write to
            if self._copy is None:
                self._copy = np.empty(self._shape, self._input_type)
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

    def close(self) -> None:
        """Free the compiled graph. May be called twice; arrays that ``run`` gave stay valid."""
        self._request = None
        self._held = None
        self._copy = None

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
        return OLDEST  # a build without a number: let it try


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
    if options.threads:
        config["INFERENCE_NUM_THREADS"] = str(options.threads)
        if options.threads < (os.cpu_count() or 1):
            # Pinned threads start at the first core in every process: workers side by side would share those.
            config["ENABLE_CPU_PINNING"] = "NO"
    for key, value in options.extra.items():
        if key in ("output", "norms"):
            continue
        if key in _OWN:
            raise EngineUnavailable(f"openvino: {key} is set by the option {_OWN[key]}; use that")
        config[key] = value
    return config


def _norms(options: EngineOptions) -> str:
    """``exact`` or ``native``. In float16 the plugin's own kernel stays."""
    default = "native" if options.precision == "fp16" else "exact"
    norms = options.extra.get("norms", default)
    if norms not in ("exact", "native") or (norms == "exact" and default != "exact"):
        raise EngineUnavailable(
            f"openvino: norms is {norms!r} at {options.precision}; legal: native, and exact in fp32 and bf16"
        )
    return norms


def _compile(
    ov: Any, core: Any, graph: Path, config: Mapping[str, str], norms: str, cache: Path | None
) -> tuple[Any, str, str]:
    """The compiled graph, its norms, and what the cache did: ``off``, ``hit``, ``stored`` or ``not stored: reason``.

    OpenVINO's own CACHE_DIR is not used: a file there is written in place, and another process may read half of it.
    """
    if cache is None:
        return *_compile_afresh(ov, core, graph, config, norms), "off"
    place = cache / f"{_key(ov, core, graph, config, norms)}.openvino"
    blob = _read_cached(place)
    if blob is not None:
        try:
            return core.import_model(io.BytesIO(blob), "CPU", dict(config)), norms, "hit"
        except RuntimeError:
            pass  # written by another build after all; made again below
    compiled, made = _compile_afresh(ov, core, graph, config, norms)
    if made != norms:
        return compiled, made, "not stored: the norms are not those that were asked for"
    try:
        exported = compiled.export_model()
        data = exported.getvalue() if isinstance(exported, io.BytesIO) else bytes(exported)
        write_bytes(place, _MAGIC + hashlib.sha256(data).digest() + data)
    except (OSError, RuntimeError) as error:
        return compiled, made, f"not stored: {telling_line(error)}"
    return compiled, made, "stored"


def _compile_afresh(ov: Any, core: Any, graph: Path, config: Mapping[str, str], norms: str) -> tuple[Any, str]:
    """The compiled graph, and its norms: as asked for, or ``native: reason`` where this OpenVINO rounds them after all."""
    model = _read(ov, graph)
    half = config["INFERENCE_PRECISION_HINT"] != _HINTS["fp32"][0]
    reason = None
    if norms == "exact" and half:
        try:
            make_norms_float32(core, model)
            keep_ends_float32(core, model)
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = telling_line(error)
    elif norms == "exact":
        make_norms_exact(model)
    try:
        compiled = None if reason else core.compile_model(model, "CPU", dict(config))
        if compiled is not None and norms == "exact" and half:
            reason = rounded_node(compiled)
        if reason:
            return core.compile_model(_read(ov, graph), "CPU", dict(config)), f"native: {reason}"
    except RuntimeError as error:
        raise EngineUnavailable(f"openvino: {graph.name} cannot be compiled: {telling_line(error)}") from error
    return compiled, norms


def _read(ov: Any, graph: Path) -> Any:
    """The graph as OpenVINO's model.

    Raises:
        BundleError: it cannot be read, or its shapes are not fixed.
    """
    try:
        # The ONNX reader by name: otherwise a damaged file is offered to every other reader, each with its complaint.
        reader = ov.frontend.FrontEndManager().load_by_framework("onnx")
        model = reader.convert(reader.load(str(graph)))
    except Exception as error:  # the reader's exceptions share no base class
        raise BundleError(f"{graph} cannot be read by OpenVINO: {telling_line(error)}") from error
    single_input(len(model.inputs), graph)
    _fixed(model.inputs, graph)
    return model


def _key(ov: Any, core: Any, graph: Path, config: Mapping[str, str], norms: str) -> str:
    """Everything a compiled graph depends on, as one hash."""
    facts = {
        "graph": sha256_file(graph),
        "openvino": str(ov.__version__),
        "processor": str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        "capabilities": sorted(str(item) for item in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "config": dict(sorted(config.items())),
        "norms": f"{norms} {NORMS_VERSION} {BF16_NORMS_VERSION}",
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


def _read_cached(place: Path) -> bytes | None:
    """A cached graph whose checksum agrees, or None."""
    try:
        data = place.read_bytes()
    except OSError:
        return None
    head = len(_MAGIC)
    blob = data[head + 32 :]
    if data[:head] != _MAGIC or hashlib.sha256(blob).digest() != data[head : head + 32]:
        return None
    return blob


def _check_precision(compiled: Any, precision: str) -> None:
    names = {"float32": "fp32", "f32": "fp32", "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "f16": "fp16"}
    got = compiled.get_property("INFERENCE_PRECISION_HINT")
    name = str(got.to_string() if hasattr(got, "to_string") else got)
    if names.get(name, name) != precision:
        raise EngineUnavailable(
            f"openvino: {precision} was asked for, OpenVINO would compute in {name}; use --precision fp32"
        )


def _lacks(precision: str, capabilities: list[str]) -> str:
    can = [name for name, (_, capability) in _HINTS.items() if capability in capabilities]
    return (
        f"openvino: this processor has no {precision} arithmetic (it has {', '.join(can)}); "
        "use one of those - a half-precision bundle also runs with --precision fp32"
    )


def _fixed(ports: Any, graph: Path) -> list[tuple[tuple[int, ...], Any]]:
    """Shape and NumPy type of every port, in order."""
    found = []
    for port in ports:
        if port.partial_shape.is_dynamic:
            raise BundleError(
                f"{graph}: {port.any_name} has shape {port.partial_shape}, expected fixed sizes; export it again"
            )
        dtype = np.dtype(port.element_type.to_dtype())
        if dtype not in (np.dtype(np.float32), np.dtype(np.float16)):
            raise BundleError(f"{graph}: {port.any_name} is {dtype}, expected float32 or float16")
        found.append((tuple(int(size) for size in port.shape), dtype))
    return found
