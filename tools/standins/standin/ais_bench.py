"""STAND-IN for ``ais_bench``, generations v2023 and v2024 (``OFFLINE_INFER_STANDIN_GENERATION``, default v2024).

Output numbers count from 0, the summary lies beside the output folder. Both generations call themselves 0.0.2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import stat
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from standin import BANNER
from standin.faults import Fault, before_input, fault, faults_for, write_output
from standin.om import Om, OmError, left_of_run, load

GENERATIONS = ("v2023", "v2024")
_SAFE = re.compile(r"[A-Za-z0-9_./-]+")


class RefusedError(Exception):
    """Wrong input; ends with status 1."""


def main(arguments: list[str]) -> int:
    """Run; 0, 1, or 2 for wrong options."""
    generation = os.environ.get("OFFLINE_INFER_STANDIN_GENERATION", "v2024")
    if generation not in GENERATIONS:
        print(
            f"stand-in: OFFLINE_INFER_STANDIN_GENERATION: {generation!r} is not one of {GENERATIONS}", file=sys.stderr
        )
        return 97
    options = _parser(generation).parse_args(arguments)
    try:
        _check(options, generation)
        print(f"[INFO] acl init success {BANNER}", flush=True)
        _run(options, generation)
    except (RefusedError, OmError) as error:
        print(f"[ERROR] {error}", flush=True)
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser(generation: str) -> argparse.ArgumentParser:
    parser = _Parser(prog="ais_bench", description=f"ais_bench {BANNER}")
    parser.add_argument("--model", "-m", required=True)
    parser.add_argument("--input", "-i")
    parser.add_argument("--output", "-o")
    parser.add_argument("--output_dirname")
    parser.add_argument("--outfmt", default="BIN", choices=["NPY", "BIN", "TXT"])
    parser.add_argument("--device", "-d", default="0", type=_devices)
    parser.add_argument("--loop", "-l", type=int, default=1)
    parser.add_argument("--warmup_count", type=int, default=1)
    parser.add_argument("--batchsize", type=int)
    parser.add_argument("--pure_data_type", default="zero", choices=["zero", "random"])
    parser.add_argument("--run_mode", default="array", choices=["array", "files", "tensor", "full"])
    parser.add_argument("--output_batchsize_axis", type=int, default=0)
    for name in ("dymBatch", "dymHW", "dymDims", "dymShape", "dymShape_range", "outputSize"):
        parser.add_argument(f"--{name}")
    for name in ("auto_set_dymshape_mode", "auto_set_dymdims_mode", "profiler", "dump", "display_all_summary", "debug"):
        parser.add_argument(f"--{name}", type=_boolean, default=False)
    parser.add_argument("--acl_json_path")
    if generation == "v2024":
        for name in ("aipp_config", "npu_id", "backend"):
            parser.add_argument(f"--{name}")
        for name in ("energy_consumption", "perf", "pipeline", "profiler_rename", "dump_npy", "divide_input"):
            parser.add_argument(f"--{name}", type=_boolean, default=False)
        parser.add_argument("--threads", type=int, default=1)
    return parser


def _devices(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdigit() and int(word) <= 255 for word in words):
        raise argparse.ArgumentTypeError(f"device {text!r} is not in 0..255")
    return [int(word) for word in words]


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "t", "yes", "y"):
        return True
    if text.lower() in ("0", "false", "f", "no", "n"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a boolean")


def _check(options: argparse.Namespace, generation: str) -> None:
    if options.output_dirname and not options.output:
        raise RefusedError("parameter --output_dirname needs --output")
    if options.profiler and options.dump:
        raise RefusedError("parameter --profiler cannot be true at the same time --dump true")
    if options.loop < 1 or options.warmup_count < 0:
        raise RefusedError("loop must be positive, warmup_count not negative")
    if generation == "v2023":
        return
    if options.output_dirname and Path(options.output_dirname).is_absolute():
        raise RefusedError("output_dirname must not be absolute")
    _safe_file(Path(options.model))
    for name in (options.input or "").split(","):
        if name:
            _safe_file(Path(name))
    if options.output and not _SAFE.fullmatch(options.output):
        raise RefusedError(f"path {options.output} has characters other than letters, digits and _./-")


def _safe_file(path: Path) -> None:
    """The newer generation's rules for everything it reads."""
    if not _SAFE.fullmatch(str(path)):
        raise RefusedError(f"path {path} has characters other than letters, digits and _./-")
    if path.is_symlink():
        raise RefusedError(f"path {path} is a soft link")
    if not path.exists():
        raise RefusedError(f"path {path} does not exist")
    info = path.stat()
    if info.st_uid != os.geteuid():
        raise RefusedError(f"path {path} has another owner")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RefusedError(f"path {path} is writable by group or others; set umask 0027")


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _input_files(options: argparse.Namespace, generation: str) -> list[Path]:
    if not options.input:
        return []
    places = [Path(name) for name in options.input.split(",")]
    if places[0].is_dir():
        if len(places) != 1:
            raise RefusedError(f"the model has 1 input, {len(places)} folders were given")
        files = sorted((path for path in places[0].iterdir() if path.suffix in (".npy", ".bin")), key=_natural)
    else:
        files = places
    for path in files:
        if generation == "v2024":
            _safe_file(path)
        elif not path.exists():
            raise RefusedError(f"path {path} does not exist")
    if not files:
        raise RefusedError(f"no .bin or .npy files in {options.input}")
    return files


