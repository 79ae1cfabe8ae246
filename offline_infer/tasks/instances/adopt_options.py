"""What may be said about a detector that somebody else exported."""

from __future__ import annotations

from offline_infer.tasks.settings import TaskOption

ADOPT_OPTIONS: tuple[TaskOption, ...] = (
    TaskOption("classes", "file with the class names: a JSON list, or one a line (default: the graph's own list)", ""),
    TaskOption(
        "convention",
        "what its outputs mean (default: recognised)",
        "",
        ("fixed", "torchvision", "mmdeploy", "prototypes"),
    ),
    TaskOption("mean", "per channel, joined by commas, in units of scale (default: the convention's)", ""),
    TaskOption("std", "per channel, likewise (default: the convention's)", ""),
    TaskOption("scale", "what pixel values are divided by before mean and std (default: the convention's)", ""),
    TaskOption("order", "of the channels (default: the convention's)", "", ("rgb", "bgr")),
    TaskOption("long_side", "longest side after scaling, in pixels (default: the convention's)", ""),
    TaskOption("short_side", "longest shorter side after scaling, in pixels (default: the convention's)", ""),
    TaskOption("divisor", "sides are padded to a multiple of it (default: the convention's)", ""),
    TaskOption("min_score", "detections at or below this are left out (default: the convention's)", ""),
    TaskOption("limit", "most detections of an image (default: 100)", "100"),
)
