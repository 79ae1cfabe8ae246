"""The folder in which the commands of the documentation run: tiny models, images, references and a DICOM series."""

from __future__ import annotations

import copy
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from checkpoint_samples import v2_folder, v2_plans
from image_samples import dicom_series, save

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = re.compile(r"^<!-- not run: (?P<reason>.+) -->$")
FENCE = re.compile(r"^```(?P<language>\w*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks, except those that a comment in the line above takes out with a reason."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    language = ""
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if start is None and fence:
            start, language = number + 1, fence["language"]
        elif start is not None and line == "```":
            if not (start >= 2 and NOT_RUN.match(lines[start - 2])):
                yield Block(language, "\n".join(lines[start:number]) + "\n", start + 1)
            start = None
    assert start is None, f"{page}: a block is not closed"


def make_models(folder: Path) -> None:
    """Model folders of nnU-Net v2, with random weights: one with two folds, another one, and the stages of a cascade."""
    plans = v2_plans()
    lowres = copy.deepcopy(plans["configurations"]["3d_fullres"])
    lowres["spacing"] = [2.5, 2.5, 2.5]
    plans["configurations"]["3d_lowres"] = lowres
    for name, settings in {
        "nnUNetTrainer__nnUNetPlans__3d_fullres": {"folds": ("fold_0", "fold_1")},
        "nnUNetTrainerOther__nnUNetPlans__3d_fullres": {"trainer": "nnUNetTrainerOther", "folds": ("fold_2",)},
        "nnUNetTrainer__nnUNetPlans__3d_lowres": {"configuration": "3d_lowres"},
        "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres": {"configuration": "3d_cascade_fullres", "inputs": 3},
    }.items():
        made = v2_folder(folder / f"{name}.made", plans=plans, **settings)  # type: ignore[arg-type]
        shutil.move(made, folder / name)
        shutil.rmtree(folder / f"{name}.made")


def make_images(folder: Path) -> None:
    """Three cases, reference label maps of the same size, and a DICOM series."""
    rng = np.random.default_rng(0)
    for case in ("patient_1", "patient_2", "patient_3"):
        scan = rng.integers(-200, 300, (9, 20, 24)).astype(np.int16)
        labels = np.digitize(scan, [0, 200]).astype(np.uint8)
        for place, name, values in (("images", f"{case}_0000.nii.gz", scan), ("labels", f"{case}.nii.gz", labels)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            save(folder / place / name, values)
    for series in ("patient_4", "patient_5"):
        slices = rng.integers(800, 1400, (9, 20, 24)).astype(np.int16)
        dicom_series(folder / "dicom" / series, slices, [(10.0, 20.0, 2.5 * z) for z in range(9)])


STANDIN_SBATCH = """#!{python}
# A test double of Slurm's sbatch: runs the tasks of an array one after the other, here and now.
import os, re, subprocess, sys
first, last = map(int, re.fullmatch(r"--array=(\\d+)-(\\d+)", next(a for a in sys.argv if a.startswith("--array="))).groups())
command = sys.argv[sys.argv.index("--wrap") + 1]
for task in range(first, last + 1):
    subprocess.run(["sh", "-c", command], env={{**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}}, check=True)
"""


def write_program(folder: Path) -> Path:
    """A folder for PATH whose ``offline-infer`` is this working tree's, and whose ``sbatch`` is a test double."""
    program = folder / "offline-infer"
    folder.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={str(ROOT)!r}"${{PYTHONPATH:+:$PYTHONPATH}}" exec {sys.executable!r} -m offline_infer "$@"\n'
    )
    program.chmod(0o755)
    sbatch = folder / "sbatch"
    sbatch.write_text(STANDIN_SBATCH.format(python=sys.executable))
    sbatch.chmod(0o755)
    return folder
