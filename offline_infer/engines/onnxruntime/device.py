"""Answers that stay on the device: ONNX Runtime with bound buffers flips, sums, weights and stitches there.

The network's own session is left as it is and gets its input from, and gives its answer to, buffers on the device. Around
it stand four small graphs (:mod:`offline_infer.graph.stitching`) in sessions of the CUDA provider - also with TensorRT, which
would merge a product and a sum into one rounding. What a graph makes is allocated by its own session, whose memory goes back
to the device with it.

The same code runs on the CPU provider, where it saves nothing; that is how it is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.base import DeviceArray, EngineOptions, FloatArray, Stitcher, StitchRecipe, telling_line
from offline_infer.engines.onnxruntime.options import chain, session_options
from offline_infer.errors import DeviceMemoryFull, EngineFailed, ExportError, OfflineInferError

_SHORT_OF_MEMORY = (
    "failed to allocate memory",
    "out of memory",
    "outofmemory",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
    "memoryallocation",
    "available memory of",
)


@dataclass(frozen=True)
class Network:
    """An opened network and the ports that are used, fixed shapes."""

    session: Any
    input: str
    input_shape: tuple[int, ...]
    input_type: np.dtype[Any]
    output: str
    output_shape: tuple[int, ...]
    output_type: np.dtype[Any]


@dataclass(frozen=True)
class Origin:
    """What a session was opened from, to open others beside it."""

    ort: Any
    graph: Path
    options: EngineOptions
    kind: str
    index: int
    output: str
    exact_norms: bool

    def open_batched(self, images: int) -> Any:
        """The network's session with that many images a call.

        Raises:
            ExportError: an operator of the graph forbids it, or it is too large to be changed in memory.
        """
        from offline_infer.graph import batched, decompose_instance_norm, load_model

        model = batched(load_model(self.graph), images, self.output)
        if self.exact_norms:
            model = decompose_instance_norm(model, axis_by_axis=True)
        try:
            source = model.SerializeToString()
        except Exception as error:  # protobuf: 2 GiB at most
            raise ExportError(f"the graph cannot be changed in memory: {telling_line(error)}") from error
        return self.ort.InferenceSession(
            source,
            session_options(self.ort, self.options, self.kind),
            providers=chain(self.kind, self.index, self.options),
            enable_fallback=0,
        )

    def open_helper(self, graph: bytes) -> Any:
        """A session for a small graph, its operators taken one by one as they stand."""
        kind = "cpu" if self.kind == "cpu" else "cuda"
        threads = self.options.threads if kind == "cpu" else 1
        extra = {"optimization": "none", "session.intra_op.allow_spinning": "0"}
        options = replace(self.options, precision="fp32", threads=threads, extra=extra)
        providers = chain(kind, self.index, replace(options, extra={}))
        return self.ort.InferenceSession(
            graph, session_options(self.ort, options, kind), providers=providers, enable_fallback=0
        )

    @property
    def memory(self) -> str:
        """What ONNX Runtime calls the memory the network works in."""
        return "cpu" if self.kind == "cpu" else "cuda"


@dataclass(frozen=True)
class Device:
    """What a stitcher needs of its session.

    Attributes:
        network: the network with that many images a call; 1 is the session that is open anyway.
        forget: frees everything that was opened for stitching; takes the reason.
    """

    origin: Origin
    network: Callable[[int], Network]
    forget: Callable[[str], None]


class OnnxRuntimeStitcher:
    """See :class:`offline_infer.engines.base.Stitcher`."""

    def __init__(self, device: Device, recipe: StitchRecipe, beside: Stitcher | None, mirror_batch: int) -> None:
        """
        Args:
            mirror_batch: so many mirrors at most are asked in one call of the network.

        Raises:
            EngineFailed, DeviceMemoryFull: it cannot be set up.
        """
        self._device = device
        self._recipe = recipe
        self.note = ""
        try:
            if isinstance(beside, OnnxRuntimeStitcher) and beside._shared is not None:
                self._shared: _Shared | None = beside._shared
                network = device.network(self._shared.images)
                self._shared.check(network)
            else:
                network = self._most_images(device, mirror_batch)
                self._shared = _Shared(device, recipe, network)
            self._network: _Bound | None = _Bound(device, network, self._shared.batch)
        except EngineFailed:
            raise
        except OfflineInferError as error:
            raise EngineFailed(telling_line(error)) from error
        except Exception as error:  # its exceptions share no base class
            raise _failure(error) from error

    def _most_images(self, device: Device, wanted: int) -> Network:
        """The network with as many mirrors a call as asked for and possible, in calls of one size."""
        mirrors = len(self._recipe.mirrors)
        images = max(n for n in range(1, min(wanted, mirrors) + 1) if mirrors % n == 0)
        if images > 1:
            try:
                return device.network(images)
            except ExportError as error:
                self.note = f"one mirror a call: {telling_line(error)}"
        return device.network(1)

    @property
    def images(self) -> int:
        """Mirrors a call of the network."""
        return self._open().images

    def serves(self, recipe: StitchRecipe, beside: Stitcher | None) -> bool:
        """Whether this one can be used again for another case."""
        shared = beside._shared if isinstance(beside, OnnxRuntimeStitcher) else self._shared
        return self._shared is not None and self._shared is shared and self._recipe.same(recipe)

    def load(self, tile: FloatArray) -> None:
        """Bring a tile (c, *patch) to the device."""
        shared = self._open()
        shape = shared.tile_shape
        try:
            shared.tile.update_inplace(np.ascontiguousarray(tile.reshape(shape), dtype=shared.tile_type))
        except Exception as error:
            raise _failure(error) from error

    def answer(self, total: DeviceArray | None) -> DeviceArray:
        """The sum with this network's answers in every mirror."""
        shared = self._open()
        try:
            for first in range(0, len(self._recipe.mirrors), shared.images):
                group = self._recipe.mirrors[first : first + shared.images]
                shared.turn_into_batch(group)
                answers = self.ask()
                for i, mirror in enumerate(group):
                    inputs = {"answers": answers, "total": shared.zero if total is None else total}
                    total = shared.gather.run(inputs, shared.way_back(i, mirror))
        except EngineFailed:
            raise
        except Exception as error:
            raise _failure(error) from error
        return total

    def ask(self) -> DeviceArray:
        """The network's answers (n, k, *patch) to what is in its input buffer; the next call overwrites them."""
        if self._network is None:
            raise EngineFailed("onnxruntime: this stitcher was given up")
        try:
            return self._network.run()
        except Exception as error:
            raise _failure(error) from error

    def weigh(self, total: DeviceArray) -> DeviceArray:
        """The weighted mean of a finished sum."""
        shared = self._open()
        try:
            return shared.weigh.run({"sum": total, "answers": shared.answers, "weights": shared.weights}, {})
        except Exception as error:
            raise _failure(error) from error

    def stitch(self, box: DeviceArray | None, weighted: DeviceArray, part: Sequence[tuple[int, int]]) -> DeviceArray:
        """A box with its part of a weighted tile added."""
        shared = self._open()
        range_ = {"starts": _int64([first for first, _ in part]), "ends": _int64([last for _, last in part])}
        try:
            return shared.stitch.run({"box": shared.nothing if box is None else box, "weighted": weighted}, range_)
        except Exception as error:
            raise _failure(error) from error

    def fetch(self, box: DeviceArray) -> npt.NDArray[Any]:
        """A box as an array on the host."""
        try:
            array: npt.NDArray[Any] = np.asarray(box.numpy())
        except Exception as error:
            raise _failure(error) from error
        whole: npt.NDArray[Any] = array[0]
        return whole

    def give_up(self, reason: str) -> None:
        """Free the device's memory."""
        self._shared = self._network = None
        self._device.forget(reason)

    def _open(self) -> _Shared:
        if self._shared is None:
            raise EngineFailed("onnxruntime: this stitcher was given up")
        return self._shared


