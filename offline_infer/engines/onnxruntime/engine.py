"""ONNX Runtime: the portable engine, and the road to CUDA, TensorRT and Ascend's CANN provider.

Habits of the library that are countered here: it uploads usage data unless told not to before it loads; it answers on
the CPU in silence when the accelerator it was asked for is missing; on CUDA it shortens float32 to TF32 by itself; and
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
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from offline_infer.engines.base import (
    EngineOptions,
    FloatArray,
    SessionInfo,
    Stitcher,
    StitchPlan,
    check_batch,
    check_graph_file,
    kept_output,
    single_input,
    telling_line,
)
from offline_infer.engines.onnxruntime.device import Device, Network, OnnxRuntimeStitcher, Origin
from offline_infer.engines.onnxruntime.options import PROVIDERS, chain, device_of, session_options, stitching
from offline_infer.errors import BundleError, EngineFailed, EngineUnavailable, OfflineInferError

OLDEST = (1, 18)
_INSTALL = (
    "pip install 'onnxruntime>=1.18' (CPU), onnxruntime-gpu (NVIDIA) or onnxruntime-cann (Ascend); only one of them"
)
_WHEELS = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "npu": "onnxruntime-cann"}
_TYPES = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


class OnnxRuntimeEngine:
    """See the module."""

    name = "onnxruntime"

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

    def open(self, graph: Path, options: EngineOptions) -> OnnxRuntimeSession:
        """Open a graph; see :class:`offline_infer.engines.base.Engine`.

        ``options.extra``: ``output`` names the output :meth:`OnnxRuntimeSession.run` gives (default: the first);
        ``provider=tensorrt`` uses TensorRT on a ``cuda:N`` device; ``optimization`` is ``none``, ``basic``,
        ``extended`` or ``all``; ``norms`` is ``exact`` (default on the CPU) or ``native``; ``stitch`` is ``device`` (default
        on CUDA and TensorRT) or ``host``; ``mirror_batch=N``: mirrors a call of the network when stitching on the device;
        ``provider.KEY`` is passed to the provider, ``session.KEY`` to the session as it is.

        Raises:
            EngineUnavailable: ONNX Runtime, the device, the precision or an option is not to be had.
            BundleError: the graph cannot be read, or its shapes are not fixed.
        """
        reason = self.available()
        if reason is not None:
            raise EngineUnavailable(f"onnxruntime: {reason}")
        check_graph_file(graph)
        return OnnxRuntimeSession(graph, options)


ENGINE = OnnxRuntimeEngine()


class OnnxRuntimeSession:
    """An opened graph with bound buffers that are used again. Not for two threads at once."""

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        ort = _library()
        start = time.perf_counter()
        kind, index = device_of(options)
        provider = PROVIDERS[kind]
        _check_provider(ort, kind, options.device)
        if kind == "tensorrt" and options.precision == "fp32":
            # TensorRT shortens float32 to TF32 too, and no option of the provider stops it.
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        self._stitch, self._mirror_batch = stitching(kind, options)
        providers = chain(kind, index, options)
        source, norms = _source(graph, kind, options)
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
        if not running or running[0] != provider:
            got = running[0] if running else "nothing"
            raise EngineUnavailable(
                f"onnxruntime: {provider} was asked for, but the session runs on {got}; "
                f"see that driver, libraries and the {_WHEELS[kind]} wheel fit together"
            )
        _check_precision(session, kind, options)
        self._session: Any = session
        self._binding: Any = session.io_binding()
        single_input(len(session.get_inputs()), graph)
        (self._input_name, self._shape, self._input_type) = _ports(session.get_inputs(), graph)[0]
        outputs = _ports(session.get_outputs(), graph)
        self._names = tuple(name for name, _, _ in outputs)
        kept = kept_output(self._names, options.extra.get("output"), ENGINE.name)
        _, shape, dtype = outputs[kept]
        self._origin = Origin(ort, graph, options, kind, index, self._names[kept], norms == "exact")
        self._network = Network(
            session, self._input_name, self._shape, self._input_type, self._names[kept], shape, dtype
        )
        self._batched: dict[int, Network] = {}
        self._stitcher: OnnxRuntimeStitcher | None = None
        # Written by the session, read by the caller, used again: fresh memory is slow to touch.
        self._output = np.empty(shape, dtype)
        self._answer: FloatArray = self._output if dtype == np.float32 else np.empty(shape, np.float32)
        self._binding.bind_output(self._names[kept], "cpu", 0, dtype, shape, self._output.ctypes.data)
        self._device_input: Any = None
        if kind in ("cuda", "tensorrt"):  # one buffer on the device, refilled for every call
            self._device_input = ort.OrtValue.ortvalue_from_shape_and_type(self._shape, self._input_type, "cuda", index)
            self._binding.bind_ortvalue_input(self._input_name, self._device_input)
        self._held: Any = None
        self._details: dict[str, Any] = {
            "kept": self._names[kept],
            "providers": running,
            "threads": options.threads,
            "norms": norms,
            "wheels": installed_wheels(),
            "stitching": "device, where memory allows" if self._stitch else "host",
        }
        self.info = SessionInfo(
            engine=ENGINE.name,
            version=str(ort.__version__),
            device=options.device,
            precision=options.precision,
            input_shape=self._shape,
            output_names=self._names,
            details=self._details,
        )
        self._details["open_seconds"] = round(time.perf_counter() - start, 3)

    def run(self, batch: FloatArray) -> FloatArray:
        """Logits (n, k, *patch) of the kept output; the next call overwrites the array.

        Raises:
            EngineFailed: a wrong input, or ONNX Runtime failed.
        """
        array = self._checked(batch)
        try:
            if self._device_input is not None:
                self._device_input.update_inplace(array)
            elif array is not self._held:
                self._binding.bind_input(self._input_name, "cpu", 0, self._input_type, self._shape, array.ctypes.data)
                self._held = array  # the binding points into it
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as error:  # its exceptions share no base class
            raise EngineFailed(f"onnxruntime: {telling_line(error)}") from error
        if self._answer is not self._output:
            np.copyto(self._answer, self._output)
        return self._answer

    def run_all(self, batch: FloatArray) -> dict[str, FloatArray]:
        """All outputs by name, copies."""
        array = self._checked(batch)
        try:
            outputs = self._session.run(list(self._names), {self._input_name: array})
        except Exception as error:  # its exceptions share no base class
            raise EngineFailed(f"onnxruntime: {telling_line(error)}") from error
        return {name: np.asarray(array, dtype=np.float32) for name, array in zip(self._names, outputs, strict=True)}

    def stitcher(self, plan: StitchPlan, beside: Stitcher | None = None) -> Stitcher | None:
        """See :class:`offline_infer.engines.base.StitchingSession`; kept for the next case with the same plan."""
        if self._session is None:
            raise EngineFailed("onnxruntime: the session is closed")
        if not self._stitch:
            return None
        if self._stitcher is None or not self._stitcher.serves(plan, beside):
            self._stitcher = None  # its memory first
            device = Device(self._origin, self._with_images, self._forget)
            try:
                self._stitcher = OnnxRuntimeStitcher(device, plan, beside, self._mirror_batch)
            except EngineFailed as error:
                self._forget(f"host: {error}")
                raise
        made = self._stitcher
        self._details["stitching"] = f"device, mirrors a call: {made.images}{'; ' if made.note else ''}{made.note}"
        return made

    def _with_images(self, images: int) -> Network:
        """The network with so many images a call."""
        if images == 1:
            return self._network
        if images not in self._batched:
            session = self._origin.open_batched(images)
            shapes = [(images, *shape[1:]) for shape in (self._shape, self._network.output_shape)]
            self._batched[images] = replace(
                self._network, session=session, input_shape=shapes[0], output_shape=shapes[1]
            )
        return self._batched[images]

    def _forget(self, said: str) -> None:
        self._stitcher = None
        self._batched = {}
        self._details["stitching"] = said

    def _checked(self, batch: FloatArray) -> Any:
        if self._session is None:
            raise EngineFailed("onnxruntime: the session is closed")
        check_batch(batch, self._shape, "onnxruntime")
        return batch if self._input_type == np.float32 else batch.astype(self._input_type)

    def close(self) -> None:
        """Free the session. May be called twice; arrays that ``run`` gave stay valid."""
        self._binding = None
        self._device_input = None
        self._stitcher = None
        self._batched = {}
        self._network = replace(self._network, session=None)
        self._session = None
        self._held = None

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def installed_wheels() -> list[str]:
    """Installed distributions that provide the module ``onnxruntime``; two of them overwrite each other's files."""
    found = set()
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name == "onnxruntime" or (
            name.startswith("onnxruntime-") and not name.endswith(("-extensions", "-genai", "-tools"))
        ):
            found.add(name)
    return sorted(found)


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
        return OLDEST  # a build without a number: let it try


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


