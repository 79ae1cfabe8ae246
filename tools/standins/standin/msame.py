"""STAND-IN for ``msame``: output numbers count from 0, a time-stamped folder, status 0 even for wrong options."""

from __future__ import annotations

import getopt
import sys
import time
from pathlib import Path

from standin import BANNER, words
from standin.faults import Fault, before_input, fault, faults_for, write_output
from standin.om import Om, OmError, left_of_run, load

OPTIONS = words(
    """model= input= output= outfmt= loop= device= debug= profiler= dump= dymBatch= dymHW= dymDims= dymShape=
    outputSize= help"""
)


class RefusedError(Exception):
    """A wrong option; msame still ends with status 0."""


def main(arguments: list[str]) -> int:
    """Run; 0 for success and for wrong options, 1 where the model cannot be loaded."""
    try:
        options = _parse(arguments)
        device = int(options.get("device", "0"))
        faults = faults_for("msame", device)
        model = load(Path(options["model"]), device)
        print(f"[INFO] load model {options['model']} success {BANNER}", flush=True)
        if fault(faults, "exit0-without-success"):
            return 0
        _run(model, options, faults)
    except RefusedError as error:
        print(f"[ERROR] {error}", flush=True)
        return 0
    except OmError as error:
        print(f"[ERROR] {error}", flush=True)
        return 1
    print("[INFO] Execute sample success", flush=True)
    return 0


def _parse(arguments: list[str]) -> dict[str, str]:
    try:
        # getopt_long completes abbreviations; a stand-in that did so would hide misspelt options.
        for word in arguments:
            name = word[2:].partition("=")[0]
            if word.startswith("--") and f"{name}=" not in OPTIONS and name not in OPTIONS:
                raise RefusedError(f"unrecognized option '{word}'")
        pairs, rest = getopt.getopt(arguments, "", OPTIONS)
    except getopt.GetoptError as error:
        raise RefusedError(str(error)) from error
    options = {name[2:]: value for name, value in pairs}
    if rest:
        raise RefusedError(f"unexpected argument {rest[0]!r}")
    if not options.get("model"):
        raise RefusedError("model path is missing: --model")
    if options.get("outfmt", "BIN") not in ("BIN", "TXT"):
        raise RefusedError(f"outfmt {options['outfmt']} is neither TXT nor BIN")
    if not options.get("device", "0").isdigit() or int(options.get("device", "0")) > 255:
        raise RefusedError(f"device {options['device']} is not in 0..255")
    if not options.get("loop", "1").isdigit() or not 1 <= int(options.get("loop", "1")) <= 100:
        raise RefusedError(f"loop {options['loop']} is not in 1..100")
    for name in ("dymBatch", "dymHW", "dymDims", "dymShape"):
        if name in options:
            raise RefusedError(f"{name}: this model has a fixed shape")
    return options


def _run(model: Om, options: dict[str, str], faults: list[Fault]) -> None:
    if "output" not in options:
        folder = None
    else:
        now = time.localtime()
        # Not zero padded, with microseconds, as the program names it.
        stamp = f"{now.tm_year}{now.tm_mon:02d}{now.tm_mday:02d}_{now.tm_hour}_{now.tm_min}_{now.tm_sec}"
        folder = Path(options["output"]) / f"{stamp}_{time.time_ns() // 1000 % 1000000}"
        folder.mkdir(parents=True, exist_ok=True)
    times = []
    for position, (stem, data) in enumerate(_inputs(model, options)):
        before_input(faults, position)
        started = time.perf_counter()
        try:
            outputs, spent = model.run(data)
        except OmError as error:
            print(f"[ERROR] {stem}: {error}", flush=True)  # a failing file of a folder is passed over
            continue
        time.sleep(left_of_run(started))
        times.append(spent)
        print(f"Inference time: {spent:.3f}ms", flush=True)
        for number, answer in enumerate(outputs):
            if folder is not None:
                write_output(
                    faults,
                    position,
                    folder / f"{stem}_output_{number}.bin",
                    answer,
                    model.meta["outputs"][number]["dtype"],
                )
    if times:
        rest = times[1:] or times
        print(f"Inference average time : {sum(times) / len(times):.2f} ms")
        print(f"Inference average time without first time: {sum(rest) / len(rest):.2f} ms", flush=True)


def _inputs(model: Om, options: dict[str, str]) -> list[tuple[str, bytes]]:
    """(stem, data) of each input, folders in lexicographic order. A single file or none is called after the model."""
    name = Path(options["model"]).stem
    loops = int(options.get("loop", "1"))
    if "input" not in options:
        return [(name, model.zeros())] * loops
    path = Path(options["input"])
    if path.is_dir():
        files = sorted(entry for entry in path.iterdir() if entry.is_file())
        return [(entry.name.rpartition(".")[0] or entry.name, entry.read_bytes()) for entry in files]
    if path.is_file():
        return [(name, path.read_bytes())] * loops
    raise RefusedError(f"input {path} does not exist")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
