"""What only volume models ask for: nothing of a run, and how label maps are evaluated."""

from __future__ import annotations

from offline_infer.tasks.settings import TaskOption

OPTIONS: tuple[TaskOption, ...] = ()

EVALUATION: tuple[TaskOption, ...] = (
    TaskOption(
        "format",
        "layout of summary.json (default: of the bundle's framework, else nnunet-v2)",
        "nnunet-v2",
        ("nnunet-v2", "nnunet-v1"),
    ),
    TaskOption(
        "labels",
        "labels, e.g. 1 2; a region is written 1,2 (default: those of the model or the data set)",
        "",
        (),
        "some",
    ),
    TaskOption("ignore", "label of the references that is left out (default: the data set's own)", ""),
    TaskOption(
        "surface", "also surface distances (HD95, ASSD, NSD), in surface.json (default: no)", "no", ("no", "yes")
    ),
    TaskOption(
        "lesions",
        "also match lesions (connected components): found, missed, invented; of these labels (without any: of all)",
        "",
        (),
        "any",
    ),
    TaskOption("lesion_iou", "overlap (IoU) above which lesions match (default: 0.1)", "0.1"),
    TaskOption("lesion_min_ml", "smaller lesions are left out, mL (default: 0)", "0"),
    TaskOption("worst", "slices of so many of the worst cases for the report (default: 3)", "3"),
)
