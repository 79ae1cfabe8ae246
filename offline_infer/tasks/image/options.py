"""Settings that only image models have."""

from __future__ import annotations

from offline_infer.tasks.settings import TaskOption

OVERSIZE = TaskOption(
    "oversize",
    "what to do with an image larger than the padded input: refuse it, resize it until its longest side fits, cut it into "
    "overlapping tiles, or crop it to its top left as IMDL-BenCo does (default: refuse)",
    "refuse",
    ("refuse", "resize", "tile", "crop"),
)
EXTRAS = TaskOption(
    "extras",
    "further files, joined by commas: binary (0/255 masks), overlay, png16, npy, tiff (float32), network (the mask at the "
    "network's size, for figures as published) (default: none)",
    "none",
)
THRESHOLD = TaskOption(
    "binary_threshold", "of binary masks and overlays: a pixel is positive if its value is larger (default: 0.5)", "0.5"
)
IMAGE_SCORE = TaskOption(
    "image_score",
    "of a model without a score: none, or the largest value of its mask (default: none)",
    "none",
    ("none", "max"),
)
OPTIONS: tuple[TaskOption, ...] = (OVERSIZE, EXTRAS, THRESHOLD, IMAGE_SCORE)

EXTRA_FILES = ("binary", "overlay", "png16", "npy", "tiff", "network")
"""Legal parts of ``extras``."""

EVALUATION: tuple[TaskOption, ...] = (
    TaskOption("protocol", "conventions, printed beside every number (default: benco)", "benco", ("benco", "trufor")),
    TaskOption(
        "size", "compare at each image's own size or at the network's (default: own)", "own", ("own", "network")
    ),
    TaskOption("threshold", "a value is positive if it is larger (default: 0.5)", "0.5"),
    TaskOption("pair_by", "pair Tp and Gt by name or in order (default: name)", "name", ("name", "order")),
    TaskOption("as_upstream", "IMDL-BenCo's own figures, defects included", "no", ("no", "yes")),
    TaskOption("ranks", "of the original's run: processes (default: 1)", "1"),
    TaskOption("batch", "of the original's run: images in a batch (default: 2)", "2"),
    TaskOption("column_scores", "of the original's run: scores have the shape (B, 1)", "no", ("no", "yes")),
)
