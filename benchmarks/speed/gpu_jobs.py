"""One measurement of ``gpu.py``, in a process of its own: a crash, or memory that ran out, ends this one only.

    python gpu_jobs.py JOB.json     # writes the file that the job names as its result

Nothing of offline_infer is imported where the job is nnU-Net's own predictor: that may be another environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    run = {"torch": torch_tile, "onnxruntime": ort_tile, "case": our_case, "peer": peer_case}[job["kind"]]
    Path(job["result"]).write_text(json.dumps(run(job)))


def timed(call: Callable[[], Any], times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def first(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - start


# ---- one tile --------------------------------------------------------------------------------------------------------


def torch_tile(job: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's network in torch."""
    import torch

    from offline_infer.checkpoints import read_checkpoint
    from offline_infer.networks import build, load_weights

    start = time.perf_counter()
    batch = np.load(job["tile"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    description = read_checkpoint(Path(job["checkpoint"]))
    network = build(description.network)
    load_weights(network, description.load_weights(job["fold"]))
    cuda = job["device"] != "cpu"
    device = torch.device(job["device"])
    last = torch.channels_last_3d if batch.ndim == 5 else torch.channels_last
    layout = last if job["channels_last"] else torch.contiguous_format
    network = network.eval().to(device, memory_format=layout)
    if job["compiled"]:
        network = torch.compile(network)
    half = torch.float16 if cuda else torch.bfloat16

    def forward(image: Any) -> Any:
        with torch.inference_mode(), torch.autocast(device.type, dtype=half, enabled=job["autocast"]):
            answer = network(image)
        return answer[0] if isinstance(answer, (list, tuple)) else answer

    def host_to_host() -> np.ndarray:
        image = torch.from_numpy(batch).to(device, memory_format=layout)
        return np.asarray(forward(image).float().cpu().numpy())

    resident = torch.from_numpy(batch).to(device, memory_format=layout)

    def on_device() -> None:
        forward(resident)
        if cuda:
            torch.cuda.synchronize(device)

    opened = time.perf_counter() - start
    answer, first_s = first(host_to_host)
    np.save(job["answer"], answer)
    on_device()
    result = {
        "open_s": opened,
        "first_s": first_s,
        "host_s": timed(host_to_host, job["times"]),
        "resident_s": timed(on_device, job["times"]),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
    }
    if cuda:
        result["versions"]["cudnn"] = torch.backends.cudnn.version()
        result["torch_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return result


def ort_tile(job: dict[str, Any]) -> dict[str, Any]:
    """The bundle's graph: host to host as ``run`` does, resident as stitching on the device does, and all mirrors of a tile."""
    from offline_infer.engines.base import StitchRecipe

    batch = np.load(job["tile"])
    session, opened = first(lambda: open_session(job))
    answer, first_s = first(lambda: session.run(batch).copy())
    np.save(job["answer"], answer)
    result: dict[str, Any] = {
        "open_s": opened,
        "first_s": first_s,
        "host_s": timed(lambda: session.run(batch), job["times"]),
        "versions": {"onnxruntime": session.info.version},
        "details": {
            "norms": str(session.info.norms),
            **{key: session.info.details.get(key) for key in ("providers", "wheels")},
        },
    }
    stitcher = session.stitcher(StitchRecipe(((),), None, 1, None, "float32"))
    stitcher.load(batch[0])
    stitcher.answer(None)
    result["resident_s"] = timed(stitcher.ask, job["times"])
    mirrors = tuple(tuple(mirror) for mirror in job["mirrors"])
    result["mirrors_s"] = {}
    for images in job["mirror_batches"]:
        try:
            session.close()
            session = open_session({**job, "mirror_batch": images})
            stitcher = session.stitcher(StitchRecipe(mirrors, None, len(mirrors), None, "float32"))
            stitcher.load(batch[0])
            stitcher.fetch(stitcher.weigh(stitcher.answer(None)))
            used = str(stitcher.images)
            result["mirrors_s"][used] = timed(lambda it=stitcher: it.answer(None), max(2, job["times"] // 2))
        except Exception as error:  # too many at once for the memory, say
            result["mirrors_s"][str(images)] = short(error)
    return result


def open_session(job: dict[str, Any]) -> Any:
    from offline_infer.engines.base import EngineOptions, get_engine

    extra = {"stitch": job.get("stitch", "device"), "mirror_batch": str(job.get("mirror_batch", 1))}
    if job["provider"] == "tensorrt":
        extra["provider"] = "tensorrt"
    cache = Path(job["cache"]) if job["provider"] == "tensorrt" else None
    options = EngineOptions(device=job["device"], precision=job["precision"], cache=cache, extra=extra)
    return get_engine("onnxruntime").open(Path(job["graph"]), options)


# ---- a whole case ----------------------------------------------------------------------------------------------------


def our_case(job: dict[str, Any]) -> dict[str, Any]:
    """File to file through ``predict``, several times with the engine kept open."""
    from offline_infer.images.cases import CaseFiles
    from offline_infer.predict.folder import FolderJob, predict_folder
    from offline_infer.predict.model import load
    from offline_infer.tasks.settings import RunSettings

    output = Path(job["output"])
    with load(job["bundle"], engine="onnxruntime", device=job["device"], folds=[job["fold"]]) as model:
        session, opened = first(lambda: open_session(job))
        model.use_sessions([session])
        whole, infer = [], []
        for _ in range(1 + job["rounds"]):
            cases = [CaseFiles("case", tuple(Path(path) for path in job["images"]))]
            report, seconds = first(
                lambda cases=cases: predict_folder(
                    model, FolderJob(cases, output, existing="overwrite"), RunSettings(tta=job["tta"])
                )
            )
            report.raise_failures()
            whole.append(seconds)
            infer.append(report.cases[0].seconds["infer"])
        return {
            "open_s": opened,
            "first_s": whole[0],
            "whole_s": whole[1:],
            "infer_s": infer[1:],
            "tiles": report.cases[0].items,
            "stitching": session.info.details["stitching"],
            "labels": str(output / report.cases[0].file),
        }


def peer_case(job: dict[str, Any]) -> dict[str, Any]:
    """File to file through nnU-Net v2's own predictor, sums on the device."""
    import os

    os.environ.update(dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), ""))
    import nnunetv2  # noqa: F401
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = torch.device(job["device"])
    start = time.perf_counter()
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=job["tta"],
        perform_everything_on_device=device.type != "cpu",
        device=device,
        allow_tqdm=False,
    )
    fold = int(job["fold"]) if job["fold"].isdecimal() else job["fold"]
    predictor.initialize_from_trained_model_folder(job["checkpoint"], (fold,), job["checkpoint_name"])
    opened = time.perf_counter() - start
    output = str(Path(job["output"]) / "case")
    Path(job["output"]).mkdir(parents=True, exist_ok=True)
    whole = timed(
        lambda: predictor.predict_from_files_sequential(
            [job["images"]], [output], save_probabilities=False, overwrite=True
        ),
        1 + job["rounds"],
    )
    result = {
        "open_s": opened,
        "first_s": whole[0],
        "whole_s": whole[1:],
        "labels": output + job["file_ending"],
        "stitching": "torch, on the device" if device.type != "cpu" else "torch",
    }
    if device.type != "cpu":
        result["torch_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return result


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


if __name__ == "__main__":
    main()
