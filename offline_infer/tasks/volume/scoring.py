"""Scoring label maps against references, as nnU-Net's own evaluation does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from offline_infer.errors import UsageError
from offline_infer.events import Sink
from offline_infer.proof.evaluation.label_maps import evaluate
from offline_infer.proof.evaluation.labels import Format, label_key, labels_of_bundle
from offline_infer.proof.evaluation.options import Evaluation, EvaluationOptions
from offline_infer.proof.evaluation.tables import dice_table, format_table
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.base import EvaluationRequest


@dataclass(frozen=True)
class LabelMapScores:
    """An evaluation of label maps, as every task gives its scores."""

    evaluation: Evaluation

    @property
    def summary(self) -> dict[str, Any] | None:
        return self.evaluation.summary

    @property
    def failed(self) -> Mapping[str, str]:
        return self.evaluation.failed

    def table(self) -> str:
        """Dice per case and label."""
        if self.evaluation.summary is None:
            return ""
        names = {label_key(value): name for value, name in self.evaluation.labels.names.items()}
        return format_table(dice_table(self.evaluation.summary), names=names)


def evaluate_label_maps(request: EvaluationRequest, spec: VolumeSpec | None, sink: Sink) -> LabelMapScores:
    """Evaluate folders or files; options are the fields of :class:`EvaluationOptions`.

    Args:
        spec: of the model; its labels and regions are evaluated in its framework's own layout unless the options say else.

    Raises:
        UsageError: see :func:`evaluate`, or an unknown option.
    """
    given = dict(request.options)
    legal = [field.name for field in fields(EvaluationOptions)]
    unknown = sorted(set(given) - set(legal))
    if unknown:
        raise UsageError(f"evaluation options {', '.join(unknown)} are unknown; legal: {', '.join(legal)}")
    if spec is not None:
        layout: Format = "nnunet-v2" if spec.source.framework == "nnunet_v2" else "nnunet-v1"
        given.setdefault("format", layout)
        given.setdefault("labels", labels_of_bundle(spec.labels, given["format"]))
    options = EvaluationOptions(**given)
    return LabelMapScores(evaluate(request.predictions, request.references, options, output=request.output, sink=sink))
