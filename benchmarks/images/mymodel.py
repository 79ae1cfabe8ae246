"""A U-Net with an image-level head, of the size that published forgery detectors begin at."""

import torch
from torch import nn
from torch.nn import functional

from offline_infer.exporting.own_models import register_model


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


@register_model
class BenchmarkNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList([block(3, w), block(w, 2 * w), block(2 * w, 4 * w), block(4 * w, 8 * w)])
        self.up = nn.ModuleList([block(12 * w, 4 * w), block(6 * w, 2 * w), block(3 * w, w)])
        self.out = nn.Conv2d(w, 1, 1)
        self.head = nn.Linear(8 * w, 1)

    def forward(self, image, mask=None, label=None, **kwargs):
        levels = []
        x = image
        for index, stage in enumerate(self.down):
            x = stage(functional.max_pool2d(x, 2) if index else x)
            levels.append(x)
        score = torch.sigmoid(self.head(x.mean((2, 3)))).squeeze(1)
        for stage, level in zip(self.up, levels[-2::-1], strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = stage(torch.cat([x, level], 1))
        return {"pred_mask": torch.sigmoid(self.out(x)), "pred_label": score}
