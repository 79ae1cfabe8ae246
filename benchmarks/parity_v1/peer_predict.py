"""Runs nnU-Net 1.7.1's own predictor on a scenario. Runs in the peer's environment."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path

from make_models import accept_new_torch, find, model_folder
from scenarios import Scenario

JOBS = min(4, len(os.sched_getaffinity(0)))


def main(root: Path, names: list[str]) -> None:
    import nnunet.inference.predict  # noqa: F401  (imported once, before the forks)

    # The trainers change module-level dictionaries, so every scenario gets a process of its own. Daemons, as a pool's
    # workers are, could not start the predictor's processes.
    context = multiprocessing.get_context("fork")
    running: list[multiprocessing.process.BaseProcess] = []
    for name in names:
        folder = root / name
        if (folder / "peer_done").exists():
            continue
        while len(running) >= JOBS:
            running[0].join(0.05)
            running = [child for child in running if child.is_alive()]
        print("predicting", name, flush=True)
        running.append(context.Process(target=predict, args=(folder, find(name))))
        running[-1].start()
    for child in running:
        child.join()


def predict(folder: Path, scenario: Scenario) -> None:
    import torch
    from nnunet.inference.predict import predict_from_folder

    accept_new_torch(torch)
    torch.set_num_threads(1)  # the networks are tiny, and waiting threads cost more than they bring
    started = time.perf_counter()
    stages = [(scenario.configuration, scenario.trainer, "peer", None)]
    if scenario.cascade:
        stages = [
            ("3d_lowres", "nnUNetTrainerV2", "peer_lowres", None),
            (scenario.configuration, scenario.trainer, "peer", "peer_lowres"),
        ]
    folds = scenario.asked
    try:
        for configuration, trainer, output, previous in stages:
            predict_from_folder(
                str(model_folder(folder, configuration, trainer)),
                str(folder / "images"),
                str(folder / output),
                folds if folds is None or folds == ("all",) else [int(fold) for fold in folds],
                save_npz=True,
                num_threads_preprocessing=1,
                num_threads_nifti_save=1,
                lowres_segmentations=str(folder / previous) if previous else None,
                part_id=0,
                num_parts=1,
                tta=scenario.tta,
                overwrite_existing=True,
                mode="normal",
                step_size=scenario.step_size,
                checkpoint_name=scenario.checkpoint,
            )
        (folder / "peer_done").write_text(f"{time.perf_counter() - started:.1f}\n")
    except Exception:
        (folder / "peer_error").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
