"""Evaluate: label maps and references in, nnU-Net's own ``summary.json`` out.

The work is done in :mod:`offline_infer.proof.evaluation`.
"""

from __future__ import annotations

from offline_infer.proof.evaluation.label_maps import evaluate, evaluate_case
from offline_infer.proof.evaluation.options import Evaluation, EvaluationOptions

__all__ = ["Evaluation", "EvaluationOptions", "evaluate", "evaluate_case"]
