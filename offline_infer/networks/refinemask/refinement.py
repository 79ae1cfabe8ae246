"""Boundary-aware refinement: a finer mask replaces a coarser one only near the coarser one's boundary.

Source: Zhang et al., RefineMask (2021), section 3.3, as the authors' code applies it at test time: on logits, and from
the second stage on.
"""

from __future__ import annotations

from torch import Tensor, where
from torch.nn import functional


def refine(stages: list[Tensor]) -> Tensor:
    """The final logits.

    Args:
        stages: logits (n, 1, s, s) of every stage, each twice the size of the one before; the first is not used.

    Returns:
        (n, 1, s, s) of the last stage's size.
    """
    refined = stages[1]
    for finer in stages[2:]:
        refined = where(far_from_boundary(refined), enlarged(refined), finer)
    return refined


def far_from_boundary(logits: Tensor) -> Tensor:
    """Where, at twice the size, a mask keeps the coarser answer."""
    boundary = boundary_of((logits >= 0).to(logits.dtype))
    return enlarged(1 - boundary) >= 0.5


def boundary_of(mask: Tensor) -> Tensor:
    """Pixels of a mask of zeros and ones (n, 1, y, x) that differ from one of their eight neighbours, as zeros and ones.

    Outside counts as background, so that a mask's pixels at the frame are boundary.
    """
    dilated = functional.max_pool2d(functional.pad(mask, (1, 1, 1, 1)), 3, 1)
    eroded = 1 - functional.max_pool2d(functional.pad(1 - mask, (1, 1, 1, 1), value=1.0), 3, 1)
    return dilated - eroded


def enlarged(x: Tensor) -> Tensor:
    """Twice the size, bilinear, the corner pixels' centres staying at the corners."""
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
