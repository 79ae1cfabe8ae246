"""OpenVINO on the CPU: the default engine of a machine without an accelerator.

Three habits of the library are worked around here. Importing it sends a usage event and writes files into the home folder;
its telemetry package is hidden from it. A precision the processor lacks is silently replaced by another one; what was
compiled is compared with what was asked for. And its instance normalisation is inexact on large tiles, so it is written
out: see :mod:`offline_infer.engines.openvino.norms` for float32 and :mod:`offline_infer.engines.openvino.bf16_norms` for
bfloat16, where its statistics stay float32. Where it pays, float32 convolutions are written with fewer multiplications:
:mod:`offline_infer.engines.openvino.winograd`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from offline_infer.engines.base import (
    AnyArray,
    EngineOptions,
    FloatArray,
    SessionInfo,
    as_answer,
    check_batch,
    kept_outputs,
    telling_line,
)
from offline_infer.engines.openvino.compiling import Compiled, compile_graph
from offline_infer.engines.openvino.ports import input_port, output_ports
from offline_infer.engines.openvino.settings import (
    OWN_OPTIONS,
    around,
    check_precision,
    config_of,
    int8_name,
    norms_of,
)
from offline_infer.engines.openvino.winograd.choice import Convolutions
from offline_infer.engines.ports import Port
from offline_infer.engines.self_test import check_arithmetic
from offline_infer.errors import EngineFailed, EngineUnavailable
from offline_infer.graph.admission import admit
from offline_infer.threads import PerThread

OLDEST = (2026, 4)


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
        first and last convolutions stay float32 as well) or ``native`` (the plugin's kernel); ``convolution`` is ``direct``,
        or in float32 with exact norms ``f2`` or ``f4`` (with fewer multiplications wherever that can be) or ``auto`` (where
        it was measured to pay), by default ``auto`` where there is a cache to keep the choice in and ``direct`` elsewhere;
        every other entry is passed on as a property of OpenVINO's CPU plugin.

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
        passed_on = {key: value for key, value in options.extra.items() if key not in OWN_OPTIONS}
        own = replace(options, cache=None, outputs=(), compiled=(), extra={**passed_on, "norms": "native"})
        key = (own.precision, own.around, own.threads, tuple(sorted(passed_on.items())))
        if key not in self._trusted:
            what = f"openvino, {options.precision}"
            check_arithmetic(what, lambda path: OpenVinoSession(path, own, ["logits"]), half_graph=False)
            self._trusted.add(key)


ENGINE = OpenVinoEngine()


class _Lane:
    """One thread's request with its buffers, which live as long as the session: fresh memory is slow to touch."""

    def __init__(self, ov: Any, compiled: Compiled, source: Port, outputs: Sequence[Port]) -> None:
        self._ov = ov
        self._compiled = compiled
        self._request = compiled.model.create_infer_request()
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
            options = replace(options, precision=around(options, capabilities))
        config = config_of(options, capabilities)
        made = compile_graph(ov, core, graph, config, norms_of(options), convolution, options)
        compiled = made.model
        check_precision(compiled, options.precision)
        source = input_port(compiled.inputs, graph)
        outputs = output_ports(compiled.outputs, output_names, graph)
        self._names = tuple(port.name for port in outputs)
        self._kept = kept_outputs(self._names, options, ENGINE.name)
        self._lanes: PerThread[_Lane] | None = PerThread(lambda: _Lane(ov, made, source, outputs))
        self._lanes.get()  # the opening thread's, now: what cannot be allocated fails here
        assert source.shape is not None
        self._shape = source.shape
        self.info = SessionInfo(
            engine=ENGINE.name,
            version=str(ov.__version__),
            device="cpu",
            precision=int8_name(options.precision) if int8 else options.precision,
            input_shape=self._shape,
            output_names=self._names,
            kept=tuple(self._names[index] for index in self._kept),
            processor=str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            threads=int(compiled.get_property("INFERENCE_NUM_THREADS")),
            norms=made.norms,
            cache=made.cache,
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
