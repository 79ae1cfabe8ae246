"""``om``: an OM run in memory on Ascend devices, through the Python bindings that come with the vendor's tools.

One worker process per device keeps the binding away from this process; inputs and outputs pass through shared memory.
Sessions opened for the same devices share their workers: the folds of a model, the stages of a cascade.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.base import EngineOptions, FloatArray, Session, SessionInfo, check_batch
from offline_infer.engines.compiled import CompiledGraph
from offline_infer.engines.om.bindings import BINDINGS, installed
from offline_infer.engines.om.chips import choose
from offline_infer.engines.om.jobs import Job, Limits
from offline_infer.engines.om.pool import Pool
from offline_infer.engines.reference import open_reference
from offline_infer.errors import EngineFailed, EngineUnavailable

LEGAL = ("binding", "soc", "answer_limit", "open_limit", "output")


class OmEngine:
    """See the module."""

    name = "om"
    computes_float32 = False
    verifies_first_run = True
    """An OM's arithmetic was settled on another machine: the first run compares it with the ONNX graph."""

    def __init__(self) -> None:
        self._pools: weakref.WeakValueDictionary[tuple[Any, ...], Pool] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def available(self) -> str | None:
        """None when a binding is installed, otherwise the reason and the remedy."""
        if installed():
            return None
        return (
            "neither ais_bench nor acl can be imported; source the toolkit's set_env.sh and install the ais_bench and "
            "aclruntime wheels for this Python"
        )

    def graph_precision(self, precision: str) -> str:
        """The float32 graph: what an OM computes in was settled when it was compiled."""
        return "fp32"

    def open(self, graph: Path, options: EngineOptions) -> OmSession:
        """Open what ``options.compiled`` holds for the devices' chip; ``graph`` is the ONNX graph it was compiled from.

        ``options.device`` is ``npu:0`` or a list, ``npu:0,1,2,3``. ``options.extra``: ``binding`` is ``ais_bench`` or
        ``acl`` (default: the first that is installed); ``soc`` names the chip where nothing else does; ``answer_limit``
        and ``open_limit`` are seconds a worker may stay silent. The precision was settled when the OM was compiled.

        Raises:
            EngineUnavailable: no binding, device or fitting OM, or an unknown option.
            BundleError: the OM was changed after it was compiled.
        """
        unknown = sorted(set(options.extra) - set(LEGAL))
        if unknown:
            raise EngineUnavailable(f"om: unknown option {unknown[0]!r}; legal: {', '.join(LEGAL)}")
        reason = self.available()
        if reason is not None:
            raise EngineUnavailable(f"om: {reason}")
        begun = time.perf_counter()
        pool = self._started(devices_of(options.device), _bindings(options), _limits(options))
        try:
            chosen = choose(options.compiled, graph.name, pool.chips(), options.extra.get("soc"))
            if options.precision not in ("fp32", chosen.precision):
                raise EngineUnavailable(
                    f"om: {chosen.path.name} was compiled to compute in {chosen.precision}, not {options.precision}",
                    remedy="leave-precision",
                )
            return OmSession(pool, chosen, graph, options, begun)
        finally:
            pool.close_if_unused()

    def chosen(self, graph: str, options: EngineOptions) -> CompiledGraph:
        """Which OM :meth:`open` would run; the devices are only asked where the bundle has OMs for several chips.

        Raises:
            EngineUnavailable: no fitting OM, or no device that could say its chip.
            UsageError: the devices are of different chips, or nobody says which they are.
            BundleError: the OM was changed after it was compiled.
        """
        soc = options.extra.get("soc")
        made = {each.chip for each in options.compiled}
        if soc is not None or len(made) < 2:
            return choose(options.compiled, graph, {}, soc or next(iter(made), None))
        pool = self._started(devices_of(options.device), _bindings(options), _limits(options))
        try:
            return choose(options.compiled, graph, pool.chips(), None)
        finally:
            pool.close_if_unused()

    def _started(self, devices: tuple[int, ...], bindings: Sequence[str], limits: Limits) -> Pool:
        """A pool with the first binding that opens a device."""
        problems = []
        for binding in bindings:
            pool = self._pool(devices, binding, limits)
            try:
                pool.started()
                return pool
            except EngineUnavailable as error:
                problems.append(f"{binding}: {error}")
                pool.close_if_unused()
            except BaseException:
                pool.close_if_unused()
                raise
        raise EngineUnavailable("; ".join(problems))

    def _pool(self, devices: tuple[int, ...], binding: str, limits: Limits) -> Pool:
        key = (devices, binding, limits)
        with self._lock:
            pool = self._pools.get(key)
            if pool is None or pool.closed or not pool.living():
                pool = self._pools[key] = Pool(devices, binding, limits)
            return pool


