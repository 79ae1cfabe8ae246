"""Settings that only instance models have."""

from __future__ import annotations

from offline_infer.errors import UsageError
from offline_infer.tasks.settings import RunSettings, TaskOption

SCORE = TaskOption(
    "score", "label images, masks and overlays show objects with a score above this (default 0.5)", "0.5"
)
MASKS = TaskOption("masks", "also write one mask per object (default no)", "no", ("no", "yes"))
OVERLAY = TaskOption("overlay", "also write the image with its objects outlined (default no)", "no", ("no", "yes"))
OPTIONS: tuple[TaskOption, ...] = (SCORE, MASKS, OVERLAY)

EVALUATION: tuple[TaskOption, ...] = (
    TaskOption("above", "match objects with a score above this (default 0.5)", "0.5"),
    TaskOption(
        "match",
        "whether pairs must agree in class (default class-blind)",
        "class-blind",
        ("class-blind", "class-aware"),
    ),
    TaskOption("min_iou", "pairs with a smaller IoU are none (default 0)", "0"),
    TaskOption(
        "void", "what void pixels of the references are (default background)", "background", ("background", "ignore")
    ),
    TaskOption("pictures", "also write label images and contours of every image (default no)", "no", ("no", "yes")),
)


def shown_score(settings: RunSettings) -> float:
    """The option ``score`` as a number.

    Raises:
        UsageError: not a number from 0 to 1.
    """
    text = settings.option(SCORE)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise UsageError(f"score {text!r}: expected a number from 0 to 1")
    return value
