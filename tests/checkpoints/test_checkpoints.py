"""Model folders of nnU-Net v1 and v2: what is understood of them, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_samples import V1_CONVS, V1_POOLS, v1_folder, v1_network, v1_plans, v2_dataset, v2_folder, v2_plans

from offline_infer.checkpoints import read_checkpoint
from offline_infer.checkpoints.digests import sha256
from offline_infer.errors import CheckpointError, UnsafePickleError
from offline_infer.networks import build, load_weights
from offline_infer.spec import ComponentRule, Resampling

torch = pytest.importorskip("torch")


def loadable(folder: Path, **options: Any) -> Any:
    """The description, after its network was built and every fold's weights were loaded into it."""
    description = read_checkpoint(folder, **options)
    network = build(description.network)
    for source in description.spec.source.folds:
        load_weights(network, description.load_weights(source.fold))
    return description


# --- nnU-Net v1 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_v1_specification(tmp_path: Path, legacy: bool) -> None:
    folder = v1_folder(tmp_path, folds=("fold_0", "fold_1", "all"), legacy=legacy)
    description = loadable(folder)
    spec = description.spec
    assert spec.source.framework == "nnunet_v1"
    assert (spec.source.dataset, spec.source.configuration) == ("Task007_Sample", "3d_fullres")
    assert (spec.source.trainer, spec.source.plans_name) == ("nnUNetTrainerV2", "nnUNetPlansv2.1")
    assert [fold.fold for fold in spec.source.folds] == ["0", "1"]
    assert spec.source.folds[1].checkpoint == "fold_1/model_final_checkpoint.model"
    assert spec.source.folds[1].sha256 == sha256(folder / "fold_1/model_final_checkpoint.model")
    assert (spec.reader, spec.file_ending, spec.task) == ("SimpleITKIO", ".nii.gz", "volume")
    (channel,) = spec.channels
    assert (channel.name, channel.scheme, channel.use_mask, channel.std_guard) == ("CT", "ct", False, "none")
    assert channel.intensity is not None
    assert (channel.intensity.mean, channel.intensity.std) == (80.5, 28.25)
    assert (channel.intensity.percentile_00_5, channel.intensity.percentile_99_5) == (-11.0, 143.0)
    assert spec.spacing == (2.5, 1.25, 1.25)
    assert spec.patch_size == (4, 8, 12)
    assert spec.normalize_after_resampling
    assert spec.resampling == Resampling(order=3, order_z=0)
    assert spec.export.resampling == Resampling(order=1, order_z=0)
    assert spec.export.axis_rule == "nnunet_v1"
    assert spec.window.mirror_axes == (0, 1, 2)
    gaussian = spec.window.gaussian
    assert (gaussian.peak, gaussian.dtype, gaussian.apply) == (1.0, "float32", "several_tiles")
    assert spec.aggregation.model_dump() == {
        "domain": "probabilities",
        "activation": "softmax",
        "accumulate": "float32",
    }
    assert spec.labels.channel_values == (0, 1, 2)
    assert spec.labels.names == {"background": 0, "label 1": 1, "label 2": 2}
    assert spec.previous_stage is None
    assert spec.postprocessing == ()
    network = description.network
    assert (network.kind, network.class_name) == ("generic_unet", "Generic_UNet")
    assert (network.input_channels, network.output_channels, network.patch_size) == (1, 3, (4, 8, 12))
    assert network.arguments["pool_kernels"] == V1_POOLS
    assert network.arguments["conv_kernels"] == V1_CONVS
    assert any("fold all" in note for note in description.notes)


def test_v1_weights_are_those_that_were_saved(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path, network=v1_network(seed=5))
    weights = read_checkpoint(folder).load_weights("0")
    for name, tensor in v1_network(seed=5).state_dict().items():
        assert np.array_equal(weights[name], tensor.numpy())
    with pytest.raises(CheckpointError, match="no fold '3'"):
        read_checkpoint(folder).load_weights("3")


