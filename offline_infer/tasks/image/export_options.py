"""What must be said about a model of one's own when it is exported."""

from __future__ import annotations

from pathlib import Path

from offline_infer.tasks.settings import TaskOption

EXPORT_OPTIONS: tuple[TaskOption, ...] = (
    TaskOption("weights", "file with its weights, any trainer's checkpoint; it is not executed", ""),
    TaskOption("model", "the class, where the file has several", ""),
    TaskOption("size", "pixels: 512, 384x512 (height x width), or any (default: 512)", "512"),
    TaskOption("geometry", "how an image is brought to that size (default: resize)", "resize", ("resize", "pad")),
    TaskOption("multiple_of", "with --size any: pad to a multiple of this (default: 1)", "1"),
    TaskOption(
        "activation",
        "what makes probabilities of the outputs; none if the model gives probabilities (default: none)",
        "none",
        ("none", "sigmoid", "softmax"),
    ),
    TaskOption("pixel_mean", "per channel, joined by commas: (pixel / scale - mean) / std (default: ImageNet's)", ""),
    TaskOption("pixel_std", "per channel, likewise (default: ImageNet's)", ""),
    TaskOption("pixel_scale", "what pixel values are divided by before mean and std (default: 255)", "255"),
    TaskOption("order", "of the channels (default: rgb)", "rgb", ("rgb", "bgr", "gray")),
    TaskOption(
        "sixteen_bit", "16-bit grey: cut off at 255, or the high byte (default: clip)", "clip", ("clip", "high_byte")
    ),
    TaskOption("exif", "the camera's orientation (default: ignored)", "ignored", ("ignored", "applied")),
)


def recognises(path: Path) -> bool:
    """Whether the path is a model of one's own: a Python file, or a folder with ``mymodel.py``."""
    return path.suffix == ".py" or (path / "mymodel.py").is_file()
