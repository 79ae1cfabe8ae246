"""ONNX Runtime: the portable engine, and the way to CUDA, TensorRT and Ascend's CANN provider.

Habits of the library that are worked around here: it uploads usage data unless told not to before it loads; it silently
falls back to the CPU when the accelerator it was asked for is missing; on CUDA it shortens float32 to TF32 by itself; and
its CANN provider leaves files in the working folder.

On the CPU its instance normalisation adds up a whole channel in float32, one value after the other; over the two million
voxels of a 128^3 tile the rounding errors changed labels. Where the ``onnx`` package is installed, the graph is opened
with those sums written out axis by axis (:func:`offline_infer.graph.decompose_instance_norm`), which is as exact as the
framework at 7 % more time.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import threading
import time
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from offline_infer.engines.base import (
    OPEN,
    OUTPUT_TYPES,
    AnyArray,
    EngineOptions,
    FloatArray,
    Norms,
    SessionInfo,
    Stitcher,
    Stitching,
    StitchRecipe,
    as_answer,
    check_batch,
    kept_outputs,
    single_input,
    telling_line,
)
from offline_infer.engines.onnxruntime.device import Device, Network, OnnxRuntimeStitcher, Origin
from offline_infer.engines.onnxruntime.options import PROVIDERS, chain, device_of, session_options, stitching
from offline_infer.engines.ports import Port
from offline_infer.engines.self_test import check_arithmetic
from offline_infer.engines.sizes import check_sizes
from offline_infer.errors import BundleError, EngineFailed, EngineUnavailable, ExportError, OfflineInferError
from offline_infer.graph.admission import admit
from offline_infer.graph.liveness import steps_of
from offline_infer.threads import PerThread

OLDEST = (1, 18)
_INSTALL = (
    "pip install 'offline-infer[ort]' (CPU), 'offline-infer[gpu]' (NVIDIA) or 'offline-infer[cann]' (Ascend); only one"
)
_WHEELS = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "npu": "onnxruntime-cann"}
_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    **{f"tensor({name})": np.dtype(name) for name in OUTPUT_TYPES if name != "float32"},
}


class OnnxRuntimeEngine:
    """See the module."""

    name = "onnxruntime"
    computes_float32 = True

    def __init__(self) -> None:
        self._trusted: set[Hashable] = set()

    def available(self) -> str | None:
        """None when ONNX Runtime can be used here, otherwise the reason and the remedy."""
        try:
            ort = _library()
        except ImportError as error:
            return f"ONNX Runtime cannot be imported ({error}); {_INSTALL}"
        if not hasattr(ort, "InferenceSession"):
            return f"ONNX Runtime's installation is damaged (two wheels, one removed?); uninstall all, then {_INSTALL}"
        if _version(str(ort.__version__)) < OLDEST:
            return f"ONNX Runtime {ort.__version__} is too old; {_INSTALL}"
        return None

    def graph_precision(self, precision: str) -> str:
        """``fp16`` for ``fp16`` and ``int8`` for ``int8``: they stand in the graph."""
        return precision if precision in ("fp16", "int8") else "fp32"

    def open(self, graph: Path, options: EngineOptions) -> OnnxRuntimeSession:
        """Open a graph; see :class:`offline_infer.engines.base.Engine`.

        ``options.extra``: ``output`` names the one output that is kept, over ``options.outputs``;
        ``provider=tensorrt`` uses TensorRT on a ``cuda:N`` device; ``optimization`` is ``none``, ``basic``,
        ``extended`` or ``all``; ``norms`` is ``exact`` (default on the CPU) or ``native``; ``stitch`` is ``device`` (default
        on CUDA and TensorRT) or ``host``; ``mirror_batch=N``: mirrors a call of the network when stitching on the device;
        ``provider.KEY`` is passed to the provider, ``session.KEY`` to the session as it is.

        Raises:
            EngineUnavailable: ONNX Runtime, the device, the precision or an option is unavailable.
            BundleError: the graph cannot be read, or has inputs or outputs of an unknown kind.
        """
        reason = self.available()
        if reason is not None:
            raise EngineUnavailable(f"onnxruntime: {reason}")
        admit(graph, control_flow=options.control_flow)
        if options.precision == "fp16":
            self._check_arithmetic(options)
        return OnnxRuntimeSession(graph, options)

    def _check_arithmetic(self, options: EngineOptions) -> None:
        """Once for every device and way of computing."""
        passed_on = {key: value for key, value in options.extra.items() if key not in ("output", "norms")}
        own = replace(options, cache=None, outputs=(), compiled=(), extra=passed_on)
        key = (own.device, own.precision, own.threads, tuple(sorted(passed_on.items())))
        if key not in self._trusted:
            what = f"onnxruntime, {options.precision} on {options.device}"
            check_arithmetic(what, lambda path: OnnxRuntimeSession(path, own), half_graph=True)
            self._trusted.add(key)


ENGINE = OnnxRuntimeEngine()


class _Lane(Protocol):
    """One thread's way through the session."""

    def ask(self, array: AnyArray) -> list[AnyArray]:
        """The kept outputs, floating point as float32; the next call may overwrite them."""


