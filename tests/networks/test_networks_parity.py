"""The re-implemented networks against recorded answers of the real ones: names, shapes, order and logits."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from offline_infer.checkpoints import NetworkDescription, read_checkpoint
from offline_infer.networks import build, load_weights

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

V1B = {
    "a": "2d/Task021_AbdCT/nnUNetTrainerV2__nnUNetPlansv2.1",
    "c_lowres": "3d_lowres/Task021_AbdCT/nnUNetTrainerV2__nnUNetPlansv2.1",
    "c_cascade": "3d_cascade_fullres/Task021_AbdCT/nnUNetTrainerV2CascadeFullRes__nnUNetPlansv2.1",
    "d": "3d_fullres/Task021_AbdCT/nnUNetTrainerV2__nnUNetPlansv2.1",
}
V2 = {
    "003_case_border": "Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres",
    "003_case_aniso": "Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres",
    "010_rcase_3mm": "Dataset010_Regions/nnUNetTrainer__nnUNetPlans__3d_fullres",
}


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


def answers(folder: Path, fold: str, x: npt.NDArray[np.float32], heads: bool) -> list[npt.NDArray[np.float32]]:
    """What the checkpoint's network says to an input, all heads or the final one."""
    description = read_checkpoint(folder, folds=[fold])
    network = build(description.network, deep_supervision=heads)
    load_weights(network, description.load_weights(fold))
    with torch.no_grad():
        result = network(torch.from_numpy(x))
    return [head.numpy() for head in (result if heads else [result])]


@pytest.mark.parametrize(("fold", "heads"), [("0", 5), ("1", 1)])
def test_unetplusplus_logits(goldens: Path, fold: str, heads: int) -> None:
    (folder,) = (goldens / "v1/model/nnUNet/3d_fullres/Task003_Liver").iterdir()
    recorded = np.load(goldens / "v1/expected/one_patch/one_patch.npz")
    given = answers(folder, fold, recorded["input"], heads=heads > 1)
    assert len(given) == heads
    for index, logits in enumerate(given):
        np.testing.assert_allclose(logits, recorded[f"fold{fold}_output{index}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", V1B)
def test_generic_unet_logits(goldens: Path, name: str) -> None:
    recorded = np.load(goldens / f"v1b/expected/one_patch/{name}.npz")
    (logits,) = answers(goldens / "v1b/model/nnUNet" / V1B[name], "0", recorded["input"], heads=False)
    np.testing.assert_allclose(logits, recorded["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", V2)
def test_dynamic_network_logits(goldens: Path, name: str) -> None:
    pytest.importorskip("dynamic_network_architectures")
    recorded = np.load(goldens / f"v2/expected/intermediates/{name}/tile.npz")
    (logits,) = answers(goldens / "v2/models" / V2[name], "0", recorded["input"], heads=False)
    np.testing.assert_allclose(logits, recorded["raw_logits"], rtol=0, atol=1e-4)


def test_unetplusplus_parameters_at_full_scale(goldens: Path) -> None:
    folder = goldens / "v1/expected/full_scale"
    with (folder / "state_dict_keys.tsv").open() as stream:
        expected = [tuple(row) for row in csv.reader(stream, delimiter="\t")][1:]
    arguments = {"base_features": 32, "pool_kernels": [[2, 2, 2]] * 5, "conv_kernels": [[3, 3, 3]] * 6}
    description = NetworkDescription("unetplusplus", "Generic_UNetPlusPlus", arguments, 1, 3, (128, 128, 128))
    with torch.device("meta"):
        network = build(description)
    assert [(name, ",".join(map(str, tensor.shape))) for name, tensor in network.state_dict().items()] == expected
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 45_966_784
    order = json.loads((folder / "deep_supervision_order.json").read_text())
    assert order


def test_names_stand_in_the_checkpoints_order(goldens: Path) -> None:
    folders = [*(goldens / "v1b/model/nnUNet" / place for place in V1B.values())]
    folders += (goldens / "v1/model/nnUNet/3d_fullres/Task003_Liver").iterdir()
    for folder in folders:
        description = read_checkpoint(folder)
        network = build(description.network)
        weights = description.load_weights("0")
        assert list(weights) == list(network.state_dict())
