"""One command on a machine with a GPU: torch beside ONNX Runtime's CUDA and TensorRT, one tile and whole cases.

    python benchmarks/speed/gpu.py BUNDLE [--checkpoint FOLDER] [--image FILE ...]

Needs ``offline-infer[export,gpu]`` and, for torch's rows, a CUDA build of torch and the folder the bundle was exported from; for
nnU-Net's own whole case an environment with nnunetv2 (this one, or --peer-python). What is missing is a row that says so.
Every row is a process of its own. Writes gpu_results.json (raw values) and gpu_results.md (tables) into --work.

``--device cpu`` runs the same code on the CPU provider, to see that it works; its figures say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
WHEELS = (
    "offline-infer",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "tensorrt",
    "nvidia-cudnn-cu12",
    "nnunetv2",
    "numpy",
)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    scratch = work / "gpu_scratch"
    shutil.rmtree(
        scratch, ignore_errors=True
    )  # a compiled graph that is there already would hide what the first call costs
    scratch.mkdir()
    jobs = jobs_of(options, scratch)
    record: dict[str, Any] = {"machine": machine(), "command": sys.argv[1:], "device": options.device, "rows": []}
    for number, job in enumerate(jobs):
        row = {"name": job["name"], "kind": job["kind"], **run_job(job, scratch / f"{number}", options)}
        record["rows"].append(row)
        told = row.get("failed") or f"median {statistics.median(row.get('resident_s') or row['whole_s']):.4f} s"
        print(f"{job['name']}: {told}", flush=True)
        compare(record["rows"])
        (work / "gpu_results.json").write_text(json.dumps(record, indent=1) + "\n")
        (work / "gpu_results.md").write_text(tables(record))
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"written: {work / 'gpu_results.json'}, {work / 'gpu_results.md'}")
    return 0 if any("failed" not in row for row in record["rows"]) else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="model folder the bundle was exported from, for torch's rows")
    parser.add_argument("--image", type=Path, nargs="+", help="the channels of a case; default: a synthetic one")
    parser.add_argument("--case", type=int, nargs=3, metavar=("Z", "Y", "X"), help="voxels of the synthetic case")
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the script")
    parser.add_argument("--times", type=int, default=20, help="calls per tile row (default 20)")
    parser.add_argument("--rounds", type=int, default=3, help="whole cases after the first (default 3)")
    parser.add_argument("--mirror-batch", type=int, nargs="+", default=[1, 2, 8], help="mirrors a call to try")
    parser.add_argument("--no-tta", action="store_true", help="whole cases without mirroring")
    parser.add_argument("--peer-python", type=Path, default=Path(sys.executable), help="has nnunetv2 and a CUDA torch")
    parser.add_argument("--parts", nargs="+", choices=("tile", "case"), default=["tile", "case"])
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("--limit", type=float, default=3600, help="seconds a row may take")
    parser.add_argument("--work", type=Path, default=Path.cwd())
    return parser.parse_args(arguments)


# ---- what is measured ------------------------------------------------------------------------------------------------


def jobs_of(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """The rows, in order; the first of a kind is what the others' labels are compared with."""
    from offline_infer.arithmetic.sliding_window import mirror_sets
    from offline_infer.bundles.bundle import Bundle

    bundle = Bundle.load(options.bundle)
    spec, fold = bundle.spec, bundle.folds[0]
    cpu = options.device == "cpu"
    images = [str(path.resolve()) for path in options.image or synthetic_case(spec, options.case, scratch)]
    np.save(scratch / "tile.npy", tile_of(spec, images))
    wide = str(bundle.graph_path(fold))
    half = half_graph(bundle, fold, scratch)
    mirrors = [list(mirror) for mirror in mirror_sets(spec.window.mirror_axes, len(spec.patch_size))]
    common = {"device": options.device, "fold": fold, "times": options.times, "rounds": options.rounds}
    common |= {"tile": str(scratch / "tile.npy"), "cache": str(scratch / "cache"), "tta": not options.no_tta}
    sides = [("cpu", "fp32", wide)] if cpu else [("cuda", "fp32", wide)]
    if half is not None:
        sides.append((sides[0][0], "fp16", half))
    if not cpu:
        sides += [("tensorrt", "fp32", wide), ("tensorrt", "fp16", wide)]
    jobs: list[dict[str, Any]] = []
    if "tile" in options.parts:
        low = "bf16" if cpu else "fp16"
        for name, autocast, last, compiled in [
            ("fp32", False, False, False),
            ("fp32, channels-last", False, True, False),
            (f"autocast {low}", True, False, False),
            (f"autocast {low}, channels-last", True, True, False),
            (f"compiled, autocast {low}, channels-last", True, True, True),
        ]:
            modes = {"autocast": autocast, "channels_last": last, "compiled": compiled}
            jobs.append({"name": f"torch {name}", "kind": "torch", "checkpoint": checkpoint(options), **modes})
        for provider, precision, graph in sides:
            side = {"provider": provider, "precision": precision, "graph": graph, "mirrors": mirrors}
            side["mirror_batches"] = sorted({min(n, len(mirrors)) for n in options.mirror_batch})
            jobs.append({"name": f"onnxruntime {provider} {precision}", "kind": "onnxruntime", **side})
    if "case" in options.parts:
        source = next(item for item in spec.source.folds if item.fold == fold)
        peer = {"checkpoint": checkpoint(options), "checkpoint_name": Path(source.checkpoint).name}
        if spec.source.framework != "nnunet_v2":
            peer["not"] = f"nnU-Net v2's predictor cannot run a model of {spec.source.framework}"
        peer |= {"file_ending": spec.file_ending, "images": images, "python": str(options.peer_python)}
        jobs.append({"name": "nnU-Net v2 predictor (torch)", "kind": "peer", **peer})
        for provider, precision, graph in sides:
            side = {"provider": provider, "precision": precision, "graph": graph, "images": images}
            side["bundle"] = str(options.bundle.resolve())
            for stitch in ("host", "device"):
                name = f"onnxruntime {provider} {precision}, stitch={stitch}"
                jobs.append({"name": name, "kind": "case", "stitch": stitch, **side})
    return [{**common, **job} for job in jobs if (options.only or "") in job["name"]]