def test_v1_folds_are_chosen_as_the_framework_does(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path, folds=("fold_2", "fold_0", "all"))

    def chosen(**options: Any) -> list[str]:
        return [fold.fold for fold in read_checkpoint(folder, **options).spec.source.folds]

    assert chosen() == ["0", "2"]
    assert chosen(folds=["all"]) == ["all"]
    assert chosen(folds=["fold_2"]) == ["2"]
    assert chosen(folds=["2", "0", "2"]) == ["2", "0"]
    with pytest.raises(CheckpointError, match="no fold 4; it has 0, 2, all"):
        chosen(folds=["0", "4"])
    with pytest.raises(
        CheckpointError, match=r"model_best\.model is missing; fold_0 has model_final_checkpoint\.model"
    ):
        chosen(checkpoint_name="model_best")
    (folder / "fold_3").mkdir()
    assert any("fold_3 left out" in note for note in read_checkpoint(folder).notes)


def test_v1_trained_on_all_cases_only_on_request(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path, folds=("all",))
    with pytest.raises(CheckpointError, match="name-folds folds=all"):
        read_checkpoint(folder)
    assert read_checkpoint(folder, folds=["all"]).spec.source.folds[0].checkpoint.startswith("all/")


def test_v1_folds_of_different_trainings_are_refused(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path, folds=("fold_0", "fold_1"))
    path = folder / "fold_1/model_final_checkpoint.model.pkl"
    info = pickle.loads(path.read_bytes())
    info["plans"]["plans_per_stage"][0]["current_spacing"] = np.array([3.0, 1.25, 1.25])
    path.write_bytes(pickle.dumps(info))
    with pytest.raises(CheckpointError, match="folds 0 and 1 do not agree on spacing"):
        read_checkpoint(folder)
    assert len(read_checkpoint(folder, folds=["1"]).spec.source.folds) == 1


def test_v1_plans_inside_the_checkpoint_count(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path)
    other = v1_plans(transpose_forward=[2, 0, 1])
    (folder / "plans.pkl").write_bytes(pickle.dumps(other))
    assert read_checkpoint(folder).spec.transpose_forward == (0, 1, 2)
    (folder / "plans.pkl").write_bytes(pickle.dumps(v1_plans(num_modalities=2)))
    with pytest.raises(CheckpointError, match=r"plans\.pkl is for 2 channels"):
        read_checkpoint(folder)
    (folder / "plans.pkl").unlink()
    assert any("plans.pkl is missing" in note for note in read_checkpoint(folder).notes)


def test_v1_normalisation_schemes_by_channel(tmp_path: Path) -> None:
    plans = v1_plans(
        num_modalities=4,
        modalities={0: "CT", 1: "T1", 2: "CT", 3: "PET"},
        normalization_schemes={0: "CT", 1: "nonCT", 2: "CT2", 3: "noNorm"},
        use_mask_for_norm={0: True, 1: True, 2: False, 3: True},
    )
    figures = plans["dataset_properties"]["intensityproperties"]
    figures.update(dict.fromkeys((1, 2, 3), figures[0]))
    folder = v1_folder(tmp_path, plans=plans, network=v1_network(inputs=4))
    channels = loadable(folder).spec.channels
    assert [c.scheme for c in channels] == ["ct", "zscore", "ct2", "none"]
    assert [c.use_mask for c in channels] == [True, True, False, False]
    assert [c.std_guard for c in channels] == ["none", "add", "none", "none"]
    assert [c.name for c in channels] == ["CT", "T1", "CT", "PET"]
    assert [c.intensity is None for c in channels] == [False, True, False, True]


def test_v1_region_trainers(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path, trainer="nnUNetTrainerV2BraTSRegions_DA4_BN", plans=v1_plans(num_classes=3))
    spec = loadable(folder).spec
    assert spec.aggregation.activation == "sigmoid"
    assert spec.labels.regions_class_order == (1, 2, 3)
    assert spec.labels.channels == 3
    # This one has the name but keeps exclusive classes, so it needs four outputs.
    folder = v1_folder(tmp_path / "b", trainer="nnUNetTrainerV2BraTSRegions_BN", plans=v1_plans(num_classes=3))
    with pytest.raises(CheckpointError, match="has 3 outputs, 4 were expected"):
        read_checkpoint(folder)


