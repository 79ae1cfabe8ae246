"""The thread that looks after one device and owns its worker process.

A worker has the next input at hand while it works on one. A failed call discards the worker, because the bindings lose device
memory on errors; its inputs are done again elsewhere, or in a fresh worker. A device that fails twice is left out; a worker
that somebody else kills is replaced.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from offline_infer.engines.om.answers import EXPLANATIONS, REMEDIES, fault_of, is_constant
from offline_infer.engines.om.jobs import Job, Model
from offline_infer.engines.om.process import WorkerFailed, WorkerProcess, readable

if TYPE_CHECKING:
    from offline_infer.engines.om.pool import Pool

FAILURES_ALLOWED = 1
"""A device that fails more often is left out."""
KILLS_ALLOWED = 20
"""Workers that somebody else kills do not count as failures of the device, unless so many are killed without an answer."""
_AT_HAND = 2  # inputs a worker has: the one it works on, and the next
_PAUSE_S = 0.5  # before a device that could not be opened is tried again


class _Hold:
    """The worker of a lane, where whoever ends the program finds it."""

    def __init__(self) -> None:
        self.worker: WorkerProcess | None = None


class Lane:
    """The thread that looks after one device."""

    def __init__(self, pool: Pool, device: int) -> None:
        self.device = device
        self.orders: deque[Model] = deque()
        self.failures: list[str] = []
        self.out = False
        self.idle = False
        self._kills = 0
        self._running = False  # the worker was sent the first of its inputs
        self.about: dict[str, Any] = {}
        self.hold = _Hold()
        self._pool = weakref.proxy(pool)
        self._opened: set[int] = set()
        self._sent: deque[Job] = deque()
        self._begun = 0.0
        self._ears, self._bell = socket.socketpair()  # closed with this object: a wake may come at any time
        self._ears.setblocking(False)
        self._bell.setblocking(False)
        self._thread = threading.Thread(target=self._live, name=f"om device {device}", daemon=True)

    def start(self) -> None:
        """Start the thread, and the worker in it."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread, which ends its worker."""
        self._thread.join()

    def wake(self) -> None:
        """Interrupt its wait."""
        with suppress(OSError):  # a full pipe wakes it as well
            self._bell.send(b"!")

    def hurry(self) -> None:
        """Kill a worker that is busy, so that nobody waits for it."""
        worker = self.hold.worker
        if worker is not None and not self.idle:
            worker.signal()

    def _live(self) -> None:
        with suppress(ReferenceError):  # the pool is gone without having been closed
            try:
                self._recovering(self._start)
                while not self._pool.closed and not self.out:
                    self._recovering(self._step)
            finally:
                self._leave()

    def _recovering(self, act: Callable[[], None]) -> None:
        """Do something with the worker; a failure discards it and is counted."""
        try:
            act()
        except WorkerFailed as error:
            self._fail(error)

    def _step(self) -> None:
        self._carry_out_orders()
        self._fill()
        worker = self.hold.worker
        watched: list[Any] = [self._ears]
        timeout = None
        if self._sent and worker is not None:
            watched.append(worker.channel)
            timeout = self._begun + self._pool.limits.answer_s - time.monotonic()
        ready = readable(watched, timeout)
        if self._ears in ready:
            with suppress(BlockingIOError):
                self._ears.recv(4096)
        if worker is not None and worker.channel in ready:
            worker.receive()
            job = self._sent.popleft()
            self._begun = time.monotonic()
            try:
                self._fill()  # first, so that the device has work while the answer is looked at
            finally:  # the worker may be gone by now, but this answer is there
                self._judge(job)
        elif self._sent and time.monotonic() - self._begun > self._pool.limits.answer_s:
            raise WorkerFailed(f"no answer within {self._pool.limits.answer_s:g} s; check the device (npu-smi info)")

    def _start(self) -> None:
        self._ready_worker()

    def _ready_worker(self) -> WorkerProcess:
        """The worker, started if there is none."""
        if self.hold.worker is None:
            if self.failures:
                time.sleep(_PAUSE_S)
            self._opened.clear()
            self.hold.worker = WorkerProcess(self.device)
            start = {"do": "start", "binding": self._pool.binding, "device": self.device}
            reply = self.hold.worker.ask(start, self._pool.limits.open_s)
            with self._pool.changed:
                self.about = {name: reply[name] for name in ("binding", "generation", "version", "chip")}
                self._pool.about = self._pool.about or self.about
                self._pool.changed.notify_all()
        return self.hold.worker

    def _open(self, model: Model) -> None:
        """Have the worker open a model, unless it has."""
        worker = self._ready_worker()
        if model.number not in self._opened:
            worker.ask(model.opening(), self._pool.limits.open_s, model.handle)
            self._opened.add(model.number)

    def _carry_out_orders(self) -> None:
        """Open models that are new, close those that are gone. Only between answers, which come in order."""
        while self.orders and not self._sent:
            model = self.orders[0]
            if model.number in self._pool.models:
                self._report(model)
            elif model.number in self._opened and self.hold.worker is not None:
                self.hold.worker.ask({"do": "close", "model": model.number}, self._pool.limits.open_s)
                self._opened.discard(model.number)
            self.orders.popleft()

    def _report(self, model: Model) -> None:
        """Try to open a model, twice, and say how it went. A model that cannot be opened is no fault of the device."""
        reason: str | None = None
        failures = 0
        while failures <= FAILURES_ALLOWED and not self._pool.closed:
            try:
                self._open(model)
                reason = None
                break
            except WorkerFailed as error:
                reason = str(error)
                failures += self._is_failure(error)
                self._discard()
                time.sleep(_PAUSE_S)
        with self._pool.changed:
            model.reported[self.device] = reason
            self._pool.changed.notify_all()

    def _fill(self) -> None:
        """Send inputs until the worker has one to work on and the next at hand."""
        while len(self._sent) < _AT_HAND and not (self.orders and self._sent):
            job = self._pool.take(self, not self._sent)
            with self._pool.changed:
                self.idle = job is None and not self._sent
            if job is None:
                return
            if not self._sent:
                self._begun = time.monotonic()
            self._sent.append(job)
            if job.model.number not in self._opened:  # a fresh worker
                if len(self._sent) > 1:
                    self._sent.pop()
                    self._pool.again(job, "")
                    return
                self._open(job.model)
                self._begun = time.monotonic()
            worker = self._ready_worker()
            worker.send({"do": "run", "model": job.model.number, "slot": job.slot})
            self._running = True

    def _judge(self, job: Job) -> None:
        """Look at the numbers of an answer before anybody uses them."""
        outputs = job.model.slots.outputs(job.slot)
        fault = next((found for position in job.model.kept if (found := fault_of(outputs[position]))), None)
        if fault == "flat" and (job.model.flat_is_right or is_constant(job.model.slots.input(job.slot))):
            fault = None
        if fault is None:
            self._kills = 0
            self._blame_earlier(job)
            job.finish()
        elif job.fault is None:
            job.fault = (fault, self.device)
            self._set_aside(job, EXPLANATIONS[fault])
        elif fault == "flat" and self._is_right(job):
            job.model.flat_is_right = True
            job.finish()
        else:
            first, devices = job.fault[0], sorted({job.fault[1], self.device})
            where = f"device {devices[0]}, twice" if len(devices) == 1 else f"devices {devices[0]} and {devices[1]}"
            job.finish(f"{where}: {EXPLANATIONS[first]}; {REMEDIES[first]}")
            self._discard()

    def _set_aside(self, job: Job, reason: str) -> None:
        """Have a doubtful answer done again, elsewhere or by a fresh worker."""
        self._discard()
        self._pool.again(job, f"device {self.device}: {reason}")

    def _is_right(self, job: Job) -> bool:
        """Whether another engine gives one number everywhere too."""
        answer = job.model.referee(np.array(job.model.slots.input(job.slot), dtype=np.float32))
        return answer is not None and fault_of(answer) == "flat"

    def _blame_earlier(self, job: Job) -> None:
        """A doubtful answer that a second try did not confirm was the first device's fault."""
        if job.fault is None:
            return
        fault, device = job.fault
        for lane in self._pool.lanes:
            if lane.device == device:
                lane.count(f"{EXPLANATIONS[fault]} where a second try gave a good one")

    def count(self, reason: str) -> None:
        """Note a failure of this device; too many, and it is left out."""
        with self._pool.changed:
            self.failures.append(reason)
            if len(self.failures) > FAILURES_ALLOWED:
                self.out = True
        self._pool.give_up_if_hopeless()
        self._pool.wake()

    def _fail(self, error: WorkerFailed) -> None:
        """The worker failed: discard it, and have its inputs done again."""
        reason = str(error)
        if self._is_failure(error):
            if self._sent and self._running:
                # The first one made it fail; the next only waited.
                self._sent[0].failures.append((self.device, reason))
            self.count(reason)
        self._discard(reason)
        if not self.about and not self.out and not self._pool.closed:
            self._recovering(self._start)  # somebody waits to learn what the device is

    def _is_failure(self, error: WorkerFailed) -> bool:
        """Whether it counts: a worker that somebody killed tells nothing of its device, unless it never gets to an answer."""
        self._kills += error.killed
        return not error.killed or self._kills > KILLS_ALLOWED

    def _discard(self, reason: str = "") -> None:
        """End the worker; its inputs go back into the queue, in order."""
        if self.hold.worker is not None:
            self.hold.worker.kill()
            self.hold.worker = None
        self._running = False
        self._opened.clear()
        for job in reversed(self._sent):
            self._pool.again(job, reason)
        self._sent.clear()

    def _leave(self) -> None:
        """The thread ends: nothing of it stays."""
        worker, self.hold.worker = self.hold.worker, None
        if worker is not None:
            if self._sent or self.out:
                worker.kill()
            else:
                worker.end()
        for job in reversed(self._sent):
            self._pool.again(job, "")
        self._sent.clear()
        with self._pool.changed:
            self._pool.changed.notify_all()
