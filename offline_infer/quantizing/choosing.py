"""Which layers become INT8: as many as the budget allows, the ones that hurt least first.

All convolutions in INT8 are tried first, with activations dithered and without. Where that is too much, every layer of some size
is tried alone: the power of the error it puts into the probabilities, which counts where a decision is near and not where logits
are large anyway. Those that make up most of the error are tried alone with a dither as well, which takes nearly all of it away
in one layer and adds to it in another. Errors of different layers are nearly independent, so their powers add up; the layers
with the largest error a multiplication are the ones to leave out, and how many of them have to stay in floating point is found
by halving the interval, each time measured with all the others in INT8.

A trial answers a few inputs, which costs little and turns away most; what passes them has to agree on whole cases as well, for
those are what judges look at in the end, the worst of them and not the mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.base import EngineOptions, Session, get_engine
from offline_infer.errors import OfflineInferError
from offline_infer.graph import save_model
from offline_infer.graph.model import Model
from offline_infer.graph.quantized import Convolution, Rounding, quantized
from offline_infer.quantizing.judging import comparing
from offline_infer.scratch import scratch_folder
from offline_infer.tasks.base import Answers, Task

FloatArray = npt.NDArray[np.float32]
_RESERVE = 0.6
"""Share of the budget that is used up where layers are chosen: the judges are other cases, and the worst of them counts. In
four runs the worst judge was 1.3 to 1.6 times as far from float32 as the worst case that had a part in the choice."""
_SMALL = 0.005
"""Of the multiplications: a layer with less is not tried alone, for in floating point it costs next to nothing."""
_UNFIT = float(np.finfo(np.float32).max)  # error of answers that cannot be compared
_ALONE = 2  # inputs a layer is tried alone on
_NOTICED = 0.95  # of the sum of the errors: the layers with it are tried with a dither as well


@dataclass(frozen=True)
class Trial:
    """What a graph with some layers in INT8 gave.

    Attributes:
        agreement: with float32, from 0 to 1: Dice of the foreground, or the share of equal decisions where a model has none;
            None where float32 finds nothing. Where whole cases were run too, the lowest of them if that is lower.
        error: mean square of the change of the probabilities.
        seconds: the fastest input.
        judged: all figures of the task's comparison.
        worst_case: the whole case that ``agreement`` is of; None where it is of the inputs.
    """

    agreement: float | None
    error: float
    seconds: float
    judged: Mapping[str, Any] = field(default_factory=dict)
    worst_case: str | None = None


WholeCases = Callable[[Session], Mapping[str, float]]
"""Runs whole cases with an opened graph: case -> Dice to float32's result, without the cases where nothing is found."""


class Trials:
    """Tries graphs on inputs whose float32 answers are known.

    Args:
        model: the float32 graph.
        options: of the engine, without precision.
        inputs: (1, c, ...) each.
        whole_cases: for what passes the inputs.
    """

    def __init__(
        self,
        model: Model,
        roundings: Mapping[str, Rounding],
        task: Task,
        spec: Any,
        engine: str,
        options: EngineOptions,
        inputs: Sequence[FloatArray],
        float_graph: Path,
        whole_cases: WholeCases,
    ) -> None:
        self._model, self._roundings, self._task, self._spec = model, roundings, task, spec
        self._compares = comparing(task)
        self._engine, self._options, self._inputs = get_engine(engine), options, inputs
        self._float_graph, self._whole_cases = float_graph, whole_cases
        self._alone: dict[tuple[str, bool], float] = {}
        with self._engine.open(float_graph, options) as session:
            self._reference, self.float_seconds = _answers(session, inputs)

    def run(
        self, chosen: Collection[str], promising: Callable[[Trial], bool], *, dithered: Collection[str], around: str
    ) -> Trial:
        """Answers with these layers in INT8; whole cases as well where the trial on the inputs is promising.

        Args:
            dithered: which of them have their activation dithered.
            around: precision of what is not in INT8.
        """
        with self._opened(chosen, dithered, around) as session:
            trial = self._compare(session, self._inputs)
            if not promising(trial):
                return trial
            found = self._whole_cases(session)
        worst = min(found, key=lambda case: found[case], default=None)
        if worst is None or (trial.agreement is not None and trial.agreement <= found[worst]):
            return trial
        return replace(trial, agreement=found[worst], worst_case=worst)

    def error_alone(self, name: str, *, dithered: bool) -> float:
        """Power of the error that one layer in INT8 puts into the probabilities of the first inputs; measured once."""
        if (name, dithered) not in self._alone:
            with self._opened([name], [name] if dithered else [], "fp32") as session:
                self._alone[name, dithered] = self._compare(session, self._inputs[:_ALONE]).error
        return self._alone[name, dithered]

    @contextmanager
    def _opened(self, chosen: Collection[str], dithered: Collection[str], around: str) -> Iterator[Session]:
        options = replace(self._options, precision="int8", around=around)
        with scratch_folder("quantize") as folder:
            path = folder / "trial.onnx"
            save_model(quantized(self._model, self._roundings, chosen, dithered=dithered), path)
            with self._engine.open(path, options) as session:
                yield session

    def float_graph(self, precision: str) -> Trial | None:
        """The float graph in another precision of the engine, to compare with; None where the engine or the machine lacks it."""
        try:
            with self._engine.open(self._float_graph, replace(self._options, precision=precision)) as session:
                return self._compare(session, self._inputs)
        except OfflineInferError:
            return None

    def _compare(self, session: Session, inputs: Sequence[FloatArray]) -> Trial:
        answers, seconds = _answers(session, inputs)
        reference = self._reference[: len(inputs)]
        judged = self._task.judge(answers, reference, self._spec)
        change = self._compares.change(answers, reference, self._spec) if _comparable(judged) else _UNFIT
        return Trial(agreement_of(judged), change, seconds, judged)