def test_v1_cascade(tmp_path: Path) -> None:
    folder = v1_folder(
        tmp_path,
        trainer="nnUNetTrainerV2CascadeFullRes",
        network=v1_network(inputs=3),
        configuration="3d_cascade_fullres",
    )
    description = loadable(folder)
    previous = description.spec.previous_stage
    assert previous is not None
    assert (previous.labels, previous.rule, previous.configuration) == ((1, 2), "nnunet_v1", "3d_lowres")
    assert description.spec.input_channels == description.network.input_channels == 3
    single = v1_folder(tmp_path / "b", trainer="nnUNetTrainerV2CascadeFullRes", network=v1_network(inputs=1))
    with pytest.raises(CheckpointError, match="takes 1 channels, the plans give 3"):
        read_checkpoint(single)


@pytest.mark.parametrize(
    ("trainer", "arguments", "expected"),
    [
        ("nnUNetTrainerV2_BN", {"norm": "batch"}, {"norm": "batch"}),
        ("nnUNetTrainerV2_NoNormalization", {"norm": "none"}, {"norm": "none"}),
        ("nnUNetTrainerV2_GN", {"norm": "group", "base": 8}, {"norm": "group"}),
        ("nnUNetTrainerV2_ReLU", {"activation": "relu"}, {"activation": "relu"}),
        ("nnUNetTrainerV2_Mish_copy2", {"activation": "mish"}, {"activation": "mish"}),
        ("nnUNetTrainerV2_LReLU_slope_2en1", {"negative_slope": 0.2}, {"negative_slope": 0.2}),
        ("nnUNetTrainerV2_lReLU_convReLUIN", {"norm_last": True}, {"norm_last": True}),
        ("nnUNetTrainerV2_lReLU_biasInSegOutput", {"head_bias": True}, {"head_bias": True}),
        ("nnUNetTrainerV2_3ConvPerStage", {"convs_per_stage": 3, "base": 6}, {"convs_per_stage": 3}),
    ],
)
def test_v1_trainer_variants(tmp_path: Path, trainer: str, arguments: dict[str, Any], expected: dict[str, Any]) -> None:
    description = loadable(v1_folder(tmp_path, trainer=trainer, network=v1_network(**arguments)))
    assert expected.items() <= dict(description.network.arguments).items()
    assert description.notes == ()


@pytest.mark.parametrize(
    ("trainer", "mirrors"),
    [
        ("nnUNetTrainerV2_noMirroring", ()),
        ("nnUNetTrainerV2_noDataAugmentation", ()),
        ("nnUNetTrainerV2_DA5", (0, 1, 2)),
    ],
)
def test_v1_mirroring(tmp_path: Path, trainer: str, mirrors: tuple[int, ...]) -> None:
    assert read_checkpoint(v1_folder(tmp_path, trainer=trainer)).spec.window.mirror_axes == mirrors


def test_v1_unknown_trainers_are_accepted_with_a_note(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path, trainer="nnUNetTrainerV2_OurLoss", network=v1_network(base=6, convs_per_stage=3))
    (note,) = loadable(folder).notes
    assert "nnUNetTrainerV2_OurLoss" in note
    assert "base features 6 instead of 4" in note
    assert "convs per stage 3 instead of 2" in note


@pytest.mark.parametrize("trainer", ["nnUNetTrainerV2_ResencUNet", "nnUNetTrainerV2_FRN"])
def test_v1_unsupported_networks_are_named(tmp_path: Path, trainer: str) -> None:
    with pytest.raises(CheckpointError, match=f"trainer {trainer} builds a network that is not supported"):
        read_checkpoint(v1_folder(tmp_path, trainer=trainer))


