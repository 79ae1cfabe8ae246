"""What an engine is: something that opens an ONNX graph and answers inputs with named arrays.

An engine module imports this file, the graph passes, the ground floor (errors, files, threads) and its own library, nothing
else of ours; the library is imported inside the functions that need it, so that listing engines costs nothing. The registry
knows engines by exact name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from offline_infer.engines.compiled import CompiledGraph
from offline_infer.errors import BundleError, EngineFailed, EngineUnavailable, UsageError

FloatArray = npt.NDArray[np.float32]
AnyArray = npt.NDArray[Any]
OPEN = -1
"""Size of an axis that the graph leaves open: any height and width, an unknown number of boxes."""
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
OUTPUT_TYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")
"""NumPy types an output may have."""


@dataclass(frozen=True)
class EngineOptions:
    """What a user may ask of an engine.

    Attributes:
        device: ``cpu``, ``cuda:0``, ``npu:0``; an engine refuses a device it does not have.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``int8``; what the engine computes in where the graph leaves it open.
        around: with ``int8``, what is computed in where the graph does not say INT8: ``fp32``, or ``bf16`` where the engine and
            the processor have it (float32 elsewhere, which is the more exact one).
        threads: 0 leaves it to the engine (all cores).
        cache: folder for compiled graphs, or None; it has to be the user's alone.
        shared_cache: use a ``cache`` that others may write as well; they are trusted to keep good compiled graphs there.
        outputs: names of the outputs that are kept, in the order wanted; empty = the graph's first one.
        control_flow: operators with graphs inside that the task allows (see :mod:`offline_infer.graph.admission`).
        extra: engine-specific options, passed through as they are.
        compiled: what the bundle has compiled from the graph, for engines that run that instead.
    """

    device: str = "cpu"
    precision: str = "fp32"
    around: str = "fp32"
    threads: int = 0
    cache: Path | None = None
    shared_cache: bool = False
    outputs: tuple[str, ...] = ()
    control_flow: frozenset[str] = frozenset()
    extra: Mapping[str, str] = field(default_factory=dict)
    compiled: tuple[CompiledGraph, ...] = ()


@dataclass(frozen=True)
class Norms:
    """How a session computes instance normalisation.

    Attributes:
        mode: ``exact``: float32 statistics summed axis by axis; ``native``: the library's own kernel.
        reason: why it is not ``exact`` although that was wanted; None otherwise.
    """

    mode: Literal["exact", "native"]
    reason: str | None = None

    def __str__(self) -> str:
        return self.mode if self.reason is None else f"{self.mode}: {self.reason}"


@dataclass(frozen=True)
class Stitching:
    """Where answers are mirrored, summed and stitched.

    Attributes:
        place: ``device`` or ``host``.
        reason: why it is the host although the device was wanted; None otherwise.
        mirrors: mirrors a call of the network on the device; 0 before the first case.
        note: why there are fewer mirrors a call than asked for; None otherwise.
    """

    place: Literal["device", "host"]
    reason: str | None = None
    mirrors: int = 0
    note: str | None = None

    def __str__(self) -> str:
        if self.place == "host":
            return "host" if self.reason is None else f"host: {self.reason}"
        if not self.mirrors:
            return "device, where memory allows"
        return f"device, mirrors a call: {self.mirrors}" + ("" if self.note is None else f"; {self.note}")


@dataclass(frozen=True)
class CacheUse:
    """What the cache of compiled graphs did when a session was opened; ``reason``: why nothing was stored."""

    outcome: Literal["off", "hit", "stored", "not stored"]
    reason: str | None = None

    def __str__(self) -> str:
        return self.outcome if self.reason is None else f"{self.outcome}: {self.reason}"


@dataclass(frozen=True)
class SessionInfo:
    """What is really running: for reports and for the benchmark's honesty.

    Attributes:
        input_shape: (n, c, *sizes); ``OPEN`` (-1) where the graph takes any size.
        output_names: all outputs, in graph order.
        kept: those that ``answer`` gives, in the order asked for; ``run`` gives the first.
        processor: name of the processor or device, where the library knows it.
        threads: that the engine uses; 0 = it decides.
        norms: None where the engine has no such choice.
        stitching: None where the engine cannot keep its answers; it changes when the device turns out not to have the room.
        open_seconds: time it took to open the graph.
        compiled: SHA-256 of the compiled artefact that answers instead of the graph; None where the graph itself does.
        weights: size of the weights that the engine holds, over that of the graph's own; for the forecast of memory.
        details: further facts of this engine, for reports only; nothing is decided by them.
    """

    engine: str
    version: str
    device: str
    precision: str
    input_shape: tuple[int, ...]
    output_names: tuple[str, ...]
    kept: tuple[str, ...] = ()
    processor: str | None = None
    threads: int = 0
    norms: Norms | None = None
    stitching: Stitching | None = None
    cache: CacheUse = CacheUse("off")
    open_seconds: float = 0.0
    compiled: str | None = None
    weights: float = 1.0
    details: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """An opened graph. Use as a context manager; ``close`` may be called twice.

    Several threads may call a session: their calls queue, and every thread has buffers of its own, so one thread's answer
    stays valid until that same thread's next call.
    """

    @property
    def info(self) -> SessionInfo: ...

    def answer(self, batch: FloatArray) -> Mapping[str, AnyArray]:
        """All kept outputs by name.

        Args:
            batch: float32, C-contiguous, of ``info.input_shape``; any positive size where that is open.

        Returns:
            Floating-point outputs as float32, integer ones in their own type. The arrays may be buffers that the calling
            thread's next call overwrites.

        Raises:
            EngineFailed: a wrong input, or the engine reported an error.
        """
        ...

    def run(self, batch: FloatArray) -> FloatArray:
        """The first kept output; otherwise like :meth:`answer`."""
        ...

    def run_all(self, batch: FloatArray) -> dict[str, AnyArray]:
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
class StitchRecipe:
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

    def same(self, other: StitchRecipe) -> bool:
        """Whether both ask for the same thing."""
        mine, theirs = (
            (recipe.mirrors, recipe.activation, recipe.answers, recipe.sum_dtype, recipe.weights is None)
            for recipe in (self, other)
        )
        equal = self.weights is None or other.weights is None or np.array_equal(self.weights, other.weights)
        return mine == theirs and equal


class Stitcher(Protocol):
    """Mirrors, sums and stitches on the device, so that only finished sums travel to the host.

    Every call raises EngineFailed when the engine fails, DeviceMemoryFull when the device has run out of memory.
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
        """A finished sum divided by ``recipe.answers``, times the weights; float32."""
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
        """Free the device's memory; ``reason`` goes to the session's ``info.stitching``."""
        ...


