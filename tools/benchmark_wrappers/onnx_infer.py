#!/usr/bin/env python3
"""Speed of an ONNX graph with ONNX Runtime: the GPU and CPU baseline beside the Ascend figures.

    python onnx_infer.py MODEL 1,1,128,128,128 [--device cuda:0] [--rounds 200] [--json]

Takes what the published script of the same name takes and reports the same average: wall time of a run on random input,
the first runs left out. In addition: percentiles, the cost of opening the graph and of the first run, and the provider
that was really used. ONNX Runtime falls back to the CPU without a word when a GPU library is missing: here that is an
error, as is a graph of which single operators would run on the CPU (unless ``--allow-cpu-operators``).

Needs onnxruntime (or onnxruntime-gpu, onnxruntime-cann) and numpy, nothing else of this repository.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded

import numpy as np

PROVIDERS = {
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "cuda": ("CUDAExecutionProvider",),
    "npu": ("CANNExecutionProvider",),
    "cpu": ("CPUExecutionProvider",),
}
"""Device -> providers, in order of preference."""
PUBLISHED_DEVICE = "tensorrt:0"
"""The published script asks for TensorRT, then CUDA."""
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


class InferError(Exception):
    """Something the user can act on."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0, or 2 with a reason."""
    options = _parser().parse_args(arguments)
    try:
        report = measure(
            options.model,
            options.shape,
            device=options.device,
            rounds=options.rounds,
            discard=options.discard,
            threads=options.threads,
            allow_cpu_operators=options.allow_cpu_operators,
        )
    except InferError as error:
        print(f"onnx_infer: error: {error}", file=sys.stderr)
        if options.json:
            print(json.dumps({"error": str(error)}))
        return 2
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print("\n".join(lines(report)))
    return 0


def measure(
    model: Path,
    shape: tuple[int, ...],
    *,
    device: str = PUBLISHED_DEVICE,
    rounds: int = 200,
    discard: int = 10,
    threads: int = 0,
    allow_cpu_operators: bool = False,
) -> dict[str, Any]:
    """Time ``rounds`` runs on random input; the first ``discard`` of them do not count.

    Raises:
        InferError: no such file, provider or shape, or the device was not used.
    """
    if rounds <= discard or discard < 0:
        raise InferError(f"{rounds} rounds of which {discard} are discarded leave nothing; give more --rounds")
    if not model.is_file():
        raise InferError(f"{model}: no such file; expected an ONNX graph")
    try:
        import onnxruntime
    except ImportError as error:
        raise InferError(
            f"onnxruntime cannot be imported ({error}); pip install onnxruntime or onnxruntime-gpu"
        ) from error
    kind, _, number = device.partition(":")
    providers = _providers(kind, number or "0", onnxruntime.get_available_providers())
    begun = time.perf_counter()
    session = _open(onnxruntime, model, providers, kind, threads, allow_cpu_operators)
    opened = time.perf_counter() - begun
    used = _used(session, kind)
    feed = {session.get_inputs()[0].name: _input(session, shape, model)}
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - begun)
    counted = sorted(times[discard:])
    average = sum(counted) / len(counted)
    return {
        "model": model.name,
        "shape": list(shape),
        "device": device,
        "provider": used,
        "providers": list(session.get_providers()),
        "onnxruntime": onnxruntime.__version__,
        "rounds": rounds,
        "discarded": discard,
        "average_s": average,
        "runs_per_s": 1 / average,
        "min_s": counted[0],
        "p50_s": percentile(counted, 50),
        "p90_s": percentile(counted, 90),
        "p99_s": percentile(counted, 99),
        "max_s": counted[-1],
        "open_s": opened,
        "first_run_s": times[0],
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report for people; the average as the published script words it."""
    return [
        f"Provider: {report['provider']} (onnxruntime {report['onnxruntime']})",
        f"Opening the graph: {report['open_s']:.4g}s, first run: {report['first_run_s']:.4g}s",
        f"Average time spent: {report['average_s']:.4g}s "
        f"({report['runs_per_s']:.4g} runs/s, {report['rounds'] - report['discarded']} runs)",
        f"p50: {report['p50_s']:.4g}s, p90: {report['p90_s']:.4g}s, p99: {report['p99_s']:.4g}s",
    ]


def percentile(ordered: list[float], rank: float) -> float:
    """The smallest value that at least ``rank`` per cent of an ascending list do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * rank / 100) - 1)]


def _providers(kind: str, number: str, available: list[str]) -> list[Any]:
    if kind not in PROVIDERS or not number.isdigit():
        legal = ", ".join(f"{name}:N" for name in PROVIDERS if name != "cpu")
        raise InferError(f"unknown device {kind}:{number}; legal: cpu, {legal}")
    present = [name for name in PROVIDERS[kind] if name in available]
    if not present:
        packages = {"npu": "onnxruntime-cann", "cpu": "onnxruntime"}
        raise InferError(
            f"this onnxruntime has no {PROVIDERS[kind][-1]} (it has {', '.join(available)}); "
            f"pip install {packages.get(kind, 'onnxruntime-gpu')}, or measure the CPU with --device cpu"
        )
    return present if kind == "cpu" else [(name, {"device_id": number}) for name in present]


def _open(onnxruntime: Any, model: Path, providers: list[Any], kind: str, threads: int, allow: bool) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    if kind != "cpu" and not allow:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        return onnxruntime.InferenceSession(str(model), settings, providers=providers)
    except Exception as error:  # the library raises classes of its own, all plain exceptions
        hint = "; --allow-cpu-operators lets them run on the CPU" if "fallback" in str(error) else ""
        raise InferError(f"{model} cannot be opened: {str(error).strip()[:400]}{hint}") from error


def _used(session: Any, kind: str) -> str:
    """The provider in use, which must be one that was asked for."""
    used = str(session.get_providers()[0])
    if used not in PROVIDERS[kind]:
        raise InferError(
            f"{kind} was asked for, but the graph runs on {used}: the library fell back without a word; "
            "check driver and CUDA libraries, or measure the CPU with --device cpu"
        )
    return used


def _input(session: Any, shape: tuple[int, ...], model: Path) -> np.ndarray:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InferError(f"{model} has {len(inputs)} inputs, expected one")
    own = inputs[0].shape
    fits = len(own) == len(shape) and all(not isinstance(a, int) or a == b for a, b in zip(own, shape, strict=True))
    if not fits:
        raise InferError(f"{model} takes {own}, not {list(shape)}")
    if inputs[0].type not in DTYPES:
        raise InferError(f"{model} takes {inputs[0].type}, expected one of {', '.join(DTYPES)}")
    return np.random.default_rng(0).random(shape, np.float32).astype(DTYPES[inputs[0].type])


def _shape(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 1,1,128,128,128")
    return tuple(int(word) for word in words)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="onnx_infer", description="Time an ONNX graph with ONNX Runtime.", allow_abbrev=False)
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("shape", type=_shape, help="of the input, e.g. 1,1,128,128,128")
    parser.add_argument(
        "--device", default=PUBLISHED_DEVICE, help="tensorrt:0 (default; then CUDA), cuda:0, npu:0, cpu"
    )
    parser.add_argument("--rounds", type=int, default=200, metavar="N", help="runs, default 200")
    parser.add_argument("--discard", type=int, default=10, metavar="N", help="first runs that do not count, default 10")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads, 0 = all")
    parser.add_argument(
        "--allow-cpu-operators", action="store_true", help="let operators the device lacks run on the CPU"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
