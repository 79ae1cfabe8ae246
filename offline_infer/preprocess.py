"""Preprocess: images in, a work folder of ``.bin`` items and the worklist that describes them out.

The work is done in :mod:`offline_infer.staging`; what a case is cut into is decided by the model's task.
"""

from __future__ import annotations

from offline_infer.staging.preprocessing import PreprocessJob, preprocess_stage

__all__ = ["PreprocessJob", "preprocess_stage"]