def test_v1_other_weights_are_refused(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path, network=torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3)))
    with pytest.raises(CheckpointError, match="belong to neither Generic_UNet nor UNet"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"preprocessor_name": "OurPreprocessor"},
            "unknown preprocessor 'OurPreprocessor'; known: .*GenericPreprocessor",
        ),
        ({"preprocessor_name": "PreprocessorFor3D_NoResampling"}, "unknown preprocessor"),
        ({"num_classes": 5}, "has 3 outputs, 6 were expected"),
        ({"num_modalities": 2}, "1 is missing|takes 1 channels"),
        ({"normalization_schemes": {}}, "0 is missing"),
        ({"plans_per_stage": {}}, "0 is missing"),
        ({"plans_per_stage": []}, "dictionary was expected"),
        ({"transpose_forward": [0, 0, 1]}, "not a permutation"),
        ({"dataset_properties": {}}, "dictionary was expected"),
    ],
)
def test_v1_impossible_plans_are_explained(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        read_checkpoint(v1_folder(tmp_path, plans=v1_plans(**changes)))
    assert "fold_0" in str(caught.value)


def test_v1_stage_and_old_plans(tmp_path: Path) -> None:
    plans = v1_plans()
    stage = plans["plans_per_stage"][0]
    for name in ("pool_op_kernel_sizes", "conv_kernel_sizes"):
        del stage[name]
    del plans["conv_per_stage"], plans["preprocessor_name"], plans["transpose_backward"]
    from offline_infer.networks.generic_unet import GenericUNet

    network = GenericUNet(1, 4, 3, [[1, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 3)
    description = loadable(v1_folder(tmp_path, plans=plans, network=network))
    assert description.network.arguments["pool_kernels"] == [[1, 2, 2], [2, 2, 2]]
    assert description.network.arguments["conv_kernels"] == [[3, 3, 3]] * 3


def test_v1_linear_resampling_and_export_parameters(tmp_path: Path) -> None:
    plans = v1_plans(
        preprocessor_name="Preprocessor3DBetterResampling",
        segmentation_export_params={
            "force_separate_z": False,
            "interpolation_order": 3,
            "interpolation_order_z": 3,
        },
    )
    spec = read_checkpoint(v1_folder(tmp_path, plans=plans)).spec
    assert spec.resampling.force_separate_z is False
    assert spec.export.resampling == Resampling(order=3, order_z=3, force_separate_z=False)


def test_v1_label_names_from_dataset_json(tmp_path: Path) -> None:
    folder = v1_folder(tmp_path)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver"}}))
    assert read_checkpoint(folder).spec.labels.names == {"background": 0, "liver": 1, "label 2": 2}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"for_which_classes": [1], "min_valid_object_sizes": "None"}, [((1,), None)]),
        ({"for_which_classes": [[1, 2], 2]}, [((1, 2), None), ((2,), None)]),
        ({"for_which_classes": None}, [((1,), None), ((2,), None)]),
        ({"for_which_classes": []}, []),
        (
            {"for_which_classes": [2, [1, 2]], "min_valid_object_sizes": "{2: 40.5, (1, 2): 7}"},
            [((2,), 40.5), ((1, 2), 7.0)],
        ),
    ],
)
def test_v1_postprocessing(tmp_path: Path, content: Any, expected: Any) -> None:
    folder = v1_folder(tmp_path)
    (folder / "postprocessing.json").write_text(json.dumps(content))
    rules = read_checkpoint(folder).spec.postprocessing
    assert [(rule.labels, rule.min_size_mm3) for rule in rules] == expected
    assert all(rule.connectivity == "face" for rule in rules)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{}", "for_which_classes"),
        ('{"for_which_classes": [0]}', "background"),
        ('{"for_which_classes": ["liver"]}', "neither a label"),
        ('{"for_which_classes": [1], "min_valid_object_sizes": "__import__(\'os\')"}', "dictionary of numbers"),
        ('{"for_which_classes": [1], "min_valid_object_sizes": "{2: 3}"}', "no entry"),
        ('{"for_which', "truncated or not JSON"),
    ],
)
def test_v1_bad_postprocessing_is_explained(tmp_path: Path, content: str, why: str) -> None:
    folder = v1_folder(tmp_path)
    (folder / "postprocessing.json").write_text(content)
    with pytest.raises(CheckpointError, match=why) as caught:
        read_checkpoint(folder)
    assert "postprocessing.json" in str(caught.value)


# --- nnU-Net v2 ------------------------------------------------------------------------------------------------------


