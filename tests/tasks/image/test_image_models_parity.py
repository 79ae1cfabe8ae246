"""Whole runs of the recorded models: masks, scores and figures against what IMDL-BenCo itself wrote and printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from offline_infer.cli import main
from offline_infer.tasks.image.evaluation.evaluate import NOT_AVAILABLE, EvaluationOptions, evaluate_folder

pytestmark = pytest.mark.parity

EDGES = {"resize": "128", "pad": "256"}
RUNS = [(geometry, checkpoint) for geometry in EDGES for checkpoint in (2, 11)]
SETS = ("setA", "listA.json")
MEASURES = ("F1", "IOU", "Accuracy", "AUC")


class Runs:
    """Bundles and predictions, made when they are first asked for."""

    def __init__(self, images: Path, place: Path) -> None:
        self.images, self._place = images, place

    def predicted(self, geometry: str, checkpoint: int, data: str, engine: str, model: str = "TinyForgeryNet") -> Path:
        name = f"{model}_{geometry}_{checkpoint}"
        bundle, output = self._place / name, self._place / f"{name}_{data}_{engine}"
        if not bundle.exists():
            weights = self.images / "models" / model / f"checkpoint-{checkpoint}.pth"
            command = ["export", str(self.images / "mymodel.py"), "--model", model, "--weights", str(weights)]
            shape = ["--size", EDGES[geometry], "--geometry", geometry]
            assert main([*command, *shape, "--no-verify", "-o", str(bundle), "--quiet"]) == 0
        if not output.exists():
            source = str(self.images / "data" / data)
            command = ["predict", str(bundle), source, str(output), "--engine", engine, "--quiet"]
            assert main([*command, "--oversize", "crop", "--extras", "network"]) == 0
        return output

    def told(self, data: str, geometry: str, checkpoint: int, more: str = "") -> dict[str, Any]:
        name = f"{data.removesuffix('.json')}_{geometry}{EDGES[geometry]}_checkpoint-{checkpoint}{more}.json"
        record: dict[str, Any] = json.loads((self.images / "expected" / "metrics" / name).read_text())
        return record

    def evaluated(self, output: Path, data: str, **options: Any) -> dict[str, Any]:
        found = evaluate_folder(output, self.images / "data" / data, EvaluationOptions(**options))
        assert found.failed == {}
        (told,) = found.summary["sets"].values()
        return dict(told)


@pytest.fixture(scope="module")
def runs(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    pytest.importorskip("torch")
    return Runs(goldens / "images", tmp_path_factory.mktemp("parity"))


def grey(path: Path) -> npt.NDArray[np.int64]:
    return np.asarray(Image.open(path)).astype(np.int64)


@pytest.mark.parametrize(
    ("saved", "geometry", "data", "engine"),
    [
        ("resize128", "resize", "setA", "openvino"),
        ("resize128", "resize", "setA", "onnxruntime"),
        ("resize128_two_ranks", "resize", "setA", "openvino"),
        ("pad256", "pad", "setA", "openvino"),
        ("pad256", "pad", "setA", "onnxruntime"),
        ("listA_resize128", "resize", "listA.json", "openvino"),
    ],
)
def test_masks_and_scores_are_the_originals(runs: Runs, saved: str, geometry: str, data: str, engine: str) -> None:
    wanted, output = runs.images / "expected" / "saved" / saved, runs.predicted(geometry, 11, data, engine)
    found = {path.name: grey(path) for path in (output / "pred").glob("*.png")}
    for path in sorted((wanted / "pred").glob("*.png")):  # the original drops some
        expected = grey(path)
        # The original saves a cropped picture at the edge's size.
        gap = np.abs(found[path.name][: expected.shape[0], : expected.shape[1]] - expected)
        assert gap.max() <= 1, path.name
        assert (gap > 0).mean() <= 1e-3, path.name
    scores = json.loads((output / "pred_label_combined.json").read_text())
    assert len(scores) == len(found) == {"setA": 10, "listA.json": 7}[data]
    for name, score in json.loads((wanted / "pred_label_combined.json").read_text()).items():
        assert scores[name] == pytest.approx(score, abs=2e-5), name


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize(("geometry", "checkpoint"), RUNS)
def test_figures_are_the_originals_and_the_right_ones(runs: Runs, geometry: str, checkpoint: int, data: str) -> None:
    output = runs.predicted(geometry, checkpoint, data, "openvino")
    told = runs.told(data, geometry, checkpoint)
    epoch, right = told["as_upstream"]["epoch"], told["right"]
    upstream = runs.evaluated(output, data, as_upstream=True)
    for name in MEASURES:
        assert upstream["pixel"]["quoted"][name] == pytest.approx(epoch[f"pixel-level {name}"], abs=1e-3), name
    for name in ("F1", "Accuracy", "AUC"):
        assert upstream["image"][name] == pytest.approx(epoch[f"image-level {name}"], abs=1e-6), name
    network = runs.evaluated(output, data, size="network")
    for name, value in right["network_size"]["tampered_only"].items():
        assert network["pixel"]["macro"][name] == pytest.approx(value, abs=1e-3), name
    for name in ("F1", "Accuracy", "AUC"):
        expected = right["image_level"][name]
        assert network["image"][name] == (expected if expected is None else pytest.approx(expected, abs=1e-6)), name


def test_two_ranks_count_the_padding_of_the_last_batch(runs: Runs) -> None:
    output = runs.predicted("pad", 11, "setA", "openvino")
    epoch = runs.told("setA", "pad", 11, "_two_ranks")["as_upstream"]["epoch"]
    found = runs.evaluated(output, "setA", as_upstream=True, ranks=2)
    for name in MEASURES:
        assert found["pixel"]["quoted"][name] == pytest.approx(epoch[f"pixel-level {name}"], abs=1e-3), name


def test_scores_in_a_column_are_compared_with_every_label(runs: Runs) -> None:
    told = json.loads((runs.images / "expected" / "metrics" / "labels_of_shape_B1.json").read_text())["as_upstream"]
    for row in told:
        output = runs.predicted("resize", row["checkpoint"], row["dataset"], "openvino")
        found = runs.evaluated(output, row["dataset"], as_upstream=True, column_scores=True)["image"]
        for name in ("F1", "Accuracy", "AUC"):
            assert found[name] == pytest.approx(row[f"image-level {name}"], abs=1e-6), (row["dataset"], name)


def test_a_model_of_masks_alone_has_no_scores(runs: Runs) -> None:
    output = runs.predicted("resize", 5, "setA", "openvino", "TinyForgeryNetMaskOnly")
    assert not list(output.glob("pred_label*"))
    epoch = runs.told("maskonly_setA", "resize", 5)["as_upstream"]["epoch"]
    found = runs.evaluated(output, "setA", as_upstream=True)
    assert found["image"] == NOT_AVAILABLE
    for name in MEASURES:
        assert found["pixel"]["quoted"][name] == pytest.approx(epoch[f"pixel-level {name}"], abs=1e-3), name