def checkpoint(options: argparse.Namespace) -> str | None:
    return None if options.checkpoint is None else str(options.checkpoint.resolve())


def tile_of(spec: Any, images: list[str]) -> np.ndarray:
    """The middle tile of the case, as the network gets it; noise for a cascade's second stage."""
    from offline_infer.arithmetic.sliding_window import cut_tile, lay_tiles
    from offline_infer.images import read_image
    from offline_infer.tasks.volume.preparing import prepare

    if spec.previous_stage is not None:
        return np.random.default_rng(5).normal(size=spec.input_shape).astype(np.float32)
    image = read_image([Path(path) for path in images], spec.reader, channels=len(spec.channels))
    array = prepare(image.array, image.geometry, spec).array
    grid = lay_tiles(array.shape[1:], spec.patch_size, 0.5)
    starts = list(grid)
    tile = np.empty((spec.input_channels, *grid.patch), np.float32)
    cut_tile(array, grid, starts[len(starts) // 2], tile)
    return tile.reshape(spec.input_shape)


def synthetic_case(spec: Any, shape: list[int] | None, scratch: Path) -> list[Path]:
    """A body in air, one file a channel: 2.2 patches long and wide unless said otherwise."""
    import SimpleITK as sitk

    sys.path.insert(0, str(HERE))
    from shared import synthetic_ct

    patch = (16, *spec.patch_size) if len(spec.patch_size) == 2 else spec.patch_size
    spacing = [3.0, *spec.spacing] if len(spec.spacing) == 2 else list(spec.spacing)
    shape = shape or [int(2.2 * size) for size in patch]
    order = np.argsort(spec.transpose_forward)
    paths = []
    for channel in range(len(spec.channels)):
        image = sitk.GetImageFromArray(synthetic_ct(tuple(int(shape[axis]) for axis in order), seed=channel))
        image.SetSpacing([float(spacing[axis]) for axis in order][::-1])
        paths.append(scratch / f"case_{channel:04d}.nii.gz")
        sitk.WriteImage(image, str(paths[-1]))
    return paths


def half_graph(bundle: Any, fold: str, scratch: Path) -> str | None:
    """The bundle's half-precision graph, or one made from the other as ``export --precision fp16`` does."""
    from offline_infer.bundles.bundle import GRAPH_KEY
    from offline_infer.errors import OfflineInferError
    from offline_infer.graph import load_model, save_model, set_metadata, to_float16

    try:
        return str(bundle.graph_path(fold, "fp16"))
    except OfflineInferError:
        pass
    try:
        model, _ = to_float16(load_model(bundle.graph_path(fold)))
        told = {"fold": fold, "precision": "fp16", "opset": bundle.graph(fold).opset}
        save_model(set_metadata(model, {GRAPH_KEY: json.dumps(told)}), scratch / "fp16.onnx")
    except OfflineInferError as error:
        print(f"no half-precision graph: {error}", flush=True)
        return None
    return str(scratch / "fp16.onnx")


# ---- running ---------------------------------------------------------------------------------------------------------


def run_job(job: dict[str, Any], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row's figures, or why there are none."""
    if "not" in job:
        return {"failed": f"not measured: {job['not']}"}
    if job["kind"] in ("torch", "peer") and job["checkpoint"] is None:
        return {"failed": "not measured: --checkpoint was not given"}
    folder.mkdir()
    job = {**job, "result": str(folder / "result.json"), "answer": str(folder / "answer.npy"), "output": str(folder)}
    (folder / "job.json").write_text(json.dumps(job))
    with Sampler(options.device) as sampler, (folder / "log.txt").open("w+") as log:
        command = [job.get("python", sys.executable), str(HERE / "gpu_jobs.py"), str(folder / "job.json")]
        try:
            # TensorRT has no option against TF32; what one side may not use, no side may.
            environment = {**os.environ, "NVIDIA_TF32_OVERRIDE": "0"}
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=options.limit, env=environment)
        except subprocess.TimeoutExpired:
            return {"failed": f"not finished within {options.limit:.0f} s"}
        except OSError as error:
            return {"failed": f"{command[0]} cannot be started: {error}"}
        log.seek(0)
        lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    result = Path(job["result"])
    if done.returncode or not result.exists():
        return {"failed": f"status {done.returncode}: {lines[-1] if lines else 'no output'}"[:400]}
    row: dict[str, Any] = json.loads(result.read_text())
    return {**row, "answer": job["answer"], "device_peak_mib": sampler.peak}


class Sampler:
    """The most device memory in use above what was in use before, by nvidia-smi; None where that is unavailable."""

    def __init__(self, device: str) -> None:
        self._index = device.partition(":")[2] or "0"
        self._on = device != "cpu"
        self._stop = threading.Event()
        self.peak: float | None = None

    def _used(self) -> float | None:
        found = smi("memory.used", self._index)
        return float(found[0][0]) if found and found[0][0].replace(".", "").isdecimal() else None

    def _watch(self, before: float) -> None:
        while not self._stop.wait(0.25):
            used = self._used()
            if used is not None:
                self.peak = max(self.peak or 0.0, used - before)

    def __enter__(self) -> Sampler:
        before = self._used() if self._on else None
        if before is not None:
            self._thread = threading.Thread(target=self._watch, args=(before,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()


def smi(fields: str, index: str | None = None) -> list[list[str]]:
    """Rows of ``nvidia-smi``, empty where it is unavailable."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    command += ["-i", index] if index is not None else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    return [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def machine() -> dict[str, Any]:
    versions = {}
    for wheel in WHEELS:
        try:
            versions[wheel] = importlib.metadata.version(wheel)
        except importlib.metadata.PackageNotFoundError:
            continue
    cards = [" / ".join(row) for row in smi("name,driver_version,memory.total,clocks.max.sm,power.limit")]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return {"when": when, "gpus": cards, "python": platform.python_version(), "versions": versions}


def compare(rows: list[dict[str, Any]]) -> None:
    """Answers and labels against the first row of their kind that has any."""
    for kinds, key in ((("torch", "onnxruntime"), "answer"), (("peer", "case"), "labels")):
        mine = [row for row in rows if row["kind"] in kinds and "failed" not in row]
        for row in mine:
            if "labels_equal" in row or not Path(row[key]).exists() or not Path(mine[0][key]).exists():
                continue
            first, other = _array(mine[0][key]), _array(row[key])
            if key == "answer":
                row["max_difference"] = float(np.abs(other - first).max())
                row["sd"] = float(first.std())
                first, other = first.argmax(1), other.argmax(1)
            row["labels_equal"] = float((first == other).mean()) if first.shape == other.shape else 0.0


def _array(path: str) -> np.ndarray:
    if path.endswith(".npy"):
        return np.load(path)
    import SimpleITK as sitk

    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(path)))


# ---- tables ----------------------------------------------------------------------------------------------------------


def tables(record: dict[str, Any]) -> str:
    facts = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"Measured {facts['when']} with `python benchmarks/speed/gpu.py`, device {record['device']}.",
        "",
        f"- GPU (name / driver / MiB / MHz / W): {'; '.join(facts['gpus']) or 'none'}",
        f"- python {facts['python']}, {versions}",
        "- Seconds: median (smallest to largest). Every row is a process of its own. TF32 is off everywhere.",
    ]
    if record["device"] == "cpu":
        lines.append("- **Run on the CPU to try the script: these figures say nothing about a GPU.**")
    tile = [row for row in record["rows"] if row["kind"] in ("torch", "onnxruntime")]
    if tile:
        lines += ["", "### Engine only: one tile", ""]
        lines += _table(
            "engine | resident: input and answer stay on the device | host to host | all mirrors, by mirrors a call | open s "
            "| first call s | device memory MiB | largest difference (sd) | labels equal",
            [[row["name"], *_tile_cells(row)] for row in tile],
        )
    case = [row for row in record["rows"] if row["kind"] in ("peer", "case")]
    if case:
        lines += ["", "### Whole case, file to file", ""]
        lines += _table(
            "engine | whole case | of that, network and stitching | tiles | stitching | open s | first case s "
            "| device memory MiB | labels equal",
            [[row["name"], *_case_cells(row)] for row in case],
        )
    return "\n".join(lines) + "\n"


def _tile_cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["failed"]]
    mirrors = [
        f"{images}: {values if isinstance(values, str) else spread(values)}"
        for images, values in row.get("mirrors_s", {}).items()
    ]
    difference = f"{row['max_difference']:.2g} ({row['sd']:.2g})" if "max_difference" in row else ""
    return [
        spread(row["resident_s"]),
        spread(row["host_s"]),
        "; ".join(mirrors),
        f"{row['open_s']:.2f}",
        f"{row['first_s']:.2f}",
        _memory(row),
        difference,
        _share(row),
    ]


def _case_cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["failed"]]
    return [
        spread(row["whole_s"]),
        spread(row.get("infer_s", [])),
        str(row.get("tiles", "")),
        row["stitching"],
        f"{row['open_s']:.2f}",
        f"{row['first_s']:.2f}",
        _memory(row),
        _share(row),
    ]


def _memory(row: dict[str, Any]) -> str:
    return "" if row.get("device_peak_mib") is None else f"{row['device_peak_mib']:.0f}"


def _share(row: dict[str, Any]) -> str:
    return f"{100 * row['labels_equal']:.4f} %" if "labels_equal" in row else ""


def spread(seconds: list[float]) -> str:
    if not seconds:
        return ""
    return f"{statistics.median(seconds):.4f} ({min(seconds):.4f} to {max(seconds):.4f})"


def _table(head: str, rows: list[list[str]]) -> list[str]:
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|" + "---|" * columns]
    for row in rows:
        cells = [cell.replace("|", "/").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells + [""] * (columns - len(cells))) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
