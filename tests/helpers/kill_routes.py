"""The routes whose runs are killed: what each needs, its commands, and what its results are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import Environment, Programs, finish
from specimens import tiny_spec, with_graphs, with_outputs
from staged_samples import write_case

from offline_infer.bundles.bundle import save
from offline_infer.files import is_partial

STANDINS = Path(__file__).resolve().parents[2] / "tools" / "standins"
HERE = ["--isolate-readers", "no"]
"""Without a process that reads: starting it takes most of a small run, and one route has it."""
ENGINE = ["--engine", "fake", "--engine-option", "sleep=0.004", "--threads", "1", "--quiet"]
FAKE = [*ENGINE, *HERE]
REAL = ["--engine", "onnxruntime", "--threads", "1", "--quiet"]
VOLATILE = frozenset(
    {"seconds", "finished", "mtime_ns", "memory", "peak_bytes", "scratch_bytes", "status", "rounds", "bundle", "work"}
    # of the run that made the manifest, which may have made no case, and of a summary
    | {"engine", "precision_checks", "canaries", "versions", "timestamp", "id"}
)
"""Fields of records that say when and where, not what."""


@dataclass(frozen=True)
class Job:
    """What is there before a run.

    Attributes:
        server: starts the runs that prepare something.
        root: everything lies in it.
    """

    server: Programs
    root: Path


@dataclass(frozen=True)
class Route:
    """One way from inputs to results.

    Attributes:
        commands: given the inputs' folder and a fresh place, what is run one after the other.
        prepare: makes the inputs.
        environment: of the runs.
        results: pattern, below the place, of the files that are compared; JSON without what says when and where.
        finals: pattern of results proper: once there, a resumed run leaves them alone, but for the case in hand.
        slow: needs torch or minutes; not in the ordinary run.
    """

    name: str
    commands: Callable[[Path, Path], list[list[str]]]
    prepare: Callable[[Job], None]
    environment: Environment = field(default_factory=Environment)
    results: str = "out/**/*"
    finals: str = "out/*.nii.gz"
    slow: bool = False


def results(route: Route, place: Path) -> dict[str, bytes]:
    """Every finished file of the results, by its name: JSON without what says when and where."""
    found = {}
    for path in sorted(place.glob(route.results)):
        if not path.is_file() or is_partial(path) or path.suffix == ".lock" or ".offline_infer/" in str(path):
            continue
        data = path.read_bytes()
        if path.suffix == ".json":
            data = json.dumps(_plain(json.loads(data)), sort_keys=True).replace(str(place), "PLACE").encode()
        name = str(path.relative_to(place)).partition(".tfevents")[0]  # a time follows
        found[name] = data if name == str(path.relative_to(place)) else b"made"
    return found


def half_written(place: Path, wanted: Mapping[str, bytes], route: Route) -> list[str]:
    """Files under a final name that are not what they are in the end; lists of the whole run are still to grow, and files that
    are deleted in the end are only read."""
    grows = ("offline_infer_run.json", "combined.json", "_rank0.json")
    found = results(route, place)  # reads, and so checks, every JSON
    return [name for name, data in found.items() if not name.endswith(grows) and wanted.get(name, data) != data]


def finals(route: Route, place: Path) -> dict[Path, tuple[int, int]]:
    """The results proper that are there: path -> (inode, mtime in ns)."""
    paths = (path for path in place.glob(route.finals) if path.is_file() and not is_partial(path))
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items() if name not in VOLATILE}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


def _volumes(job: Job, cases: int = 3, shape: tuple[int, ...] = (8, 14, 18)) -> None:
    bundle = job.root / "bundle"
    bundle.mkdir()
    save(with_graphs(with_outputs(tiny_spec()), bundle), bundle)
    for number in range(cases):
        write_case(job.root / "in", f"case_{number}", shape=shape, seed=number)


def _predicted(job: Job) -> None:
    _volumes(job)
    finish(job.server, ["predict", f"{job.root}/bundle", f"{job.root}/in", f"{job.root}/labels", *FAKE], Environment())


def _convolution(job: Job) -> None:
    from conv_bundle import conv_bundle

    conv_bundle(job.root / "bundle")
    for number in range(3):
        write_case(job.root / "in", f"case_{number}", shape=(8, 14, 18), seed=number)


def _members(job: Job) -> None:
    _volumes(job)
    for name, more in (("a", []), ("b", ["--no-tta"])):
        words = ["predict", f"{job.root}/bundle", f"{job.root}/in", f"{job.root}/{name}", *FAKE]
        finish(job.server, [*words, "--save-probabilities", *more], Environment())


def _compiled(job: Job) -> None:
    from ascend_specimens import tiny_bundle

    tiny_bundle(job.root / "bundle")
    finish(job.server, ["compile", f"{job.root}/bundle", "--soc", "Ascend310P3", "--quiet"], device())
    for number in range(3):
        write_case(job.root / "in", f"case_{number}", shape=(6, 9, 12), seed=number)


def _preprocessed(job: Job) -> None:
    _compiled(job)
    finish(
        job.server,
        ["preprocess", f"{job.root}/bundle", f"{job.root}/in", f"{job.root}/cut", *HERE, "--quiet"],
        device(),
    )


def _pictures(job: Job) -> None:
    from photo_samples import write_pairs

    image_bundle(job.root / "bundle")
    write_pairs(job.root / "Set", [(40, 50), (32, 48), (60, 50), (30, 33)])
    (job.root / "grid.json").write_text('{"GaussianBlur": [3]}')


def detector_bundle(root: Path) -> None:
    """A small RefineMask as ``bundle``."""
    from refinemask_samples import write_checkpoint

    from offline_infer.tasks.instances.exporting import export_refinemask

    export_refinemask(write_checkpoint(root / "model.pth"), root / "bundle", verify=False)


def _detector(job: Job) -> None:
    from PIL import Image

    detector_bundle(job.root)
    numbers = np.random.default_rng(0)
    (job.root / "in").mkdir()
    for name, size in (("a", (48, 64, 3)), ("b", (70, 50, 3)), ("c", (40, 40, 3))):
        Image.fromarray(numbers.integers(0, 256, size, dtype=np.uint8)).save(job.root / "in" / f"{name}.png")


def _checkpoint(job: Job) -> None:
    from checkpoint_samples import v1_folder

    v1_folder(job.root / "model")
    for number in range(2):
        write_case(job.root / "in", f"case_{number}", shape=(6, 10, 14), seed=number, spacing=2.0)
    words = ["run", _model(job.root), f"{job.root}/in", f"{job.root}/first", *REAL, *HERE]
    finish(job.server, words, torch())
    shutil.copytree(job.root / "first" / "predictions", job.root / "labels", ignore=lambda *_: [".offline_infer"])


def _model(root: Path) -> str:
    return str(root / "model/nnUNet/3d_fullres/Task007_Sample/nnUNetTrainerV2__nnUNetPlansv2.1")


def image_bundle(folder: Path) -> None:
    """An image model whose graph is one convolution and a sigmoid."""
    onnx = pytest.importorskip("onnx")
    from photo_samples import image_spec

    from offline_infer.files import sha256_file
    from offline_infer.spec import GraphRecord, OutputSpec

    folder.mkdir(parents=True)
    helper, value = onnx.helper, onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), 4 / 3, np.float32), "w")
    nodes = [helper.make_node("Conv", ["image", "w"], ["x"]), helper.make_node("Sigmoid", ["x"], ["mask"])]
    graph = helper.make_graph(
        nodes, "g", [value("image", 1, [1, 3, 32, 48])], [value("mask", 1, [1, 1, 32, 48])], [weight]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "f.onnx")
    record = GraphRecord(file="f.onnx", fold="0", precision="fp32", opset=17, sha256=sha256_file(folder / "f.onnx"))
    output = OutputSpec(name="mask", dtype="float32", shape=(1, 1, 32, 48), keep=True)
    save(image_spec(outputs=(output,), graphs=(record,)), folder)


def device(binding: str = "") -> Environment:
    """The stand-ins are the Ascend tools; with ``binding`` (``acl`` or ``v2024``) their Python interface is there too."""
    variables = {
        "PATH": os.pathsep.join([str(STANDINS / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OFFLINE_INFER_STANDIN_NORMS": "native",
        "OFFLINE_INFER_STANDIN_SECONDS": "0.01",
        "OMP_NUM_THREADS": "1",
    }
    path: tuple[str, ...] = ()
    if binding:
        path = (str(STANDINS / ("pyacl" if binding == "acl" else "python")),)
        variables["PYTHONPATH"] = os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])
    return Environment(variables, path)


def torch() -> Environment:
    return Environment(imports=("torch", "onnx", "onnxruntime", "openvino", "offline_infer.workflow", "SimpleITK"))


def _stages(root: Path, place: Path) -> list[list[str]]:
    return [
        ["preprocess", f"{root}/bundle", f"{root}/in", f"{place}/work", *HERE, "--quiet"],
        ["infer", f"{root}/bundle", f"{place}/work", *ENGINE],
        ["postprocess", f"{root}/bundle", f"{place}/work", f"{place}/out", "--quiet"],
    ]


def _sessions(root: Path, place: Path) -> list[list[str]]:
    shutil.copytree(root / "cut", place / "work", dirs_exist_ok=True)
    tool = ["--tool", "ais_bench", "--devices", "0,1", "--quiet"]
    return [
        ["infer", f"{root}/bundle", f"{place}/work", *tool],
        ["postprocess", f"{root}/bundle", f"{place}/work", f"{place}/out", "--quiet"],
    ]


def _evaluations(*more: str) -> Callable[[Path, Path], list[list[str]]]:
    def commands(root: Path, place: Path) -> list[list[str]]:
        place.mkdir(parents=True, exist_ok=True)
        words = ["evaluate", f"{root}/labels", f"{root}/labels", "-o", f"{place}/out/summary.json", "--quiet"]
        return [[*words, "--csv", f"{place}/out/table.csv", "--surface", "--lesions", *more]]

    return commands


def one(*words: str) -> Callable[[Path, Path], list[list[str]]]:
    """A single command, with ``{root}`` and ``{place}`` in its words."""
    return lambda root, place: [[word.format(root=root, place=place) for word in words]]


PICTURES = "out/pred/*.png"
ROUTES: tuple[Route, ...] = (
    Route("streaming", one("predict", "{root}/bundle", "{root}/in", "{place}/out", *ENGINE), _volumes),
    Route(
        "probabilities",
        one("predict", "{root}/bundle", "{root}/in", "{place}/out", "--save-probabilities", *FAKE),
        _volumes,
    ),
    Route(
        "staged",
        one("staged", "{root}/bundle", "{root}/in", "{place}/work", "{place}/out", "--scratch", "3MB", *FAKE),
        _volumes,
    ),
    Route("stages", _stages, _volumes),
    Route(
        "openvino",
        one(
            "predict", "{root}/bundle", "{root}/in", "{place}/out", "--engine", "openvino", "--cache", "{place}/cache",
            "--threads", "1", *HERE, "--quiet",
        ),
        _convolution,
        slow=True,
    ),
    Route("sessions", _sessions, _preprocessed, device()),
    Route(
        "staged_sessions",
        one(
            "staged", "{root}/bundle", "{root}/in", "{place}/work", "{place}/out", "--scratch", "1MB",
            "--tool", "msame", "--devices", "0,1", *HERE, "--quiet",
        ),
        _compiled,
        device(),
        slow=True,
    ),
    Route(
        "om_pool",
        one(
            "predict", "{root}/bundle", "{root}/in", "{place}/out", "--engine", "om", "--devices", "0,1", *HERE,
            "--quiet",
        ),
        _compiled,
        device("acl"),
    ),
    Route("evaluate", _evaluations("--worst", "1"), _predicted, results="out/*"),
    Route("evaluate_jobs", _evaluations("--jobs", "2"), _predicted, results="out/*", slow=True),
    Route(
        "ensemble",
        one("ensemble", "{root}/a", "{root}/b", "-o", "{place}/out", "--bundle", "{root}/bundle", "--quiet"),
        _members,
    ),
    Route("image", one("predict", "{root}/bundle", "{root}/Set", "{place}/out", *REAL, *HERE), _pictures, finals=PICTURES),
    Route(
        "sweep",
        one(
            "sweep", "{root}/bundle", "--references", "{root}/Set", "--grid", "{root}/grid.json", "-o", "{place}/out",
            *REAL,
        ),
        _pictures,
        finals="out/rows/*.json",
    ),
    Route(
        "instances",
        one("predict", "{root}/bundle", "{root}/in", "{place}/out", *REAL, *HERE),
        _detector,
        finals="out/?.json",
        slow=True,
    ),
    Route(
        "export",
        lambda root, place: [["export", _model(root), "-o", f"{place}/out", "--quiet"]],
        _checkpoint,
        torch(),
        finals="out/bundle.json",
        slow=True,
    ),
    Route(
        "run",
        lambda root, place: [["run", _model(root), f"{root}/in", f"{place}/out", "--labels", f"{root}/labels", *REAL, *HERE]],
        _checkpoint,
        torch(),
        finals="out/predictions/*.nii.gz",
        slow=True,
    ),
)  # fmt: skip


def digest(found: Mapping[str, bytes]) -> dict[str, str]:
    """Short words for what differs."""
    return {name: hashlib.sha256(data).hexdigest()[:8] for name, data in found.items()}
