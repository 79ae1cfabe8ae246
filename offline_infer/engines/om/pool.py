"""Workers on several devices that serve one queue: answers are correct and in order even if devices fail.

Each device has a thread (a :class:`~offline_infer.engines.om.lane.Lane`) that owns its worker process and takes inputs from
the queue here. Inputs whose worker failed are done again elsewhere; what no device can do any more is ended with the reasons.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offline_infer.engines.compiled import Tensor
from offline_infer.engines.om.jobs import Job, Limits, Model, Referee
from offline_infer.engines.om.lane import Lane
from offline_infer.errors import EngineUnavailable

ATTEMPTS = 4
"""An input that made so many workers fail is given up."""


class Pool:
    """The devices of a run. Sessions of several folds, and both stages of a cascade, share it."""

    def __init__(self, devices: Sequence[int], binding: str, limits: Limits) -> None:
        self.devices = tuple(devices)
        self.binding = binding
        self.limits = limits
        self.changed = threading.Condition()
        self.waiting: deque[Job] = deque()
        self.models: dict[int, Model] = {}
        self.about: dict[str, Any] = {}
        self.closed = False
        self._numbers = 0
        self.lanes = [Lane(self, device) for device in devices]
        self._end = weakref.finalize(self, _end_all, self.lanes)
        for lane in self.lanes:
            lane.start()

    # -- for sessions --------------------------------------------------------------------------------------------------

    def started(self) -> dict[str, Any]:
        """What the first worker that started says of itself; waits for it.

        Raises:
            EngineUnavailable: no device could be opened.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.about or not self.living())
            if not self.about:
                raise EngineUnavailable(f"om: no device could be opened: {self.reasons()}")
            return dict(self.about)

    def chips(self) -> dict[int, str | None]:
        """Device -> chip as its worker says; waits until every living device has said it."""
        with self.changed:
            self.changed.wait_for(lambda: all(lane.about or lane.out for lane in self.lanes))
            return {lane.device: lane.about.get("chip") for lane in self.lanes if lane.about}

    def open(self, path: Path, tensors: Sequence[Tensor], kept: Sequence[int], slots: int, referee: Referee) -> Model:
        """Have every device open a model; one that another session has open already is shared.

        Raises:
            EngineUnavailable: none could.
        """
        with self.changed:
            known = next((each for each in self.models.values() if each.serves(path, tensors, kept)), None)
            if known is None:
                self._numbers += 1
                model = Model(self._numbers, path, tensors, kept, slots, referee)
                self.models[model.number] = model
                for lane in self.lanes:
                    lane.orders.append(model)
                self.wake()
            else:
                model = known
            model.users += 1
        try:
            with self.changed:
                self.changed.wait_for(lambda: all(lane.out or lane.device in model.reported for lane in self.lanes))
            if not any(reason is None for reason in model.reported.values()):
                reasons = [f"device {device}: {reason}" for device, reason in model.reported.items()]
                raise EngineUnavailable(f"om: {path} cannot be opened: {'; '.join(reasons) or self.reasons()}")
        except BaseException:
            self.close(model)
            raise
        return model

    def close(self, model: Model) -> None:
        """Let go of a model, once for each time it was opened; with the last one the workers end."""
        with self.changed:
            model.users -= 1
            if model.users:
                return
            del self.models[model.number]
            for job in [job for job in self.waiting if job.model is model]:
                self.waiting.remove(job)
                job.finish("the session was closed")
            for lane in self.lanes:
                lane.orders.append(model)
            self.wake()
        self.close_if_unused()

    def close_if_unused(self) -> None:
        """End the workers where no model is left. A worker that is busy is not waited for."""
        with self.changed:
            if self.models or self.closed:
                return
            self.closed = True
            for lane in self.lanes:
                lane.hurry()
            self.wake()
        for lane in self.lanes:
            lane.join()

    def put(self, job: Job) -> None:
        """Queue an input that lies in its slot."""
        with self.changed:
            if self.closed or not self.serving(job.model):
                job.finish(f"no device is left: {self.reasons()}")
                return
            self.waiting.append(job)
            self.wake()

    # -- for lanes -----------------------------------------------------------------------------------------------------

    def take(self, lane: Lane, hands_empty: bool) -> Job | None:
        """The next input for a device. One that has something to do gets none while another device is idle."""
        with self.changed:
            for job in self.waiting:
                serving = self.serving(job.model)
                if lane not in serving or self._better_elsewhere(job, lane):
                    continue
                if not hands_empty and any(other.idle for other in serving):
                    return None
                self.waiting.remove(job)
                return job
        return None

    def again(self, job: Job, reason: str) -> None:
        """Put an input back, in front, unless its time is up."""
        with self.changed:
            if len(job.failures) >= ATTEMPTS:
                told = "; ".join(f"device {device}: {why}" for device, why in job.failures)
                job.finish(f"{len(job.failures)} workers failed on the same input: {told}")
            elif self.closed or job.model.number not in self.models:
                job.finish("the session was closed")
            elif not self.serving(job.model):
                job.finish(f"no device is left: {self.reasons() or reason}")
            else:
                self.waiting.appendleft(job)
            self.wake()

    def give_up_if_hopeless(self) -> None:
        """After a device was left out: what no other device can do is ended with the reasons."""
        with self.changed:
            for job in [job for job in self.waiting if not self.serving(job.model)]:
                self.waiting.remove(job)
                job.finish(f"no device is left: {self.reasons()}")
            self.changed.notify_all()

    def living(self) -> list[Lane]:
        """Devices that are not left out."""
        return [lane for lane in self.lanes if not lane.out]

    def serving(self, model: Model) -> list[Lane]:
        """Devices that have opened a model and are not left out."""
        return [lane for lane in self.living() if model.reported.get(lane.device, "") is None]

    def reasons(self) -> str:
        """Why devices were left out."""
        return "; ".join(f"device {lane.device}: {lane.failures[-1]}" for lane in self.lanes if lane.failures)

    def left_out(self, model: Model) -> dict[int, str]:
        """Device -> why it does not work on a model (any more)."""
        with self.changed:
            unopened = {device: reason for device, reason in model.reported.items() if reason is not None}
            return unopened | {lane.device: lane.failures[-1] for lane in self.lanes if lane.out}

    def wake(self) -> None:
        """Have every lane look for work."""
        for lane in self.lanes:
            lane.wake()

    def _better_elsewhere(self, job: Job, lane: Lane) -> bool:
        """Whether an input that failed on this device should go to another, healthy one."""
        tried = {device for device, _ in job.failures} | ({job.fault[1]} if job.fault else set())
        return lane.device in tried and any(other.device not in tried for other in self.serving(job.model))


def _end_all(lanes: Sequence[Lane]) -> None:
    """End the workers of a pool that nobody closed, and with them their threads."""
    for lane in lanes:
        lane.hurry()
        lane.wake()
