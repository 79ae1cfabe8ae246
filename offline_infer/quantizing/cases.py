"""Which cases serve for what: a case that judges has no part in anything that came before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import UsageError
from offline_infer.images.cases import CaseFiles, CaseList
from offline_infer.tasks.base import Task

FloatArray = npt.NDArray[np.float32]
_MOST_CALIBRATING = 8  # cases


@dataclass(frozen=True)
class Roles:
    """Cases by what they are used for.

    Attributes:
        calibration: their inputs give the ranges of the activations.
        choosing: their inputs tell which layers may be INT8; whole cases of both kinds have to agree as well.
        judges: whole cases that are looked at once, at the end.
    """

    calibration: tuple[CaseFiles, ...]
    choosing: tuple[CaseFiles, ...]
    judges: tuple[CaseFiles, ...]

    @property
    def known(self) -> tuple[CaseFiles, ...]:
        """The cases that do not judge."""
        return (*self.calibration, *self.choosing)

    def to_json(self) -> dict[str, list[str]]:
        """The cases' names."""
        return {name: [case.case_id for case in cases] for name, cases in self.__dict__.items()}


def share_out(cases: Sequence[CaseFiles]) -> Roles:
    """Share the cases among the roles, at least half of them as judges; the same cases are shared alike.

    Raises:
        UsageError: fewer than three.
    """
    if len(cases) < 3:
        raise UsageError(
            f"{len(cases)} cases: expected at least three, one to calibrate on, one to choose the layers on and one that "
            "judges unseen"
        )
    each = min(max(len(cases) // 4, 1), _MOST_CALIBRATING)
    ordered = sorted(cases, key=lambda case: case.case_id)
    return Roles(tuple(ordered[:each]), tuple(ordered[each : 2 * each]), tuple(ordered[2 * each :]))


def inputs_of(task: Task, spec: Any, cases: Sequence[CaseFiles], count: int, threads: int) -> list[FloatArray]:
    """Inputs of the network (1, c, ...) from some cases, at most ``count``, as evenly from each as there are.

    Raises:
        CaseError: a case cannot be read, or does not fit the model.
        UsageError: there is none.
    """
    each = -(-count // len(cases))
    found = [task.sample_inputs(case, spec, each, threads) for case in cases]
    inputs = [item for item in chain.from_iterable(zip_longest(*found)) if item is not None][:count]
    if not inputs:
        raise UsageError(f"no inputs for the network in {', '.join(case.case_id for case in cases[:5])}")
    return inputs


def all_usable(found: CaseList) -> CaseList:
    """The cases.

    Raises:
        UsageError: one of them cannot be used; a proof on the rest would hide it.
    """
    if found.problems:
        case, reason = next(iter(sorted(found.problems.items())))
        raise UsageError(f"{len(found.problems)} cases cannot be used; {case}: {reason}")
    return found
