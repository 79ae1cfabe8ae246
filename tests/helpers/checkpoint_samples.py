"""Small model folders in the frameworks' own layouts, made with torch and pickle as the frameworks make them."""

from __future__ import annotations

import copy
import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

V1_POOLS = [[1, 2, 2], [2, 2, 2]]
V1_CONVS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]


def v1_plans(**changes: Any) -> dict[str, Any]:
    """Plans of a one-stage 3D model with one CT channel and two classes."""
    figures = {"mean": np.float32(80.5), "sd": np.float32(28.25), "percentile_00_5": -11.0, "percentile_99_5": 143.0}
    plans: dict[str, Any] = {
        "num_stages": 1,
        "num_modalities": 1,
        "modalities": {0: "CT"},
        "normalization_schemes": OrderedDict([(0, "CT")]),
        "dataset_properties": {"intensityproperties": OrderedDict([(0, OrderedDict(figures))])},
        "num_classes": 2,
        "all_classes": [1, 2],
        "base_num_features": 4,
        "use_mask_for_norm": OrderedDict([(0, False)]),
        "keep_only_largest_region": None,
        "transpose_forward": [np.int64(0), 1, 2],
        "transpose_backward": [np.int64(0), np.int64(1), np.int64(2)],
        "plans_per_stage": {
            0: {
                "batch_size": 2,
                "num_pool_per_axis": [1, 2, 2],
                "patch_size": np.array([4, 8, 12]),
                "current_spacing": np.array([2.5, 1.25, 1.25]),
                "original_spacing": np.array([2.5, 1.25, 1.25]),
                "do_dummy_2D_data_aug": np.bool_(True),
                "pool_op_kernel_sizes": copy.deepcopy(V1_POOLS),
                "conv_kernel_sizes": copy.deepcopy(V1_CONVS),
            }
        },
        "preprocessor_name": "GenericPreprocessor",
        "conv_per_stage": 2,
    }
    plans.update(changes)
    return plans


def v1_network(inputs: int = 1, outputs: int = 3, **arguments: Any) -> Any:
    """The network those plans describe, with reproducible random weights."""
    import torch

    from offline_infer.networks.generic_unet import GenericUNet

    torch.manual_seed(arguments.pop("seed", 0))
    return GenericUNet(inputs, arguments.pop("base", 4), outputs, V1_POOLS, V1_CONVS, **arguments)


def v1_folder(
    root: Path,
    *,
    trainer: str = "nnUNetTrainerV2",
    folds: Sequence[str] = ("fold_0",),
    plans: Mapping[str, Any] | None = None,
    network: Any = None,
    legacy: bool = False,
    configuration: str = "3d_fullres",
) -> Path:
    """A model folder of nnU-Net v1 at ``root/nnUNet/<configuration>/Task007_Sample/<trainer>__nnUNetPlansv2.1``."""
    import torch

    content = dict(plans) if plans is not None else v1_plans()
    folder = root / "nnUNet" / configuration / "Task007_Sample" / f"{trainer}__nnUNetPlansv2.1"
    init: list[Any] = ["plans.pkl", 0, f"res/nnUNet/{configuration}/Task007_Sample/{folder.name}", "pre", True, 0, True]
    init += [False, "nnUNetTrainerV2", True] if "Cascade" in trainer else [False, True]
    for number, fold in enumerate(folds):
        place = folder / fold
        place.mkdir(parents=True)
        module = network if network is not None else v1_network(seed=number)
        state = {"epoch": 1, "state_dict": module.state_dict(), "optimizer_state_dict": {"x": torch.ones(3)}}
        path = place / "model_final_checkpoint.model"
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        info = {"init": tuple(init), "name": trainer, "class": f"<class '{trainer}'>", "plans": content}
        (place / "model_final_checkpoint.model.pkl").write_bytes(pickle.dumps(OrderedDict(info)))
    (folder / "plans.pkl").write_bytes(pickle.dumps(content))
    return folder


_ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}


def v2_plans() -> dict[str, Any]:
    """Plans with one 3D configuration and one that inherits from it."""
    config: dict[str, Any] = {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [4, 8, 12],
        "spacing": [2.5, 1.25, 1.25],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": copy.deepcopy(_ARCHITECTURE),
    }
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        config[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        config[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": what == "seg",
            "order": order,
            "order_z": 0,
            "force_separate_z": None,
        }
    figures = {"mean": 80.5, "std": 28.25, "percentile_00_5": -11.0, "percentile_99_5": 143.0}
    return {
        "dataset_name": "Dataset007_Sample",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "3d_fullres": config,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": figures},
    }


def v2_dataset() -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }


def v2_folder(
    root: Path,
    *,
    trainer: str = "nnUNetTrainer",
    folds: Sequence[str] = ("fold_0",),
    configuration: str = "3d_fullres",
    plans: Mapping[str, Any] | None = None,
    dataset: Mapping[str, Any] | None = None,
    inputs: int = 1,
    outputs: int = 3,
    wrapper: str = "",
    mirror_axes: Any = (0, 1, 2),
) -> Path:
    """A model folder of nnU-Net v2; ``wrapper`` goes before every weight's name."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    arguments = copy.deepcopy(_ARCHITECTURE["arch_kwargs"])
    assert isinstance(arguments, dict)
    arguments |= {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    folder = root / "Dataset007_Sample" / f"{trainer}__nnUNetPlans__{configuration}"
    contents = dict(plans) if plans is not None else v2_plans()
    declared = dict(dataset) if dataset is not None else v2_dataset()
    for number, fold in enumerate(folds):
        place = folder / fold
        place.mkdir(parents=True)
        torch.manual_seed(number)
        module = PlainConvUNet(input_channels=inputs, num_classes=outputs, deep_supervision=True, **arguments)
        state = {
            "network_weights": OrderedDict((wrapper + name, value) for name, value in module.state_dict().items()),
            "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(4)}}},
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float32(0.5)]},
            "_best_ema": np.float64(0.25),
            "current_epoch": 3,
            "init_args": {
                "plans": contents,
                "configuration": configuration,
                "fold": number,
                "dataset_json": declared,
                "device": torch.device("cpu"),
            },
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": mirror_axes,
        }
        torch.save(state, place / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(contents))
    (folder / "dataset.json").write_text(json.dumps(declared))
    return folder
