"""The signal task: a text file of numbers is cut into windows, and every window votes for a class."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offline_infer.errors import EngineFailed, ImageError, UsageError
from offline_infer.files import write_json
from offline_infer.images.cases import CaseFiles, CaseList
from offline_infer.spec import BundleSpec
from offline_infer.tasks.base import EvaluationRequest, PreviousStage
from offline_infer.tasks.settings import RunSettings
from signal_task.options import OPTIONS, VOTE


class SignalSpec(BundleSpec):
    """A signal model: ``window`` samples in, a score per class and sample out."""

    task: Literal["signal"] = "signal"
    window: int
    classes: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, 1, self.window)


@dataclass(frozen=True)
class SignalGeometry:
    """How many samples there were."""

    samples: int

    def to_json(self) -> dict[str, Any]:
        return {"samples": self.samples}


@dataclass(frozen=True)
class Signal:
    """A loaded, or prepared, signal (n,)."""

    samples: np.ndarray
    geometry: SignalGeometry

    def emptied(self) -> Signal:
        return Signal(np.empty(0, np.float32), self.geometry)


@dataclass(frozen=True)
class Windows:
    """The layout: one group and one item a window."""

    samples: int
    window: int
    per_group: int = 1

    @property
    def groups(self) -> int:
        return math.ceil(self.samples / self.window)

    @property
    def extent(self) -> tuple[int, ...]:
        return (self.samples,)

    def shape(self, group: int) -> tuple[int, ...]:
        return (1, self.window)

    def record(self, group: int, position: int) -> dict[str, Any]:
        return {"mode": "window", "start": group * self.window}

    def name(self, group: int, position: int) -> str:
        return str(group * self.window)


class WindowCutter:
    def __init__(self, samples: np.ndarray, layout: Windows) -> None:
        self._samples, self._layout = samples, layout
        self._batch = np.zeros((1, 1, layout.window), np.float32)

    def load(self, group: int) -> tuple[int, ...] | None:
        first = group * self._layout.window
        part = self._samples[first : first + self._layout.window]
        self._batch[...] = 0
        self._batch[0, 0, : len(part)] = part
        return None

    def input(self, position: int) -> np.ndarray:
        return self._batch


@dataclass
class VoteCollector:
    geometry: SignalGeometry
    spec: SignalSpec
    vote: str
    votes: list[np.ndarray] = field(default_factory=list)

    def take(self, group: int, position: int, fold: int, answers: Mapping[str, np.ndarray]) -> None:
        (scores,) = answers.values()
        if not np.isfinite(scores).all():
            raise EngineFailed(f"window {group} holds NaN")
        self.votes.append(scores[0].mean(axis=1))

    def finish(self) -> dict[str, Any]:
        scores = np.stack(self.votes)
        joined = scores.mean(axis=0) if self.vote == "mean" else scores.max(axis=0)
        return {"label": self.spec.classes[int(joined.argmax())], "scores": [float(value) for value in joined]}


@dataclass(frozen=True)
class SignalScores:
    summary: dict[str, Any] | None
    failed: Mapping[str, str]
    total: int

    def to_json(self) -> dict[str, Any]:
        return {"summary": self.summary}

    def table(self) -> str:
        return "" if self.summary is None else f"accuracy {self.summary['accuracy']:.3f}"


class SignalTask:
    name = "signal"
    spec_type = SignalSpec
    label_maps = False
    options = OPTIONS

    def list_cases(self, source: Path, spec: SignalSpec) -> CaseList:
        files = [source] if source.is_file() else sorted(source.glob("*.txt"))
        if not files:
            raise UsageError(f"{source}: no .txt signals")
        return CaseList(tuple(CaseFiles(path.stem, (path,)) for path in files))

    def sources(self, case: CaseFiles, spec: SignalSpec, previous_folder: Path | None) -> tuple[Path, ...]:
        return case.channels

    def read_frame(self, case: CaseFiles, spec: SignalSpec) -> SignalGeometry:
        return self.read(case, spec).geometry

    def read(self, case: CaseFiles, spec: SignalSpec) -> Signal:
        try:
            samples = np.array([float(line) for line in case.channels[0].read_text().split()], np.float32)
        except (OSError, ValueError) as error:
            raise ImageError(f"{case.channels[0]}: not a signal ({error})") from error
        return Signal(samples, SignalGeometry(len(samples)))

    def load(self, source: Any, spec: SignalSpec) -> Signal:
        return source if isinstance(source, Signal) else self.read(CaseFiles("x", (Path(source),)), spec)

    def previous(self, case: CaseFiles | None, loaded: Signal, spec: SignalSpec, stage: PreviousStage) -> None:
        return None

    def prepare(self, loaded: Signal, spec: SignalSpec, previous: Any, *, threads: int, consume: bool) -> Signal:
        return loaded

    def item_settings(self, spec: SignalSpec, settings: RunSettings) -> dict[str, Any]:
        return {}

    def with_item_settings(self, settings: RunSettings, chosen: Mapping[str, Any]) -> RunSettings:
        return settings

    def geometry_from_json(self, record: Mapping[str, Any], spec: SignalSpec) -> SignalGeometry:
        return SignalGeometry(record["samples"])

    def layout(self, geometry: SignalGeometry, spec: SignalSpec, settings: RunSettings) -> Windows:
        return Windows(geometry.samples, spec.window)

    def expected_layout(self, case: CaseFiles, spec: SignalSpec, settings: RunSettings, *, exact: bool) -> Windows:
        return self.layout(self.read_frame(case, spec), spec, settings)

    def cutter(self, prepared: Signal, layout: Windows, spec: SignalSpec, team: Any) -> WindowCutter:
        return WindowCutter(prepared.samples, layout)

    def collector(
        self, geometry: SignalGeometry, spec: SignalSpec, settings: RunSettings, folds: int, *, team: Any, allocate: Any
    ) -> VoteCollector:
        return VoteCollector(geometry, spec, settings.option(VOTE))

    def run_on_device(self, *arguments: Any, **options: Any) -> None:
        return None

    def estimate_memory(self, *arguments: Any, **options: Any) -> None:
        return None

    def answer(self, result: dict[str, Any], spec: SignalSpec) -> dict[str, Any]:
        return result

    def result_files(self, folder: Path, case_id: str, spec: SignalSpec, settings: RunSettings) -> list[Path]:
        return [folder / f"{case_id}.json"]

    def write(
        self, result: dict[str, Any], folder: Path, case_id: str, spec: SignalSpec, settings: RunSettings
    ) -> Path:
        path = folder / f"{case_id}.json"
        write_json(path, result)
        return path

    def write_shared_files(
        self, folder: Path, spec: SignalSpec, shares: Mapping[int, Sequence[str]], parts: int
    ) -> Sequence[str]:
        return ()

    def describe(self, result: dict[str, Any], spec: SignalSpec) -> dict[str, Any]:
        return {"label": result["label"]}

    def evaluate(self, request: EvaluationRequest, spec: SignalSpec | None, sink: Any) -> SignalScores:
        references = json.loads(request.references.read_text())
        right, failed = 0, {}
        for case, label in references.items():
            path = request.predictions / f"{case}.json"
            if not path.exists():
                failed[case] = "no prediction"
                continue
            right += json.loads(path.read_text())["label"] == label
        summary = {"accuracy": right / max(len(references) - len(failed), 1)}
        if request.output is not None:
            write_json(request.output, summary)
        return SignalScores(summary, failed, len(references))

    def draw(self, *arguments: Any) -> None:
        raise UsageError("signals are not drawn")

    def sample_inputs(self, case: CaseFiles | None, spec: SignalSpec, count: int, threads: int) -> list[np.ndarray]:
        return [np.random.default_rng(seed).normal(size=spec.input_shape).astype(np.float32) for seed in range(count)]

    def judge(self, answers: Sequence[Any], reference: Sequence[Any] | None, spec: SignalSpec) -> dict[str, Any]:
        return {"status": "ok"}


TASK = SignalTask()