def _source(graph: Path, kind: str, options: EngineOptions) -> tuple[str | bytes, str]:
    """What to open, and what became of the norms: ``exact``, ``native``, or ``native: why they are not exact``."""
    norms = options.extra.get("norms", "exact" if kind == "cpu" else "native")
    if norms not in ("exact", "native") or (norms == "exact" and kind != "cpu"):
        raise EngineUnavailable(f"onnxruntime: norms is {norms!r} on {options.device}; legal: native, and exact on cpu")
    if norms == "native":
        return str(graph), "native"
    try:
        from offline_infer.graph import decompose_instance_norm, load_model

        model = load_model(graph)
        if any(node.op_type == "InstanceNormalization" for node in model.graph.node):
            return decompose_instance_norm(model, axis_by_axis=True).SerializeToString(), "exact"
    except BundleError:
        raise
    except OfflineInferError as error:  # no onnx package, or a graph the pass cannot take
        return str(graph), f"native: {telling_line(error)}"
    return str(graph), "exact"


def _opening_failed(graph: Path, kind: str, error: Exception) -> Exception:
    """Whose fault it was: the file's, or the device's."""
    name, text = type(error).__name__, telling_line(error)
    if name in ("NoSuchFile", "InvalidProtobuf", "InvalidGraph", "NoModel"):
        return BundleError(f"{graph} cannot be read by ONNX Runtime: {text}; copy or export the bundle again")
    return EngineUnavailable(f"onnxruntime: {graph.name} cannot be opened on {PROVIDERS[kind]}: {text}")