class _BoundLane:
    """Fixed sizes: buffers are written by the session and used again, because fresh memory is slow to touch."""

    def __init__(self, ort: Any, session: Any, source: Port, outputs: Sequence[Port], device: tuple[str, int]) -> None:
        self._session = session
        self._source = source
        self._binding = session.io_binding()
        self._outputs: list[AnyArray] = []
        self._answers: list[AnyArray] = []
        for port in outputs:
            assert port.fixed is not None
            answer = np.empty(port.fixed, port.dtype)
            self._binding.bind_output(port.name, "cpu", 0, port.dtype, port.fixed, answer.ctypes.data)
            self._outputs.append(answer)
            self._answers.append(np.empty(port.fixed, np.float32) if port.dtype == np.float16 else answer)
        self._device_input: Any = None
        if device[0] != "cpu":  # one buffer on the device, refilled for every call
            self._device_input = ort.OrtValue.ortvalue_from_shape_and_type(source.fixed, source.dtype, *device)
            self._binding.bind_ortvalue_input(source.name, self._device_input)
        self._held: AnyArray | None = None

    def ask(self, array: AnyArray) -> list[AnyArray]:
        """See :class:`_Lane`."""
        if self._device_input is not None:
            self._device_input.update_inplace(array)
        elif array is not self._held:
            source = self._source
            self._binding.bind_input(source.name, "cpu", 0, source.dtype, source.fixed, array.ctypes.data)
            self._held = array  # the binding points into it
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        for output, answer in zip(self._outputs, self._answers, strict=True):
            if answer is not output:
                np.copyto(answer, output)
        return self._answers


class _FreeLane:
    """Open sizes: every answer is a new array."""

    def __init__(self, session: Any, source: Port, outputs: Sequence[Port]) -> None:
        self._session = session
        self._input = source.name
        self._outputs = [port.name for port in outputs]

    def ask(self, array: AnyArray) -> list[AnyArray]:
        """See :class:`_Lane`."""
        return [as_answer(np.asarray(answer)) for answer in self._session.run(self._outputs, {self._input: array})]


