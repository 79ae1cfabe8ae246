"""Running a graph that was just written on every engine there is, and comparing the answers with the network's own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import EngineFailed, ExportError, Remedy
from offline_infer.exporting.reference_run import References
from offline_infer.exporting.verification import HALF_MAX, compare, verdict

FloatArray = npt.NDArray[np.float32]

ENGINES = ("openvino", "onnxruntime")
"""Engines that verify an export, where they are installed."""


@dataclass(frozen=True)
class Trial:
    """One graph and what it has to answer.

    Attributes:
        path: the ONNX file.
        fold: how messages call it.
        precision: of the graph.
        outputs: names, the final head first.
        regions: each channel is decided on its own.
        probes: input name -> array (1, c, *patch).
        references: the network's own answers.
    """

    path: Path
    fold: str
    precision: str
    outputs: tuple[str, ...]
    regions: bool
    probes: dict[str, FloatArray]
    references: References


def usable_engines() -> list[str]:
    """Engines that can run here.

    Raises:
        ExportError: none; an export that nobody ran is not verified.
    """
    reasons = {name: get_engine(name).available() for name in ENGINES}
    usable = [name for name, reason in reasons.items() if reason is None]
    if not usable:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        install = Remedy("install-engine")
        raise ExportError(
            f"no engine is available to verify the export with ({told}) {install}", remedy="export-unverified"
        )
    return usable


def compare_engines(trial: Trial, engines: Sequence[str], done: Callable[[str], None]) -> list[dict[str, Any]]:
    """The verification records of the engines, one at a time; for fp16 also of half-precision storage, simulated.

    Args:
        trial: what to run.
        engines: names.
        done: told the name of each engine that agrees.

    Raises:
        ExportError: one does not give the network's answer.
    """
    records = [_half_storage(trial)] if trial.precision == "fp16" else []
    for name in engines:
        records.append(_run_engine(trial, name))
        gc.collect()
        done(name)
    return records


def _run_engine(trial: Trial, name: str) -> dict[str, Any]:
    inputs = {}
    with get_engine(name).open(trial.path, EngineOptions()) as session:
        for probe, image in trial.probes.items():
            try:
                several = len(trial.outputs) > 1
                answers = list(session.run_all(image).values()) if several else [session.run(image)]
            except EngineFailed as error:
                raise ExportError(f"fold {trial.fold}: {error}; nothing was written") from error
            inputs[probe] = _judge(trial, f"{name} {session.info.version}", probe, answers)
        return {
            "engine": name,
            "version": session.info.version,
            "device": session.info.device,
            "arithmetic": "float32" if trial.precision == "fp32" else "float32, with half-precision weights",
            "norms": None if session.info.norms is None else session.info.norms.mode,
            "inputs": inputs,
        }


def _half_storage(trial: Trial) -> dict[str, Any]:
    peak = trial.references.peak
    if peak["value"] > HALF_MAX:
        raise ExportError(
            f"fold {trial.fold}: {peak['module']} gives values up to {peak['value']:.6g}, half precision ends at "
            f"{HALF_MAX:g}",
            remedy=Remedy("export-precision", {"precision": "fp32"}),
        )
    answers = trial.references.half.items()
    return {
        "engine": "torch",
        "version": trial.references.torch,
        "device": "cpu",
        "arithmetic": "float16 between layers, simulated; float32 sums",
        "inputs": {name: _judge(trial, "float16 storage (simulated)", name, [answer]) for name, answer in answers},
    }


def _judge(trial: Trial, engine: str, probe: str, answers: Sequence[FloatArray]) -> dict[str, Any]:
    """The figures of one input: those of the final head, and below their names those of the other heads.

    Raises:
        ExportError: a head differs by more than the precision explains.
    """
    figures: dict[str, Any] = {}
    for name, reference, answer in zip(trial.outputs, trial.references.heads[probe], answers, strict=False):
        result = compare(reference, answer, regions=trial.regions)
        reason = verdict(result, trial.precision)
        if reason is not None:
            raise ExportError(
                f"fold {trial.fold}, {trial.precision}, input {probe!r}, output {name!r}: {engine} does not give the "
                f"checkpoint's answer: {reason}; nothing was written"
            )
        figures |= result.to_json() if name == trial.outputs[0] else {name: result.to_json()}
    return figures