def test_v2_specification(tmp_path: Path) -> None:
    description = loadable(v2_folder(tmp_path, folds=("fold_0", "fold_1", "fold_all"), mirror_axes=(0, 2)))
    spec = description.spec
    assert spec.source.framework == "nnunet_v2"
    assert (spec.source.dataset, spec.source.configuration) == ("Dataset007_Sample", "3d_fullres")
    assert [fold.fold for fold in spec.source.folds] == ["0", "1"]
    (channel,) = spec.channels
    assert (channel.name, channel.scheme, channel.std_guard) == ("CT", "ct", "max")
    assert channel.intensity is not None
    assert channel.intensity.std == 28.25
    assert not spec.normalize_after_resampling
    assert (spec.resampling.function, spec.resampling.order, spec.resampling.order_z) == ("default", 3, 0)
    assert spec.resampling.force_separate_z is None
    assert spec.export.resampling.order == 1
    assert spec.export.axis_rule == "network"
    assert spec.window.mirror_axes == (0, 2)
    gaussian = spec.window.gaussian
    assert (gaussian.peak, gaussian.dtype, gaussian.apply) == (10.0, "float16", "always")
    assert spec.aggregation.model_dump() == {"domain": "logits", "activation": "softmax", "accumulate": "float16"}
    assert spec.labels.names == {"background": 0, "liver": 1, "tumour": 2}
    assert spec.labels.channel_values == (0, 1, 2)
    assert description.network.kind == "dynamic"
    assert any("fold all" in note for note in description.notes)


def test_v2_takes_fold_all_where_it_is_the_only_one(tmp_path: Path) -> None:
    description = read_checkpoint(v2_folder(tmp_path, folds=("fold_all",)))
    assert [fold.fold for fold in description.spec.source.folds] == ["all"]


def test_v2_folds_without_that_checkpoint_are_left_out(tmp_path: Path) -> None:
    folder = v2_folder(tmp_path, folds=("fold_0", "fold_1"))
    (folder / "fold_1/checkpoint_final.pth").rename(folder / "fold_1/checkpoint_best.pth")
    description = read_checkpoint(folder)
    assert [fold.fold for fold in description.spec.source.folds] == ["0"]
    assert any("fold 1 left out" in note for note in description.notes)
    best = read_checkpoint(folder, folds=["1"], checkpoint_name="checkpoint_best.pth")
    assert best.spec.source.folds[0].checkpoint == "fold_1/checkpoint_best.pth"
    with pytest.raises(CheckpointError, match=r"fold_1 has checkpoint_best\.pth"):
        read_checkpoint(folder, folds=["0", "1"])


def test_v2_cascade_inherits_and_adds_the_previous_stage(tmp_path: Path) -> None:
    folder = v2_folder(tmp_path, configuration="3d_cascade_fullres", inputs=3)
    description = loadable(folder)
    previous = description.spec.previous_stage
    assert previous is not None
    assert (previous.labels, previous.rule, previous.configuration) == ((1, 2), "nnunet_v2", "3d_lowres")
    assert previous.resampling.order == 1
    assert description.spec.patch_size == (4, 8, 12)
    assert description.network.input_channels == 3


def test_v2_regions_and_ignore_label(tmp_path: Path) -> None:
    dataset = v2_dataset() | {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
    }
    spec = loadable(v2_folder(tmp_path, dataset=dataset)).spec
    assert spec.aggregation.activation == "sigmoid"
    assert spec.labels.regions_class_order == (1, 2, 3)
    assert spec.labels.channels == 3
    assert spec.labels.ignore == 4
    assert spec.labels.names["whole"] == (1, 2, 3)


def test_v2_many_classes(tmp_path: Path) -> None:
    dataset = v2_dataset() | {"labels": {"background": 0, **{f"c{i}": i for i in range(1, 301)}}}
    labels = read_checkpoint(v2_folder(tmp_path, dataset=dataset, outputs=301)).spec.labels
    assert labels.channels == 301
    assert labels.largest == 300


def test_v2_labels_that_are_not_consecutive(tmp_path: Path) -> None:
    dataset = v2_dataset() | {"labels": {"background": 0, "a": 2, "b": 7}}
    description = read_checkpoint(v2_folder(tmp_path, dataset=dataset))
    assert description.spec.labels.channel_values == (0, 1, 2)  # nnU-Net writes channel numbers
    assert any("not consecutive" in note for note in description.notes)


