"""Long runs in a process of their own, which says after every turn what it holds: ``python soaks.py KIND FOLDER COUNT``.

What comes out is one line of JSON: a row for every turn (bytes of resident memory, file descriptors, threads).
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from offline_infer.engines import fake
from offline_infer.predict.folder import FolderJob, predict_folder
from offline_infer.predict.model import load
from offline_infer.proof.evaluation.label_maps import evaluate
from offline_infer.tasks.settings import RunSettings

SHAPE = (8, 14, 18)
"""Of an image, voxels 2 mm wide: resampled to 1.5 mm it takes a few tiles, each in eight mirrors."""
Turn = Callable[[], None]


@dataclass(frozen=True)
class Soak:
    """A long run.

    Attributes:
        prepare: makes what it needs in a folder, for so many turns; in another process.
        run: makes the turns and calls something after each.
        share: of the predictions that were asked for, how many turns this kind makes.
    """

    prepare: Callable[[Path, int], None]
    run: Callable[[Path, int, Turn], None]
    share: float


def _volumes(root: Path, cases: int) -> None:
    from specimens import tiny_spec, with_graphs, with_outputs
    from staged_samples import write_case

    from offline_infer.bundles.bundle import save

    (root / "bundle").mkdir()
    save(with_graphs(with_outputs(tiny_spec()), root / "bundle"), root / "bundle")
    for number in range(cases):
        write_case(root / "in", f"case_{number:04d}", shape=SHAPE, seed=number, spacing=2.0)


def _volume(root: Path, count: int) -> None:
    _volumes(root, 1)


def _convolution(root: Path, count: int) -> None:
    from conv_bundle import conv_bundle
    from staged_samples import write_case

    conv_bundle(root / "bundle")
    write_case(root / "in", "case_0000", shape=(4, 7, 9), spacing=2.0)  # its tiles are smaller too


def _picture(root: Path, count: int) -> None:
    from kill_routes import image_bundle
    from photo_samples import photo, save

    image_bundle(root / "bundle")
    save(root / "in.png", photo(60, 80))


def _objects(root: Path, count: int) -> None:
    from kill_routes import detector_bundle
    from photo_samples import photo, save

    detector_bundle(root)
    save(root / "in.png", photo(60, 80))


def _labels(root: Path, cases: int) -> None:
    import numpy as np
    from image_samples import save

    for number in range(cases):
        labels = np.random.default_rng(number).integers(0, 3, SHAPE).astype(np.uint8)
        for side in ("predictions", "references"):
            save(root / side / f"case_{number:04d}.nii.gz", labels)


def _predict(engine: str) -> Callable[[Path, int, Turn], None]:
    """One model answers again and again: the image is read, resampled, cut, stitched, and the label map written."""

    def run(root: Path, count: int, turn: Turn) -> None:
        with load(root / "bundle", engine=engine, threads=2, unverified=True) as model:
            for _ in range(count):
                model.predict(root / "in" / "case_0000_0000.nii.gz").save(root / "labels.nii.gz")
                turn()

    return run


def _predict_pictures(root: Path, count: int, turn: Turn) -> None:
    """The same with a picture."""
    with load(root / "bundle", engine="onnxruntime", threads=2, unverified=True) as model:
        for _ in range(count):
            model.predict(root / "in.png")
            turn()


def _open(root: Path, count: int, turn: Turn) -> None:
    """A model is opened, asked once and closed, with each engine in turn."""
    for number in range(count):
        _predict(("openvino", "onnxruntime")[number % 2])(root, 1, lambda: None)
        turn()


def _run_cases(root: Path, count: int, turn: Turn) -> None:
    """One run over many cases."""
    with load(root / "bundle", engine="fake", threads=2) as model:
        found = model.task.list_cases(root / "in", model.spec)
        predict_folder(model, FolderJob(found.cases, root / "out"), RunSettings(), _after_cases(turn))


def _evaluate(root: Path, count: int, turn: Turn) -> None:
    """One evaluation of many cases."""
    evaluate(root / "predictions", root / "references", output=root / "summary.json", sink=_after_cases(turn))


def _after_cases(turn: Turn) -> Callable[[Any], None]:
    def heard(event: Any) -> None:
        if event.kind == "case-finished":
            turn()

    return heard


SOAKS = {
    "predictions": Soak(_volume, _predict("fake"), 1),
    "cases": Soak(_volumes, _run_cases, 1 / 10),
    "openvino": Soak(_convolution, _predict("openvino"), 1 / 4),
    "onnxruntime": Soak(_convolution, _predict("onnxruntime"), 1 / 4),
    "openings": Soak(_convolution, _open, 1 / 20),
    "evaluation": Soak(_labels, _evaluate, 3 / 40),
    "images": Soak(_picture, _predict_pictures, 1 / 2),
    "objects": Soak(_objects, _predict_pictures, 1 / 8),
}


def main() -> None:
    """Make the turns, then say what was held after each."""
    kind, root, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    fake.register()
    process, rows = psutil.Process(), []

    def turn() -> None:
        rows.append((process.memory_info().rss, process.num_fds(), threading.active_count()))

    SOAKS[kind].run(root, count, turn)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