ENGINE = OmEngine()


class Pending:
    """An answer on its way. The slot it lies in is used again after :meth:`release`."""

    def __init__(self, session: OmSession, job: Job) -> None:
        self._session = session
        self._job = job
        self._released = False

    def result(self) -> Mapping[str, npt.NDArray[Any]]:
        """All kept outputs by name, valid until :meth:`release`; waits for them.

        Raises:
            EngineFailed: the answer could not be had from any device; the message names them.
        """
        self._job.done.wait()
        if self._job.error is not None:
            raise EngineFailed(f"om: {self._job.error}")
        outputs = self._job.model.slots.outputs(self._job.slot)
        return {
            name: _as_answer(outputs[position])
            for name, position in zip(self._session.info.kept, self._job.model.kept, strict=True)
        }

    def everything(self) -> dict[str, npt.NDArray[Any]]:
        """All outputs by name, copies."""
        self.result()
        outputs = self._job.model.slots.outputs(self._job.slot)
        return {
            name: np.array(_as_answer(output))
            for name, output in zip(self._session.info.output_names, outputs, strict=True)
        }

    def release(self) -> None:
        """Give the slot back, as soon as no worker can write into it any more. May be called twice."""
        if not self._released:
            self._released = True
            self._job.when_done(lambda: self._session.give_back(self._job.slot))

    def __enter__(self) -> Pending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class OmSession:
    """An OM on one or several devices. Several threads may use it; their inputs share the devices."""

    def __init__(self, pool: Pool, chosen: CompiledGraph, graph: Path, options: EngineOptions, begun: float) -> None:
        names = tuple(output.name for output in chosen.outputs)
        kept = _kept(names, options)
        self.depth = 2 * len(pool.devices) + 1
        """Useful number of inputs in flight: two per device (one running, one queued) and one whose answer is being read."""
        self._referee = _OtherEngine(graph, names[kept[0]], options.threads)
        self._model = pool.open(chosen.path, (chosen.input, *chosen.outputs), kept, self.depth, self._referee)
        self._pool = pool
        self._closed = False
        self._own = threading.local()
        about = pool.started()
        version = " ".join(part for part in (about["binding"], about["version"], about["generation"]) if part)
        self._details: dict[str, Any] = {
            "binding": about["binding"],
            "generation": about["generation"],
            "devices": list(pool.devices),
            "left_out": pool.left_out(self._model),
            "om": chosen.path.name,
            "om_sha256": chosen.sha256,
        }
        self.info = SessionInfo(
            engine=ENGINE.name,
            version=f"{version}, OM {chosen.sha256[:12]}",
            device="npu",
            precision=chosen.precision,
            input_shape=chosen.input.shape,
            output_names=names,
            kept=tuple(names[position] for position in kept),
            processor=chosen.chip,
            open_seconds=round(time.perf_counter() - begun, 3),
            compiled=chosen.sha256,
            details=self._details,
        )

    def submit(self, batch: FloatArray) -> Pending:
        """Send an input on its way; ``batch`` may be used again at once. Blocks while every slot is taken.

        At most :attr:`depth` answers can be on their way or unreleased; a thread that holds them all deadlocks itself.

        Raises:
            EngineFailed: a wrong input, or the session is closed.
        """
        check_batch(batch, self.info.input_shape, ENGINE.name)
        model = self._model
        with model.freed:
            model.freed.wait_for(lambda: model.free or self._closed)
            if self._closed:
                raise EngineFailed("om: the session is closed")
            slot = model.free.popleft()
        with np.errstate(over="ignore"):  # float16 inputs: what overflows shows in the answer
            np.copyto(model.slots.input(slot), batch, casting="same_kind")
        job = Job(model, slot)
        self._pool.put(job)
        return Pending(self, job)

    def answer(self, batch: FloatArray) -> Mapping[str, npt.NDArray[Any]]:
        """All kept outputs by name, valid until the calling thread's next call.

        Raises:
            EngineFailed: a wrong input, or no device could answer; the message names devices, codes and remedies.
        """
        mine: dict[str, npt.NDArray[Any]] = self._own.__dict__
        with self.submit(batch) as pending:
            for name, array in pending.result().items():
                if name not in mine:
                    mine[name] = np.empty_like(array)
                np.copyto(mine[name], array)
        return {name: mine[name] for name in self.info.kept}

    def run(self, batch: FloatArray) -> FloatArray:
        """The first kept output; otherwise like :meth:`answer`."""
        return self.answer(batch)[self.info.kept[0]]

    def run_all(self, batch: FloatArray) -> dict[str, npt.NDArray[Any]]:
        """All outputs by name, copies."""
        with self.submit(batch) as pending:
            return pending.everything()

    def give_back(self, slot: int) -> None:
        """A slot whose answer was used."""
        self._details["left_out"] = self._pool.left_out(self._model)
        with self._model.freed:
            self._model.free.append(slot)
            self._model.freed.notify()

    def close(self) -> None:
        """Let go of the model; the workers end with the last session that uses them. May be called twice."""
        with self._model.freed:
            if self._closed:
                return
            self._closed = True
            self._model.freed.notify_all()
        self._pool.close(self._model)
        self._referee.close()

    def __enter__(self) -> OmSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _OtherEngine:
    """The ONNX graph in another engine on the processor, opened when a doubtful answer is to be judged."""

    def __init__(self, graph: Path, output: str, threads: int) -> None:
        self._graph = graph
        self._output = output
        self._threads = threads
        self._session: Session | None = None
        self._lock = threading.Lock()

    def __call__(self, batch: FloatArray) -> FloatArray | None:
        with self._lock:
            if self._session is None:
                self._session = open_reference(self._graph, outputs=(self._output,), threads=self._threads)
            return None if self._session is None else self._session.run(np.ascontiguousarray(batch)).copy()

    def close(self) -> None:
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None


