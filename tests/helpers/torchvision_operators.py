"""torchvision beside a torch it was not built for: its two operators that a Mask R-CNN needs, defined in Python.

torchvision registers properties of its compiled operators when it is imported, and fails where they do not exist. Here they
exist before that, with this project's own RoIAlign and suppression behind them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from offline_infer.networks.refinemask import operators

DEFINED: list[Any] = []
"""Libraries of operators defined here, which vanish with them; empty where torchvision's own are loaded."""


def import_torchvision() -> Any:
    """torchvision; skips the test where it is not installed."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        pytest.skip("torchvision is not installed")
    if not DEFINED and not _compiled(Path(found.origin).parent):
        _define()
    import torchvision
    import torchvision.ops

    if DEFINED:
        # It found none of its compiled operators; from here on the defined ones count.
        for name in ("torchvision.extension", "torchvision.ops.roi_align"):
            vars(sys.modules[name])["_has_ops"] = _has_ops
    return torchvision


def _compiled(package: Path) -> bool:
    """Load torchvision's compiled operators, as it does itself; whether they fit this torch.

    Definitions of our own must not come first where they do: a second definition of an operator ends the process.
    """
    try:
        for library in package.glob("_C*"):
            torch.ops.load_library(str(library))
            return True
    except (ImportError, OSError):
        pass
    return False


def _has_ops() -> bool:  # compiled by torch along with those that call it, so no lambda
    return True


def _define() -> None:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor"
    )
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # registered, never called
    library.impl("nms", lambda d, s, iou: operators._suppress(d, s, iou, -float("inf"), len(s)), "CPU")
    library.impl("roi_align", _roi_align, "CPU")
    DEFINED.append(library)


def _roi_align(
    features: torch.Tensor, rois: torch.Tensor, scale: float, height: int, width: int, ratio: int, aligned: bool
) -> torch.Tensor:
    """torchvision's operator in its own terms, written from its documentation: a fixed number of samples a bin."""
    count, (_, channels, rows, columns) = len(rois), features.shape
    offset = 0.5 if aligned else 0.0
    x0, y0, x1, y1 = (rois[:, 1:] * scale - offset).unbind(1)
    wide, high = x1 - x0, y1 - y0
    if not aligned:
        wide, high = wide.clamp(min=1.0), high.clamp(min=1.0)
    if ratio <= 0:
        raise NotImplementedError("the models of torchvision take a fixed number of samples")
    y = y0[:, None] + high[:, None] * ((torch.arange(height * ratio) + 0.5) / (height * ratio))
    x = x0[:, None] + wide[:, None] * ((torch.arange(width * ratio) + 0.5) / (width * ratio))
    result = features.new_zeros((count, channels, height, width))
    for index in range(count):
        sampled = _bilinear(features[int(rois[index, 0])], y[index], x[index], rows, columns)
        result[index] = sampled.reshape(channels, height, ratio, width, ratio).mean(dim=(2, 4))
    return result


def _bilinear(features: torch.Tensor, y: torch.Tensor, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(c, y, x) at every pair of the two lists; zero further than a pixel outside."""
    counts = ((y >= -1) & (y <= rows))[:, None] & ((x >= -1) & (x <= columns))[None]
    y, x = y.clamp(0, rows - 1), x.clamp(0, columns - 1)
    top, left = y.floor().long().clamp(max=max(rows - 2, 0)), x.floor().long().clamp(max=max(columns - 2, 0))
    down, right = (y - top)[:, None], (x - left)[None]
    below, beside = (top + 1).clamp(max=rows - 1), (left + 1).clamp(max=columns - 1)
    upper = features[:, top][:, :, left] * (1 - right) + features[:, top][:, :, beside] * right
    lower = features[:, below][:, :, left] * (1 - right) + features[:, below][:, :, beside] * right
    return (upper * (1 - down) + lower * down) * counts
