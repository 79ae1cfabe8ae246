"""The demonstration of instance models: a small RefineMask, and pictures drawn for it (``tools/make_instances_demo.py``)."""

from __future__ import annotations

from pathlib import Path

from offline_infer.tasks.extensions import Demonstration, DemonstrationCases

BUNDLE = Path(__file__).parent / "demo" / "bundle"
FIRST_SEED = 9001
"""Training pictures have seeds below 9000."""
ANNOTATIONS = "annotations.json"


def write_cases(folder: Path, count: int) -> DemonstrationCases:
    """Draw pictures that are not there yet, and COCO's annotations of all of them.

    Args:
        folder: gets ``shapes_01.png``, ... and :data:`ANNOTATIONS`.
    """
    from offline_infer.tasks.instances.demo.dataset import write_dataset

    write_dataset(folder, [FIRST_SEED + number for number in range(count)], ANNOTATIONS)
    return DemonstrationCases(folder, folder / ANNOTATIONS)


DEMONSTRATION = Demonstration(
    bundle=BUNDLE,
    packages=("PIL", "scipy"),
    extra="instances",
    cases=6,
    write=write_cases,
    settings={"overlay": "yes"},
    evaluation={"pictures": "yes"},
)
