"""Whether a tool left every output of every input, whole. For the wrappers; standard library only.

check_outputs.py TOOL MODEL INPUTS OUTPUTS [--ending bin] [--since FILE]

Numbers and sizes of the outputs are read from the bundle the OM lies in. Without a bundle the run is held against
itself: every input must have the same outputs, of the same sizes, as the input that has most.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path

ITEM_BYTES = {"float32": 4, "float16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
STYLES = {"benchmark": ("_", 1), "msame": ("_output_", 0), "ais_bench": ("_", 0)}
"""Tool -> (what stands between an input's name and the output's number, the number of the first output)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 all is there, 1 something is missing or cut, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=STYLES)
    parser.add_argument("model")
    parser.add_argument("inputs", type=Path, help="folder of bins, or an info file")
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--ending", default="bin")
    parser.add_argument("--since", type=Path, help="outputs older than this file are of an earlier run")
    options = parser.parse_args(arguments)
    stems = input_stems(options.inputs, options.tool)
    newest = options.since.stat().st_mtime - 1 if options.since else 0.0
    found = output_sizes(options.outputs, options.tool, options.ending, newest)
    sizes = expected_sizes(Path(options.model), options.tool) if options.ending == "bin" else None
    problems = check(stems, found, sizes, exact=options.ending == "bin")
    for line in problems[:5]:
        print(f"{options.tool}: {line}", file=sys.stderr)
    if not problems:
        print(f"{options.tool}: {len(stems)} inputs answered")
    return 1 if problems else 0


def input_stems(place: Path, tool: str) -> list[str]:
    """Names of the inputs as they stand in the names of the outputs."""
    if place.is_dir():
        names = sorted(path.name for path in place.iterdir() if path.suffix in (".bin", ".npy"))
    else:
        names = [Path(line.split()[1]).name for line in place.read_text().splitlines() if len(line.split()) > 1]
    return [name.partition(".")[0] if tool == "ais_bench" else name.rpartition(".")[0] for name in names]


def output_sizes(folder: Path, tool: str, ending: str, newest: float) -> dict[str, dict[int, int]]:
    """Input -> number of the output -> size in bytes, below a folder (msame and ais_bench make their own in it)."""
    between, _ = STYLES[tool]
    pattern = re.compile(rf"(?P<stem>.+){between}(?P<number>\d+)\.{re.escape(ending)}", re.DOTALL)
    found: dict[str, dict[int, int]] = {}
    for path in sorted(folder.rglob(f"*.{ending}")) if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        status = path.stat()
        if match and status.st_mtime >= newest:
            found.setdefault(match["stem"], {})[int(match["number"])] = status.st_size
    return found


def expected_sizes(model: Path, tool: str) -> dict[int, int] | None:
    """Number -> size of each output of an OM, from the ``bundle.json`` above it; None where there is none."""
    first = STYLES[tool][1]
    for folder in list(model.absolute().parents)[:2]:
        try:
            bundle = json.loads((folder / "bundle.json").read_text())
            record = next(each for each in bundle["compiled"] if Path(each["file"]).name == model.name)
            outputs = record["outputs"] or bundle["outputs"]
            return {
                first + number: prod(output["shape"]) * ITEM_BYTES[output["dtype"]]
                for number, output in enumerate(outputs)
            }
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            continue
    return None


def check(
    stems: Sequence[str], found: dict[str, dict[int, int]], sizes: dict[int, int] | None, *, exact: bool
) -> list[str]:
    """What is missing or cut, one line each.

    Args:
        sizes: what every input must have; None: what most inputs have.
        exact: whether sizes must be equal; texts only must not be empty.
    """
    if sizes is None:
        mine = [found.get(stem, {}) for stem in stems]
        numbers = sorted({number for outputs in mine for number in outputs})
        sizes = {n: Counter(outputs[n] for outputs in mine if n in outputs).most_common(1)[0][0] for n in numbers}
    if not sizes:
        return [f"none of {len(stems)} inputs has an output"] if stems else []
    problems = []
    for stem in stems:
        outputs = found.get(stem, {})
        for number, size in sizes.items():
            if number not in outputs:
                problems.append(f"{stem}: output {number} is missing")
            elif (outputs[number] != size) if exact else not outputs[number]:
                problems.append(f"{stem}: output {number} has {outputs[number]} bytes, expected {size}")
    if len(problems) > 5:
        problems.insert(0, f"{len(problems)} outputs of {len(stems)} inputs are missing or cut")
    return problems


if __name__ == "__main__":
    sys.exit(main())