class _Shared:
    """Helper graphs and buffers, which do not depend on the weights of the network: folds share them."""

    def __init__(self, device: Device, recipe: StitchRecipe, network: Network) -> None:
        from offline_infer.graph import stitching

        origin = device.origin
        self.images = network.input_shape[0]
        self.tile_shape = (1, *network.input_shape[1:])
        self.tile_type = network.input_type
        self._ports = (network.input_shape, network.input_type, network.output_shape, network.output_type)
        self._rank = len(network.input_shape)
        half_sums = recipe.sum_dtype == "float16"

        def helper(model: Any, output: str) -> _Helper:
            return _Helper(device, device.origin.open_helper(model.SerializeToString()), output)

        half_input, half_output = network.input_type == np.float16, network.output_type == np.float16
        self.turn = helper(stitching.turn_graph(self.tile_shape, half_input, self.images), "batch")
        self.gather = helper(stitching.gather_graph(network.output_shape, half_output, recipe.activation), "sum")
        self.weigh = helper(stitching.weigh_graph(), "weighted")
        self.stitch = helper(stitching.stitch_graph(half_sums), "stitched")
        self._ends = (stitching.FIRST, stitching.LAST)

        def buffer(shape: tuple[int, ...]) -> Any:
            return origin.ort.OrtValue.ortvalue_from_shape_and_type(
                shape, network.input_type, origin.memory, origin.index
            )

        def constant(values: Any) -> Any:
            return origin.ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), origin.memory, origin.index)

        self.tile, self.batch = buffer(self.tile_shape), buffer(network.input_shape)
        weights = np.ones((1, 1, 1), np.float32) if recipe.weights is None else recipe.weights
        self.weights = constant(weights.astype(np.float32)[None, None])
        self.answers = constant(np.array([recipe.answers], np.float32))
        self.zero = constant(np.zeros((1, 1, 1, 1, 1), np.float32))
        self.nothing = constant(np.zeros((1, 1, 1, 1, 1), recipe.sum_dtype))

    def check(self, network: Network) -> None:
        """Refuse another fold's network that is not of the same shape."""
        ports = (network.input_shape, network.input_type, network.output_shape, network.output_type)
        if ports != self._ports:
            raise EngineFailed(f"onnxruntime: the folds' graphs differ ({ports}, {self._ports})")

    def turn_into_batch(self, group: Sequence[tuple[int, ...]]) -> None:
        """Fill the network's input with the loaded tile in these mirrors."""
        numbers: dict[str, npt.NDArray[np.int64]] = {}
        for i, mirror in enumerate(group):
            starts, ends, steps = self._range(mirror)
            numbers |= {f"starts_{i}": _int64(starts), f"ends_{i}": _int64(ends), f"steps_{i}": _int64(steps)}
        self.turn.run({"tile": self.tile}, numbers, into=self.batch)

    def way_back(self, image: int, mirror: tuple[int, ...]) -> dict[str, npt.NDArray[np.int64]]:
        """Which answer of a batch, and how it is turned back."""
        starts, ends, steps = self._range(mirror)
        return {
            "starts": _int64([image, *starts]),
            "ends": _int64([image + 1, *ends]),
            "steps": _int64([1, *steps]),
        }

    def _range(self, mirror: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
        """Starts, ends and steps of a slice along the network's spatial axes; mirrors name axes of (z, y, x)."""
        first, last = self._ends
        flipped = [axis in mirror for axis in range(5 - self._rank, 3)]
        return (
            [-1 if flip else 0 for flip in flipped],
            [first if flip else last for flip in flipped],
            [-1 if flip else 1 for flip in flipped],
        )


class _Helper:
    """A session of a small graph; every call gives a new array on the device."""

    def __init__(self, device: Device, session: Any, output: str) -> None:
        self._device, self._session, self._output = device, session, output

    def run(
        self, inputs: Mapping[str, Any], numbers: Mapping[str, npt.NDArray[np.int64]], into: Any | None = None
    ) -> Any:
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in numbers.items():
            binding.bind_cpu_input(name, array)
        if into is None:
            binding.bind_output(self._output, self._device.origin.memory, self._device.origin.index)
        else:
            binding.bind_ortvalue_output(self._output, into)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()[0]


class _Bound:
    """The network between two buffers that stay where they are."""

    def __init__(self, device: Device, network: Network, batch: Any) -> None:
        self._session = network.session
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(network.input, batch)
        # Allocated by the first call, used again by all others.
        self._binding.bind_output(network.output, device.origin.memory, device.origin.index)

    def run(self) -> Any:
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return self._binding.get_outputs()[0]


def _int64(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def _failure(error: Exception) -> EngineFailed:
    """Which kind of error a library's exception stands for."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(word in text for word in _SHORT_OF_MEMORY):
        return DeviceMemoryFull(f"onnxruntime: no memory left on the device: {telling_line(error)}")
    return EngineFailed(f"onnxruntime: {telling_line(error)}")
