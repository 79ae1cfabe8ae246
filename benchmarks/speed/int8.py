"""An experiment: a bundle's graph quantized to INT8 by NNCF after training, its speed and what it costs in Dice.

Nothing of this is in the package. Convolutions become INT8 (symmetric weights, one scale a channel); norms, activations
and everything else stay what they are. Statistics come from tiles of images that are not used again for the comparison.

A job is JSON in ``argv[1]``: ``{"what": "demo", "work": DIR, ...}`` exports the trained demonstration model, calibrates on
phantoms and scores others, per class, against their reference; ``{"what": "tile", "bundle": DIR, "image": FILE, ...}``
measures the time of a tile alone. NNCF is installed into an environment of its own, which borrows the packages of this
one; the script starts itself again in it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from shared import peak_rss, report, spread

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / "benchmarks" / ".envs" / "nncf"
NNCF = "nncf>=2.14,<4"
CALIBRATION_SEED, TEST_SEED = 9101, 9001  # of phantoms; the demonstration model was trained on seeds below 9000
QUANTIZED = {"Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData"}

job: dict[str, Any] = {"threads": 2, "repeats": 3, "rounds": 2, "calibration_tiles": 16, "test_tiles": 6, "cases": 3}


def in_own_environment() -> None:
    """Go on in an environment that has NNCF; it is made if it is not there."""
    if importlib.util.find_spec("nncf") is not None:
        return
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        venv.create(ENVIRONMENT, with_pip=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        borrowed = ENVIRONMENT / "lib" / version / "site-packages" / "borrowed.pth"
        borrowed.write_text(sysconfig.get_paths()["purelib"] + "\n")
        install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", NNCF]
        subprocess.run(install, check=True, stdout=sys.stderr)
        (ENVIRONMENT / "ready").write_text("")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.execv(python, [str(python), *sys.argv])


class Session:
    """A compiled OpenVINO model with the interface of the package's engines."""

    def __init__(self, model: Any, precision: str) -> None:
        import openvino as ov

        from offline_infer.engines.base import SessionInfo

        threads = int(job["threads"])
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": str(threads),
            "ENABLE_CPU_PINNING": "NO",
        }
        start = time.perf_counter()
        compiled = ov.Core().compile_model(model, "CPU", config)
        self.open_s = time.perf_counter() - start
        self.counted = _precisions(compiled)
        self._request = compiled.create_infer_request()
        shape = tuple(int(size) for size in compiled.input(0).shape)
        name = str(compiled.output(0).any_name)
        self.info = SessionInfo("openvino", str(ov.__version__), "cpu", precision, shape, (name,), {"kept": name})

    def run(self, batch: np.ndarray) -> np.ndarray:
        self._request.infer([batch], share_inputs=True)
        return np.asarray(self._request.get_output_tensor(0).data, np.float32)

    def answer(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {self.info.output_names[0]: self.run(batch)}

    def run_all(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {self.info.output_names[0]: self.run(batch).copy()}

    def close(self) -> None:
        self._request = None


def _precisions(compiled: Any) -> dict[str, int]:
    """How many convolutions run in which precision: a quantized graph that the plugin does not take up shows here."""
    found: dict[str, int] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
        if facts.get("layerType", "").endswith(("Convolution", "Deconvolution")):
            precision = facts.get("runtimePrecision", "?")
            found[precision] = found.get(precision, 0) + 1
    return found


def read(graph: Path) -> Any:
    import openvino as ov

    reader = ov.frontend.FrontEndManager().load_by_framework("onnx")
    return reader.convert(reader.load(str(graph)))


def quantized(graph: Path, tiles: list[np.ndarray], keep_ends: bool) -> Any:
    """The graph with INT8 convolutions; ``keep_ends``: all but the first and the last one."""
    import nncf

    nncf.set_log_level(40)
    model = read(graph)
    others = sorted({op.get_type_name() for op in model.get_ops()} - QUANTIZED - {"Parameter", "Result", "Constant"})
    convolutions = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in QUANTIZED]
    names = [convolutions[0], convolutions[-1]] if keep_ends else []
    return nncf.quantize(
        model,
        nncf.Dataset(tiles),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(tiles),
        ignored_scope=nncf.IgnoredScope(names=names, types=others, validate=False),
        fast_bias_correction=True,
    )


def with_norms(model: Any, precision: str) -> Any:
    """The graph with the package's own norms: float32 statistics, summed axis by axis."""
    import openvino as ov

    from offline_infer.engines.openvino.bf16_norms import keep_ends_float32, make_norms_float32
    from offline_infer.engines.openvino.norms import make_norms_exact

    model = model.clone()
    if precision == "bf16":
        make_norms_float32(ov.Core(), model)
        keep_ends_float32(ov.Core(), model)
    else:
        make_norms_exact(model)
    return model


def tiles_of(spec: Any, image: Path, count: int) -> list[np.ndarray]:
    from offline_infer.images.cases import CaseFiles
    from offline_infer.tasks.volume.judging import real_tiles

    return real_tiles(CaseFiles("case", (image,)), spec, count, job["threads"])


def timed(sessions: Mapping[str, Session], tile: np.ndarray) -> dict[str, dict[str, Any]]:
    """Wall and processor seconds of a tile, the variants alternating."""
    for session in sessions.values():
        session.run(tile)
    wall: dict[str, list[float]] = {name: [] for name in sessions}
    processor: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(job["rounds"]):
        for name, session in sessions.items():
            for _ in range(job["repeats"]):
                start, cpu = time.perf_counter(), time.process_time()
                session.run(tile)
                wall[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - cpu)
    return {
        name: {
            "tile_s": spread(wall[name]),
            "cpu_s": spread(processor[name]),
            "open_s": session.open_s,
            "convolutions": session.counted,
        }
        for name, session in sessions.items()
    }


def variants(graph: Path, calibration: list[np.ndarray]) -> tuple[dict[str, Session], float]:
    """What is compared, and the seconds the quantization took."""
    start = time.perf_counter()
    int8 = quantized(graph, calibration, keep_ends=False)
    seconds = time.perf_counter() - start
    ends = quantized(graph, calibration, keep_ends=True)
    sessions = {
        "fp32": Session(with_norms(read(graph), "fp32"), "f32"),
        "bf16": Session(with_norms(read(graph), "bf16"), "bf16"),
        "int8, rest fp32": Session(with_norms(int8, "fp32"), "f32"),
        "int8, rest bf16": Session(with_norms(int8, "bf16"), "bf16"),
        "int8 but first and last, rest fp32": Session(with_norms(ends, "fp32"), "f32"),
    }
    return sessions, seconds


def demo() -> dict[str, Any]:
    """The trained demonstration model, on phantoms it has never seen."""
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.demo.phantom import make_phantom, write_phantom_case
    from offline_infer.demo.run import demo_checkpoint
    from offline_infer.tasks.volume.judging import judge

    work = Path(job["work"])
    folder = work / "int8_demo_bundle"
    if not folder.exists():
        from offline_infer.exporting.bundles import export_bundle

        export_bundle(demo_checkpoint(), folder)
    images, labels = work / "int8_images", work / "int8_labels"
    for seed in (*_seeds(CALIBRATION_SEED), *_seeds(TEST_SEED)):
        if not (images / f"{seed}_0000.nii.gz").exists():
            write_phantom_case(images, labels, str(seed), make_phantom(seed, tumours=2 + seed % 3))
    bundle = Bundle.load(folder)
    each = -(-job["calibration_tiles"] // job["cases"])
    calibration = _tiles(bundle.spec, images, _seeds(CALIBRATION_SEED), each)
    test = _tiles(bundle.spec, images, _seeds(TEST_SEED), -(-job["test_tiles"] // job["cases"]))
    sessions, seconds = variants(bundle.graph_path(bundle.folds[0]), calibration)
    rows = timed(sessions, test[0])
    reference = None
    for name, session in sessions.items():
        answers = [session.run(tile).copy() for tile in test]
        reference = answers if reference is None else reference
        rows[name]["tiles"] = judge(answers, reference, bundle.spec)
    rows_of_cases(bundle.spec, sessions, images, labels, rows)
    return {
        "network": bundle.spec.source.network,
        "patch": list(bundle.spec.patch_size),
        "calibration_tiles": len(calibration),
        "test_tiles": len(test),
        "test_cases": job["cases"],
        "quantize_s": seconds,
        "variants": rows,
    }


def rows_of_cases(
    spec: Any, sessions: Mapping[str, Session], images: Path, labels: Path, rows: dict[str, dict[str, Any]]
) -> None:
    """Whole cases without mirroring: Dice per class against the reference, and of all foreground against float32."""
    from offline_infer.images import read_image, read_labels
    from offline_infer.predict.streaming import infer
    from offline_infer.tasks.settings import RunSettings
    from offline_infer.tasks.volume.preparing import prepare
    from offline_infer.tasks.volume.task import TASK

    values = {name: value for name, value in spec.labels.names.items() if value}
    scores: dict[str, dict[str, list[float]]] = {name: {label: [] for label in values} for name in sessions}
    against: dict[str, list[float]] = {name: [] for name in sessions}
    for seed in _seeds(TEST_SEED):
        image = read_image([images / f"{seed}_0000.nii.gz"], spec.reader, channels=1)
        truth = read_labels(labels / f"{seed}.nii.gz", spec.reader)[0]
        prepared = prepare(image.array, image.geometry, spec, threads=job["threads"])
        first = None
        for name, session in sessions.items():
            found = infer(TASK, prepared, spec, [session], RunSettings(tta=False), threads=job["threads"])().labels
            first = found if first is None else first
            against[name].append(_dice((found == first) & (found > 0), found > 0, first > 0))
            for label, value in values.items():
                mine, theirs = found == value, truth == value
                scores[name][label].append(_dice(mine & theirs, mine, theirs))
    for name in sessions:
        rows[name]["case_dice"] = {label: float(np.mean(scores[name][label])) for label in values}
        rows[name]["case_foreground_dice"] = float(np.mean(against[name]))


def tile_times() -> dict[str, Any]:
    """A bundle's tile alone."""
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.tasks.volume.judging import judge

    bundle = Bundle.load(Path(job["bundle"]))
    tiles = tiles_of(bundle.spec, Path(job["image"]), job["calibration_tiles"] + 1)
    # With one tile in the image, it is calibrated on: times are right, and the agreement is no evidence.
    sessions, seconds = variants(bundle.graph_path(bundle.folds[0]), tiles[1:] or tiles)
    rows = timed(sessions, tiles[0])
    reference = [sessions["fp32"].run(tiles[0]).copy()]
    for name, session in sessions.items():
        rows[name]["tiles"] = judge([session.run(tiles[0]).copy()], reference, bundle.spec)
    return {
        "network": bundle.spec.source.network,
        "patch": list(bundle.spec.patch_size),
        "calibration_tiles": len(tiles[1:] or tiles),
        "test_tiles": 1,
        "quantize_s": seconds,
        "variants": rows,
    }


def _tiles(spec: Any, images: Path, seeds: Iterable[int], each: int) -> list[np.ndarray]:
    return [tile for seed in seeds for tile in tiles_of(spec, images / f"{seed}_0000.nii.gz", each)]


def _seeds(first: int) -> range:
    return range(first, first + int(job["cases"]))


def _dice(both: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> float:
    total = int(mine.sum()) + int(theirs.sum())
    return 2 * int(both.sum()) / total if total else 1.0


def main() -> None:
    in_own_environment()
    job.update(json.loads(sys.argv[1]))
    import nncf
    import openvino

    found = {"demo": demo, "tile": tile_times}[job["what"]]()
    report(
        {
            **found,
            "nncf": nncf.__version__,
            "openvino": openvino.__version__,
            "threads": job["threads"],
            "peak_rss": peak_rss(),
        }
    )


main()
