"""What may be said about a checkpoint of a detector when it is exported."""

from __future__ import annotations

from pathlib import Path

from offline_infer.tasks.settings import TaskOption

EXPORT_OPTIONS: tuple[TaskOption, ...] = (
    TaskOption("config", "the training's configuration (.py or .json), where the checkpoint has none", ""),
    TaskOption(
        "canvas",
        "the one input size the graph takes, height x width such as 1344x1344, multiples of 32 (default: any)",
        "",
    ),
    TaskOption("classes", "file with the class names of a Mask R-CNN of torchvision: a JSON list, or one a line", ""),
    TaskOption(
        "builder", "Python file whose build() gives the Mask R-CNN of torchvision, if it is not a ResNet-50's", ""
    ),
)
REFINEMASK_ONLY = ("config", "canvas")
TORCHVISION_ONLY = ("classes", "builder")


def recognises(path: Path) -> bool:
    """Whether the path is a lone ``.pth``. One in a ``fold_`` folder is a part of nnU-Net's model folder."""
    return path.suffix == ".pth" and path.is_file() and not path.resolve().parent.name.startswith("fold_")
