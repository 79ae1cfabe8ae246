"""STAND-IN for ``benchmark.x86_64`` and ``benchmark.aarch64``: output numbers from 1, everything under ``result/``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from standin import BANNER, words
from standin.faults import Fault, before_input, fault, faults_for, write_output
from standin.om import Om, OmError, left_of_run, load

FLAGS = words(
    """model_type device_id batch_size om_path input_text_path input_width input_height output_binary useDvpp round"""
)
MODEL_TYPES = ("vision", "nlp", "bert")


class RefusedError(Exception):
    """A wrong option or input."""


def main(arguments: list[str]) -> int:
    """Run; 0 or 1."""
    try:
        options = _parse(arguments)
        device = _integer(options, "device_id")
        faults = faults_for("benchmark", device)
        model = load(Path(_required(options, "om_path")), device)
        if _integer(options, "batch_size") != 1:
            raise RefusedError("batch_size must be the model's, 1")
        print(f"[INFO] load model success {BANNER}", flush=True)
        if "round" in options:
            _pure(model, Path(options["om_path"]), device, _integer(options, "round"))
        else:
            _dataset(model, options, device, faults)
    except (RefusedError, OmError) as error:
        print(f"[ERROR] {error}", flush=True)
        return 1
    return 0


def _parse(arguments: list[str]) -> dict[str, str]:
    options = {}
    for word in arguments:
        name, sign, value = word.partition("=")
        if not name.startswith("-") or name.startswith("--") or name[1:] not in FLAGS or not sign:
            raise RefusedError(f"unknown or malformed option {word!r}; options are written -name=value")
        options[name[1:]] = value
    return options


def _required(options: dict[str, str], name: str) -> str:
    if not options.get(name):
        raise RefusedError(f"option -{name} is missing")
    return options[name]


def _integer(options: dict[str, str], name: str) -> int:
    text = _required(options, name)
    if not text.isdigit():
        raise RefusedError(f"option -{name}={text} is not a number")
    return int(text)


def _boolean(options: dict[str, str], name: str, default: bool) -> bool:
    text = options.get(name, str(default))
    if text.lower() not in ("true", "false"):
        raise RefusedError(f"option -{name}={text} is neither True nor False")
    return text.lower() == "true"


def _read_info(path: Path) -> list[Path]:
    """The inputs of an info file: ``index path width height`` per line, index from 0."""
    if not path.is_file():
        raise RefusedError(f"input_text_path {path} does not exist")
    files = []
    for position, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        words = line.split()
        if len(words) != 4 or words[0] != str(position) or not words[2].isdigit() or not words[3].isdigit():
            raise RefusedError(f"{path}, line {position + 1}: {line!r} is not 'index path width height'")
        files.append(Path(words[1]))
    return files


def _dataset(model: Om, options: dict[str, str], device: int, faults: list[Fault]) -> None:
    if _required(options, "model_type") not in MODEL_TYPES:
        raise RefusedError(f"model_type {options['model_type']} is not one of {MODEL_TYPES}")
    _integer(options, "input_width")
    _integer(options, "input_height")
    if _boolean(options, "useDvpp", False):
        raise RefusedError("useDvpp=True decodes JPEG images; bins need useDvpp=False")
    binary = _boolean(options, "output_binary", False)
    inputs = _read_info(Path(_required(options, "input_text_path")))
    if fault(faults, "exit0-without-success"):
        return
    folder = Path("result") / f"dumpOutput_device{device}"
    folder.mkdir(parents=True, exist_ok=True)
    times = []
    begun = time.perf_counter()
    for position, path in enumerate(inputs):
        before_input(faults, position)
        if not path.is_file():
            raise RefusedError(f"input {path} does not exist")
        started = time.perf_counter()
        outputs, spent = model.run(path.read_bytes())
        time.sleep(left_of_run(started))
        times.append(spent)
        for number, data in enumerate(outputs, start=1):
            name = f"{path.name.rpartition('.')[0] or path.name}_{number}"
            if binary:
                dtype = model.meta["outputs"][number - 1]["dtype"]
                write_output(faults, position, folder / f"{name}.bin", data, dtype)
            else:
                values = np.frombuffer(data, model.meta["outputs"][number - 1]["dtype"])
                write_output(faults, position, folder / f"{name}.txt", " ".join(map(str, values)).encode())
    wall = time.perf_counter() - begun
    _report(Path("result") / f"perf_vision_batchsize_1_device_{device}.txt", times, wall)


def _report(path: Path, times: list[float], wall: float) -> None:
    if not times:
        return
    mean = sum(times) / len(times)
    rate = len(times) / wall
    lines = [
        f"[e2e] throughputRate: {rate:.6g}, latency: {1000 * wall:.6g}",
        f"[data read] throughputRate: {rate * 1.2:.6g}, moduleLatency: {0.1:.6g}",
        f"[preprocess] throughputRate: {rate * 1.1:.6g}, moduleLatency: {0.1:.6g}",
        f"[inference] throughputRate: {rate:.6g}, Interface throughputRate: {1000 / mean:.6g}, "
        f"moduleLatency: {mean:.6g}",
        f"[postprocess] throughputRate: {rate:.6g}, moduleLatency: {0.1:.6g}",
    ]
    path.write_text("\n".join(lines) + "\n")
    print("-----------------Performance Summary------------------")
    print("\n".join(lines), flush=True)


def _pure(model: Om, om_path: Path, device: int, rounds: int) -> None:
    if rounds < 1:
        raise RefusedError("round must be at least 1")
    times = [model.run(model.zeros())[1] for _ in range(rounds)]
    mean = sum(times) / len(times)
    Path("result").mkdir(exist_ok=True)
    report = Path("result") / f"PureInfer_perf_of_{om_path.stem}_in_device_{device}.txt"
    report.write_text(f"ave_throughputRate = {1000 / mean:.6g}samples/s, ave_latency = {mean:.6g}ms\n")
    print("-----------------PureInfer Performance Summary------------------")
    print(f"[INFO] ave_throughputRate: {1000 / mean:.6g}samples/s, ave_latency: {mean:.6g}ms", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
