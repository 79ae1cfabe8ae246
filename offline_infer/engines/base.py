"""What an engine is: something that opens an ONNX graph and answers fixed-shape inputs.

An engine module imports this file, ``errors``, ``files`` and its own library, nothing else of ours; the library is
imported inside the functions that need it, so that listing engines costs nothing. The registry knows engines by exact
name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from offline_infer.errors import BundleError, EngineFailed, EngineUnavailable, UsageError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EngineOptions:
    """What a user may ask of an engine.

    Attributes:
        device: ``cpu``, ``cuda:0``, ``npu:0``; an engine refuses a device it does not have.
        precision: ``fp32``, ``bf16`` or ``fp16``; what the engine computes in where the graph leaves it open.
        threads: 0 leaves it to the engine (all cores).
        cache: folder for compiled graphs, or None.
        extra: engine-specific options, passed through as they are.
    """

    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 0
    cache: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionInfo:
    """What is really running: for reports and for the benchmark's honesty."""

    engine: str
    version: str
    device: str
    precision: str
    input_shape: tuple[int, ...]
    output_names: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """An opened graph. Use as a context manager; ``close`` may be called twice."""

    @property
    def info(self) -> SessionInfo: ...

    def run(self, batch: FloatArray) -> FloatArray:
        """Logits for a batch.

        Args:
            batch: float32, C-contiguous, (n, c, *patch), n fixed by the graph (see ``info.input_shape``).

        Returns:
            The kept output, float32, (n, k, *patch). The array may be a buffer that the next call overwrites.

        Raises:
            EngineFailed: the engine reported an error.
        """
        ...

    def run_all(self, batch: FloatArray) -> dict[str, FloatArray]:
        """All outputs by name, copies the caller owns."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


DeviceArray = Any
"""A handle on an array in the device's memory; only the engine that gave it can read it."""


@dataclass(frozen=True, eq=False)
class StitchPlan:
    """What happens to the answers for a tile before they are wanted on the host. Plain facts about one case.

    Attributes:
        mirrors: flipped axes of (z, y, x) of every mirror, in the order of the sum.
        activation: ``softmax`` or ``sigmoid`` where probabilities are summed, None where logits are.
        answers: how many answers are in a finished sum, which is divided by it.
        weights: (*patch) with three axes, float32; None = 1.
        sum_dtype: ``float32`` or ``float16``, of the sums over tiles.
    """

    mirrors: tuple[tuple[int, ...], ...]
    activation: str | None
    answers: int
    weights: FloatArray | None
    sum_dtype: str

    def same(self, other: StitchPlan) -> bool:
        """Whether both ask for the same thing."""
        mine, theirs = (
            (plan.mirrors, plan.activation, plan.answers, plan.sum_dtype, plan.weights is None)
            for plan in (self, other)
        )
        equal = self.weights is None or other.weights is None or np.array_equal(self.weights, other.weights)
        return mine == theirs and equal


class Stitcher(Protocol):
    """Mirrors, sums and stitches on the device, so that only finished sums travel to the host.

    Every call raises EngineFailed when the engine fails, DeviceMemoryFull when the device's memory is what lacks.
    """

    def load(self, tile: FloatArray) -> None:
        """Bring a tile (c, *patch) to the device; stitchers that share (see :class:`StitchingSession`) share it."""
        ...

    def answer(self, total: DeviceArray | None) -> DeviceArray:
        """Ask the network about the loaded tile in every mirror.

        Args:
            total: the sum of the answers so far, None for a new one.

        Returns:
            (1, k, pz, py, px) float32: the sum with these answers, turned back, added one after the other.
        """
        ...

    def weigh(self, total: DeviceArray) -> DeviceArray:
        """A finished sum divided by ``plan.answers``, times the weights; float32."""
        ...

    def stitch(self, box: DeviceArray | None, weighted: DeviceArray, part: Sequence[tuple[int, int]]) -> DeviceArray:
        """Add a part of a weighted tile to a box of the slab; the box that was given is spent.

        Args:
            box: (1, k, dz, dy, dx) of the sums' dtype, None for one with nothing in it.
            part: half-open range of the tile along z, y and x.
        """
        ...

    def fetch(self, box: DeviceArray) -> npt.NDArray[Any]:
        """A box (k, dz, dy, dx) as an array of the sums' dtype in the host's memory."""
        ...

    def give_up(self, reason: str) -> None:
        """Free the device's memory; ``reason`` goes to the session's ``info.details["stitching"]``."""
        ...


