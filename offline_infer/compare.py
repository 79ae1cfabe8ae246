"""Compare: two folders of predictions (or two arrays) in, where and by how much they differ out.

The work is done in :mod:`offline_infer.proof.comparison`.
"""

from __future__ import annotations

from offline_infer.proof.comparison.label_maps import compare_folders

__all__ = ["compare_folders"]