@runtime_checkable
class StitchingSession(Protocol):
    """What a session has besides :class:`Session` if it can keep its answers on the device. Optional."""

    def stitcher(self, recipe: StitchRecipe, beside: Stitcher | None = None) -> Stitcher | None:
        """A stitcher for the recipe; it belongs to the calling thread and is valid until its next call or the session's end.

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
    """Opens graphs. Each engine module has one instance named ``ENGINE``.

    Attributes:
        computes_float32: it can compute in float32 itself, so that its other precisions are measured against that.
    """

    name: str
    computes_float32: bool

    def available(self) -> str | None:
        """None when the engine can run here, otherwise the reason and the remedy."""
        ...

    def graph_precision(self, precision: str) -> str:
        """Precision of the graph to open where ``precision`` is to be computed in: ``fp32``, ``fp16`` or ``int8``."""
        ...

    def open(self, graph: Path, options: EngineOptions) -> Session:
        """Open a graph, after it has been looked at (:func:`offline_infer.graph.admission.admit`).

        Raises:
            BundleError: the file is missing or damaged, or the graph is not admitted.
            EngineUnavailable: library or device is missing, or the option is not one of this engine's.
        """
        ...


@runtime_checkable
class CompiledEngine(Protocol):
    """What an engine has besides :class:`Engine` if it runs what was compiled from a graph. Optional."""

    def chosen(self, graph: str, options: EngineOptions) -> CompiledGraph:
        """Which of ``options.compiled`` ``open`` would run.

        Args:
            graph: what to call the graph in messages.

        Raises:
            EngineUnavailable, UsageError: none, or it is not clear which.
            BundleError: it was changed after it was compiled.
        """
        ...


ENGINES: dict[str, str] = {
    "openvino": "offline_infer.engines.openvino.engine",
    "onnxruntime": "offline_infer.engines.onnxruntime.engine",
    "om": "offline_infer.engines.om.engine",
}
"""Engine name -> module. Exact names only."""


def get_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UsageError: no such engine; the message lists the legal names.
        EngineUnavailable: the engine's module cannot be loaded.
    """
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}; legal names: {', '.join(sorted(ENGINES))}")
    try:
        engine = importlib.import_module(ENGINES[name]).ENGINE
    except ImportError as error:
        raise EngineUnavailable(f"engine {name!r} cannot be loaded: {error}") from error
    assert isinstance(engine, Engine)
    return engine