def _run(options: argparse.Namespace, generation: str) -> None:
    files = _input_files(options, generation)
    devices: list[int] = options.device
    if len(devices) == 1:
        _one_device(options, devices[0], files, None)
        return
    split = generation == "v2023" or options.divide_input
    rates = []
    for position, device in enumerate(devices):
        size = math.ceil(len(files) / len(devices))
        mine = files[position * size : (position + 1) * size] if split else files
        name = f"device{device}" if generation == "v2023" else f"device{device}_{position}"
        rates.append(_one_device(options, device, mine, name))
    print(f"[INFO] summary throughput:{sum(rates)}", flush=True)


def _one_device(options: argparse.Namespace, device: int, files: list[Path], part: str | None) -> float:
    faults = faults_for("ais_bench", device)
    model = load(Path(options.model), device)
    if fault(faults, "exit0-without-success"):
        return 0.0
    folder: Path | None = None
    if options.output:
        dirname = options.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S")
        folder = Path(options.output) / dirname
        if part is not None:
            folder /= part
        folder.mkdir(parents=True, exist_ok=True)
        Path(options.output).chmod(0o750)
    for _ in range(options.warmup_count):
        model.run(model.zeros())
    runs: dict[str, Any] = {}
    times: list[float] = []
    for position, group in enumerate(_groups(model, files) if files else [[]] * options.loop):
        before_input(faults, position)
        data = b"".join(_read(path) for path in group) if group else _fill(model, options.pure_data_type)
        started = time.perf_counter()
        answers, spent = model.run(data)
        time.sleep(left_of_run(started))
        times.append(spent)
        if len(group) > 1 and folder is not None:
            # A batch-1 model cannot give its answer back to two files.
            raise RefusedError(
                f"save out files error, array shape {model.meta['inputs'][0]['shape']}, files {len(group)}"
            )
        # The stem ends at the first dot: a.1.bin and a.2.bin write the same files.
        stem = group[0].name.partition(".")[0] if group else "pure_infer_data"
        outfiles = [
            _save(answer, folder, stem, number, position, model, options, faults)
            for number, answer in enumerate(answers)
        ]
        names = [str(path) for path in group] or ["pure_infer_data"]
        runs[str(position)] = {"infiles": [names], "outfiles": [name for name in outfiles if name]}
    return _summary(options, folder, times, runs, faults)


def _fill(model: Om, kind: str) -> bytes:
    return os.urandom(model.input_bytes) if kind == "random" else model.zeros()


def _read(path: Path) -> bytes:
    return np.load(path).tobytes() if path.suffix == ".npy" else path.read_bytes()


def _groups(model: Om, files: list[Path]) -> list[list[Path]]:
    """Files per run: the first file's size decides, smaller files are glued together, the last group is padded."""
    size = len(_read(files[0]))
    if not size or model.input_bytes % size:
        raise RefusedError(f"tensorsize:{model.input_bytes} filesize:{size} not match")
    count = model.input_bytes // size
    groups = [files[first : first + count] for first in range(0, len(files), count)]
    groups[-1] += [files[0]] * (count - len(groups[-1]))
    return groups


def _save(
    answer: bytes, folder: Path | None, stem: str, number: int, position: int, model: Om, options: argparse.Namespace,
    faults: list[Fault],
) -> str | None:  # fmt: skip
    if folder is None:
        return None
    path = folder / f"{stem}_{number}.{options.outfmt.lower()}"
    dtype = model.meta["outputs"][number]["dtype"]
    if options.outfmt == "NPY":
        np.save(path, np.frombuffer(answer, dtype))
    elif options.outfmt == "TXT":
        path.write_text("\n".join(map(str, np.frombuffer(answer, dtype))))
    else:
        write_output(faults, position, path, answer, dtype)
    return str(path)


def _figures(times: list[float]) -> dict[str, Any]:
    return {
        "min": min(times), "max": max(times), "mean": float(np.mean(times)), "median": float(np.median(times)),
        "percentile(99%)": float(np.percentile(times, 99)), "count": len(times),
    }  # fmt: skip


def _summary(
    options: argparse.Namespace, folder: Path | None, times: list[float], runs: dict[str, Any], faults: list[Fault]
) -> float:
    mean = float(np.mean(times))
    rate = 1000 * (options.batchsize or 1) / mean
    print(
        f"[INFO] throughput 1000*batchsize.mean({options.batchsize or 1})/NPU_compute_time.mean({mean}): {rate}",
        flush=True,
    )
    if folder is not None and not fault(faults, "no-summary"):
        record = {
            "filesinfo": runs,
            "args": {**vars(options)},
            "NPU_compute_time": _figures(times),
            "H2D_latency": _figures([0.1] * len(times)),
            "D2H_latency": _figures([0.1] * len(times)),
            "throughput": rate,
            "npu_compute_time_list": times,
            "pid": os.getpid(),
        }
        (folder.parent / f"{folder.name}_summary.json").write_text(json.dumps(record, indent=4))
    return rate


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
