"""The model and image configurations that are compared: plain data, used by both sides."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scenario:
    """A random-weight model with images to segment.

    Attributes:
        name: also the folder's name.
        dims: 2 or 3, of the network.
        patch, spacing: network order; spacing has ``dims`` entries.
        channels: normalisation scheme and use_mask flag per channel.
        labels: ``labels`` of dataset.json.
        images: (shape (z, y, x), spacing (z, y, x), kind) per case; kind is ``ct``, ``border`` (zeros around) or ``rgb``.
        architecture: ``plain``, ``residual``, ``legacy`` (plans without an architecture block), or a class of
            dynamic_network_architectures.
        resampling: ``default``, ``torch_simple``, ``torch_separate_z``, ``none``.
        cascade: a second stage that sees this scenario's own model as its first stage.
    """

    name: str
    dims: int = 3
    patch: tuple[int, ...] = (32, 48, 48)
    spacing: tuple[float, ...] = (2.5, 1.5, 1.5)
    transpose: tuple[int, int, int] = (0, 1, 2)
    channels: tuple[tuple[str, bool], ...] = (("CTNormalization", False),)
    labels: dict[str, Any] = field(default_factory=lambda: {"background": 0, "liver": 1, "tumour": 2})
    regions_class_order: tuple[int, ...] | None = None
    images: tuple[tuple[tuple[int, int, int], tuple[float, float, float], str], ...] = (
        ((30, 70, 60), (3.0, 1.7, 1.7), "border"),
        ((20, 50, 64), (5.0, 1.2, 1.2), "ct"),
    )
    architecture: str = "plain"
    reader: str = "SimpleITKIO"
    file_ending: str = ".nii.gz"
    resampling: str = "default"
    mirror_axes: tuple[int, ...] | None = None
    folds: tuple[str, ...] = ("0",)
    features: tuple[int, ...] = (8, 16, 32)
    strides: tuple[tuple[int, ...], ...] = ()
    tta: bool = True
    step_size: float = 0.5
    cascade: bool = False

    @property
    def mirrors(self) -> tuple[int, ...]:
        return tuple(range(self.dims)) if self.mirror_axes is None else self.mirror_axes


CT = (("CTNormalization", False),)
MR = (("ZScoreNormalization", True),)

NAMED = (
    Scenario("plain-3d"),
    Scenario("plain-2d", dims=2, patch=(64, 48), spacing=(1.5, 1.5), features=(8, 16, 32, 64)),
    Scenario("residual-3d", architecture="residual"),
    Scenario("residual-2d", dims=2, patch=(48, 64), spacing=(1.2, 1.4), architecture="residual"),
    Scenario("legacy-plans", architecture="legacy"),
    Scenario("lowres", spacing=(5.0, 3.4, 3.4), patch=(16, 32, 32)),
    Scenario("cascade", spacing=(2.5, 1.5, 1.5), cascade=True),
    Scenario(
        "separate-z",
        spacing=(5.0, 1.0, 1.0),
        patch=(16, 48, 48),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        images=(((12, 60, 70), (6.0, 1.3, 1.3), "border"), ((30, 40, 44), (1.5, 1.5, 1.5), "ct")),
    ),
    Scenario(
        "transposed",
        transpose=(2, 0, 1),
        spacing=(3.0, 2.0, 2.4),
        patch=(24, 32, 40),
        images=(((40, 60, 20), (2.0, 2.0, 7.0), "border"),),
    ),
    Scenario(
        "two-lowres-axes", spacing=(0.7, 3.0, 3.0), images=(((50, 30, 30), (0.8, 3.2, 3.2), "ct"),), patch=(48, 24, 24)
    ),
    Scenario("two-channels", channels=(("CTNormalization", False), ("ZScoreNormalization", True))),
    Scenario("zscore-mask", channels=MR),
    Scenario("zscore-no-mask", channels=(("ZScoreNormalization", False),)),
    Scenario("no-normalization", channels=(("noNorm", False), ("RescaleTo01Normalization", False))),
    Scenario(
        "rgb-png",
        dims=2,
        patch=(64, 64),
        spacing=(1.0, 1.0),
        channels=(("RGBTo01Normalization", False),) * 3,
        reader="NaturalImage2DIO",
        file_ending=".png",
        images=(((1, 150, 131), (999, 1, 1), "rgb"), ((1, 40, 50), (999, 1, 1), "rgb")),
    ),
    Scenario("tiff-3d", reader="Tiff3DIO", file_ending=".tif", images=(((30, 70, 60), (3.0, 1.7, 1.7), "ct"),)),
    Scenario("nibabel", reader="NibabelIO"),
    Scenario("nibabel-reorient", reader="NibabelIOWithReorient"),
    Scenario(
        "regions",
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
        regions_class_order=(1, 2, 3),
    ),
    Scenario("ignore-label", labels={"background": 0, "liver": 1, "tumour": 2, "ignore": 3}),
    Scenario(
        "300-labels",
        labels={"background": 0, **{f"part{i}": i for i in range(1, 301)}},
        features=(8, 16),
        images=(((20, 40, 40), (3.0, 1.7, 1.7), "ct"),),
        patch=(16, 32, 32),
        tta=False,
    ),
    Scenario("torch-resampling", resampling="torch_simple"),
    Scenario(
        "torch-separate-z",
        resampling="torch_separate_z",
        spacing=(5.0, 1.0, 1.0),
        patch=(16, 48, 48),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        images=(((12, 60, 70), (6.0, 1.3, 1.3), "border"),),
    ),
    Scenario("no-resampling", resampling="none"),
    Scenario("three-folds", folds=("0", "1", "2")),
    Scenario("fold-all", folds=("all",)),
    Scenario("no-mirrors", mirror_axes=()),
    Scenario("one-mirror-axis", mirror_axes=(1,)),
    Scenario("no-tta", tta=False),
    Scenario("step-0.3", step_size=0.3, images=(((30, 70, 60), (3.0, 1.7, 1.7), "border"),)),
    Scenario("tiny-image", images=(((3, 9, 11), (2.5, 1.5, 1.5), "ct"),)),
    Scenario("single-slice", images=(((1, 60, 60), (5.0, 1.5, 1.5), "ct"),)),
    Scenario(
        "single-slice-2d", dims=2, patch=(48, 48), spacing=(1.5, 1.5), images=(((1, 60, 60), (5.0, 1.5, 1.5), "ct"),)
    ),
    Scenario("odd-patch", patch=(14, 28, 36), strides=((1, 1, 1), (2, 2, 2), (1, 2, 2))),
)


def random_scenario(seed: int) -> Scenario:
    """Plans drawn from a seed: patch, spacing, transposition, pooling, channels, image geometry."""
    draw = random.Random(seed)
    strides = [(1, 1, 1)]
    for _ in range(2):
        strides.append(tuple(draw.choice((1, 2, 2)) for _ in range(3)))
    total = [strides[1][axis] * strides[2][axis] for axis in range(3)]
    patch = tuple(draw.randint(24, 44) for _ in range(3))
    patch = tuple(-(-size // factor) * factor for size, factor in zip(patch, total, strict=True))
    order = draw.choice(((0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)))
    spacing = (draw.choice((1.5, 2.5, 5.0, 6.5)), draw.uniform(0.8, 2.5), draw.uniform(0.8, 2.5))
    images = tuple(
        (
            (draw.randint(4, 40), draw.randint(20, 70), draw.randint(20, 70)),
            (draw.uniform(1.2, 6.0), draw.uniform(0.8, 2.2), draw.uniform(0.8, 2.2)),
            draw.choice(("ct", "border")),
        )
        for _ in range(2)
    )
    schemes = ("CTNormalization", "ZScoreNormalization", "noNorm", "RescaleTo01Normalization")
    channels = tuple((draw.choice(schemes), draw.random() < 0.4) for _ in range(draw.randint(1, 2)))
    return Scenario(
        f"random-{seed}",
        patch=patch,
        spacing=spacing,
        transpose=order,
        channels=channels,
        images=images,
        strides=tuple(strides),
        mirror_axes=tuple(axis for axis in range(3) if draw.random() < 0.7),
        architecture=draw.choice(("plain", "residual")),
    )
