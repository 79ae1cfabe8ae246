"""One case through nnU-Net v2's own predictor, stage by stage. Runs in the peer's environment, in a fresh process."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

job = json.loads(sys.argv[1])
os.environ.update(dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), ""))

import torch  # noqa: E402
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape  # noqa: E402
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from shared import Stages, peak_rss, report, rss, stand_in_answer  # noqa: E402


class StandIn(torch.nn.Module):
    """Answers every input with the same logits."""

    def __init__(self, classes: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.answer = torch.from_numpy(stand_in_answer(classes, patch))

        self.seconds: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        answer = self.answer.clone()  # the predictor weighs it in place; the copy's time is taken off
        self.seconds.append(time.perf_counter() - start)
        return answer


class Timed(torch.nn.Module):
    """A network whose calls are timed."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start, cpu = time.perf_counter(), time.process_time()
        answer = self.network(x)
        self.seconds.append(time.perf_counter() - start)
        self.processor.append(time.process_time() - cpu)
        return answer

    def load_state_dict(self, *arguments, **named):  # type: ignore[no-untyped-def]
        return self.network.load_state_dict(*arguments, **named)


def main() -> None:
    threads = job["threads"]
    torch.set_num_threads(threads)
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=job["tta"],
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(job["model"], (0,), "checkpoint_final.pth")
    if not job["stand_in"]:
        predictor.network = Timed(predictor.network)
        start_rss, start, cpu = rss(), time.perf_counter(), time.process_time()
        predictor.predict_from_files_sequential(
            [[job["image"]]], [job["output"]], save_probabilities=False, overwrite=True
        )
        whole = time.perf_counter() - start
        report(
            {
                "whole_s": whole,
                "cpu_s": time.process_time() - cpu,
                "tiles_s": predictor.network.seconds,
                "tiles_cpu_s": predictor.network.processor,
                "base_rss": start_rss,
                "peak_rss": peak_rss(),
            }
        )
        return
    patch = tuple(predictor.configuration_manager.patch_size)
    predictor.network = StandIn(job["classes"], patch)
    base = rss()
    stages = Stages()
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(
        [job["image"]], None, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    stages.lap("read and prepare")
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data))
    stages.lap("stitch", without=sum(predictor.network.seconds))
    del data
    labels = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.label_manager,
        properties,
        num_threads_torch=threads,
    )
    stages.lap("resample back and decide")
    writer = predictor.plans_manager.image_reader_writer_class()
    writer.write_seg(labels, str(Path(job["output"] + ".nii.gz")), properties)
    stages.lap("write")
    report({"stages": stages.rows, "base_rss": base, "peak_rss": peak_rss()})


main()
