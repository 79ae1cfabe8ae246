"""Makes a scenario's model folder and images. Runs in the peer's environment: it needs torch and nnunet 1.7.1.

The checkpoints are written by nnU-Net's own trainers, which are built from the plans as for a training and then given
random weights.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scenarios import NAMED, Picture, Scenario, random_scenario
from scipy import ndimage

TASK = "Task900_Parity"
PLANS = "nnUNetPlansv2.1"


def main(root: Path, names: list[str]) -> None:
    for name in names:
        scenario = find(name)
        folder = root / name
        done = folder / "done"
        if not done.exists() or done.read_text() != repr(scenario):
            shutil.rmtree(folder, ignore_errors=True)
            print("making", name, flush=True)
            write_images(folder / "images", scenario)
            if scenario.cascade:
                first = {"trainer": "nnUNetTrainerV2", "cascade": False, "use_lowres": True}
                write_model(folder, scenario.__class__(**{**vars(scenario), **first}), seed=1)
            write_model(folder, scenario, seed=0)
            done.write_text(repr(scenario))


def find(name: str) -> Scenario:
    if name.startswith("random-"):
        return random_scenario(int(name.split("-")[1]))
    return next(scenario for scenario in NAMED if scenario.name == name)


def model_folder(folder: Path, configuration: str, trainer: str) -> Path:
    """Where nnU-Net v1 keeps a model."""
    return folder / "results" / "nnUNet" / configuration / TASK / f"{trainer}__{PLANS}"


def hash_name(name: str) -> int:
    return int.from_bytes(name.encode()[-7:], "big")


def write_images(folder: Path, scenario: Scenario) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(hash_name(scenario.name))
    for number, picture in enumerate(scenario.images):
        inside = where_image(picture)
        for channel in range(len(scenario.channels)):
            values = pattern(rng, picture.shape, 3) * 300 + pattern(rng, picture.shape, 1) * 30 + 40
            kind = {"bytes": np.uint8, "doubles": np.float64}.get(picture.kind, np.float32 if channel else np.int16)
            if picture.kind in ("rgb", "bytes"):
                values = (values - values.min()) / np.ptp(values) * 255
            if picture.kind == "flat" or (picture.kind == "dark" and channel > 0):
                values = np.full(picture.shape, 137.3 if picture.kind == "flat" else 0.0)
            # Zeros inside the image are common in CT, and must not be taken for outside.
            array = np.where(inside, np.rint(values) if channel == 0 and kind != np.float64 else values, 0)
            image = sitk.GetImageFromArray(array.astype(kind))
            image.SetSpacing([float(s) for s in picture.spacing[::-1]])
            image.SetOrigin((12.5, -80.25, 33.0))
            c, s = np.cos(0.2), np.sin(0.2)
            image.SetDirection((-c, s, 0, 0, 0, -1, s, c, 0) if picture.oblique else (1, 0, 0, 0, 1, 0, 0, 0, 1))
            sitk.WriteImage(image, str(folder / f"case{number}_{channel:04d}.nii.gz"), True)


def where_image(picture: Picture) -> np.ndarray:
    """(z, y, x): where voxels are not set to zero."""
    shape = picture.shape
    if picture.kind == "border":
        inside = np.zeros(shape, bool)
        inside[tuple(slice(n // 8, n - n // 9) for n in shape)] = True
        return inside
    if picture.kind in ("ball", "steps", "threes", "dark"):
        grain = {"steps": 4, "threes": 3}.get(picture.kind, 1)
        places = np.meshgrid(*(np.arange(n) // grain * grain + grain / 2 for n in shape), indexing="ij")
        radius = sum(((place - n / 2) / (n / 2.2)) ** 2 for place, n in zip(places, shape, strict=True))
        return (radius < 1) & ~((radius > 0.02) & (radius < 0.08))
    return np.ones(shape, bool)


def pattern(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal(shape), [min(sigma, n / 4) for n in shape])
    return field / max(float(field.std()), 1e-6)


def write_model(folder: Path, scenario: Scenario, seed: int) -> None:
    import torch
    from nnunet.training.model_restore import recursive_find_python_class
    from nnunet.training.network_training import nnUNetTrainer as module

    accept_new_torch(torch)
    target = model_folder(folder, scenario.configuration, scenario.trainer)
    target.mkdir(parents=True)
    plans = make_plans(scenario)
    (target / "plans.pkl").write_bytes(pickle.dumps(plans))
    if scenario.postprocessing is not None:
        (target / "postprocessing.json").write_text(json.dumps(scenario.postprocessing))
    if scenario.trainer == "nnUNetTrainerCascadeFullRes":  # looks for its first stage's results even to predict
        first = f"nnUNetTrainer__{PLANS}"
        (folder.parent / ".results" / "nnUNet" / "3d_lowres" / TASK / first / "pred_next_stage").mkdir(
            parents=True, exist_ok=True
        )
    trainer_class = recursive_find_python_class(
        [str(Path(module.__file__).parent)], scenario.trainer, "nnunet.training.network_training"
    )
    for number, fold in enumerate(scenario.folds):
        arguments = [str(target / "plans.pkl"), fold if fold == "all" else int(fold), str(target), str(folder), True]
        trainer = trainer_class(*arguments, stage=scenario.stage, unpack_data=True, deterministic=False, fp16=True)
        trainer.initialize(training=False)
        torch.manual_seed(hash_name(scenario.name) % 10_000 + 100 * seed + number)
        shake(torch, trainer.network)
        path = Path(trainer.output_folder) / f"{scenario.checkpoint}.model"
        trainer.save_checkpoint(str(path), save_optimizer=trainer.optimizer is not None)
        if scenario.data_parallel:
            content = torch.load(path)
            content["state_dict"] = OrderedDict((f"module.{k}", v) for k, v in content["state_dict"].items())
            torch.save(content, path)


def accept_new_torch(torch: Any) -> None:
    """nnU-Net 1.7.1 was written for a torch whose load() trusts files and whose scheduler takes ``verbose``."""
    load, scheduler = torch.load, torch.optim.lr_scheduler.ReduceLROnPlateau
    if load.__name__ != "trusting_load":

        def trusting_load(*arguments: Any, **named: Any) -> Any:
            return load(*arguments, **{"weights_only": False, **named})

        torch.load = trusting_load
        torch.optim.lr_scheduler.ReduceLROnPlateau = type(
            "ReduceLROnPlateau",
            (scheduler,),
            {"__init__": lambda self, *a, verbose=None, **k: scheduler.__init__(self, *a, **k)},
        )


def shake(torch: Any, network: Any) -> None:
    """Random weights that make every class show up somewhere, by a margin."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter += 0.1 * torch.randn_like(parameter) * (parameter.abs().mean() + 0.05)
            if "seg_outputs" in name and parameter.ndim > 1:
                parameter *= 8
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.2 * torch.randn_like(buffer)
            elif name.endswith("running_var"):
                buffer *= 0.5 + torch.rand_like(buffer)


