"""Phantom CTs in the layout of the Decathlon liver task, with a split: ``phantom_task.py TASK_FOLDER SPLITS_FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from offline_infer.demo.phantom import make_phantom, write_phantom_case

TRAINING, VALIDATION = ("liver_3",), ("liver_5", "liver_11")
FIRST_SEED = 9001  # the shipped model has not seen these


def main(task: Path, splits: Path) -> None:
    """Write ``imagesTr``, ``labelsTr``, ``dataset.json`` and the splits; what is there already stays."""
    names = (*TRAINING, *VALIDATION)
    for seed, name in enumerate(names, start=FIRST_SEED):
        image = task / "imagesTr" / f"{name}.nii.gz"
        if image.exists():
            continue
        # A short scan keeps the number of tiles small.
        phantom = make_phantom(seed, in_plane_mm=2.0, slice_mm=4.0)
        written, _ = write_phantom_case(task / "imagesTr", task / "labelsTr", name, phantom)
        written.replace(image)  # the task has no channel suffix
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    description = {
        "name": "Liver",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "numTraining": len(names),
        "numTest": 0,
        "training": listed,
        "test": [],
    }
    (task / "dataset.json").write_text(json.dumps(description, indent=1))
    splits.write_text(json.dumps([{"train": list(TRAINING), "val": list(VALIDATION)}]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