def devices_of(device: str) -> tuple[int, ...]:
    """Device numbers of ``npu``, ``npu:0`` or ``npu:0,1,2,3``.

    Raises:
        EngineUnavailable: another kind of device, or a number twice.
    """
    kind, _, numbers = device.partition(":")
    parts = (numbers or "0").split(",")
    if (
        kind != "npu"
        or not all(part.isdecimal() and int(part) <= 255 for part in parts)
        or len(set(parts)) < len(parts)
    ):
        raise EngineUnavailable(f"om: device {device!r}; expected npu:0, or several as npu:0,1,2,3")
    return tuple(int(part) for part in parts)


def _bindings(options: EngineOptions) -> tuple[str, ...]:
    """The bindings to try."""
    present = installed()
    wanted = options.extra.get("binding")
    if wanted is None:
        return present
    if wanted not in present:
        raise EngineUnavailable(
            f"om: binding {wanted!r} is not installed; legal: {', '.join(BINDINGS)}, here: {', '.join(present)}"
        )
    return (wanted,)


def _limits(options: EngineOptions) -> Limits:
    found = {}
    for name in ("answer_limit", "open_limit"):
        text = options.extra.get(name)
        if text is not None:
            try:
                found[f"{name.partition('_')[0]}_s"] = float(text)
            except ValueError:
                found = {}
            if not found or not min(found.values()) > 0:
                raise EngineUnavailable(f"om: {name}={text!r}; expected seconds")
    return Limits(**found)


def _kept(names: tuple[str, ...], options: EngineOptions) -> tuple[int, ...]:
    """Positions of the kept outputs among those of the OM."""
    wanted = (options.extra["output"],) if "output" in options.extra else options.outputs or names[:1]
    for name in wanted:
        if name not in names:
            raise EngineUnavailable(f"om: the OM has no output {name!r}; it has {', '.join(names)}; compile it again")
    return tuple(names.index(name) for name in wanted)


def _as_answer(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floating point as float32, the rest as it is."""
    return array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array
