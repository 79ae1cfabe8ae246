"""The demonstrations: cases a shipped model has never seen, taken through the whole route.

That of volumes exports its checkpoint where torch is there; a task's own brings its bundle and makes its cases.
"""

from __future__ import annotations

import shutil
import time
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from offline_infer.bundles.bundle import BUNDLE_FILE
from offline_infer.demo.phantom import make_phantom, write_phantom_case
from offline_infer.errors import UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import replacing_folder
from offline_infer.tasks.extensions import Demonstration
from offline_infer.tasks.registry import DEFAULT_TASK, demonstrated, demonstration_of
from offline_infer.tasks.settings import RunSettings
from offline_infer.workflow import Journey, Outcome, travel

FIRST_SEED = 9001
"""Training phantoms have seeds below 9000 (tools/make_demo_model.py)."""
MODEL = "model/nnUNet/3d_fullres/Task003_Liver/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1"
CASES = 3
MARKER = ".offline_infer_demo"


def demo_checkpoint() -> Path:
    """The checkpoint folder that is shipped with the package: UNet++ in nnU-Net v1's layout, trained on phantoms."""
    return Path(str(resources.files("offline_infer.demo"))) / MODEL


def demo_bundle() -> Path:
    """The same model as a bundle (tools/make_demo_bundle.py), for machines without torch."""
    return Path(str(resources.files("offline_infer.demo"))) / "bundle"


def can_export() -> bool:
    """Whether the packages that an export needs are installed; none of them is loaded."""
    return all(find_spec(name) is not None for name in ("torch", "onnx"))


def run_demo(
    output: Path,
    *,
    task: str = DEFAULT_TASK,
    cases: int | None = None,
    engine: str = "openvino",
    threads: int = 0,
    overwrite: bool = False,
    sink: Sink = silent,
) -> Outcome:
    """Make cases, predict, evaluate, draw. A run that was interrupted goes on where it stopped.

    Args:
        output: folder to make; gets the cases beside what :func:`travel` writes.
        task: one of :func:`~offline_infer.tasks.registry.demonstrated`.
        cases: how many; None takes what the demonstration usually does.
        overwrite: begin anew.

    Raises:
        UsageError: ``output`` holds something that this command did not make, or packages are missing.
    """
    shown = demonstration_of(task)
    if shown is not None:
        return _run_shipped(shown, output, cases or shown.cases, engine, threads, overwrite, sink)
    if task != DEFAULT_TASK:
        raise UsageError(f"there is no demonstration of task {task!r}; legal: {', '.join(demonstrated())}")
    return _run_phantoms(output, cases or CASES, engine, threads, overwrite, sink)


def _run_shipped(
    shown: Demonstration, output: Path, cases: int, engine: str, threads: int, overwrite: bool, sink: Sink
) -> Outcome:
    """A task's own demonstration."""
    missing = [name for name in shown.packages if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"this demonstration needs {' and '.join(missing)}, which are not installed: "
            f"pip install 'offline-infer[{shown.extra}]'"
        )
    _prepare(output, overwrite)
    started = time.perf_counter()
    made = shown.write(output / "cases", cases)
    seconds = round(time.perf_counter() - started, 2)
    _place_bundle(shown.bundle, output / "bundle")
    journey = Journey(
        None,
        made.images,
        output,
        labels=made.references,
        evaluation=shown.evaluation,
        engine=engine,
        threads=threads,
        settings=RunSettings(options=dict(shown.settings)),
    )
    outcome = travel(journey, sink)
    outcome.seconds = {"cases": seconds, **outcome.seconds}
    return outcome


def _place_bundle(shipped: Path, place: Path) -> None:
    """Copy the bundle, or check that the one an earlier run left is the same."""
    if not place.exists():
        with replacing_folder(place) as temporary:
            shutil.copytree(shipped, temporary, dirs_exist_ok=True)
    elif (place / BUNDLE_FILE).read_bytes() != (shipped / BUNDLE_FILE).read_bytes():
        raise UsageError(f"{place} was made by another release; add --overwrite, or name another folder")


def _run_phantoms(
    output: Path,
    cases: int,
    engine: str,
    threads: int,
    overwrite: bool,
    sink: Sink,
) -> Outcome:
    """Phantom CTs; gets ``images`` and ``labels``. Without torch the shipped bundle takes the place of the export."""
    _prepare(output, overwrite)
    started = time.perf_counter()
    for number in range(cases):
        case = f"phantom_{number + 1:02d}"
        if (output / "images" / f"{case}_0000.nii.gz").exists() and (output / "labels" / f"{case}.nii.gz").exists():
            continue  # each file is complete as soon as it has its name
        # A demonstration without a tumour would leave a class without a score.
        phantom = make_phantom(FIRST_SEED + number, tumours=2 + number % 3)
        write_phantom_case(output / "images", output / "labels", case, phantom)
    made = round(time.perf_counter() - started, 2)
    if not can_export() and not (output / "bundle").exists():
        with replacing_folder(output / "bundle") as temporary:
            shutil.copytree(demo_bundle(), temporary, dirs_exist_ok=True)
        sink(Event("note", "demo", data={"text": "torch and onnx are not installed: the shipped bundle is used"}))
    journey = Journey(
        demo_checkpoint(), output / "images", output, labels=output / "labels", engine=engine, threads=threads
    )
    outcome = travel(journey, sink)
    outcome.seconds = {"phantoms": made, **outcome.seconds}
    return outcome


def _prepare(output: Path, overwrite: bool) -> None:
    """Make the folder, or go on in one that an earlier demonstration made; only such a folder is ever emptied."""
    if output.exists():
        if not output.is_dir() or (not (output / MARKER).is_file() and any(output.iterdir())):
            raise UsageError(f"{output} was not made by this command, so it is left alone; name another folder")
        if overwrite:
            shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text("made by offline-infer demo; may be deleted\n")
