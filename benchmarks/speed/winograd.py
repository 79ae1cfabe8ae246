"""Whole cases with direct convolutions and with fewer multiplications, in turn on this machine, and what each layer gains.

    python benchmarks/speed/winograd.py BUNDLE --sizes 160 192 192 --rounds 2          # writes a table
    python benchmarks/speed/winograd.py BUNDLE --layers                                # single convolutions only

Every run is a process of its own: `predict` of one synthetic CT without mirroring, file to file. The first run of each way
compiles (and measures, for `auto`), the others find that in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from shared import synthetic_ct

ROOT = Path(__file__).resolve().parents[2]


def run(bundle: Path, image: Path, folder: Path, way: str, options: argparse.Namespace) -> dict[str, float]:
    """Wall and processor seconds and peak memory of one process."""
    command = [sys.executable, "-m", "offline_infer", "predict", str(bundle), str(image), str(folder)]
    command += ["--overwrite", "--no-tta", "--threads", str(options.threads), "--cache", str(options.work / "cache")]
    command += ["--engine-option", f"convolution={way}", "--quiet"]
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = os.posix_spawn(sys.executable, command, environment)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"predict failed: {' '.join(command)}")
    wall = time.perf_counter() - start
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_gib": usage.ru_maxrss / (1 << 20)}


def cases(options: argparse.Namespace) -> None:
    """Whole cases, the ways in turn."""
    import SimpleITK as sitk

    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "cache").mkdir(mode=0o700, exist_ok=True)
    image = options.work / "case_0000.nii.gz"
    ct = sitk.GetImageFromArray(synthetic_ct(tuple(options.sizes)))
    ct.SetSpacing(options.spacing[::-1])
    sitk.WriteImage(ct, str(image))
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    for number in range(1 + options.rounds):
        for way in options.ways:
            if number == 0 and way == "direct":
                continue
            rows[way].append(run(options.bundle, image, options.work / way, way, options))
            print(
                json.dumps({"way": way, **{key: round(value, 2) for key, value in rows[way][-1].items()}}), flush=True
            )
    labels = {
        way: sitk.GetArrayFromImage(sitk.ReadImage(str(next((options.work / way).glob("*.nii.gz")))))
        for way, found in rows.items()
        if found
    }
    print("\n".join(table(rows, labels)))


def table(rows: dict[str, list[dict[str, float]]], labels: dict[str, np.ndarray[Any, Any]]) -> list[str]:
    """A line a way; what it is compared with stays open where direct convolutions were not run."""
    direct = [row["wall_s"] for row in rows.get("direct", ())]
    lines = [
        "| convolution | first run s | median s (min - max) | direct / this | peak GiB | labels equal |",
        "|---|---|---|---|---|---|",
    ]
    for way, found in rows.items():
        if not found:
            continue
        kept = found if way == "direct" else found[1:] or found
        walls = [row["wall_s"] for row in kept]
        gain = f"{median(direct) / median(walls):.2f}" if direct else "-"
        equal = f"{100 * np.mean(labels[way] == labels['direct']):.4f} %" if direct else "-"
        lines.append(
            f"| {way} | {found[0]['wall_s']:.1f} | {median(walls):.1f} ({min(walls):.1f} - {max(walls):.1f}) "
            f"| {gain} | {max(row['peak_gib'] for row in kept):.2f} | {equal} |"
        )
    return lines


def layers(options: argparse.Namespace) -> None:
    """Every kind of layer alone."""
    import openvino as ov

    from offline_infer.bundles.bundle import Bundle
    from offline_infer.engines.openvino.winograd.layers import find_layers
    from offline_infer.engines.openvino.winograd.measuring import layer_facts, measure
    from offline_infer.engines.openvino.winograd.plan import fixed_plan

    bundle = Bundle.load(options.bundle)
    core = ov.Core()
    found = find_layers(core.read_model(str(bundle.graph_path(bundle.folds[0]))))
    cuts = fixed_plan(found, 2).cuts
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(options.threads)}
    print("| channels | output | GFLOP | layers | F(2,3) | F(4,3) |")
    print("|---|---|---|---|---|---|")
    kinds: dict[str, list[Any]] = {}
    for layer in found:
        kinds.setdefault(json.dumps(layer_facts(layer)), []).append(layer)
    for layer, *others in kinds.values():
        parts = cuts[layer.axis].parts_of(layer.shape[layer.axis])
        ways = [m for m in (2, 4) if parts >= m]
        times = measure(ov, core, config, layer, cuts[layer.axis], ways)
        gains = [f"{times[0] / times[m]:.2f}x" if m in times else "-" for m in (2, 4)]
        sizes = "x".join(map(str, layer.answer[2:]))
        print(
            f"| {layer.shape[1]} to {layer.answer[1]} | {sizes} | {layer.gflop:.1f} | {1 + len(others)} | {' | '.join(gains)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sizes", type=int, nargs=3, default=[160, 192, 192])
    parser.add_argument("--spacing", type=float, nargs=3, default=[1.0, 0.767578125, 0.767578125])
    parser.add_argument("--ways", nargs="+", default=["direct", "auto"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "offline_infer_winograd")
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    layers(options) if options.layers else cases(options)


if __name__ == "__main__":
    main()
