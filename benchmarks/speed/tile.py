"""One engine, one network, some tiles, in a fresh process: the time of a tile and nothing else."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from shared import peak_rss, report

job = json.loads(sys.argv[1])
SHAPE = (1, 1, *job.get("patch", (128, 128, 128)))


def tile() -> np.ndarray:
    """The same smooth tile for every engine."""
    rng = np.random.default_rng(5)
    return (rng.normal(size=SHAPE) + np.linspace(-1, 1, SHAPE[-1])).astype(np.float32)


def torch_runner() -> Any:
    import torch

    torch.set_num_threads(job["threads"])
    if job["network"] == "unetplusplus":
        from networks import unetplusplus

        network = unetplusplus(job["classes"])
    else:
        from offline_infer.checkpoints import read_checkpoint
        from offline_infer.networks import build, load_weights

        description = read_checkpoint(Path(job["model"]))
        network = build(description.network)
        load_weights(network, description.load_weights(description.spec.source.folds[0].fold))
    image = torch.from_numpy(tile())
    if job["precision"] == "bf16":
        network = network.to(dtype=torch.bfloat16, memory_format=torch.channels_last_3d)
        image = image.to(dtype=torch.bfloat16, memory_format=torch.channels_last_3d)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return network(image).float().numpy()

    return run


def engine_runner() -> Any:
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.engines.base import EngineOptions, get_engine

    bundle = Bundle.load(Path(job["bundle"]))
    options = EngineOptions(precision=job["precision"], threads=job["threads"], extra=job.get("extra", {}))
    session = get_engine(job["engine"]).open(bundle.graph_path(bundle.folds[0]), options)
    batch = tile()
    return lambda: session.run(batch)


def peak() -> dict[str, float]:
    """The machine's float32 peak, GFLOP/s, as three libraries' products of large matrices reach it."""
    import openvino
    import openvino.opset13 as ops
    import torch

    torch.set_num_threads(job["threads"])
    found = {}
    a = np.random.default_rng(0).random((4096, 4096), np.float32)
    b = torch.from_numpy(a)
    port = ops.parameter(a.shape, np.float32)
    graph = openvino.Model([ops.matmul(port, ops.constant(a), False, False)], [port])
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(job["threads"])}
    request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(a, shared_memory=True))
    for name, product in (("numpy", lambda: a @ a), ("torch", lambda: b @ b), ("openvino", request.infer)):
        product()
        seconds, processor = [], []
        for _ in range(5):
            start, cpu = time.perf_counter(), time.process_time()
            product()
            seconds.append(time.perf_counter() - start)
            processor.append((time.process_time() - cpu) / job["threads"])
        found[name] = 2 * 4096**3 / min(seconds) / 1e9
        found[f"{name}, by processor time"] = 2 * 4096**3 / min(processor) / 1e9
    return found


def main() -> None:
    if job["engine"] == "peak":
        report(peak())
        return
    start = time.perf_counter()
    run = torch_runner() if job["engine"] == "torch" else engine_runner()
    opened = time.perf_counter() - start
    seconds, processor = [], []
    answer = None
    for _ in range(1 + job["repeats"]):
        start, cpu = time.perf_counter(), time.process_time()
        answer = run()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
    assert answer is not None
    np.save(job["answer"], answer[0, :, ::2, ::2, ::2].astype(np.float32))
    report(
        {
            "open_s": opened,
            "first_s": seconds[0],
            "tiles_s": seconds[1:],
            "cpu_s": processor[1:],
            "peak_rss": peak_rss(),
        }
    )


main()