def make_plans(scenario: Scenario) -> dict[str, Any]:
    count = len(scenario.channels)
    order = list(scenario.transpose)

    def stage(spacing: tuple[float, ...]) -> dict[str, Any]:
        one = {
            "batch_size": 2,
            "num_pool_per_axis": [2] * scenario.dims,
            "patch_size": np.array(scenario.patch),
            "median_patient_size_in_voxels": np.array([40, 60, 60]),
            "current_spacing": np.array(spacing),
            "original_spacing": np.array(spacing),
            "do_dummy_2D_data_aug": False,
            "pool_op_kernel_sizes": [list(pool) for pool in scenario.pools],
            "conv_kernel_sizes": [list(kernel) for kernel in scenario.kernels],
        }
        return {key: value for key, value in one.items() if not isinstance(value, list) or value}

    stages = [scenario.spacing] if scenario.lowres_spacing is None else [scenario.lowres_spacing, scenario.spacing]
    figures = OrderedDict(
        (
            index,
            OrderedDict(
                median=55.0,
                mean=np.float32(60.0 + 7 * index),
                sd=np.float32(220.0 - 31 * index),
                mn=-900.0,
                mx=1500.0,
                percentile_99_5=np.float64(510.25 - 20 * index),
                percentile_00_5=np.float64(-420.5),
            ),
        )
        for index in range(count)
    )
    plans: dict[str, Any] = {
        "num_stages": len(stages),
        "num_modalities": count,
        "modalities": {index: scheme for index, (scheme, _) in enumerate(scenario.channels)},
        "normalization_schemes": OrderedDict((index, scheme) for index, (scheme, _) in enumerate(scenario.channels)),
        "dataset_properties": {"intensityproperties": figures},
        "num_classes": scenario.classes,
        "all_classes": list(range(1, scenario.classes + 1)),
        "base_num_features": scenario.features,
        "use_mask_for_norm": OrderedDict((index, mask) for index, (_, mask) in enumerate(scenario.channels)),
        "keep_only_largest_region": None,
        "min_region_size_per_class": None,
        "min_size_per_class": None,
        "transpose_forward": order,
        "transpose_backward": [order.index(axis) for axis in range(3)],
        "data_identifier": "nnUNetData_plans_v2.1",
        "plans_per_stage": {index: stage(spacing) for index, spacing in enumerate(stages)},
        "preprocessor_name": "PreprocessorFor2D" if scenario.dims == 2 else "GenericPreprocessor",
        "conv_per_stage": 2,
    }
    for key, value in scenario.plans:
        if value is None:
            del plans[key]
        else:
            plans[key] = value
    return plans


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