@dataclass(frozen=True)
class Choice:
    """Layers that become INT8, and how that was found.

    Attributes:
        chosen: names of convolutions.
        share: of the multiplications of all convolutions that are in INT8.
        whole: the trial with every convolution in INT8. final: the one with the chosen ones; None where none is chosen.
        dithered: those of them whose activation is rounded with a pattern added.
        sensitivity: convolution -> error it causes alone; without small ones, and empty where it was not needed.
        failed: the trial with the fewest layers in INT8 that was still too much, and their share of the multiplications.
    """

    chosen: tuple[str, ...]
    share: float
    whole: Trial
    final: Trial | None
    dithered: frozenset[str] = frozenset()
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    failed: tuple[float, Trial] | None = None


def target_of(min_agreement: float) -> float:
    """The agreement wanted where layers are chosen, for a budget that holds for the judges."""
    return 1 - _RESERVE * (1 - min_agreement)


def choose(
    found: Sequence[Convolution], trials: Trials, min_agreement: float, around: str, tell: Callable[[int, int], None]
) -> Choice:
    """The layers to quantize.

    Args:
        found: convolutions that may be.
        min_agreement: budget for the agreement with float32 on whole cases.
        around: precision of what is not in INT8.
        tell: called with (trials done, trials in all).
    """
    target = target_of(min_agreement)
    names = tuple(each.name for each in found)

    def tried(chosen: Sequence[str], dithered: Collection[str]) -> Trial:
        return trials.run(chosen, lambda trial: reaches(trial, target), dithered=dithered, around=around)

    wholes = []
    for dithered in (frozenset[str](), frozenset(names)):
        wholes.append(tried(names, dithered))
        if wholes[-1].agreement is None or reaches(wholes[-1], target):
            return Choice(names, 1.0, wholes[-1], wholes[-1], dithered)
    whole = min(wholes, key=lambda trial: trial.error)
    total = max(sum(each.products for each in found), 1)
    large = [each.name for each in found if each.products >= _SMALL * total]
    steps = 2 * len(large) + len(names).bit_length()
    alone, dithered = _errors_alone(large, trials, lambda done: tell(done, steps))
    # Small ones first, then the worst bargain: most error for the multiplications it saves.
    order = sorted(found, key=lambda each: alone.get(each.name, math.inf) / max(each.products, 1), reverse=True)
    known: dict[int, Trial] = {0: whole}

    def suffices(left_out: int) -> bool:
        known[left_out] = tried([each.name for each in order[left_out:]], dithered)
        tell(2 * len(large) + len(known) - 1, steps)
        return reaches(known[left_out], target)

    left_out = _fewest(len(order), suffices)
    failed = max(number for number in known if number < left_out)

    def share(number: int) -> float:
        return sum(each.products for each in order[number:]) / total

    chosen = {each.name for each in order[left_out:]}
    return Choice(
        tuple(name for name in names if name in chosen),
        share(left_out),
        whole,
        known.get(left_out),
        dithered & chosen,
        alone,
        (share(failed), known[failed]),
    )


def _errors_alone(
    names: Sequence[str], trials: Trials, tell: Callable[[int], None]
) -> tuple[dict[str, float], frozenset[str]]:
    """What each layer changes alone, rounded in the better way, and the layers for which that is with a dither."""
    alone: dict[str, float] = {}
    for done, name in enumerate(names, 1):
        alone[name] = trials.error_alone(name, dithered=False)
        tell(done)
    dithered = set()
    plain = math.fsum(alone.values())
    seen = 0.0
    for done, name in enumerate(sorted(names, key=lambda name: -alone[name]), len(names) + 1):
        if seen >= _NOTICED * plain:
            break
        seen += alone[name]
        if (error := trials.error_alone(name, dithered=True)) < alone[name]:
            alone[name] = error
            dithered.add(name)
        tell(done)
    return alone, frozenset(dithered)


def reaches(trial: Trial, target: float) -> bool:
    """Whether a trial agrees with float32 well enough."""
    return trial.agreement is not None and trial.agreement >= target


def agreement_of(judged: Mapping[str, Any]) -> float | None:
    """One figure from 0 to 1 of a task's comparison; None where float32 finds nothing that could be missed."""
    if not _comparable(judged):
        return 0.0
    if "foreground_dice" in judged:
        dice = judged["foreground_dice"]
        return None if dice is None else float(dice)
    decisions = judged.get("voxels") or 0
    if not decisions:
        return 1.0 if judged["status"] == "ok" else 0.0
    return 1.0 - float(judged.get("flips", 0)) / float(decisions)


def _comparable(judged: Mapping[str, Any]) -> bool:
    """Whether the answers are any at all: no NaN, nothing missing."""
    return judged["status"] == "ok" or "voxels" in judged


def _fewest(most: int, suffices: Callable[[int], bool]) -> int:
    """The smallest number that suffices, found by halving: 0 is known not to, and ``most`` is taken to."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def _answers(session: Session, inputs: Sequence[FloatArray]) -> tuple[list[Answers], float]:
    """The answer to every input, and the seconds of the fastest."""
    answers: list[Answers] = []
    seconds = []
    for batch in inputs:
        start = time.perf_counter()
        answer = session.answer(batch)
        seconds.append(time.perf_counter() - start)
        answers.append({name: array.copy() for name, array in answer.items()})
    return answers, min(seconds)
