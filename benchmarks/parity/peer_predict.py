"""Runs nnU-Net's own predictor on a scenario. Runs in the peer's environment."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from make_models import find
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def main(root: Path, names: list[str]) -> None:
    torch.set_num_threads(2)
    for name in names:
        scenario = find(name)
        folder = root / name
        if (folder / "peer_done").exists():
            continue
        started = time.perf_counter()
        stages = (
            [("model", "peer1", None), ("model2", "peer", "peer1")] if scenario.cascade else [("model", "peer", None)]
        )
        for model, output, previous in stages:
            predictor = nnUNetPredictor(
                tile_step_size=scenario.step_size,
                use_gaussian=True,
                use_mirroring=scenario.tta,
                perform_everything_on_device=False,
                device=torch.device("cpu"),
                allow_tqdm=False,
            )
            (folder / output).mkdir(exist_ok=True)
            folds = tuple(fold if fold == "all" else int(fold) for fold in scenario.folds)
            predictor.initialize_from_trained_model_folder(str(folder / model), folds, "checkpoint_final.pth")
            predictor.predict_from_files_sequential(
                str(folder / "images"),
                str(folder / output),
                save_probabilities=True,
                overwrite=True,
                folder_with_segs_from_prev_stage=str(folder / previous) if previous else None,
            )
        (folder / "peer_done").write_text(f"{time.perf_counter() - started:.1f}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