@runtime_checkable
class StitchingSession(Protocol):
    """What a session has besides :class:`Session` if it can keep its answers on the device. Optional."""

    def stitcher(self, plan: StitchPlan, beside: Stitcher | None = None) -> Stitcher | None:
        """A stitcher for the plan; valid until the next call or the session's end.

        Args:
            beside: of another fold on the same device; all that does not depend on the network is shared with it.

        Returns:
            None where stitching is the host's work, on this device or by the user's choice.

        Raises:
            EngineFailed, DeviceMemoryFull: it cannot be set up.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """Opens graphs. Each engine module has one instance named ``ENGINE``."""

    name: str

    def available(self) -> str | None:
        """None when the engine can run here, otherwise the reason and the remedy."""
        ...

    def open(self, graph: Path, options: EngineOptions) -> Session:
        """Open a graph.

        Raises:
            EngineUnavailable: library or device is missing, or the option is not one of this engine's.
        """
        ...


ENGINES: dict[str, str] = {
    "openvino": "offline_infer.engines.openvino.engine",
    "onnxruntime": "offline_infer.engines.onnxruntime.engine",
    "fake": "offline_infer.engines.fake",
}
"""Engine name -> module. Exact names only."""
_FOR_TESTS = frozenset({"fake"})
"""Can be opened, but are not offered."""


def get_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UsageError: no such engine; the message lists the legal names.
        EngineUnavailable: the engine's module cannot be loaded.
    """
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}; legal names: {', '.join(sorted(set(ENGINES) - _FOR_TESTS))}")
    try:
        engine = importlib.import_module(ENGINES[name]).ENGINE
    except ImportError as error:
        raise EngineUnavailable(f"engine {name!r} cannot be loaded: {error}") from error
    assert isinstance(engine, Engine)
    return engine


def check_batch(batch: object, shape: tuple[int, ...], engine: str) -> None:
    """Refuse an input the graph cannot take, before a library gives its own opinion of it.

    Args:
        batch: what the caller gave.
        shape: (n, c, *patch) of the graph.
        engine: named in the message.

    Raises:
        EngineFailed: not a float32, C-contiguous array of that shape.
    """
    if not isinstance(batch, np.ndarray):
        raise EngineFailed(f"{engine}: the input is a {type(batch).__name__}, expected a NumPy array")
    if batch.shape != shape:
        raise EngineFailed(f"{engine}: the input has shape {batch.shape}, the graph takes {shape}")
    if batch.dtype != np.float32 or not batch.dtype.isnative:
        raise EngineFailed(f"{engine}: the input is {batch.dtype}, expected float32")
    if not batch.flags.c_contiguous:
        raise EngineFailed(f"{engine}: the input is not C-contiguous (a flipped view?); use numpy.ascontiguousarray")


def check_graph_file(graph: Path) -> None:
    """Refuse a graph that is not there.

    Raises:
        BundleError: no such file, or an empty one.
    """
    if not graph.is_file():
        raise BundleError(f"{graph} does not exist; expected an ONNX graph")
    if graph.stat().st_size == 0:
        raise BundleError(f"{graph} is empty; copy or export the bundle again")


def telling_line(error: BaseException) -> str:
    """The last telling line of a library's exception, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (told[-1] if told else type(error).__name__)[:500]


def kept_output(names: tuple[str, ...], wanted: str | None, engine: str) -> int:
    """Index of the output that ``run`` gives: the one asked for by ``extra["output"]``, else the first.

    Raises:
        EngineUnavailable: the graph has no such output.
    """
    if wanted is None:
        return 0
    if wanted not in names:
        raise EngineUnavailable(f"{engine}: the graph has no output {wanted!r}; it has {', '.join(names)}")
    return names.index(wanted)


def single_input(count: int, graph: Path) -> None:
    """Refuse a graph that wants more than the image.

    Raises:
        BundleError: not exactly one input.
    """
    if count != 1:
        raise BundleError(f"{graph} has {count} inputs, expected one")
