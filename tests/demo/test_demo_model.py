"""The trained checkpoint the package ships: complete, small, in nnU-Net v1's layout, and harmless to open."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

import offline_infer.demo
from offline_infer.checkpoints import read_checkpoint
from offline_infer.checkpoints.description import parameter_count

ROOT = Path(offline_infer.demo.__file__).parent / "model"
MODEL = ROOT / "nnUNet" / "3d_fullres" / "Task003_Liver" / "nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1"
PLANS_GLOBALS = {
    "collections.OrderedDict",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
}
WEIGHTS_GLOBALS = {"collections.OrderedDict", "torch.FloatStorage", "torch._utils._rebuild_tensor_v2"}


def named(data: bytes) -> set[str]:
    """Every class or function a pickle names; nothing of it is executed."""
    found: set[str] = set()
    strings: list[str] = []
    memo: list[str | None] = []
    last: str | None = None
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            found.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(strings[-2:]))
        elif opcode.name == "MEMOIZE":
            memo.append(last)
            continue
        elif opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int) and argument < len(memo):
            argument = memo[argument]
        last = argument if isinstance(argument, str) else None
        if last is not None:
            strings.append(last)
    return found


def weights_pickle() -> bytes:
    with zipfile.ZipFile(MODEL / "fold_0" / "model_final_checkpoint.model") as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        return archive.read(name)


def test_the_layout_is_that_of_the_framework_and_small() -> None:
    files = sorted(p.relative_to(MODEL).as_posix() for p in MODEL.rglob("*") if p.is_file())
    assert files == [
        "dataset.json",
        "fold_0/model_final_checkpoint.model",
        "fold_0/model_final_checkpoint.model.pkl",
        "plans.pkl",
    ]
    assert sum(p.stat().st_size for p in ROOT.rglob("*") if p.is_file()) <= 8 * 2**20


def test_the_pickles_name_nothing_outside_the_closed_table() -> None:
    assert named((MODEL / "plans.pkl").read_bytes()) <= PLANS_GLOBALS
    assert named((MODEL / "fold_0" / "model_final_checkpoint.model.pkl").read_bytes()) <= PLANS_GLOBALS
    found = named(weights_pickle())
    assert found <= WEIGHTS_GLOBALS
    assert found >= {"torch.FloatStorage"}  # the scan does see what is there


def test_no_file_names_a_place_on_the_machine_it_was_made_on() -> None:
    texts = [
        (MODEL / "plans.pkl").read_bytes(),
        (MODEL / "fold_0" / "model_final_checkpoint.model.pkl").read_bytes(),
        weights_pickle(),
    ]
    for text in texts:
        assert not re.search(rb"(/home/|/root/|/tmp/|/work/|[A-Z]:\\)", text)


def test_the_reader_understands_it() -> None:
    description = read_checkpoint(MODEL)
    spec = description.spec
    assert spec.source.framework == "nnunetplusplus"
    assert spec.source.trainer == "nnUNetPlusPlusTrainerV2"
    assert spec.source.dataset == "Task003_Liver"
    assert spec.source.configuration == "3d_fullres"
    assert [fold.fold for fold in spec.source.folds] == ["0"]
    assert spec.patch_size == (48, 96, 96)
    np.testing.assert_allclose(spec.spacing, (3.0, 2.5, 2.5))
    assert spec.transpose_forward == (0, 1, 2)
    assert spec.labels.names == {"background": 0, "liver": 1, "tumour": 2}
    assert spec.window.mirror_axes == (0, 1, 2)
    (channel,) = spec.channels
    assert channel.scheme == "ct"
    assert channel.intensity is not None
    # Liver tissue in HU.
    assert 60 < channel.intensity.mean < 110
    assert -60 < channel.intensity.percentile_00_5 < 40
    assert 120 < channel.intensity.percentile_99_5 < 220
    assert description.network.kind == "unetplusplus"
    assert description.network.output_channels == 3

    weights = description.load_weights("0")
    assert 1_500_000 < parameter_count(weights) < 1_750_000
    for name, values in weights.items():
        assert values.dtype == np.float32, name
        assert np.isfinite(values).all(), name


def test_every_head_was_trained() -> None:
    """A freshly made normalisation has weights of exactly 1; training moves them, in every part of the network."""
    weights = read_checkpoint(MODEL).load_weights("0")
    norms = {name: values for name, values in weights.items() if name.endswith("instnorm.weight")}
    assert len(norms) == 42
    for name, values in norms.items():
        assert np.abs(values - 1).max() > 1e-3, name


def test_torch_opens_it_with_weights_only() -> None:
    torch = pytest.importorskip("torch")
    record = torch.load(MODEL / "fold_0" / "model_final_checkpoint.model", map_location="cpu", weights_only=True)
    assert set(record) >= {"epoch", "state_dict", "optimizer_state_dict", "lr_scheduler_state_dict", "plot_stuff"}
    assert record["optimizer_state_dict"] is None
    from offline_infer.networks.unetplusplus import UNetPlusPlus

    net = UNetPlusPlus(
        1,
        4,
        3,
        [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
        [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    )
    net.load_state_dict(record["state_dict"])
