"""Real networks through OMs: with every binding and every tool, the label maps are the ONNX engine's.

An ordinary run takes each binding and two tools once; ``OFFLINE_INFER_EVERY_TOOL=1`` takes every one with both models.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ascend_specimens import use_binding, use_standins

from offline_infer.ascend.compile import compile_bundle
from offline_infer.checkpoints import Selection
from offline_infer.cli import main
from offline_infer.exporting.bundles import export_bundle
from offline_infer.exporting.options import ExportOptions
from offline_infer.images import read_labels

pytestmark = [pytest.mark.parity, pytest.mark.slow]

SOC = "Ascend310P3"
MODELS = {
    "v1": (
        "v1/model/nnUNet/3d_fullres/Task003_Liver/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1",
        "v1/images/ctthick_0000.nii.gz",
    ),
    "v2": (
        "v2/models/Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres",
        "v2/images/Dataset003_Liver/case_small_0000.nii.gz",
    ),
}
BINDINGS = [("v1", "v2023"), ("v2", "v2024"), ("v2", "acl")]
TOOLS = [("v1", "benchmark", ""), ("v2", "ais_bench", "v2024")]
if os.environ.get("OFFLINE_INFER_EVERY_TOOL"):
    BINDINGS = [(model, binding) for model in MODELS for binding in ("v2023", "v2024", "acl")]
    WRITERS = [("benchmark", ""), ("msame", ""), ("ais_bench", "v2023"), ("ais_bench", "v2024")]
    TOOLS = [(model, *writer) for model in MODELS for writer in WRITERS]
QUIET = ("--threads", "2", "--no-tta", "--quiet")


@pytest.fixture(scope="module")
def model(
    request: pytest.FixtureRequest, goldens: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, np.ndarray]:
    """A compiled bundle with a copy of one image, and what the ONNX engine makes of it."""
    folder, image = MODELS[request.param]
    place = tmp_path_factory.mktemp(request.param)
    export_bundle(
        goldens / folder, place / "bundle", selection=Selection(folds=("0",)), options=ExportOptions(verify=False)
    )
    with pytest.MonkeyPatch.context() as patch:
        use_standins(patch)
        compile_bundle(place / "bundle", SOC)
    command = ["predict", str(place / "bundle"), str(goldens / image), str(place / "onnx"), "--engine", "onnxruntime"]
    assert main([*command, *QUIET]) == 0
    return place / "bundle", goldens / image, labels_in(place / "onnx")


def labels_in(folder: Path) -> np.ndarray:
    (file,) = folder.glob("*.nii.gz")
    return read_labels(file)[0]


@pytest.mark.parametrize(("model", "binding"), BINDINGS, indirect=["model"])
def test_every_binding_gives_the_onnx_engines_label_map(
    binding: str, model: tuple[Path, Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, image, expected = model
    use_binding(monkeypatch, binding, norms="exact")
    command = ["predict", str(bundle), str(image), str(tmp_path / "om"), "--engine", "om", "--devices", "0,1"]
    assert main([*command, *QUIET]) == 0
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(labels_in(tmp_path / "om"), expected)


@pytest.mark.parametrize(("model", "tool", "generation"), TOOLS, indirect=["model"])
def test_every_tool_gives_the_onnx_engines_label_map(
    tool: str,
    generation: str,
    model: tuple[Path, Path, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, image, expected = model
    use_standins(monkeypatch, norms="exact", **({"generation": generation} if generation else {}))
    command = ["staged", str(bundle), str(image), str(tmp_path / "work"), str(tmp_path / "out"), "--scratch", "1GB"]
    assert main([*command, "--tool", tool, "--devices", "0,1", *QUIET]) == 0
    np.testing.assert_array_equal(labels_in(tmp_path / "out"), expected)
