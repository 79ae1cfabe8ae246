"""The demonstration: phantoms the shipped model has never seen, sent down the whole road."""

from __future__ import annotations

import shutil
import time
from importlib import resources
from pathlib import Path

from offline_infer.demo.phantom import make_phantom, write_phantom_case
from offline_infer.errors import UsageError
from offline_infer.events import Sink, silent
from offline_infer.workflow import Journey, Outcome, travel

FIRST_SEED = 9001
"""Training phantoms have seeds below 9000 (tools/make_demo_model.py)."""
MODEL = "model/nnUNet/3d_fullres/Task003_Liver/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1"
MARKER = ".offline_infer_demo"


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
) -> Outcome:
    """Make phantoms, export, predict, evaluate, draw.

    Args:
        output: folder to make; gets ``images`` and ``labels`` beside what :func:`travel` writes.

    Raises:
        UsageError: ``output`` holds something else, or exists and ``overwrite`` is not given.
    """
    _fresh(output, overwrite)
    started = time.perf_counter()
    for number in range(cases):
        # A demonstration without a tumour would leave a class without a score.
        phantom = make_phantom(FIRST_SEED + number, tumours=2 + number % 3)
        write_phantom_case(output / "images", output / "labels", f"phantom_{number + 1:02d}", phantom)
    made = round(time.perf_counter() - started, 2)
    journey = Journey(
        demo_checkpoint(), output / "images", output, labels=output / "labels", engine=engine, threads=threads
    )
    outcome = travel(journey, sink)
    outcome.seconds = {"phantoms": made, **outcome.seconds}
    return outcome


def _fresh(output: Path, overwrite: bool) -> None:
    """Make the folder; only a folder an earlier demonstration made is ever emptied."""
    if output.exists():
        if not overwrite:
            raise UsageError(f"{output} exists; name another folder or give --overwrite")
        if not output.is_dir() or (not (output / MARKER).is_file() and any(output.iterdir())):
            raise UsageError(f"{output} was not made by this command, so it is left alone; name another folder")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / MARKER).write_text("made by offline-infer demo; may be deleted\n")
