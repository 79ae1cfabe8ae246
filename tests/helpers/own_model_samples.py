"""A model of one's own with hand-set weights, its checkpoint and bundle: answers can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

CODE = '''
import argparse

import torch
from torch import nn

from offline_infer.exporting.own_models import register_model


@register_model
class Bright(nn.Module):
    """Marks what is bright; the score is the largest value of the mask."""

    def __init__(self, gain: float = 4.0, label: bool = True, name: str = "x", width: int | None = None) -> None:
        super().__init__()
        self.gain, self.label = gain, label
        self.layer = nn.Conv2d(3, 1, 1)
        self.loss = nn.BCELoss()

    def forward(self, image, mask, label, *args, **kwargs):
        soft = torch.sigmoid(self.gain * self.layer(image))
        loss = self.loss(soft, mask) + (label.to(soft.dtype) - soft.mean()).abs().sum()
        score = soft.amax() if self.label else None  # without a batch axis
        return {"backward_loss": loss, "pred_mask": soft, "pred_label": score, "visual_image": {"inverse": 1 - mask}}


class NotRegistered(Bright):
    pass
'''


def write_model(folder: Path, *, namespace: bool = True) -> tuple[Path, Path]:
    """``mymodel.py`` and a checkpoint as trainers write them; returns both paths."""
    import argparse

    import torch

    folder.mkdir(parents=True, exist_ok=True)
    code = folder / "mymodel.py"
    code.write_text(CODE)
    weight = torch.full((1, 3, 1, 1), 1 / 3)
    state = {"module.layer.weight": weight, "module.layer.bias": torch.tensor([-1.5])}
    content = {"model": state, "epoch": 3, "scaler": {}, "optimizer": {"state": {}}}
    if namespace:
        content["args"] = argparse.Namespace(lr=0.1, model="Bright")
    torch.save(content, folder / "checkpoint-3.pth")
    return code, folder / "checkpoint-3.pth"
