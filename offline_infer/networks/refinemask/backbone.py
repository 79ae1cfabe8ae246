"""ResNet with bottleneck blocks and the feature pyramid above it.

Sources: He et al., Deep Residual Learning (2016); Lin et al., Feature Pyramid Networks (2017). Attribute names are part
of the checkpoint format.

A *canvas* is an input larger than the padded image it holds, for devices that take one fixed shape. Biases and
normalisation make features of the empty canvas non-zero, which would reach the image through the next 3x3
convolution; ``masks`` (stride -> (1, 1, y, x), 1 on the padded image) set them back to zero.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from offline_infer.checkpoints.mmdet.settings import RESNET_BLOCKS

Masks = Mapping[int, Tensor]
"""Stride -> map of the padded image on a canvas; empty where the input is no canvas."""


def masked(features: Tensor, stride: int, masks: Masks) -> Tensor:
    """The features, zero outside the padded image."""
    return features * masks[stride] if masks else features


class ConvModule(nn.Module):
    """A convolution with bias and an optional ReLU; keeps the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, dilation: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self._relu = relu

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.conv(x)
        return functional.relu(answer) if self._relu else answer


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1, each with batch normalisation, and the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, *, downsample: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
            if downsample
            else None
        )

    def forward(self, x: Tensor, stride: int, masks: Masks) -> Tensor:
        """(1, inputs, y, x) -> (1, 4 * width, ...); ``stride``: of ``x`` to the image."""
        hidden = masked(functional.relu(self.bn1(self.conv1(x))), stride, masks)
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(hidden))
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(hidden + shortcut)


class ResNet(nn.Module):
    """The four stages' outputs, strides 4, 8, 16 and 32."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        if depth not in RESNET_BLOCKS:
            raise ValueError(f"a ResNet of depth {depth} is unknown; known: {', '.join(map(str, RESNET_BLOCKS))}")
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for index, count in enumerate(RESNET_BLOCKS[depth]):
            own, stride = width << index, 1 if index == 0 else 2
            blocks = [Bottleneck(inputs, own, stride, downsample=True)]
            inputs = 4 * own
            blocks += [Bottleneck(inputs, own, 1, downsample=False) for _ in range(count - 1)]
            self.add_module(f"layer{index + 1}", nn.ModuleList(blocks))

    def forward(self, image: Tensor, masks: Masks) -> list[Tensor]:
        """(1, 3, y, x) -> four feature maps, finest first."""
        x = masked(functional.relu(self.bn1(self.conv1(image))), 2, masks)
        x = functional.max_pool2d(x, 3, 2, 1)
        found = []
        for index, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            stride = 4 << max(index - 1, 0)  # of the stage's input
            for block in layer:  # type: ignore[union-attr]
                x = block(x, stride, masks)
                stride = 4 << index
            found.append(x)
        return found


class FeaturePyramid(nn.Module):
    """Five levels of equal width: strides 4 to 64."""

    def __init__(self, inputs: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(own, width, 1, relu=False) for own in inputs)
        self.fpn_convs = nn.ModuleList(ConvModule(width, width, 3, relu=False) for _ in inputs)

    def forward(self, features: list[Tensor], masks: Masks) -> list[Tensor]:
        """Finest first; the last level is every second pixel of the one before it."""
        merged = [conv(own) for conv, own in zip(self.lateral_convs, features, strict=True)]
        for index in range(len(merged) - 1, 0, -1):
            # The padded image's sides are multiples of the coarsest stride, so each level is twice the next one's size.
            merged[index - 1] = merged[index - 1] + functional.interpolate(merged[index], scale_factor=2.0)
        levels = [
            masked(conv(masked(own, 4 << index, masks)), 4 << index, masks)
            for index, (conv, own) in enumerate(zip(self.fpn_convs, merged, strict=True))
        ]
        return [*levels, functional.max_pool2d(levels[-1], 1, 2)]


def canvas_masks(valid: Tensor, divisor: int) -> dict[int, Tensor]:
    """Masks of every stride up to 64.

    Args:
        valid: (1, 1, y, x), 1 on the image and 0 elsewhere; both sides are multiples of ``divisor``.
        divisor: what the image's sides are padded to a multiple of.
    """
    cells = functional.max_pool2d(valid, divisor, divisor)
    masks = {s: functional.interpolate(cells, scale_factor=float(divisor // s)) for s in (2, 4, 8, 16)}
    return {**masks, 32: cells, 64: functional.max_pool2d(cells, 1, 2)}


def repeat_border(features: Tensor, mask: Tensor) -> Tensor:
    """Repeat the padded image's last row and column once on the empty canvas, where interpolation at its edge reads."""
    below = functional.pad(mask, (0, 0, 1, 0))[:, :, :-1] - mask
    features = features + functional.pad(features, (0, 0, 1, 0))[:, :, :-1] * below
    mask = mask + below
    right = functional.pad(mask, (1, 0))[:, :, :, :-1] - mask
    return features + functional.pad(features, (1, 0))[:, :, :, :-1] * right