@pytest.mark.parametrize(
    ("scheme", "expected", "mask"),
    [
        ("ZScoreNormalization", "zscore", True),
        ("NoNormalization", "none", False),
        ("RescaleTo01Normalization", "rescale_to_01", False),
        ("RGBTo01Normalization", "rgb_to_01", False),
        ("CTNormalization", "ct", False),
    ],
)
def test_v2_normalisations(tmp_path: Path, scheme: str, expected: str, mask: bool) -> None:
    plans = v2_plans()
    plans["configurations"]["3d_fullres"] |= {"normalization_schemes": [scheme], "use_mask_for_norm": [True]}
    (channel,) = read_checkpoint(v2_folder(tmp_path, plans=plans)).spec.channels
    assert (channel.scheme, channel.use_mask) == (expected, mask)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (
            "resample_torch_fornnunet",
            {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": True, "device": "cpu"},
            {"function": "torch_separate_z", "force_separate_z": False, "memory_efficient_labels": True},
        ),
        (
            "resample_torch_fornnunet",
            {"separate_z_anisotropy_threshold": 4, "mode": "nearest", "aniso_axis_mode": "linear"},
            {"anisotropy_threshold": 4.0, "mode": "nearest", "aniso_axis_mode": "linear", "force_separate_z": None},
        ),
        ("resample_torch_simple", {"num_threads": 2}, {"function": "torch"}),
        ("no_resampling_hack", {}, {"function": "none"}),
        # The framework's function does not look for an anisotropic axis unless it is told None.
        ("resample_data_or_seg_to_shape", {"order": 2}, {"function": "default", "order": 2, "force_separate_z": False}),
    ],
)
def test_v2_resampling_functions(tmp_path: Path, function: str, arguments: Any, expected: dict[str, Any]) -> None:
    plans = v2_plans()
    config = plans["configurations"]["3d_fullres"]
    config["resampling_fn_data"], config["resampling_fn_data_kwargs"] = function, arguments
    resampling = read_checkpoint(v2_folder(tmp_path, plans=plans)).spec.resampling
    assert expected.items() <= resampling.model_dump().items()


@pytest.mark.parametrize(("prefix"), ["module.", "_orig_mod."])
def test_v2_wrapped_weights(tmp_path: Path, prefix: str) -> None:
    assert loadable(v2_folder(tmp_path, wrapper=prefix))


def test_v2_reader_and_file_ending(tmp_path: Path) -> None:
    plans = v2_plans() | {"image_reader_writer": "NaturalImage2DIO"}
    spec = read_checkpoint(v2_folder(tmp_path, plans=plans, dataset=v2_dataset() | {"file_ending": ".png"})).spec
    assert (spec.reader, spec.file_ending) == ("NaturalImage2DIO", ".png")
    del plans["image_reader_writer"]
    dataset = v2_dataset() | {"overwrite_image_reader_writer": "NibabelIO"}
    assert read_checkpoint(v2_folder(tmp_path / "b", plans=plans, dataset=dataset)).spec.reader == "NibabelIO"


def test_v2_old_plans_without_an_architecture_block(tmp_path: Path) -> None:
    plans = v2_plans()
    config = plans["configurations"]["3d_fullres"]
    arguments = config.pop("architecture")["arch_kwargs"]
    config |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": arguments["strides"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
    }
    old = loadable(v2_folder(tmp_path, plans=plans))
    new = loadable(v2_folder(tmp_path / "new"))
    assert old.network == new.network
    config["UNet_class_name"] = "OurUNet"
    with pytest.raises(CheckpointError, match="unknown network class 'OurUNet'; known: PlainConvUNet, Residual"):
        read_checkpoint(v2_folder(tmp_path / "b", plans=plans))


def test_v2_old_name_of_the_intensity_figures(tmp_path: Path) -> None:
    plans = v2_plans()
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    dataset = v2_dataset()
    dataset["modality"] = dataset.pop("channel_names")
    assert read_checkpoint(v2_folder(tmp_path, plans=plans, dataset=dataset)).spec.channels[0].intensity is not None


def test_v2_no_mirroring_and_unknown_trainers_leave_notes(tmp_path: Path) -> None:
    description = read_checkpoint(v2_folder(tmp_path, trainer="nnUNetTrainerOurs", mirror_axes=None))
    assert description.spec.window.mirror_axes == ()
    assert any("nnUNetTrainerOurs" in note for note in description.notes)
    assert any("mirroring is off" in note for note in description.notes)
    assert read_checkpoint(v2_folder(tmp_path / "b", trainer="nnUNetTrainerNoMirroring", mirror_axes=None)).notes == ()


