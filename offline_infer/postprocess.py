"""Postprocess: a work folder with the network's answers in, finished results in the images' own grids out.

The work is done in :mod:`offline_infer.staging`; how answers become a result is decided by the model's task.
"""

from __future__ import annotations

from offline_infer.staging.postprocessing import PostprocessJob, postprocess_stage

__all__ = ["PostprocessJob", "postprocess_stage"]
