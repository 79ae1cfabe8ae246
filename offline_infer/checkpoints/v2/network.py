"""Which network nnU-Net v2's plans describe: current plans, plans of 2.0 to 2.1, and trainers that build their own."""

from __future__ import annotations

import re
from typing import Any

from offline_infer.checkpoints.description import NetworkDescription
from offline_infer.checkpoints.fields import Fields, plain, shown
from offline_infer.checkpoints.limits import MAX_STAGES
from offline_infer.checkpoints.plausibility import check_arguments, check_count
from offline_infer.errors import CheckpointError

UNET_MODULE = "dynamic_network_architectures.architectures.unet"
PRIMUS_MODULE = "dynamic_network_architectures.architectures.primus"
OLD_CLASSES = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
"""Classes that plans without an architecture block may name, and what their encoder's depth argument is called."""

_IMPORTS = "_kw_requires_import"
_PRIMUS_V1 = {"S": (396, 12, 6), "B": (792, 12, 12), "M": (864, 16, 12), "L": (1056, 24, 16)}
"""Primus size -> embedding width, depth, heads."""
_PRIMUS_NAME = re.compile(r"_?(?:nnUNet_)?Primus(V2|V3)?_?([SBML])_(?:Trainer|96_BS1|48_BS1)")

_PLAIN_TRAINER = re.compile(
    r"""nnUNetTrainer(
        BN | Adam | Adam1en3 | Adam3en4 | Adan | Adan1en1 | Adan1en3 | Adan3en4 | AdanCosAnneal | CELoss
        | CELoss_5epochs | Benchmark_5epochs | Benchmark_5epochs_noDataLoading | CosAnneal | DA5 | DA5Segord0
        | DA5ord0 | DA5_10epochs
        | DiceCELoss_noSmooth | DiceLoss | DiceTopK10Loss | NoDA | NoDeepSupervision | NoMirroring | Topk10Loss
        | Topk10LossLS01 | VanillaAdam | VanillaAdam1en3 | VanillaAdam3en4 | _\d+epochs?(_NoMirroring)?
        | _DASegOrd0 | _DASegOrd0_NoMirroring | _noDummy2DDA | _onlyMirror01 | _onlyMirror01_1500ep | _onlyMirror01_DA5
        | _onlyMirror01_DASegOrd0 | _probabilisticOversampling(_\d+)? | _warmup
    )? | nnUNet_Trainer_BS8""",
    re.VERBOSE,
)


def known_trainer(trainer: str) -> bool:
    """Whether the name is one of nnU-Net v2's own trainers, whose effect on inference is known."""
    return bool(_PLAIN_TRAINER.fullmatch(trainer) or _PRIMUS_NAME.fullmatch(trainer))


def describe(
    config: Fields, trainer: str, patch_size: tuple[int, ...], input_channels: int, output_channels: int
) -> NetworkDescription:
    """The network to rebuild.

    Raises:
        CheckpointError: plans without a network, or an old class that is not known.
    """
    primus = _PRIMUS_NAME.match(trainer)
    if primus:
        class_name, arguments = _primus(primus[1], primus[2], patch_size)
    else:
        class_name, arguments = _architecture(config, len(patch_size))
        if trainer == "nnUNetTrainerBN":
            if "norm_op" not in arguments:
                raise CheckpointError(f"{config.origin}: trainer {trainer} needs an architecture with norm_op")
            arguments["norm_op"] = f"torch.nn.modules.batchnorm.BatchNorm{len(patch_size)}d"
            arguments["norm_op_kwargs"] = {"eps": 1e-5, "affine": True}
    check_arguments(arguments, config.origin)
    return NetworkDescription(
        kind="dynamic",
        class_name=class_name,
        arguments=arguments,
        input_channels=input_channels,
        output_channels=output_channels,
        patch_size=patch_size,
    )


def _architecture(config: Fields, dims: int) -> tuple[str, dict[str, Any]]:
    if "architecture" not in config:
        return _old_architecture(config, dims)
    block = config.fields("architecture")
    arguments = dict(block.fields("arch_kwargs").content)
    imports = plain(block.raw("_kw_requires_import"))
    if not isinstance(imports, list) or not all(isinstance(name, str) for name in imports):
        raise CheckpointError(f"{block.origin}: _kw_requires_import must be a list of argument names")
    absent = [name for name in imports if name not in arguments]
    if absent:
        raise CheckpointError(f"{block.origin}: _kw_requires_import names {shown(absent)}, not in arch_kwargs")
    arguments[_IMPORTS] = imports
    return block.text("network_class_name"), arguments


def _old_architecture(config: Fields, dims: int) -> tuple[str, dict[str, Any]]:
    """Plans of nnU-Net 2.0 to 2.1, which give the pieces instead of the class's arguments."""
    if "UNet_class_name" not in config:
        raise CheckpointError(f"{config.origin}: there is neither an architecture block nor UNet_class_name")
    name = config.text("UNet_class_name")
    depth_argument = config.choice("UNet_class_name", OLD_CLASSES, "network class")
    encoder = list(config.integers("n_conv_per_stage_encoder"))
    check_count("the number of stages", len(encoder), MAX_STAGES, config.origin)
    base, cap = config.integer("UNet_base_num_features"), config.integer("unet_max_num_features")
    return f"{UNET_MODULE}.{name}", {
        "n_stages": len(encoder),
        "features_per_stage": [min(base * 2**stage, cap) for stage in range(len(encoder))],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": config.integer_lists("conv_kernel_sizes"),
        "strides": config.integer_lists("pool_op_kernel_sizes"),
        depth_argument: encoder,
        "n_conv_per_stage_decoder": list(config.integers("n_conv_per_stage_decoder")),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        _IMPORTS: ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _primus(generation: str | None, size: str, patch_size: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """The vision transformers that nnU-Net's Primus trainers build whatever the plans say."""
    arguments: dict[str, Any] = {
        "patch_embed_size": [8, 8, 8],
        "input_shape": list(patch_size),
        "drop_path_rate": 0.2,
        "scale_attn_inner": True,
        "init_values": 0.1,
        _IMPORTS: [],
    }
    if generation is not None:
        return f"{PRIMUS_MODULE}.Primus{generation}{size}", arguments
    width, depth, heads = _PRIMUS_V1[size]
    return f"{PRIMUS_MODULE}.Primus", {**arguments, "embed_dim": width, "eva_depth": depth, "eva_numheads": heads}