def test_v2_batch_norm_trainer(tmp_path: Path) -> None:
    description = read_checkpoint(v2_folder(tmp_path, trainer="nnUNetTrainerBN"))
    assert description.network.arguments["norm_op"] == "torch.nn.modules.batchnorm.BatchNorm3d"
    with pytest.raises(CheckpointError, match="running_mean"):
        load_weights(build(description.network), description.load_weights("0"))


def test_v2_primus_trainers_ignore_the_plans_network(tmp_path: Path) -> None:
    network = read_checkpoint(v2_folder(tmp_path, trainer="nnUNet_Primus_M_Trainer")).network
    assert network.class_name.endswith(".primus.Primus")
    assert network.arguments["embed_dim"] == 864
    assert network.arguments["input_shape"] == [4, 8, 12]
    network = read_checkpoint(v2_folder(tmp_path / "b", trainer="nnUNet_PrimusV2L_Trainer")).network
    assert network.class_name.endswith(".primus.PrimusV2L")


def test_v2_folds_of_different_trainings_are_refused(tmp_path: Path) -> None:
    folder = v2_folder(tmp_path, folds=("fold_0",))
    other = v2_folder(tmp_path / "b", folds=("fold_1",), mirror_axes=(1,), outputs=2)
    (other / "fold_1").rename(folder / "fold_1")
    with pytest.raises(CheckpointError, match="folds 0 and 1 do not agree on mirroring axes, weight names and shapes"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda p, d: p["configurations"].pop("3d_fullres"),
            "no configuration '3d_fullres'; it has '3d_cascade_fullres'",
        ),
        (
            lambda p, d: p["configurations"]["3d_fullres"].update(inherits_from="3d_cascade_fullres"),
            "inherit in a circle",
        ),
        (
            lambda p, d: p["configurations"]["3d_fullres"].update(resampling_fn_data="ours"),
            "unknown resampling function 'ours'; known: .*resample_torch_fornnunet",
        ),
        (
            lambda p, d: (
                p["configurations"]["3d_fullres"]["resampling_fn_seg_kwargs"].update(flavour=1)
                or p["configurations"]["3d_fullres"].update(previous_stage="3d_lowres")
            ),
            "unknown arguments 'flavour'; known: ",
        ),
        (
            lambda p, d: p["configurations"]["3d_fullres"].update(normalization_schemes=["OursNormalization"]),
            "unknown normalisation 'OursNormalization'; known: CTNormalization",
        ),
        (
            lambda p, d: p["configurations"]["3d_fullres"].update(normalization_schemes=[]),
            "one entry for each of the 1",
        ),
        (
            lambda p, d: p["configurations"]["3d_fullres"].update(preprocessor_name="Ours"),
            "unknown preprocessor 'Ours'",
        ),
        (lambda p, d: p["configurations"]["3d_fullres"].update(patch_size=[4]), "patch_size"),
        (lambda p, d: p["configurations"]["3d_fullres"].update(spacing=[1, 0, 1]), "spacing"),
        (lambda p, d: p["configurations"]["3d_fullres"]["architecture"].pop("_kw_requires_import"), "_kw_requires"),
        (lambda p, d: p.update(label_manager="Ours"), "unknown label manager"),
        (lambda p, d: p.update(image_reader_writer="Ours"), "unknown image reader 'Ours'; known: .*SimpleITKIO"),
        (lambda p, d: p.update(transpose_forward=[0, 1]), "three entries"),
        (lambda p, d: p.update(transpose_forward=[0, 1, 1]), "permutation"),
        (lambda p, d: p.pop("foreground_intensity_properties_per_channel"), "0 is missing"),
        (lambda p, d: d["labels"].pop("background"), "background"),
        (lambda p, d: d["labels"].update(ignore=9), "ignore label must be 3"),
        (lambda p, d: d["labels"].update(whole=[1, 2]), "need regions_class_order"),
        (lambda p, d: d["labels"].update(more=3), r"has shape .*dataset\.json declares 4 outputs"),
        (lambda p, d: d["labels"].update(odd="one"), "whole number"),
        (lambda p, d: d.pop("channel_names"), "modality"),
    ],
)
def test_v2_impossible_plans_are_explained(tmp_path: Path, change: Any, why: str) -> None:
    plans, dataset = v2_plans(), v2_dataset()
    change(plans, dataset)
    with pytest.raises(CheckpointError, match=why) as caught:
        read_checkpoint(v2_folder(tmp_path, plans=plans, dataset=dataset))
    assert "json" in str(caught.value)