def _check_precision(session: Any, kind: str, options: EngineOptions) -> None:
    """Half precision stands in the graph, except where a provider can convert by itself."""
    if options.precision == "fp32":
        return
    if options.precision == "fp16" and (kind in ("tensorrt", "npu") or _graph_precision(session) == "fp16"):
        return
    if options.precision == "fp16":
        raise EngineUnavailable(
            "onnxruntime: fp16 was asked for, but this graph is not half precision; "
            "export the checkpoint with --precision fp16"
        )
    raise EngineUnavailable(f"onnxruntime: no precision {options.precision!r}; legal: fp32, fp16")


def _graph_precision(session: Any) -> str:
    """What ``export`` wrote into the graph, or an empty string."""
    entries: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    try:
        record = json.loads(entries.get("offline_infer.graph", "{}"))
    except ValueError:
        return ""
    return str(record.get("precision", "")) if isinstance(record, dict) else ""


def _ports(ports: Any, graph: Path) -> list[tuple[str, tuple[int, ...], Any]]:
    """Name, shape and NumPy type of every input or output, in order."""
    found = []
    for port in ports:
        if not all(isinstance(size, int) and size > 0 for size in port.shape):
            raise BundleError(f"{graph}: {port.name} has shape {port.shape}, expected fixed sizes; export it again")
        if port.type not in _TYPES:
            raise BundleError(f"{graph}: {port.name} is {port.type}, expected float32 or float16")
        found.append((str(port.name), tuple(port.shape), _TYPES[port.type]))
    return found
