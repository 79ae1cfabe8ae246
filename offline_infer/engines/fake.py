"""An engine for tests: no library, no graph, a closed formula, and faults on request.

It is no engine of the product, which would answer patients' images with a formula: it has a name only in a process that
called :func:`register`.

The answer depends on each voxel alone, so tiling, mirroring and averaging must not change it, and what a whole pipeline
should give can be computed with :func:`fake_logits`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from offline_infer.engines.base import (
    ENGINES,
    OPEN,
    AnyArray,
    EngineOptions,
    FloatArray,
    SessionInfo,
    check_batch,
    kept_outputs,
)
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
    computes_float32 = True

    def available(self) -> str | None:
        """Always."""
        return None

    def graph_precision(self, precision: str) -> str:
        """As ONNX Runtime."""
        return "fp16" if precision == "fp16" else "fp32"

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


def register() -> None:
    """Let this process, and no other, open the engine by the name ``fake``."""
    ENGINES[ENGINE.name] = __name__


class FakeSession:
    """A formula behind the interface of an engine."""

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        extra = options.extra
        shape, heads = _shapes(graph, extra.get("shape"), extra.get("classes"))
        self._faults = {name: _number(extra[name], name) for name in ("fail_at", "nan_at", "exit_at") if name in extra}
        self._sleep = float(extra.get("sleep", 0))
        self._shape = shape
        self._heads = heads
        names = tuple(heads)
        self._kept = tuple(names[index] for index in kept_outputs(names, options, ENGINE.name))
        self._lock = threading.Lock()
        self._calls = 0
        self._open = True
        self.info = SessionInfo(
            engine=ENGINE.name,
            version="1",
            device=options.device,
            precision=options.precision,
            input_shape=shape,
            output_names=names,
            kept=self._kept,
            threads=options.threads,
        )

    def answer(self, batch: FloatArray) -> dict[str, AnyArray]:
        """:func:`fake_logits` of the batch for every kept output.

        Raises:
            EngineFailed: a wrong input, or ``fail_at``.
        """
        return self._answers(batch, self._kept)

    def run(self, batch: FloatArray) -> FloatArray:
        """The first kept output."""
        return self._answers(batch, self._kept[:1])[self._kept[0]]

    def run_all(self, batch: FloatArray) -> dict[str, AnyArray]:
        """All outputs by name."""
        return self._answers(batch, tuple(self._heads))

    def _answers(self, batch: FloatArray, names: tuple[str, ...]) -> dict[str, AnyArray]:
        if not self._open:
            raise EngineFailed("fake: the session is closed")
        check_batch(batch, self._shape, "fake")
        with self._lock:
            call, self._calls = self._calls, self._calls + 1
        if self._sleep:
            time.sleep(self._sleep)
        if self._faults.get("exit_at") == call:
            os._exit(EXIT_STATUS)
        if self._faults.get("fail_at") == call:
            raise EngineFailed(f"fake: call {call} was to fail")
        answers = {name: fake_logits(batch, self._heads[name]) for name in names}
        if self._faults.get("nan_at") == call:
            for answer in answers.values():
                answer[..., 0] = np.nan
        return answers

    def close(self) -> None:
        """May be called twice."""
        self._open = False

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shapes(graph: Path, shape: str | None, classes: str | None) -> tuple[tuple[int, ...], dict[str, int]]:
    """Input shape, and the channels of every output by its name.

    A bundle of a volume model gives both; for other tasks the options say the shape, ``outputs`` in bundle.json the rest.
    """
    given = None if shape is None else tuple(_number(part, "shape") for part in shape.split(","))
    spec = None if given is not None and classes is not None else _bundle_json(graph)
    if spec is None:
        if given is None or classes is None:
            raise EngineUnavailable(f"fake: no bundle.json near {graph}; say shape and classes in the engine's options")
        return given, {"logits": _number(classes, "classes")}
    try:
        if given is None:
            channels = len(spec["channels"]) + len((spec.get("previous_stage") or {"labels": []})["labels"])
            given = (1, channels, *(int(size) for size in spec["patch_size"]))
        if classes is not None:
            return given, {"logits": _number(classes, "classes")}
        if spec.get("outputs"):
            return given, {str(output["name"]): int(output["shape"][1]) for output in spec["outputs"]}
        regions = spec["labels"].get("regions_class_order")
        return given, {"logits": len(spec["labels"]["channel_values"] if regions is None else regions)}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BundleError(f"fake: bundle.json near {graph} is damaged: {error!r}") from error


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
    if not text.strip().isdecimal() and (name, text) != ("shape", str(OPEN)):
        raise EngineUnavailable(f"fake: {name} is {text!r}, expected whole numbers")
    return int(text)