class OnnxRuntimeSession:
    """An opened graph. Every thread that calls it has its own buffers; the calls queue here, one at a time."""

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        ort = _library()
        start = time.perf_counter()
        kind, index = device_of(options)
        _check_provider(ort, kind, options.device)
        if kind == "tensorrt" and options.precision == "fp32":
            # TensorRT shortens float32 to TF32 too, and no option of the provider stops it.
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        stitch, self._mirror_batch = stitching(kind, options)
        source, norms = _source(graph, kind, options)
        session = _opened(ort, graph, source, kind, index, options)
        _check_precision(session, kind, options)
        image, outputs = _input(session.get_inputs(), graph), _outputs(session.get_outputs(), graph)
        names = tuple(port.name for port in outputs)
        chosen = [outputs[number] for number in kept_outputs(names, options, ENGINE.name)]
        self._session: Any = session
        self._lock = threading.Lock()
        self._input = image
        assert image.shape is not None
        self._shape = image.shape
        self._chosen = chosen
        fixed = image.fixed is not None and all(port.fixed is not None for port in chosen)
        device = ("cuda", index) if kind in ("cuda", "tensorrt") else ("cpu", 0)
        self._lanes: PerThread[_Lane] = PerThread(
            lambda: _BoundLane(ort, session, image, chosen, device) if fixed else _FreeLane(session, image, chosen)
        )
        self._lanes.get()  # the opening thread's, now: what cannot be allocated fails here
        self._origin = Origin(ort, graph, options, kind, index, chosen[0].name, norms.mode == "exact")
        self._network: Network | None = None
        if image.fixed is not None and chosen[0].fixed is not None and len(chosen) == 1:
            self._network = Network(
                session, image.name, image.fixed, image.dtype, chosen[0].name, chosen[0].fixed, chosen[0].dtype
            )
        self._stitch = stitch and self._network is not None
        self._batched: dict[int, Network] = {}
        self._kept_stitchers: PerThread[list[OnnxRuntimeStitcher]] = PerThread(list)
        self._details: dict[str, Any] = {
            "providers": list(session.get_providers()),
            "wheels": list(installed_wheels()),
        }
        self._stitching = Stitching("device" if self._stitch else "host")
        self._info = SessionInfo(
            engine=ENGINE.name,
            version=str(ort.__version__),
            device=options.device,
            precision=options.precision,
            input_shape=self._shape,
            output_names=names,
            kept=tuple(port.name for port in chosen),
            threads=options.threads,
            norms=norms,
            open_seconds=round(time.perf_counter() - start, 3),
            details=self._details,
        )

    @property
    def info(self) -> SessionInfo:
        """What is running, with where it stitches now."""
        details = {**self._details, "stitching": str(self._stitching)}
        return replace(self._info, stitching=self._stitching, details=details)

    def answer(self, batch: FloatArray) -> dict[str, AnyArray]:
        """All kept outputs by name; the calling thread's next call overwrites the arrays.

        Raises:
            EngineFailed: a wrong input, or ONNX Runtime failed.
        """
        array = self._checked(batch)
        lane = self._lanes.get()
        try:
            with self._lock:  # side by side, two calls would need the activations' memory twice
                answers = lane.ask(array)
        except Exception as error:  # its exceptions share no base class
            raise EngineFailed(f"onnxruntime: {telling_line(error)}") from error
        return {port.name: answer for port, answer in zip(self._chosen, answers, strict=True)}

    def run(self, batch: FloatArray) -> FloatArray:
        """The first kept output; the calling thread's next call overwrites the array."""
        return self.answer(batch)[self._chosen[0].name]

    def run_all(self, batch: FloatArray) -> dict[str, AnyArray]:
        """All outputs by name, copies."""
        array = self._checked(batch)
        names = self.info.output_names
        try:
            with self._lock:
                answers = self._session.run(list(names), {self._input.name: array})
        except Exception as error:  # its exceptions share no base class
            raise EngineFailed(f"onnxruntime: {telling_line(error)}") from error
        return {name: as_answer(np.asarray(answer)) for name, answer in zip(names, answers, strict=True)}

    def stitcher(self, recipe: StitchRecipe, beside: Stitcher | None = None) -> Stitcher | None:
        """See :class:`offline_infer.engines.base.StitchingSession`; kept for the next case with the same recipe."""
        if self._session is None:
            raise EngineFailed("onnxruntime: the session is closed")
        if not self._stitch:
            return None
        kept = self._kept_stitchers.get()  # one at most: its buffers belong to the thread
        if not kept or not kept[0].serves(recipe, beside):
            kept.clear()  # its memory first
            device = Device(self._origin, self._with_images, self._forget)
            try:
                kept.append(OnnxRuntimeStitcher(device, recipe, beside, self._mirror_batch))
            except EngineFailed as error:
                self._forget(str(error))
                raise
        made = kept[0]
        self._stitching = Stitching("device", mirrors=made.images, note=made.note or None)
        return made

    def _with_images(self, images: int) -> Network:
        """The network with that many images a call."""
        assert self._network is not None
        if images == 1:
            return self._network
        if images not in self._batched:
            network = self._network
            self._batched[images] = replace(
                network,
                session=self._origin.open_batched(images),
                input_shape=(images, *network.input_shape[1:]),
                output_shape=(images, *network.output_shape[1:]),
            )
        return self._batched[images]

    def _forget(self, reason: str) -> None:
        """Free everything that was opened for stitching; the host stitches from now on."""
        self._kept_stitchers.get().clear()
        self._batched = {}
        self._stitching = Stitching("host", reason)

    def _checked(self, batch: FloatArray) -> AnyArray:
        if self._session is None:
            raise EngineFailed("onnxruntime: the session is closed")
        check_batch(batch, self._shape, "onnxruntime")
        return batch if self._input.dtype == np.float32 else batch.astype(self._input.dtype)

    def close(self) -> None:
        """Free the session. May be called twice; arrays that ``run`` gave stay valid."""
        self._session = self._network = None
        self._kept_stitchers.clear()
        self._batched = {}
        self._lanes.clear()

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache
def installed_wheels() -> tuple[str, ...]:
    """Installed distributions that provide the module ``onnxruntime``; two of them overwrite each other's files.

    Found once a process: it reads the metadata of everything that is installed.
    """
    found = set()
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name == "onnxruntime" or (
            name.startswith("onnxruntime-") and not name.endswith(("-extensions", "-genai", "-tools"))
        ):
            found.add(name)
    return tuple(sorted(found))


