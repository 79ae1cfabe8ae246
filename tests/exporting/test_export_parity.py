"""Exports of real checkpoints, on real tiles, give the logits that the real frameworks gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_infer.checkpoints import Selection
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.exporting.bundles import export_bundle
from offline_infer.exporting.options import ExportOptions
from offline_infer.exporting.verification import compare, verdict

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytestmark = pytest.mark.parity
V1 = "v1/model/nnUNet/3d_fullres/Task003_Liver/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1"
V1B = "v1b/model/nnUNet/{}/Task021_AbdCT/nnUNetTrainerV2{}__nnUNetPlansv2.1"
V2 = "v2/models/{}/nnUNetTrainer__nnUNetPlans__3d_fullres"
ENGINES = [name for name in ("openvino", "onnxruntime") if get_engine(name).available() is None]


def agree(graph: Path, image: np.ndarray[Any, Any], heads: dict[str, np.ndarray[Any, Any]]) -> None:
    """Every engine: logits close, and labels changed only where the framework itself was undecided."""
    for name in ENGINES:
        with get_engine(name).open(graph, EngineOptions(threads=2)) as session:
            answers = session.run_all(np.ascontiguousarray(image, dtype=np.float32))
        assert list(answers) == list(heads)
        for head, expected in heads.items():
            result = compare(expected, answers[head], regions=False)
            assert verdict(result, "fp32") is None, (name, head, result)
            assert result.max_diff < 1e-4, (name, head, result)
            assert result.flips <= 2, (name, head, result)
            assert (result.flip_margin or 0) < 2e-4, (name, head, result)


def test_unetplusplus_with_all_five_heads(goldens: Path, tmp_path: Path) -> None:
    tile = np.load(goldens / "v1/expected/one_patch/one_patch.npz")
    bundle = export_bundle(
        goldens / V1,
        tmp_path / "b",
        selection=Selection(folds=["0"]),
        options=ExportOptions(keep_deep_supervision=True, verify=False),
    )
    names = ["logits", "logits_1", "logits_2", "logits_3", "logits_4"]
    agree(bundle.graph_path("0"), tile["input"], {name: tile[f"fold0_output{i}"] for i, name in enumerate(names)})


def test_unetplusplus_for_ascend(goldens: Path, tmp_path: Path) -> None:
    """Opset 11, the final head alone: the published recipe without its four unused outputs."""
    tile = np.load(goldens / "v1/expected/one_patch/one_patch.npz")
    bundle = export_bundle(
        goldens / V1, tmp_path / "b", selection=Selection(folds=["1"]), options=ExportOptions(opset=11, verify=False)
    )
    agree(bundle.graph_path("1"), tile["input"], {"logits": tile["fold1_output0"]})


@pytest.mark.parametrize(
    ("tile", "configuration", "trainer"),
    [
        ("a", "2d", ""),
        ("c_lowres", "3d_lowres", ""),
        ("c_cascade", "3d_cascade_fullres", "CascadeFullRes"),
        ("d", "3d_fullres", ""),
    ],
)
def test_generic_unet(goldens: Path, tmp_path: Path, tile: str, configuration: str, trainer: str) -> None:
    recorded = np.load(goldens / f"v1b/expected/one_patch/{tile}.npz")
    bundle = export_bundle(
        goldens / V1B.format(configuration, trainer), tmp_path / "b", options=ExportOptions(verify=False)
    )
    agree(bundle.graph_path("0"), recorded["input"], {"logits": recorded["logits"]})


@pytest.mark.parametrize(
    ("case", "dataset"),
    [
        ("003_case_border", "Dataset003_Liver"),
        ("003_case_aniso", "Dataset003_Liver"),
        ("010_rcase_3mm", "Dataset010_Regions"),
    ],
)
def test_nnunet_v2(goldens: Path, tmp_path: Path, case: str, dataset: str) -> None:
    recorded = np.load(goldens / f"v2/expected/intermediates/{case}/tile.npz")
    bundle = export_bundle(goldens / V2.format(dataset), tmp_path / "b", options=ExportOptions(verify=False))
    agree(bundle.graph_path("0"), recorded["input"], {"logits": recorded["raw_logits"]})
