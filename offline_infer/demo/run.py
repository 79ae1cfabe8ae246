"""The demonstration: a trained UNet++ checkpoint goes in, scored segmentations and a picture come out."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from offline_infer.demo.phantom import make_phantom, write_phantom_case
from offline_infer.errors import UsageError
from offline_infer.events import Event, Sink, silent

FIRST_SEED = 9001
"""Training phantoms have seeds below 9000 (tools/make_demo_model.py)."""
MODEL = "model/nnUNet/3d_fullres/Task003_Liver/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1"
MARKER = ".offline_infer_demo"


@dataclass(frozen=True)
class DemoResult:
    """Where things are, and the scores."""

    output: Path
    bundle: Path
    summary: dict[str, Any]
    picture: Path
    seconds: dict[str, float]


def demo_checkpoint() -> Path:
    """The checkpoint folder that is shipped with the package: UNet++ in nnU-Net v1's layout, trained on phantoms."""
    return Path(str(resources.files("offline_infer.demo"))) / MODEL


def run_demo(
    output: Path,
    *,
    cases: int = 3,
    engine: str = "openvino",
    threads: int = 0,
    overwrite: bool = False,
    sink: Sink = silent,
) -> DemoResult:
    """Make phantoms the model has not seen, export, predict, evaluate, draw.

    Args:
        output: folder to make; holds ``images``, ``labels``, ``bundle``, ``predictions``, ``summary.json``, ``overlay.png``.

    Raises:
        UsageError: ``output`` holds something else, or exists and ``overwrite`` is not given.
        ExportError: the exported graph does not give the checkpoint's answer.
    """
    from offline_infer.cases import find_cases
    from offline_infer.evaluate import evaluate_folders
    from offline_infer.export import export_bundle
    from offline_infer.images import read_image, read_labels
    from offline_infer.labelsets import labels_of_bundle
    from offline_infer.model import load
    from offline_infer.overlay import write_overlay
    from offline_infer.pipeline.aggregate import RunSettings
    from offline_infer.pipeline.runner import FolderJob, predict_folder

    _fresh(output, overwrite)
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[name] = round(now - clock, 2)
        clock = now
        sink(Event("note", "demo", data={"finished": name, "seconds": seconds[name]}))

    images, labels, predictions, bundle = (output / name for name in ("images", "labels", "predictions", "bundle"))
    names = [f"phantom_{number:02d}" for number in range(1, cases + 1)]
    for number, name in enumerate(names):
        # A demonstration without a tumour would leave a class without a score.
        write_phantom_case(images, labels, name, make_phantom(FIRST_SEED + number, tumours=2 + number % 3))
    lap("phantoms")
    exported = export_bundle(demo_checkpoint(), bundle, sink=sink)
    lap("export")
    with load(bundle, engine=engine, threads=threads) as model:
        found = find_cases(images, len(model.spec.channels), model.spec.file_ending)
        report = predict_folder(model, FolderJob(found.cases, predictions, found.problems), RunSettings(), sink)
    report.raise_failures()
    lap("predict")
    summary = evaluate_folders(
        predictions,
        labels,
        labels=labels_of_bundle(exported.spec.labels, "nnunet-v1"),
        format="nnunet-v1",
        output=output / "summary.json",
        sink=sink,
    )
    lap("evaluate")
    best = names[0]
    image = read_image([images / f"{best}_0000.nii.gz"], exported.spec.reader)
    picture = output / "overlay.png"
    write_overlay(
        picture,
        image.array[0],
        read_labels(predictions / f"{best}.nii.gz")[0],
        read_labels(labels / f"{best}.nii.gz")[0],
        spacing=image.geometry.spacing,
        direction=image.geometry.direction,
        names={value: name for name, value in exported.spec.labels.names.items() if isinstance(value, int)},
        title=f"{best}: UNet++ exported to ONNX, run by {engine}",
    )
    lap("picture")
    return DemoResult(output, bundle, summary, picture, seconds)


def _fresh(output: Path, overwrite: bool) -> None:
    """Make the folder; only a folder an earlier demonstration made is ever emptied."""
    if output.exists():
        if not overwrite:
            raise UsageError(f"{output} exists; name another folder or give --overwrite")
        if not (output / MARKER).is_file() and any(output.iterdir()):
            raise UsageError(f"{output} was not made by this command, so it is left alone; name another folder")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / MARKER).write_text("made by offline-infer demo; may be deleted\n")