def _library() -> Any:
    """ONNX Runtime's module, with its telemetry switched off before it loads."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def _version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return OLDEST  # a development build without a version number


def _check_provider(ort: Any, kind: str, device: str) -> None:
    if kind == "cpu":
        return
    wheels = installed_wheels()
    if len(wheels) > 1:
        raise EngineUnavailable(
            f"onnxruntime: {' and '.join(wheels)} are installed together and overwrite each other's files; "
            f"pip uninstall {' '.join(wheels)}, then pip install {_WHEELS[kind]}"
        )
    present = list(ort.get_available_providers())
    if PROVIDERS[kind] not in present:
        raise EngineUnavailable(
            f"onnxruntime: device {device} needs {PROVIDERS[kind]}, this installation has {', '.join(present)}; "
            f"pip uninstall {' '.join(wheels) or 'onnxruntime'}, then pip install {_WHEELS[kind]}"
        )


def _source(graph: Path, kind: str, options: EngineOptions) -> tuple[str | bytes, Norms]:
    """What to open, and what became of the norms."""
    norms = options.extra.get("norms", "exact" if kind == "cpu" else "native")
    if norms not in ("exact", "native") or (norms == "exact" and kind != "cpu"):
        raise EngineUnavailable(f"onnxruntime: norms is {norms!r} on {options.device}; legal: native, and exact on cpu")
    try:
        from offline_infer.graph import decompose_instance_norm, load_model

        model = load_model(graph)
        _check_memory(graph, model)
        if norms == "native":
            return str(graph), Norms("native")
        if any(node.op_type == "InstanceNormalization" for node in model.graph.node):
            return decompose_instance_norm(model, axis_by_axis=True).SerializeToString(), Norms("exact")
    except BundleError:
        raise
    except OfflineInferError as error:  # no onnx package, or a graph the pass cannot take
        return str(graph), Norms("native", None if norms == "native" else telling_line(error))
    return str(graph), Norms("exact")


def _check_memory(graph: Path, model: Any) -> None:
    """Refuse a graph whose tensors cannot be held, as far as their shapes are known: ONNX Runtime would allocate them.

    Raises:
        BundleError: it is one.
    """
    try:
        steps = steps_of(model)
    except ExportError as error:
        raise BundleError(f"{graph} is not opened: {error}") from error
    check_sizes(graph, steps)


def _opened(ort: Any, graph: Path, source: str | bytes, kind: str, index: int, options: EngineOptions) -> Any:
    """ONNX Runtime's session, on the provider that was asked for and no other.

    Raises:
        BundleError: the graph cannot be read.
        EngineUnavailable: the provider cannot run it.
    """
    providers = chain(kind, index, options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what it warns of is checked below
            session = ort.InferenceSession(
                source, session_options(ort, options, kind), providers=providers, enable_fallback=0
            )
    except Exception as error:  # its exceptions share no base class
        raise _opening_failed(graph, kind, error) from error
    session.disable_fallback()
    running = list(session.get_providers())
    if not running or running[0] != PROVIDERS[kind]:
        got = running[0] if running else "nothing"
        raise EngineUnavailable(
            f"onnxruntime: {PROVIDERS[kind]} was asked for, but the session runs on {got}; "
            f"check that driver, libraries and the {_WHEELS[kind]} wheel match"
        )
    return session


def _opening_failed(graph: Path, kind: str, error: Exception) -> Exception:
    """Whose fault it was: the file's, or the device's."""
    name, text = type(error).__name__, telling_line(error)
    if name in ("NoSuchFile", "InvalidProtobuf", "InvalidGraph", "NoModel"):
        return BundleError(f"{graph} cannot be read by ONNX Runtime: {text}; copy or export the bundle again")
    return EngineUnavailable(f"onnxruntime: {graph.name} cannot be opened on {PROVIDERS[kind]}: {text}")


def _check_precision(session: Any, kind: str, options: EngineOptions) -> None:
    """Half precision stands in the graph, except where a provider can convert by itself."""
    if options.precision in ("fp32", "int8"):
        return
    if options.precision == "fp16" and (kind in ("tensorrt", "npu") or _graph_precision(session) == "fp16"):
        return
    if options.precision == "fp16":
        raise EngineUnavailable(
            "onnxruntime: fp16 was asked for, but this graph is not half precision; export the checkpoint in fp16"
        )
    raise EngineUnavailable(f"onnxruntime: no precision {options.precision!r}; legal: fp32, fp16, int8")


def _graph_precision(session: Any) -> str:
    """What ``export`` wrote into the graph, or an empty string."""
    entries: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    try:
        record = json.loads(entries.get("offline_infer.graph", "{}"))
    except ValueError:
        return ""
    return str(record.get("precision", "")) if isinstance(record, dict) else ""


def _input(ports: Any, graph: Path) -> Port:
    """The only input: a number of axes, some of them perhaps open.

    Raises:
        BundleError: not exactly one, of open rank, or not floating point.
    """
    single_input(len(ports), graph)
    port = _port(ports[0], graph)
    if port.shape is None:
        raise BundleError(f"{graph}: the rank of {port.name} is open, expected (n, c, sizes ...); export it again")
    if port.dtype.kind != "f":
        raise BundleError(f"{graph}: {port.name} is {port.dtype}, expected float32 or float16")
    return port


def _outputs(ports: Any, graph: Path) -> list[Port]:
    return [_port(port, graph) for port in ports]


def _port(port: Any, graph: Path) -> Port:
    if port.type not in _TYPES:
        raise BundleError(f"{graph}: {port.name} is {port.type}, expected one of {', '.join(OUTPUT_TYPES)}")
    # ONNX Runtime gives an open size as its name or None, and an open rank as no axes at all - as it does for a scalar.
    shape = tuple(size if isinstance(size, int) and size > 0 else OPEN for size in port.shape) or None
    return Port(str(port.name), shape, _TYPES[port.type])