def require_engine(name: str) -> Engine:
    """The engine of that name, if it can run here: to be asked before long work, and before a folder is made.

    Raises:
        UsageError: no such engine.
        EngineUnavailable: its library or its device is missing; the message says what to do.
    """
    engine = get_engine(name)
    reason = engine.available()
    if reason is not None:
        raise EngineUnavailable(f"{name}: {reason}")
    return engine


def check_batch(batch: object, shape: tuple[int, ...], engine: str) -> None:
    """Refuse an input the graph cannot take with our own message, before a library raises its own.

    Args:
        batch: what the caller gave.
        shape: (n, c, *sizes) of the graph; ``OPEN`` takes any positive size.
        engine: named in the message.

    Raises:
        EngineFailed: not a float32, C-contiguous array of that shape.
    """
    if not isinstance(batch, np.ndarray):
        raise EngineFailed(f"{engine}: the input is a {type(batch).__name__}, expected a NumPy array")
    if not fits(batch.shape, shape):
        raise EngineFailed(f"{engine}: the input has shape {batch.shape}, the graph takes {shape}")
    if batch.dtype != np.float32 or not batch.dtype.isnative:
        raise EngineFailed(f"{engine}: the input is {batch.dtype}, expected float32")
    if not batch.flags.c_contiguous:
        raise EngineFailed(f"{engine}: the input is not C-contiguous (a flipped view?); use numpy.ascontiguousarray")


def fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """Whether an array of ``shape`` may go where ``declared`` (with ``OPEN`` axes) is expected; no size may be 0."""
    pairs = zip(shape, declared, strict=False)
    return len(shape) == len(declared) and all(
        size == wanted or (wanted == OPEN and size > 0) for size, wanted in pairs
    )


def telling_line(error: BaseException) -> str:
    """The last informative line of a library's exception, for a one-line message."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (told[-1] if told else type(error).__name__)[:500]


def kept_outputs(names: tuple[str, ...], options: EngineOptions, engine: str) -> tuple[int, ...]:
    """Indices of the kept outputs: the one named by ``extra["output"]``, else ``options.outputs``, else the first.

    Raises:
        EngineUnavailable: the graph has no such output.
    """
    wanted = (options.extra["output"],) if "output" in options.extra else options.outputs or names[:1]
    for name in wanted:
        if name not in names:
            raise EngineUnavailable(f"{engine}: the graph has no output {name!r}; it has {', '.join(names)}")
    return tuple(names.index(name) for name in wanted)


def as_answer(array: AnyArray) -> AnyArray:
    """An output as :meth:`Session.answer` gives it: floating point as float32, whole numbers and truth values as they are."""
    return array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array


def single_input(count: int, graph: Path) -> None:
    """Refuse a graph that wants more than the image.

    Raises:
        BundleError: not exactly one input.
    """
    if count != 1:
        raise BundleError(f"{graph} has {count} inputs, expected one")
