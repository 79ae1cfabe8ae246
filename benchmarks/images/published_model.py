"""Published architectures as models of one's own: segmentation_models_pytorch, and timm's classifiers with a mask head."""

import torch
from torch import nn
from torch.nn import functional

from offline_infer.exporting.own_models import register_model


class TimmWithMask(nn.Module):
    """A classifier's feature maps, the deepest and the finest joined, to one logit for each pixel."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        import timm

        self.encoder = timm.create_model(encoder, pretrained=False, features_only=True)
        channels = self.encoder.feature_info.channels()
        self.deep, self.fine = nn.Conv2d(channels[-1], 64, 1), nn.Conv2d(channels[0], 64, 1)
        self.head = nn.Conv2d(64, 1, 3, padding=1)

    def forward(self, image):
        levels = self.encoder(image)
        if levels[0].shape[1] != self.fine.in_channels:  # some give (batch, y, x, channels)
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        fine = self.fine(levels[0])
        deep = functional.interpolate(self.deep(levels[-1]), size=fine.shape[2:], mode="bilinear", align_corners=False)
        logits = self.head(functional.relu(fine + deep))
        return functional.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)


@register_model
class Published(nn.Module):
    """``architecture`` is a class of segmentation_models_pytorch, or ``timm``; the score is made from the mask's logits."""

    def __init__(self, architecture: str, encoder: str) -> None:
        super().__init__()
        if architecture == "timm":
            self.network: nn.Module = TimmWithMask(encoder)
        else:
            import segmentation_models_pytorch as smp

            self.network = getattr(smp, architecture)(encoder, encoder_weights=None, in_channels=3, classes=1)
        # Random weights give nearly constant maps; these spread them over the whole range of probabilities.
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("gain", torch.ones(()))

    def forward(self, image, mask=None, label=None, **kwargs):
        logits = (self.network(image) - self.centre) * self.gain
        return {"pred_mask": torch.sigmoid(logits), "pred_label": torch.sigmoid(logits.mean((1, 2, 3)))}

    @torch.no_grad()
    def spread(self, images) -> None:
        """Take the statistics of normalisations, and of the logits, from images."""
        self.train()
        for _ in range(3):
            self.network(images)
        self.eval()
        logits = self.network(images)
        self.centre.copy_(logits.mean())
        self.gain.copy_(2 / logits.std())
