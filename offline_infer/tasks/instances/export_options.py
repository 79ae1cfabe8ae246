"""What may be said about a RefineMask checkpoint when it is exported."""

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
)


def recognises(path: Path) -> bool:
    """Whether the path is a lone ``.pth``. One in a ``fold_`` folder is a part of nnU-Net's model folder."""
    return path.suffix == ".pth" and path.is_file() and not path.resolve().parent.name.startswith("fold_")
