"""What must be said about a graph that somebody else exported."""

from __future__ import annotations

from offline_infer.tasks.settings import TaskOption

ADOPT_OPTIONS: tuple[TaskOption, ...] = (
    TaskOption(
        "mask", "output that holds the mask; none for a model without (default: the only one with four axes)", ""
    ),
    TaskOption(
        "score", "output that holds the score; none for a model without (default: the only one with fewer axes)", ""
    ),
    TaskOption(
        "mask_activation",
        "what makes probabilities of the mask (default: none)",
        "none",
        ("none", "sigmoid", "softmax"),
    ),
    TaskOption(
        "score_activation",
        "what makes probabilities of the score (default: none)",
        "none",
        ("none", "sigmoid", "softmax"),
    ),
    TaskOption("mask_channel", "which of the mask's channels (default: 0)", "0"),
    TaskOption("score_channel", "which of the score's values (default: 0)", "0"),
    TaskOption("size", "pixels, height x width such as 384x512, or any; needed where the graph leaves it open", ""),
    TaskOption("geometry", "how an image is brought to that size (default: resize)", "resize", ("resize", "pad")),
    TaskOption("multiple_of", "of graphs that take any size: pad to a multiple of this (default: 1)", "1"),
    TaskOption("order", "of the channels (default: rgb)", "rgb", ("rgb", "bgr", "gray")),
    TaskOption("mean", "per channel, of values from 0 to 1, joined by commas (default: ImageNet's)", ""),
    TaskOption("std", "per channel, likewise (default: ImageNet's)", ""),
    TaskOption("scale", "what pixel values are divided by before mean and std (default: 255)", "255"),
    TaskOption(
        "sixteen_bit", "16-bit grey: cut off at 255, or the high byte (default: clip)", "clip", ("clip", "high_byte")
    ),
    TaskOption("exif", "the camera's orientation (default: ignored)", "ignored", ("ignored", "applied")),
)
