"""An engine for tests: no library, no graph, a closed formula, and faults on request.

The answer depends on each voxel alone, so tiling, mirroring and averaging must not change it, and what a whole pipeline
should give can be computed with :func:`fake_logits`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from offline_infer.engines.base import EngineOptions, FloatArray, SessionInfo, check_batch
from offline_infer.errors import BundleError, EngineFailed, EngineUnavailable

LEGAL = ("shape", "classes", "fail_at", "nan_at", "exit_at", "sleep", "device_exists")
EXIT_STATUS = 86
"""Exit status of a process killed by ``exit_at``."""


def fake_logits(image: FloatArray, classes: int) -> FloatArray:
    """The fake network: class k is ``k * mean - k * k / 2``, ``mean`` over the channels of a voxel.

    The largest class is the whole number nearest to the mean, between 0 and ``classes - 1``.

    Args:
        image: (n, c, *patch) float32.
        classes: k.

    Returns:
        (n, k, *patch) float32.
    """
    mean = image.mean(axis=1, dtype=np.float32)
    return np.stack([np.float32(k) * mean - np.float32(k * k / 2) for k in range(classes)], axis=1)


class FakeEngine:
    """See the module."""

    name = "fake"

    def available(self) -> str | None:
        """Always."""
        return None

    def open(self, graph: Path, options: EngineOptions) -> FakeSession:
        """Open a graph that need not exist.

        The shapes come from ``options.extra`` or, where missing there, from a ``bundle.json`` in the graph's folder or
        the one above. ``extra``: ``shape`` ("1,1,16,16,16"), ``classes``; ``fail_at``, ``nan_at``, ``exit_at`` (number
        of the call, from 0, that fails, answers NaN, or ends the process), ``sleep`` (seconds a call),
        ``device_exists=no``.

        Raises:
            EngineUnavailable: an unknown option, or no shape to be found.
        """
        unknown = sorted(set(options.extra) - set(LEGAL))
        if unknown:
            raise EngineUnavailable(f"fake: unknown option {unknown[0]!r}; legal: {', '.join(LEGAL)}")
        if options.extra.get("device_exists") == "no":
            raise EngineUnavailable(f"fake: there is no device {options.device!r}")
        return FakeSession(graph, options)


ENGINE = FakeEngine()


class FakeSession:
    """A formula behind the interface of an engine."""

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        extra = options.extra
        shape, classes = _shapes(graph, extra.get("shape"), extra.get("classes"))
        self._faults = {name: _number(extra[name], name) for name in ("fail_at", "nan_at", "exit_at") if name in extra}
        self._sleep = float(extra.get("sleep", 0))
        self._shape = shape
        self._answer: FloatArray = np.empty((shape[0], classes, *shape[2:]), np.float32)
        self._calls = 0
        self._open = True
        self.info = SessionInfo(
            engine=ENGINE.name,
            version="1",
            device=options.device,
            precision=options.precision,
            input_shape=shape,
            output_names=("logits",),
            details={"kept": "logits", "threads": options.threads},
        )

    def run(self, batch: FloatArray) -> FloatArray:
        """:func:`fake_logits` of the batch; the next call overwrites the array.

        Raises:
            EngineFailed: a wrong input, or ``fail_at``.
        """
        if not self._open:
            raise EngineFailed("fake: the session is closed")
        check_batch(batch, self._shape, "fake")
        call, self._calls = self._calls, self._calls + 1
        if self._sleep:
            time.sleep(self._sleep)
        if self._faults.get("exit_at") == call:
            os._exit(EXIT_STATUS)
        if self._faults.get("fail_at") == call:
            raise EngineFailed(f"fake: call {call} was to fail")
        np.copyto(self._answer, fake_logits(batch, self._answer.shape[1]))
        if self._faults.get("nan_at") == call:
            self._answer[..., 0] = np.nan
        return self._answer

    def run_all(self, batch: FloatArray) -> dict[str, FloatArray]:
        """The one output, a copy."""
        return {"logits": self.run(batch).copy()}

    def close(self) -> None:
        """May be called twice."""
        self._open = False

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shapes(graph: Path, shape: str | None, classes: str | None) -> tuple[tuple[int, ...], int]:
    """Input shape and number of output channels."""
    if shape is not None and classes is not None:
        return tuple(_number(part, "shape") for part in shape.split(",")), _number(classes, "classes")
    spec = _bundle_json(graph)
    if spec is None:
        raise EngineUnavailable(f"fake: no bundle.json near {graph}; say shape and classes in the engine's options")
    try:
        channels = len(spec["channels"]) + len((spec.get("previous_stage") or {"labels": []})["labels"])
        found = (1, channels, *(int(size) for size in spec["patch_size"]))
        regions = spec["labels"].get("regions_class_order")
        outputs = len(spec["labels"]["channel_values"] if regions is None else regions)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"fake: bundle.json near {graph} is damaged: {error!r}") from error
    if shape is not None:
        found = tuple(_number(part, "shape") for part in shape.split(","))
    return found, outputs if classes is None else _number(classes, "classes")


def _bundle_json(graph: Path) -> dict[str, Any] | None:
    for folder in (graph.parent, graph.parent.parent):
        file = folder / "bundle.json"
        if file.is_file():
            try:
                record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise BundleError(f"fake: {file} cannot be read: {error}") from error
            return record
    return None


def _number(text: str, name: str) -> int:
    if not text.strip().isdecimal():
        raise EngineUnavailable(f"fake: {name} is {text!r}, expected whole numbers")
    return int(text)
