"""See README.md."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from offline_infer import graph as passes
from offline_infer.checkpoints.mmdet.settings import RefineMaskSettings
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.exporting.detectors import NAMES, DetectorShapes, trace_detector
from offline_infer.networks.refinemask import build_refinemask, operators
from offline_infer.spec import FoldSource, Pixels, Source
from offline_infer.tasks.instances.geometry import fit
from offline_infer.tasks.instances.network_input import network_input
from offline_infer.tasks.instances.result import read_outputs
from offline_infer.tasks.instances.spec import InstancesSpec, Padding, Scaling


def random_network(settings: RefineMaskSettings):
    """Weights that keep activations in range and give some class scores above the floor."""
    generator = torch.Generator().manual_seed(0)
    network = build_refinemask(settings)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if tensor.dim() > 1:
                fan = tensor[0].numel()
                gain = 0.25 if "conv3" in name else 1.0  # residual branches must not pile up
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * gain * (2 / fan) ** 0.5)
            elif name.endswith("running_var") or (".bn" in name and name.endswith("weight")):
                tensor.fill_(1.0)
            else:
                tensor.zero_()
        network.roi_head.bbox_head.fc_reg.weight.mul_(0.05)
        network.roi_head.bbox_head.fc_cls.weight.mul_(1.5)
    return network


def make_spec(settings: RefineMaskSettings, long_side: int, short_side: int) -> InstancesSpec:
    fold = FoldSource(fold="0", checkpoint="random", sha256="0" * 64)
    return InstancesSpec(
        source=Source(
            framework="torch",
            trainer="RefineMask",
            plans_name="random",
            dataset="none",
            configuration=f"r{settings.depth}",
            network="RefineMask",
            folds=(fold,),
        ),
        pixels=Pixels(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), scale=1.0),
        scaling=Scaling(long_side=long_side, short_side=short_side),
        padding=Padding(divisor=32, validity_channel=True),
        classes=tuple(f"class_{index}" for index in range(settings.classes)),
        limit=settings.detections.limit,
        mask_size=112,
    )


class Clock:
    """Adds up the time spent in a function."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments):
        start = time.perf_counter()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--long-side", type=int, default=1333)
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = RefineMaskSettings()
    network, spec = random_network(settings), make_spec(settings, options.long_side, options.short_side)
    clocks = [Clock(operators._align), Clock(operators._suppress)]
    operators._align, operators._suppress = clocks
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (-(-options.height // 16), -(-options.width // 16), 3), dtype=np.uint8)
    image = np.repeat(np.repeat(blocks, 16, axis=0), 16, axis=1)[: options.height, : options.width]
    geometry = fit(image.shape[:2], spec)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        passes.save_model(trace_detector(network, DetectorShapes(4, None, spec.limit, 112), 17), path)
        with get_engine("openvino").open(
            path, EngineOptions(outputs=NAMES, threads=options.threads, precision=options.precision)
        ) as session:
            for number in range(options.rounds + 1):
                for clock in clocks:
                    clock.seconds = 0.0
                start = time.perf_counter()
                with torch.inference_mode():
                    outputs = network(torch.from_numpy(network_input(image, geometry, spec)))
                theirs = read_outputs(
                    {name: value.numpy() for name, value in zip(NAMES, outputs, strict=True)}, geometry, spec
                )
                middle = time.perf_counter()
                ours = read_outputs(session.answer(network_input(image, geometry, spec)), geometry, spec)
                end = time.perf_counter()
                print(f"round {number} of {options.rounds}", flush=True)
                if number:  # the first round warms up
                    plain = sum(clock.seconds for clock in clocks)
                    row = {"torch": middle - start, "torch_plain_operators": plain, "openvino": end - middle}
                    rows.append({**row, "objects": [len(theirs), len(ours)]})
                    print(json.dumps(rows[-1]), flush=True)
    total, network_only = (
        median(row["torch"] / row["openvino"] for row in rows),
        median((row["torch"] - row["torch_plain_operators"]) / row["openvino"] for row in rows),
    )
    print(json.dumps({"precision": options.precision, "ratio": total, "ratio_without_plain_operators": network_only}))


if __name__ == "__main__":
    main()
