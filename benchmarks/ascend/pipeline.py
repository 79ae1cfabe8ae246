"""What the route to the device costs beside the device: engine ``om`` against the file route, on stand-ins of fixed latency.

    PYTHONPATH=. python benchmarks/ascend/pipeline.py [--patch 128] [--latency 0.25] [--tiles 24]

The stand-in's graph does almost nothing; a run takes the latency that is set, which stands for the device. What is left
over a tile is the pipeline's own cost: shared memory and copies on the one route, files on the other. *No figure here
says anything about hardware.*
"""

# ruff: noqa: E402 - the search path comes first

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tools" / "standins" / "python")]

from specimens import tiny_spec

from offline_infer.ascend.compile import compile_bundle
from offline_infer.bundles.artefacts import compiled_graphs
from offline_infer.bundles.bundle import Bundle, save
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.engines.queueing import Request, in_order
from offline_infer.files import sha256_file
from offline_infer.spec import GraphRecord, OutputSpec

CLASSES = 3


def main() -> None:
    """Measure and print a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--latency", type=float, default=0.25, help="seconds a run, of every device")
    parser.add_argument("--tiles", type=int, default=24, help="per device")
    parser.add_argument("--files", type=int, default=12, help="tiles of the file route; 0 leaves it out")
    options = parser.parse_args()
    interpreter = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([str(ROOT / "tools" / "standins" / "bin"), interpreter, os.environ["PATH"]])
    os.environ["OFFLINE_INFER_STANDIN_NORMS"] = "native"
    with tempfile.TemporaryDirectory() as folder:
        bundle = trivial_bundle(Path(folder) / "bundle", (options.patch,) * 3)
        os.environ["OFFLINE_INFER_STANDIN_SECONDS"] = str(options.latency)
        record: dict[str, Any] = {"patch": options.patch, "latency_s": options.latency, "stand-ins": True}
        for devices in (1, 2, 4):
            record[f"memory, {devices} devices"] = in_memory(bundle, devices, options.tiles * devices, options.latency)
        if options.files:
            record["files, 1 device"] = by_files(bundle, Path(folder) / "work", options.files, options.latency)
        one, four = (record[f"memory, {count} devices"]["tiles_per_s"] for count in (1, 4))
        record["four devices against one"] = round(four / one, 3)
        print(json.dumps(record, indent=1))


def in_memory(bundle: Bundle, devices: int, tiles: int, latency: float) -> dict[str, float]:
    """Tiles per second through the engine, the sums of a caller included as one pass over each answer."""
    options = EngineOptions(device="npu:" + ",".join(map(str, range(devices))), compiled=compiled_graphs(bundle, "0"))
    batch = np.random.default_rng(0).normal(size=bundle.spec.input_shape).astype(np.float32)
    with get_engine("om").open(bundle.graph_path("0"), options) as session:
        for _ in in_order(Request(n, session, lambda: batch) for n in range(2 * devices)):
            pass
        total = np.zeros((1, CLASSES, *bundle.spec.input_shape[2:]), np.float32)
        begun = time.perf_counter()
        for _, answer in in_order(Request(n, session, lambda: batch) for n in range(tiles)):
            total += next(iter(answer.values()))
        seconds = time.perf_counter() - begun
    return figures(tiles, seconds, devices, latency)


def by_files(bundle: Bundle, place: Path, tiles: int, latency: float) -> dict[str, float]:
    """Tiles per second from bins to outputs in the work folder, by ``ais_bench``; cutting and merging not counted."""
    import SimpleITK as sitk

    from offline_infer.cli import main as offline_infer

    place.mkdir()
    patch = bundle.spec.input_shape[2:]
    values = np.random.default_rng(0).normal(0, 100, (patch[0] * (tiles + 1) // 2, *patch[1:])).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(place / "case_0000.nii.gz"))
    work = place / "work"
    with contextlib.redirect_stdout(io.StringIO()):
        common = ["--quiet", "--json"]
        offline_infer(
            ["preprocess", str(bundle.folder), str(place / "case_0000.nii.gz"), str(work), "--no-tta", *common]
        )
        infer = ["infer", str(bundle.folder), str(work), "--tool", "ais_bench", "--devices", "0", *common]
        offline_infer(infer)  # once for the caches
        outputs = list((work / "outputs").rglob("*.bin"))
        for path in outputs:
            path.unlink()
        begun = time.perf_counter()
        offline_infer(infer)
        seconds = time.perf_counter() - begun
    return figures(len(outputs), seconds, 1, latency)


def figures(tiles: int, seconds: float, devices: int, latency: float) -> dict[str, float]:
    """Rate, and what a tile costs beyond the device's own time."""
    return {
        "tiles": tiles,
        "tiles_per_s": round(tiles / seconds, 3),
        "beyond_latency_ms_per_tile": round(1000 * (seconds * devices / tiles - latency), 2),
    }


def trivial_bundle(folder: Path, patch: tuple[int, int, int]) -> Bundle:
    """A bundle whose graph scales its input, compiled by the stand-in."""
    import onnx
    from onnx import helper, numpy_helper

    folder.mkdir(parents=True)
    scale = np.arange(1, CLASSES + 1, dtype=np.float32).reshape(1, CLASSES, 1, 1, 1)
    value = helper.make_tensor_value_info
    shape = (1, CLASSES, *patch)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "scale"], ["logits"], name="Scale")],
        "trivial",
        [value("image", onnx.TensorProto.FLOAT, [1, 1, *patch])],
        [value("logits", onnx.TensorProto.FLOAT, list(shape))],
        [numpy_helper.from_array(scale, "scale")],
    )
    file = folder / "fold_0.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    spec = tiny_spec(patch=patch, classes=CLASSES, folds=("0",))
    outputs = (OutputSpec(name="logits", dtype="float32", shape=shape, keep=True),)
    graphs = (GraphRecord(file=file.name, fold="0", opset=13, sha256=sha256_file(file)),)
    save(spec.model_copy(update={"outputs": outputs, "graphs": graphs}), folder)
    compile_bundle(folder, "Ascend310P3")
    return Bundle.load(folder)


if __name__ == "__main__":
    main()
