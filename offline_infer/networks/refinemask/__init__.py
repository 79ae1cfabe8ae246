"""RefineMask in plain torch, with the parameter names of the published checkpoints. torch is imported by the modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offline_infer.checkpoints.mmdet.settings import RefineMaskSettings
    from offline_infer.networks.refinemask.detector import RefineMask

__all__ = ["build_refinemask"]


def build_refinemask(settings: RefineMaskSettings) -> RefineMask:
    """The detector in evaluation mode, its weights not yet loaded."""
    from offline_infer.networks.refinemask.detector import RefineMask

    network = RefineMask(settings)
    network.eval()
    return network
