"""One command on a machine with a GPU: torch (autocast, channels-last) beside ONNX Runtime's CUDA and TensorRT on the same tiles.

Writes ``gpu_results.json`` and ``gpu_results.md`` into --work. Not measured yet on the machine the other tables come from, which
has no GPU. Needs the environment with ``offline-infer[export,gpu]`` and a CUDA build of torch; the bundle is one that
``run.py`` made, or any other, and for torch's side the checkpoint folder it was exported from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="model folder the bundle was exported from, for torch's side")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--tiles", type=int, default=10)
    parser.add_argument("--work", type=Path, default=Path.cwd())
    options = parser.parse_args()
    from offline_infer.bundle import Bundle

    bundle = Bundle.load(options.bundle)
    shape = bundle.spec.input_shape
    batch = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    rows: list[dict[str, Any]] = []
    reference: np.ndarray | None = None
    sides = [("cuda", "fp32"), ("tensorrt", "fp32"), ("tensorrt", "fp16")]
    runners = [
        (f"onnxruntime {provider} {precision}", engine(bundle, provider, precision, options))
        for provider, precision in sides
    ]
    if options.checkpoint is not None:
        runners = [
            (f"torch {mode}", torch_side(options, mode)) for mode in ("fp32", "autocast fp16", "compiled fp16")
        ] + runners
    for name, opened in runners:
        row: dict[str, Any] = {"engine": name}
        rows.append(row)
        try:
            start = time.perf_counter()
            run = opened()
            row["open_s"] = time.perf_counter() - start
            start = time.perf_counter()
            answer = run(batch).copy()
            row["first_s"] = time.perf_counter() - start
            seconds = []
            for _ in range(options.tiles):
                start = time.perf_counter()
                run(batch)
                seconds.append(time.perf_counter() - start)
            reference = answer if reference is None else reference
            row |= {
                "tiles_s": seconds,
                "median_s": statistics.median(seconds),
                "max_abs_difference": float(np.abs(answer - reference).max()),
                "label_agreement": float((answer.argmax(1) == reference.argmax(1)).mean()),
            }
        except Exception as error:  # a missing provider must not stop the others
            row["failed"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps(row), flush=True)
    (options.work / "gpu_results.json").write_text(json.dumps({"results": rows, "input_shape": shape}, indent=1))
    lines = ["| engine | median s | first call s | labels equal to the first row |", "|---|---|---|---|"]
    for row in rows:
        told = (
            f"failed: {row['failed']} | |"
            if "failed" in row
            else f"{row['median_s']:.4f} | {row['first_s']:.2f} | {100 * row['label_agreement']:.4f} %"
        )
        lines.append(f"| {row['engine']} | {told} |")
    (options.work / "gpu_results.md").write_text("\n".join(lines) + "\n")


def engine(bundle: Any, provider: str, precision: str, options: argparse.Namespace) -> Any:
    """Opens the bundle on a provider; input from and answer to the host, as ``predict`` does."""

    def opened() -> Any:
        from offline_infer.engines.base import EngineOptions, get_engine

        extra = {"provider": "tensorrt"} if provider == "tensorrt" else {}
        settings = EngineOptions(device=f"cuda:{options.device}", precision=precision, extra=extra)
        return get_engine("onnxruntime").open(bundle.graph_path(bundle.folds[0]), settings).run

    return opened


def torch_side(options: argparse.Namespace, mode: str) -> Any:
    """The checkpoint's network in torch; copies to and from the device are part of the time, as on the other side."""

    def opened() -> Any:
        import torch

        from offline_infer.checkpoints import read_checkpoint
        from offline_infer.networks import build, load_weights

        description = read_checkpoint(options.checkpoint)
        network = build(description.network)
        load_weights(network, description.load_weights(description.spec.source.folds[0].fold))
        device = torch.device("cuda", options.device)
        network = network.to(device, memory_format=torch.channels_last_3d)
        torch.backends.cudnn.benchmark = True
        if mode.startswith("compiled"):
            network = torch.compile(network)

        def run(batch: np.ndarray) -> np.ndarray:
            with torch.inference_mode(), torch.autocast("cuda", enabled="fp16" in mode):
                image = torch.from_numpy(batch).to(device, memory_format=torch.channels_last_3d)
                return np.asarray(network(image).float().cpu().numpy())

        return run

    return opened


if __name__ == "__main__":
    main()
