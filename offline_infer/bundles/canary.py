"""A canary: a few recorded values of the checkpoint's own answer to one reproducible input, asked again where a bundle runs.

A verification at export says nothing about another machine's processor, driver or library. The canary asks the engine that
is about to be used for an answer that is known, and refuses the engine, with the figure, if it differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from offline_infer.bundles.bundle import Bundle
from offline_infer.engines.base import Session
from offline_infer.errors import BundleError, EngineUnavailable
from offline_infer.spec import Record, Sha256

FloatArray = npt.NDArray[np.float32]

KEY = "canary"
"""Where the record stands in a graph's verification record."""
TOLERANCE = 1e-3
"""float32 on both sides: largest difference allowed, relative to the largest recorded value (or to 1, if that is larger)."""
REDUCED_TOLERANCE = 0.1
"""Reduced precision: largest Euclidean distance from the recorded values allowed, relative to their norm."""

_OPEN_SIZE = 64  # used where the graph takes any size
_MOST_VALUES = 1024
_FEWEST_POINTS, _MOST_POINTS = 8, 64


class Sample(Record):
    """Recorded values of one output (1, k, *sizes): ``values[i]`` are the k values at the flat spatial index ``points[i]``."""

    shape: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=3)
    points: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, max_length=4096)
    values: tuple[tuple[float, ...], ...]


class Canary(Record):
    """``input_shape`` with ``seed`` gives the input, ``input_sha256`` is that of its bytes; ``outputs``: name -> sample."""

    seed: int
    input_shape: tuple[Annotated[int, Field(gt=0)], ...]
    input_sha256: Sha256
    outputs: dict[str, Sample] = Field(min_length=1)


@dataclass(frozen=True)
class CanaryResult:
    """How an engine's answer differs from the recorded one.

    Attributes:
        fold, engine: what was asked.
        difference, allowed: ``measure`` of the difference, and how much of it is allowed.
        measure: ``max |difference|`` or ``relative distance``.
        values: how many were compared.
    """

    fold: str
    engine: str
    measure: str
    difference: float
    allowed: float
    values: int

    @property
    def passed(self) -> bool:
        """Whether the engine gives the recorded answer; False for NaN."""
        return self.difference <= self.allowed

    def __str__(self) -> str:
        return (
            f"fold {self.fold} on {self.engine}: {self.measure} {self.difference:.3g} over {self.values} recorded values, "
            f"allowed {self.allowed:.3g}"
        )


def canary_input(shape: Sequence[int], seed: int = 0) -> FloatArray:
    """Standard normal numbers, float32, the same for the same shape and seed; open sizes (-1) become 64."""
    fixed = tuple(size if size > 0 else _OPEN_SIZE for size in shape)
    return np.random.default_rng(seed).standard_normal(fixed, dtype=np.float32)


def make_canary(image: FloatArray, answers: Mapping[str, FloatArray], seed: int = 0) -> dict[str, Any]:
    """The record to keep under ``verification["canary"]``.

    Args:
        image: what :func:`canary_input` gave for ``seed``.
        answers: output name -> the checkpoint's own answer (1, k, *sizes) to it.
    """
    canary = Canary(
        seed=seed,
        input_shape=image.shape,
        input_sha256=_digest(image),
        outputs={name: _sample(answer, seed) for name, answer in answers.items()},
    )
    return canary.model_dump()


def recorded_canary(bundle: Bundle, fold: str, precision: str) -> Canary | None:
    """The canary of a fold's graph; None where the bundle was exported without one.

    Raises:
        BundleError: the record is damaged.
    """
    record = (bundle.graph(fold, precision).verification or {}).get(KEY)
    if record is None:
        return None
    try:
        return Canary.model_validate(record)
    except ValidationError as error:
        raise BundleError(
            f"{bundle.name}: the canary of fold {fold} is damaged ({error.error_count()} faults); export the bundle again"
        ) from error


def ask_canary(bundle: Bundle, fold: str, precision: str, session: Session) -> CanaryResult | None:
    """Compare an opened graph's answer with the recorded one.

    Args:
        precision: of the graph that was opened, as the engine's ``graph_precision`` says.

    Returns:
        The comparison; None where the bundle has no canary, or not for an output the session keeps.

    Raises:
        BundleError: the record is damaged, or this NumPy draws other numbers than the one it was recorded with.
        EngineFailed: the engine failed.
    """
    canary = recorded_canary(bundle, fold, precision)
    if canary is None or not set(canary.outputs) & set(session.info.kept):
        return None
    image = canary_input(canary.input_shape, canary.seed)
    if _digest(image) != canary.input_sha256:
        raise BundleError(
            f"{bundle.name}: the canary's input cannot be made here: NumPy {np.__version__} draws other random numbers"
        )
    answers = session.answer(image)
    recorded, found = [], []
    for name, sample in canary.outputs.items():
        if name not in answers:
            continue
        if answers[name].shape != sample.shape:
            raise BundleError(f"{bundle.name}: {name} has shape {answers[name].shape}, recorded {sample.shape}")
        recorded.append(np.asarray(sample.values, np.float64).ravel())
        found.append(_at(answers[name], sample.points).astype(np.float64).ravel())
    full = bundle.graph(fold, precision).precision == "fp32" and session.info.precision == "fp32"
    info = session.info
    return _compare(np.concatenate(recorded), np.concatenate(found), full, fold, f"{info.engine} {info.version}")


def require_canary(bundle: Bundle, fold: str, precision: str, session: Session) -> CanaryResult | None:
    """Like :func:`ask_canary`, and refuse an engine that gives another answer.

    Raises:
        EngineUnavailable: the answer differs by more than is allowed; the message holds the figure.
    """
    result = ask_canary(bundle, fold, precision, session)
    if result is not None and not result.passed:
        raise EngineUnavailable(
            f"{bundle.name}: this machine does not give the bundle's recorded answer: {result}; use another engine or "
            "precision, and report it"
        )
    return result


def _compare(recorded: npt.NDArray[Any], found: npt.NDArray[Any], full: bool, fold: str, engine: str) -> CanaryResult:
    gap = found - recorded
    if full:
        allowed = TOLERANCE * max(1.0, float(np.abs(recorded).max()))
        return CanaryResult(fold, engine, "max |difference|", float(np.abs(gap).max()), allowed, recorded.size)
    distance = float(np.linalg.norm(gap)) / max(float(np.linalg.norm(recorded)), 1e-12)
    return CanaryResult(fold, engine, "relative distance", distance, REDUCED_TOLERANCE, recorded.size)


def _sample(answer: FloatArray, seed: int) -> Sample:
    """Values at points drawn at random, the same for the same shape and seed."""
    channels, voxels = answer.shape[1], int(np.prod(answer.shape[2:]))
    wanted = min(max(_MOST_VALUES // channels, _FEWEST_POINTS), _MOST_POINTS, voxels)
    points = np.sort(np.random.default_rng([seed, 1]).choice(voxels, size=wanted, replace=False))
    picked = tuple(int(point) for point in points)
    values = tuple(tuple(float(value) for value in row) for row in _at(answer, picked))
    return Sample(shape=answer.shape, points=picked, values=values)


def _at(answer: npt.NDArray[Any], points: Sequence[int]) -> npt.NDArray[Any]:
    """(1, k, *sizes) -> (points, k)."""
    flat = answer.reshape(answer.shape[1], -1)
    if max(points) >= flat.shape[1]:
        raise BundleError(f"a canary's point lies outside the output of shape {answer.shape}; export the bundle again")
    return flat[:, list(points)].T


def _digest(image: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()
