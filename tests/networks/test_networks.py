"""The re-implemented networks: shapes, heads, variants, and strict loading of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from offline_infer.checkpoints.description import NetworkDescription
from offline_infer.errors import CheckpointError
from offline_infer.networks import build, load_weights

torch = pytest.importorskip("torch")

POOLS_3D = [[1, 2, 2], [2, 2, 2], [1, 2, 2], [1, 1, 2], [1, 2, 1]]
CONVS_3D = [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [1, 3, 3]]


def describe(kind: Any, dims: int = 3, outputs: int = 3, inputs: int = 2, **arguments: Any) -> NetworkDescription:
    pools = [kernel[-dims:] for kernel in POOLS_3D]
    convs = [kernel[-dims:] for kernel in CONVS_3D]
    settings = {"base_features": 2, "pool_kernels": pools, "conv_kernels": convs, **arguments}
    patch = (4, 32, 32)[-dims:]
    return NetworkDescription(kind, "Sample", settings, inputs, outputs, patch)


def state(module: Any) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("dims", [2, 3])
def test_unetplusplus_heads(dims: int) -> None:
    description = describe("unetplusplus", dims)
    final, every = build(description), build(description, deep_supervision=True)
    load_weights(every, state(final))
    x = torch.randn(1, 2, *(4, 32, 32)[-dims:])
    with torch.no_grad():
        one, heads = final(x.clone()), every(x.clone())
    assert isinstance(heads, tuple)
    assert [tuple(head.shape) for head in heads] == [(1, 3, *x.shape[2:])] * 5  # all at full resolution
    assert torch.equal(one, heads[0])
    assert not any(torch.equal(heads[0], head) for head in heads[1:])


@pytest.mark.parametrize("dims", [2, 3])
def test_generic_unet_heads(dims: int) -> None:
    description = describe("generic_unet", dims)
    final, every = build(description), build(description, deep_supervision=True)
    load_weights(every, state(final))
    x = torch.randn(1, 2, *(4, 32, 32)[-dims:])
    with torch.no_grad():
        one, heads = final(x.clone()), every(x.clone())
    assert torch.equal(one, heads[0])
    sizes = [head.shape[-1] for head in heads]
    assert sizes == [32, 16, 8, 4, 2]  # the width after 0, 1, 2, 3 and 4 poolings


def test_each_node_sees_all_nodes_left_of_it() -> None:
    module = build(describe("unetplusplus"))
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    features = [2, 4, 8, 16, 32, 64]
    for diagonal in range(5):
        for k in range(5 - diagonal):
            level = 4 - diagonal - k
            node = shapes[f"loc{diagonal}.{k}.0.blocks.0.conv.weight"]
            assert node[:2] == (features[level], features[level] * (k + 2))
            assert list(node[2:]) == CONVS_3D[level + 1]
            assert shapes[f"up{diagonal}.{k}.weight"][2:] == tuple(POOLS_3D[level])


def test_the_finest_decoder_uses_the_second_kernel() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in build(describe("generic_unet")).state_dict().items()}
    assert shapes["conv_blocks_context.0.blocks.0.conv.weight"][2:] == (1, 3, 3)
    assert shapes["conv_blocks_localization.4.0.blocks.0.conv.weight"][2:] == (3, 3, 3)


@pytest.mark.parametrize(("dims", "cap"), [(2, 480), (3, 320)])
def test_features_are_capped_as_in_the_framework(dims: int, cap: int) -> None:
    with torch.device("meta"):
        module = build(describe("generic_unet", dims, base_features=32))
    widths = [tensor.shape[0] for name, tensor in module.state_dict().items() if name.endswith("0.conv.weight")]
    assert max(widths) == cap


@pytest.mark.parametrize(
    "variant",
    [
        {"norm": "batch"},
        {"norm": "none"},
        {"activation": "relu"},
        {"activation": "gelu"},
        {"activation": "mish"},
        {"negative_slope": 0.2},
        {"norm_last": True},
    ],
)
def test_variants_change_the_answer(variant: dict[str, Any]) -> None:
    plain, changed = build(describe("generic_unet")), build(describe("generic_unet", **variant))
    common = {name: array for name, array in state(plain).items() if name in changed.state_dict()}
    load_weights(changed, state(changed) | common)
    x = torch.randn(1, 2, 4, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(plain(x.clone()), changed(x.clone()), atol=1e-4)


def test_group_normalisation_and_head_bias() -> None:
    module = build(describe("generic_unet", base_features=8, norm="group", head_bias=True))
    assert "seg_outputs.0.bias" in module.state_dict()
    groups = [layer for layer in module.modules() if isinstance(layer, torch.nn.GroupNorm)]
    assert groups
    assert all(layer.num_groups == 8 for layer in groups)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"pool_kernels": POOLS_3D[:4], "conv_kernels": CONVS_3D[:5]}, "exactly 5"),
        ({"conv_kernels": CONVS_3D[:5]}, "6 convolution kernels"),
        ({"conv_kernels": [[5, 5, 5]] * 6}, "1 or 3"),
        ({"pool_kernels": [[2, 2]] * 5}, "two or all have three"),
        ({"pool_kernels": [[0, 2, 2]] * 5}, "positive"),
        ({"convs_per_stage": 1}, "at least 2"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_impossible_networks_are_explained(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        build(describe("unetplusplus", **arguments))


# --- loading ---------------------------------------------------------------------------------------------------------


def test_loading_is_strict_and_names_the_first_of_each_complaint() -> None:
    module = build(describe("generic_unet"))
    good = state(module)
    first = next(iter(good))
    with pytest.raises(CheckpointError, match=rf"1 missing \({first}\)"):
        load_weights(module, {name: array for name, array in good.items() if name != first})
    with pytest.raises(CheckpointError, match=r"1 unexpected \('stranger'\)"):
        load_weights(module, {**good, "stranger": np.zeros(1)})
    with pytest.raises(CheckpointError, match=rf"{first} is \(1,\), the network wants \(32, 64, 1, 3, 3\)"):
        load_weights(module, {**good, first: np.zeros(1)})
    with pytest.raises(CheckpointError, match=r"missing .*\.\.\..*; .*unexpected"):
        load_weights(module, {f"x.{name}": array for name, array in good.items()})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapper_prefixes_are_removed(prefix: str) -> None:
    module, other = build(describe("generic_unet")), build(describe("generic_unet"))
    load_weights(other, {prefix + name: array for name, array in state(module).items()})
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_half_precision_and_read_only_weights_are_accepted() -> None:
    module = build(describe("generic_unet"))
    halves = {name: array.astype(np.float16) for name, array in state(module).items()}
    for array in halves.values():
        array.flags.writeable = False
    load_weights(module, halves)
    assert all(tensor.dtype == torch.float32 for tensor in module.state_dict().values())
    assert np.array_equal(state(module)["seg_outputs.0.weight"], halves["seg_outputs.0.weight"].astype(np.float32))


# --- dynamic_network_architectures -----------------------------------------------------------------------------------


def dynamic(class_name: str = "unet.PlainConvUNet", **changes: Any) -> NetworkDescription:
    pytest.importorskip("dynamic_network_architectures")
    arguments: dict[str, Any] = {
        "n_stages": 3,
        "features_per_stage": [2, 4, 4],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    arguments.update(changes)
    if "Residual" in class_name:
        arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    full = class_name if class_name.count(".") != 1 else f"dynamic_network_architectures.architectures.{class_name}"
    return NetworkDescription("dynamic", full, arguments, 1, 3, (4, 8, 8))


@pytest.mark.parametrize(
    "class_name",
    ["unet.PlainConvUNet", "unet.ResidualEncoderUNet", "unet.ResidualUNet", "residual_unet.ResidualEncoderUNet"],
)
def test_classes_of_the_package(class_name: str) -> None:
    x = torch.randn(1, 1, 4, 8, 8)
    final, every = build(dynamic(class_name)), build(dynamic(class_name), deep_supervision=True)
    load_weights(every, state(final))
    with torch.no_grad():
        heads = every(x)
        assert [tuple(head.shape) for head in heads] == [(1, 3, 4, 8, 8), (1, 3, 4, 4, 4)]
        assert torch.equal(final(x), heads[0])


def test_one_of_several_names_of_a_parameter_is_enough_and_they_must_agree() -> None:
    module = build(dynamic())
    full = state(module)
    short = {k: v for k, v in full.items() if not k.startswith("decoder.encoder.") and ".all_modules." not in k}
    assert len(short) < len(full)
    other = build(dynamic())
    load_weights(other, short)
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )
    name = next(name for name in full if name.startswith("decoder.encoder."))
    with pytest.raises(CheckpointError, match="different values"):
        load_weights(other, {**full, name: full[name] + 1})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"conv_op": "os.system"}, r"conv_op names 'os\.system'"),
        ({"conv_op": "torch.nn.modules.conv.os"}, "only layers"),
        ({"conv_op": "torch.nn.functional.conv3d"}, "only layers"),
        ({"nonlin": "torch.load"}, "only layers"),
        ({"nonlin": "torch.nn.utils.parametrize.Parametrized"}, "only layers"),
        ({"norm_op": "subprocess.Popen"}, "only layers"),
        ({"norm_op": "dynamic_network_architectures.building_blocks.residual.os"}, "only layers"),
        ({"n_stages": 7}, "cannot be built"),
    ],
)
def test_plans_cannot_name_arbitrary_code(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        build(dynamic(**changes))


@pytest.mark.parametrize(
    "class_name",
    [
        "os.path.join",
        "builtins.eval",
        "dynamic_network_architectures.architectures.unet.nn.Linear",
        "dynamic_network_architectures.architectures.unet.AbstractDynamicNetworkArchitectures",
        "dynamic_network_architectures.architectures.unet.Missing",
        "nnunetv2.training.network.Net",
    ],
)
def test_network_classes_come_from_the_package_alone(class_name: str) -> None:
    with pytest.raises(CheckpointError, match="network class"):
        build(dynamic(class_name))