def _functions(count: int) -> bytes:
    name = b"cnnunetv2.postprocessing.remove_connected_components\nremove_all_but_largest_component_from_segmentation\n"
    return b"](" + name * count + b"e"


@pytest.mark.parametrize("beside", [False, True])
def test_v2_postprocessing_functions_are_read_by_name(tmp_path: Path, beside: bool) -> None:
    folder = v2_folder(tmp_path)
    arguments = [{"labels_or_regions": np.int64(1)}, {"labels_or_regions": [(1, 2), 2], "background_label": 0}]
    body = pickle.dumps(arguments, 2)[2:-1]  # without PROTO and STOP
    place = folder.parent if beside else folder
    (place / "postprocessing.pkl").write_bytes(b"\x80\x02" + _functions(2) + body + b"\x86.")
    assert read_checkpoint(folder).spec.postprocessing == (
        ComponentRule(labels=(1,), connectivity="full"),
        ComponentRule(labels=(1, 2), connectivity="full"),
    )


def test_v2_other_postprocessing_functions_are_refused(tmp_path: Path) -> None:
    folder = v2_folder(tmp_path)
    path = folder / "postprocessing.pkl"
    path.write_bytes(b"\x80\x02](cnt\nremove\ne]" + b"}a\x86.")
    with pytest.raises(UnsafePickleError, match=r"postprocessing\.pkl.*nt\.remove"):
        read_checkpoint(folder)
    for content, why in [
        (b"\x80\x02" + _functions(2) + b"]\x86.", "as many arguments"),
        (b"\x80\x02" + _functions(1) + b"]}U\x05wrongK\x01sa\x86.", "unknown arguments 'wrong'"),
        (b"\x80\x02" + _functions(1) + b"]}U\x11labels_or_regionsK\x00sa\x86.", "background"),
        (b"\x80\x02](cnnunetv2.postprocessing\nother\ne]}a\x86.", "other"),
        (b"N.", "pair"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=why) as caught:
            read_checkpoint(folder)
        assert "postprocessing.pkl" in str(caught.value)


def test_v2_crossvalidation_decisions_are_only_mentioned(tmp_path: Path) -> None:
    folder = v2_folder(tmp_path)
    place = folder / "crossval_results_folds_0_1_2_3_4"
    place.mkdir()
    (place / "postprocessing.pkl").write_bytes(b"\x80\x02" + _functions(0) + b"]\x86.")
    description = read_checkpoint(folder)
    assert description.spec.postprocessing == ()
    assert any("copy postprocessing.pkl" in note for note in description.notes)


# --- both ------------------------------------------------------------------------------------------------------------


def test_a_path_one_level_off_lists_the_candidates(tmp_path: Path) -> None:
    one, two = v2_folder(tmp_path), v1_folder(tmp_path)
    for path in (one / "fold_0", one / "fold_0/checkpoint_final.pth", one / "plans.json"):
        with pytest.raises(CheckpointError, match="did you mean") as caught:
            read_checkpoint(path)
        assert str(one) in str(caught.value)
        assert str(two) not in str(caught.value)
    for path in (tmp_path, one.parent):
        with pytest.raises(CheckpointError, match="did you mean") as caught:
            read_checkpoint(path)
        assert str(one) in str(caught.value)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="model folder"):
            read_checkpoint(path)


def test_the_configuration_can_be_demanded(tmp_path: Path) -> None:
    for folder in (v1_folder(tmp_path), v2_folder(tmp_path)):
        assert read_checkpoint(folder, configuration="3d_fullres")
        with pytest.raises(CheckpointError, match="holds the configuration 3d_fullres, not 2d"):
            read_checkpoint(folder, configuration="2d")


def test_reading_loads_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from offline_infer.checkpoints import read_checkpoint; "
        f"[read_checkpoint(p).load_weights('0') for p in {[str(v1_folder(tmp_path)), str(v2_folder(tmp_path))]!r}]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
