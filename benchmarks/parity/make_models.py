"""Makes a scenario's model folder and images. Runs in the peer's environment: it needs torch and nnunetv2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scenarios import NAMED, Scenario, random_scenario
from scipy import ndimage

FUNCTIONS = {
    "default": (
        "resample_data_or_seg_to_shape",
        {"order": 3, "order_z": 0, "force_separate_z": None},
        {"order": 1, "order_z": 0, "force_separate_z": None},
    ),
    "torch_simple": (
        "resample_torch_fornnunet",
        {"force_separate_z": False, "memefficient_seg_resampling": False},
        {"force_separate_z": False, "memefficient_seg_resampling": False},
    ),
    "torch_separate_z": (
        "resample_torch_fornnunet",
        {"force_separate_z": None, "memefficient_seg_resampling": False},
        {"force_separate_z": None, "memefficient_seg_resampling": False},
    ),
    "none": ("no_resampling_hack", {}, {}),
}


def main(root: Path, names: list[str]) -> None:
    for name in names:
        scenario = find(name)
        folder = root / name
        if not (folder / "done").exists():
            write_images(folder / "images", scenario)
            first = scenario
            write_model(folder / "model", first, "3d_fullres" if scenario.dims == 3 else "2d")
            if scenario.cascade:
                write_model(folder / "model2", scenario, "3d_cascade_fullres")
            (folder / "done").write_text("")


def find(name: str) -> Scenario:
    if name.startswith("random-"):
        return random_scenario(int(name.split("-")[1]))
    return next(scenario for scenario in NAMED if scenario.name == name)


def write_images(folder: Path, scenario: Scenario) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash_name(scenario.name)))
    for number, (shape, spacing, kind) in enumerate(scenario.images):
        for channel in range(1 if kind == "rgb" else len(scenario.channels)):
            path = folder / f"case{number}_{channel:04d}{scenario.file_ending}"
            if kind == "rgb":
                smooth = np.stack([pattern(rng, shape[1:], 4) for _ in range(3)], -1)
                write_png(path, ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8))
                continue
            values = pattern(rng, shape, 3) * 300 + pattern(rng, shape, 1) * 30 + 40
            if kind == "border":
                for axis in range(3):
                    index = [slice(None)] * 3
                    index[axis] = slice(0, shape[axis] // 8)
                    values[tuple(index)] = 0
                    index[axis] = slice(shape[axis] - shape[axis] // 9 or None, None)
                    if shape[axis] // 9:
                        values[tuple(index)] = 0
            array = values.astype(np.int16 if channel == 0 else np.float32)
            if scenario.file_ending == ".tif":
                import tifffile

                tifffile.imwrite(path, array)
                Path(str(path)[: -len(f"_{channel:04d}.tif")] + ".json").write_text(
                    json.dumps({"spacing": list(spacing)})
                )
                continue
            image = sitk.GetImageFromArray(array)
            image.SetSpacing([float(s) for s in spacing[::-1]])
            image.SetOrigin((12.5, -80.25, 33.0))
            c, s = np.cos(0.2), np.sin(0.2)
            image.SetDirection((-c, s, 0, -s, -c, 0, 0, 0, 1) if number else (1, 0, 0, 0, 1, 0, 0, 0, 1))
            sitk.WriteImage(image, str(path), True)


def pattern(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal(shape), [min(sigma, n / 4) for n in shape])
    return field / max(float(field.std()), 1e-6)


def write_png(path: Path, array: np.ndarray) -> None:
    from skimage import io

    io.imsave(str(path), array, check_contrast=False)


def hash_name(name: str) -> int:
    return int.from_bytes(name.encode()[-7:], "big")


def write_model(folder: Path, scenario: Scenario, configuration: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plans = make_plans(scenario)
    dataset = {
        "channel_names": {str(i): name for i, (name, _) in enumerate(scenario.channels)},
        "labels": scenario.labels,
        "numTraining": 1,
        "file_ending": scenario.file_ending,
    }
    if scenario.regions_class_order:
        dataset["regions_class_order"] = list(scenario.regions_class_order)
    (folder / "plans.json").write_text(json.dumps(plans, indent=1))
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=1))
    manager = PlansManager(plans)
    config = manager.get_configuration(configuration)
    inputs = determine_num_input_channels(manager, config, dataset)
    outputs = manager.get_label_manager(dataset).num_segmentation_heads
    for number, fold in enumerate(scenario.folds):
        torch.manual_seed(hash_name(scenario.name) % 10_000 + number)
        network = get_network_from_plans(
            config.network_arch_class_name,
            config.network_arch_init_kwargs,
            config.network_arch_init_kwargs_req_import,
            inputs,
            outputs,
            deep_supervision=True,
        )
        with torch.no_grad():
            for parameter_name, parameter in network.named_parameters():
                parameter += 0.1 * torch.randn_like(parameter) * (parameter.abs().mean() + 0.05)
                if "seg_layers" in parameter_name and parameter.ndim > 1:
                    parameter *= 8
        target = folder / f"fold_{fold}"
        target.mkdir(exist_ok=True)
        torch.save(
            {
                "network_weights": network.state_dict(),
                "optimizer_state": {},
                "grad_scaler_state": None,
                "logging": {},
                "_best_ema": 0.5,
                "current_epoch": 1000,
                "init_args": {"configuration": configuration, "fold": fold, "plans": plans, "dataset_json": dataset},
                "trainer_name": "nnUNetTrainer",
                "inference_allowed_mirroring_axes": scenario.mirrors or None,
            },
            target / "checkpoint_final.pth",
        )


def make_plans(scenario: Scenario) -> dict:
    dims = scenario.dims
    strides = scenario.strides or ((1,) * dims, *((2,) * dims for _ in scenario.features[1:]))
    stages = len(scenario.features)
    function, image_arguments, map_arguments = FUNCTIONS[scenario.resampling]
    config = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(scenario.patch),
        "median_image_size_in_voxels": list(scenario.patch),
        "spacing": list(scenario.spacing),
        "normalization_schemes": [name if name != "noNorm" else "NoNormalization" for name, _ in scenario.channels],
        "use_mask_for_norm": [mask for _, mask in scenario.channels],
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_probabilities": function,
        "resampling_fn_data_kwargs": {"is_seg": False, **image_arguments} if function != "no_resampling_hack" else {},
        "resampling_fn_seg_kwargs": {"is_seg": True, **map_arguments} if function != "no_resampling_hack" else {},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, **map_arguments}
        if function != "no_resampling_hack"
        else {},
        "batch_dice": True,
    }
    kernel = [[3] * dims for _ in range(stages)]
    if scenario.architecture == "legacy":
        config.update(
            UNet_class_name="PlainConvUNet",
            UNet_base_num_features=scenario.features[0],
            unet_max_num_features=320,
            n_conv_per_stage_encoder=[2] * stages,
            n_conv_per_stage_decoder=[2] * (stages - 1),
            num_pool_per_axis=[stages - 1] * dims,
            pool_op_kernel_sizes=[list(s) for s in strides],
            conv_kernel_sizes=kernel,
        )
    else:
        residual = scenario.architecture == "residual"
        arguments = {
            "n_stages": stages,
            "features_per_stage": list(scenario.features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": kernel,
            "strides": [list(s) for s in strides],
            "n_conv_per_stage_decoder": [1 if residual else 2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        arguments["n_blocks_per_stage" if residual else "n_conv_per_stage"] = (
            [1, 3, 4, 6, 6, 6][:stages] if residual else [2] * stages
        )
        name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
        config["architecture"] = {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    configurations = {"3d_fullres" if dims == 3 else "2d": config}
    if scenario.cascade:
        configurations["3d_lowres"] = {"inherits_from": "3d_fullres", "spacing": list(scenario.spacing)}
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
    order = list(scenario.transpose)
    figures = {
        "max": 1500.0,
        "mean": 60.0,
        "median": 55.0,
        "min": -900.0,
        "percentile_00_5": -420.5,
        "percentile_99_5": 510.25,
        "std": 220.0,
    }
    return {
        "dataset_name": "Dataset900_Parity",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [100, 100, 100],
        "image_reader_writer": scenario.reader,
        "transpose_forward": order,
        "transpose_backward": [order.index(axis) for axis in range(3)],
        "configurations": configurations,
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): figures for i in range(len(scenario.channels))},
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
