"""The nnU-Net v1 models and images that are compared: plain data, used by both sides."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Picture:
    """An image to segment.

    Attributes:
        shape: (z, y, x).
        spacing: mm, (z, y, x).
        kind: ``full`` (no zeros), ``border`` (zeros around), ``ball`` (an ellipsoid in zeros, with a hole inside),
            ``steps`` (as ``ball``, in whole blocks of four voxels, so that resampled edges fall on exact halves),
            ``threes`` (as ``steps``, in blocks of three: halved, every other edge falls on a tie),
            ``rgb`` (8-bit colours), ``bytes`` and ``doubles`` (stored as uint8 and float64), ``flat`` (one value
            everywhere), ``dark`` (as ``ball``, but every channel except the first is zero).
        oblique: rotated, with a flipped axis.
    """

    shape: tuple[int, int, int]
    spacing: Triple
    kind: str = "border"
    oblique: bool = False


@dataclass(frozen=True)
class Scenario:
    """A random-weight model with images to segment.

    Attributes:
        name: also the folder's name.
        trainer: class of nnunet 1.7.1.
        patch: network order, two or three entries.
        spacing: of the stage used, network order, three entries (a 2d network ignores the first).
        lowres_spacing: of stage 0, if the plans have two stages.
        use_lowres: the model is that stage 0.
        cascade: ``trainer`` is a second stage; a first one is made too, and its result handed on.
        channels: normalisation scheme and use_mask_for_norm per channel.
        classes: foreground classes in the plans.
        pools, kernels: of the plans; empty leaves them out, as old plans do.
        folds: what is trained; ``asked`` is what is predicted with (None: as found).
        postprocessing: content of postprocessing.json.
        plans: entries that replace the usual ones; an entry of None is removed.
        data_parallel: parameter names start with ``module.``, as multi-GPU trainers store them.
    """

    name: str
    trainer: str = "nnUNetTrainerV2"
    patch: tuple[int, ...] = (16, 32, 28)
    spacing: Triple = (2.5, 1.5, 1.5)
    lowres_spacing: Triple | None = None
    use_lowres: bool = False
    cascade: bool = False
    transpose: tuple[int, int, int] = (0, 1, 2)
    channels: tuple[tuple[str, bool], ...] = (("CT", False),)
    classes: int = 2
    features: int = 6
    pools: tuple[tuple[int, ...], ...] = ((2, 2, 2), (2, 2, 2))
    kernels: tuple[tuple[int, ...], ...] = ((3, 3, 3), (3, 3, 3), (3, 3, 3))
    images: tuple[Picture, ...] = (
        Picture((20, 48, 40), (3.0, 1.7, 1.7)),
        Picture((22, 34, 38), (2.2, 1.3, 1.6), "full", oblique=True),
    )
    folds: tuple[str, ...] = ("0",)
    asked: tuple[str, ...] | None = ("0",)
    checkpoint: str = "model_final_checkpoint"
    tta: bool = True
    step_size: float = 0.5
    postprocessing: dict[str, Any] | None = None
    plans: tuple[tuple[str, Any], ...] = ()
    data_parallel: bool = False

    @property
    def dims(self) -> int:
        return len(self.patch)

    @property
    def stage(self) -> int:
        return 0 if self.lowres_spacing is None or self.use_lowres else 1

    @property
    def configuration(self) -> str:
        if self.dims == 2:
            return "2d"
        if self.cascade:
            return "3d_cascade_fullres"
        return "3d_lowres" if self.use_lowres else "3d_fullres"


FLAT: dict[str, Any] = {
    "patch": (36, 28),
    "pools": ((2, 2), (2, 2)),
    "kernels": ((3, 3), (3, 3), (3, 3)),
}
"""A two-dimensional network."""
MR = (("nonCT", True),)
BALL = Picture((22, 50, 44), (3.0, 1.7, 1.7), "ball")
STEPS = Picture((24, 40, 40), (2.0, 1.0, 1.0), "steps")
THICK = Picture((12, 46, 42), (6.0, 1.3, 1.3), "ball")
SMALL = Picture((18, 36, 40), (3.0, 1.7, 1.7))
ROOT = "nnUNetTrainerV2"


def transposed(order: tuple[int, int, int]) -> tuple[Scenario, ...]:
    """Separate-z with a transposed plan: triggered by the image's spacing, and by the target spacing alone."""
    name = "".join(map(str, order))
    thick = [44, 40, 46]
    thick[order[0]] = 12
    spacing = [1.3, 1.4, 1.5]
    spacing[order[0]] = 6.0
    return (
        Scenario(
            f"transpose-{name}-original",
            transpose=order,
            spacing=(4.0, 1.5, 1.6),
            patch=(12, 28, 32),
            pools=((1, 2, 2), (2, 2, 2)),
            images=(Picture((thick[0], thick[1], thick[2]), (spacing[0], spacing[1], spacing[2])),),
        ),
        Scenario(
            f"transpose-{name}-target",
            transpose=order,
            spacing=(6.0, 1.5, 1.6),
            patch=(8, 28, 32),
            pools=((1, 2, 2), (2, 2, 2)),
            images=(
                Picture((40, 44, 38), (2.0, 1.7, 1.9)),
                Picture((40, 44, 38), (2.3, 1.7, 1.9), "full", oblique=True),
            ),
        ),
    )


NAMED: tuple[Scenario, ...] = (
    Scenario("2d", spacing=(3.0, 1.5, 1.5), **FLAT),
    Scenario("2d-no-conv-per-stage", plans=(("conv_per_stage", None),), **FLAT),
    Scenario("2d-one-tile", images=(Picture((9, 20, 24), (3.0, 1.5, 1.5), "full"),), **FLAT),
    Scenario("2d-separate-z", spacing=(3.0, 1.5, 1.5), images=(THICK,), channels=MR, **FLAT),
    Scenario("2d-target-anisotropy", spacing=(9.0, 1.5, 9.0), images=(Picture((20, 40, 44), (2.0, 2.0, 3.0)),), **FLAT),
    Scenario("2d-transposed", spacing=(3.0, 1.5, 1.5), transpose=(2, 0, 1), images=(THICK, BALL), **FLAT),
    Scenario("2d-single-slice", images=(Picture((1, 50, 60), (5.0, 1.3, 1.3), "full"),), **FLAT),
    Scenario("2d-two-modalities", channels=(("CT", False), ("nonCT", True)), images=(BALL,), **FLAT),
    Scenario(
        "2d-three-pools",
        patch=(32, 40),
        pools=((2, 2), (2, 2), (1, 2)),
        kernels=((3, 3),) * 4,
        folds=("0", "1"),
        asked=None,
    ),
    Scenario("3d_fullres"),
    Scenario("3d_lowres", lowres_spacing=(5.0, 3.0, 3.0), use_lowres=True, patch=(8, 16, 16)),
    Scenario("two-stages-fullres", lowres_spacing=(5.0, 3.0, 3.0)),
    Scenario("cascade", trainer="nnUNetTrainerV2CascadeFullRes", cascade=True, lowres_spacing=(5.0, 3.0, 3.0)),
    Scenario(
        "cascade-transposed",
        trainer="nnUNetTrainerV2CascadeFullRes",
        cascade=True,
        lowres_spacing=(5.0, 3.0, 3.0),
        transpose=(2, 0, 1),
        channels=(("CT", False), ("nonCT", True)),
        classes=3,
        images=(THICK, BALL),
    ),
    Scenario(
        "cascade-postprocessing",
        trainer="nnUNetTrainerV2CascadeFullRes",
        cascade=True,
        lowres_spacing=(5.0, 3.0, 3.0),
        postprocessing={"for_which_classes": [1, 2]},
    ),
    Scenario(
        "cascade-mr-folds",
        trainer="nnUNetTrainerV2CascadeFullRes",
        cascade=True,
        lowres_spacing=(5.0, 3.0, 3.0),
        channels=MR,
        classes=4,
        folds=("0", "1"),
        asked=("0", "1"),
        images=(BALL, THICK),
    ),
    Scenario(
        "cascade-old-trainer",
        trainer="nnUNetTrainerCascadeFullRes",
        cascade=True,
        lowres_spacing=(5.0, 3.0, 3.0),
        images=(SMALL,),
    ),
    Scenario(
        "two-modalities",
        channels=(("CT", False), ("nonCT", True)),
        images=(BALL, Picture((24, 40, 42), (2.2, 1.3, 1.9))),
    ),
    Scenario("two-modalities-no-mask", channels=(("CT", False), ("nonCT", False)), images=(BALL,)),
    Scenario("mr-mask", channels=MR, images=(BALL, THICK)),
    Scenario("mr-mask-ties", channels=MR, spacing=(1.0, 2.0, 2.0), images=(STEPS,)),
    Scenario("mr-mask-ties-down", channels=MR, spacing=(4.0, 2.0, 2.0), images=(STEPS,), patch=(8, 16, 16)),
    Scenario(
        "mr-mask-ties-up",
        channels=MR,
        spacing=(1.0, 0.5, 0.5),
        images=(Picture((12, 20, 20), (2.0, 1.0, 1.0), "steps"),),
    ),
    Scenario(
        "mr-mask-halves",
        channels=MR,
        spacing=(4.0, 2.0, 2.0),
        images=(Picture((30, 42, 45), (2.0, 1.0, 1.0), "threes"), Picture((30, 42, 45), (4.0, 2.0, 1.0), "threes")),
        patch=(8, 16, 16),
    ),
    Scenario(
        "mr-mask-halves-separate-z",
        channels=MR,
        spacing=(12.0, 2.0, 2.0),
        images=(Picture((30, 42, 45), (6.0, 1.0, 1.0), "threes"),),
        patch=(8, 16, 16),
    ),
    Scenario(
        "mr-mask-thirds",
        channels=MR,
        spacing=(2.0 / 3, 1.0 / 3, 1.0 / 3),
        images=(Picture((8, 16, 16), (2.0, 1.0, 1.0), "steps"),),
    ),
    Scenario("ct-mask", channels=(("CT", True),), images=(BALL,)),
    Scenario("ct2", channels=(("CT2", False),)),
    Scenario("ct2-mask-and-nonorm", channels=(("CT2", True), ("noNorm", False), ("noNorm", True)), images=(BALL,)),
    Scenario(
        "mr-no-figures", channels=MR, plans=(("dataset_properties", {"intensityproperties": None}),), images=(SMALL,)
    ),
    Scenario("unknown-scheme", channels=(("MRI T1", True),), images=(BALL,)),
    *transposed((1, 0, 2)),
    *transposed((2, 0, 1)),
    *transposed((2, 1, 0)),
    *transposed((1, 2, 0)),
    *transposed((0, 2, 1)),
    Scenario(
        "separate-z",
        spacing=(5.0, 1.0, 1.0),
        patch=(8, 32, 32),
        pools=((1, 2, 2), (2, 2, 2)),
        images=(THICK, Picture((24, 34, 30), (1.5, 1.5, 1.5))),
    ),
    Scenario(
        "separate-z-ties",
        spacing=(5.0, 1.0, 1.0),
        patch=(8, 32, 32),
        images=(Picture((24, 30, 36), (2.5, 0.75, 0.75), "full"), Picture((10, 30, 36), (10.0, 1.25, 1.25), "ball")),
        channels=MR,
    ),
    Scenario(
        "two-equal-lowres-axes",
        spacing=(0.7, 3.0, 3.0),
        patch=(32, 16, 16),
        images=(Picture((40, 26, 24), (0.8, 3.2, 3.2)),),
        channels=MR,
    ),
    Scenario(
        "two-equal-lowres-axes-target",
        spacing=(0.5, 2.0, 2.0),
        patch=(32, 16, 16),
        images=(Picture((24, 36, 38), (0.8, 1.5, 1.5)),),
    ),
    Scenario(
        "two-equal-lowres-axes-transposed",
        spacing=(3.0, 0.7, 3.0),
        patch=(16, 32, 16),
        transpose=(1, 0, 2),
        images=(Picture((40, 26, 24), (0.8, 3.2, 3.2)), Picture((24, 36, 38), (1.5, 1.5, 1.2))),
    ),
    Scenario("no-resampling", images=(Picture((22, 50, 44), (2.5, 1.5, 1.5)),)),
    Scenario(
        "tiny-image",
        images=(Picture((3, 9, 11), (2.5, 1.5, 1.5), "full"), Picture((4, 9, 30), (3.5, 1.2, 1.2), "full")),
    ),
    Scenario("single-slice", images=(Picture((1, 40, 44), (5.0, 1.5, 1.5), "full"),)),
    Scenario("one-voxel", spacing=(2.0, 1.5, 1.5), images=(Picture((1, 1, 1), (2.0, 1.5, 1.5), "full"),)),
    Scenario("one-line", images=(Picture((1, 1, 30), (2.5, 1.5, 2.5), "full"), Picture((24, 1, 1), (3.1, 1.5, 1.5)))),
    Scenario(
        "voxel-types",
        channels=(("CT", False), ("nonCT", True)),
        images=(Picture((18, 36, 40), (3.0, 1.7, 1.7), "bytes"), Picture((18, 36, 40), (3.0, 1.7, 1.7), "doubles")),
    ),
    Scenario(
        "empty-channel", channels=(("nonCT", True),) * 2, images=(Picture((18, 36, 40), (3.0, 1.7, 1.7), "dark"),)
    ),
    Scenario(
        "empty-channel-no-mask",
        channels=(("nonCT", False),) * 2,
        images=(Picture((18, 36, 40), (3.0, 1.7, 1.7), "dark"),),
    ),
    Scenario("flat-ct", images=(Picture((18, 36, 40), (3.0, 1.7, 1.7), "flat"),)),
    Scenario(
        "flat-mr",
        channels=(("nonCT", False),),
        images=(Picture((18, 36, 40), (3.0, 1.7, 1.7), "flat"), Picture((16, 32, 28), (2.5, 1.5, 1.5), "flat")),
    ),
    Scenario(
        "odd-patch",
        patch=(7, 28, 36),
        pools=((1, 2, 2), (1, 2, 2)),
        images=(Picture((30, 40, 44), (2.5, 1.5, 1.5)), Picture((19, 40, 60), (2.6, 1.2, 1.4))),
    ),
    Scenario("folds-0-1", folds=("0", "1"), asked=("0", "1")),
    Scenario("folds-as-found", folds=("0", "1", "2", "all"), asked=None),
    Scenario("five-folds", folds=tuple("01234"), asked=tuple("01234"), images=(SMALL,)),
    Scenario("fold-all", folds=("all",), asked=("all",)),
    Scenario("fold-1-only", folds=("0", "1"), asked=("1",)),
    Scenario("model-best", checkpoint="model_best"),
    Scenario("data-parallel", data_parallel=True, images=(SMALL,)),
    Scenario(
        "regions", trainer=f"{ROOT}BraTSRegions", classes=3, channels=(("nonCT", True),) * 2, images=(BALL, THICK)
    ),
    Scenario("regions-folds", trainer=f"{ROOT}BraTSRegions", classes=3, folds=("0", "1"), asked=("0", "1")),
    Scenario("regions-2d", trainer=f"{ROOT}BraTSRegions", classes=3, **FLAT),
    Scenario(
        "regions-transposed",
        trainer=f"{ROOT}BraTSRegions",
        classes=3,
        channels=MR,
        transpose=(2, 0, 1),
        spacing=(6.0, 1.5, 1.6),
        patch=(8, 28, 32),
        pools=((1, 2, 2), (2, 2, 2)),
        images=(Picture((40, 44, 38), (2.0, 1.7, 1.9), "ball"), THICK),
    ),
    Scenario("regions-by-name-only", trainer=f"{ROOT}BraTSRegions_BN", classes=3),
    Scenario("regions-da3-bn", trainer=f"{ROOT}BraTSRegions_DA3_BN", classes=3),
    Scenario("no-tta", tta=False),
    Scenario("step-0.75", step_size=0.75),
    Scenario("step-1", step_size=1.0),
    Scenario("step-0.3", step_size=0.3, tta=False),
    Scenario("postprocessing-plain", postprocessing={"for_which_classes": [2], "min_valid_object_sizes": "None"}),
    Scenario("postprocessing-all-classes", postprocessing={"for_which_classes": None}),
    Scenario(
        "postprocessing-joint",
        classes=4,
        postprocessing={"for_which_classes": [[1, 2], 2, [3, 4]], "min_valid_object_sizes": "None"},
        images=(BALL, THICK),
    ),
    Scenario(
        "postprocessing-sizes",
        classes=4,
        postprocessing={
            "for_which_classes": [1, [1, 2], 3, [3, 4]],
            "min_valid_object_sizes": "{1: 100.0, (1, 2): 45, 3: 60.0, (3, 4): 300.0}",
        },
        images=(BALL, THICK),
    ),
    Scenario(
        "postprocessing-regions",
        trainer=f"{ROOT}BraTSRegions",
        classes=3,
        postprocessing={"for_which_classes": [[1, 2], 3]},
    ),
    Scenario("postprocessing-nothing", postprocessing={"for_which_classes": []}),
    Scenario(
        "kernels-133", kernels=((1, 3, 3), (1, 3, 3), (3, 3, 3)), pools=((1, 2, 2), (2, 2, 2)), patch=(12, 32, 32)
    ),
    Scenario(
        "kernels-133-333",
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        pools=((1, 2, 2), (2, 2, 2)),
        patch=(12, 32, 32),
        plans=(("conv_per_stage", 3),),
    ),
    Scenario(
        "old-plans",
        pools=(),
        kernels=(),
        plans=(
            ("transpose_forward", None),
            ("transpose_backward", None),
            ("conv_per_stage", None),
            ("preprocessor_name", None),
        ),
    ),
    Scenario(
        "feature-cap",
        features=120,
        patch=(8, 16, 16),
        images=(Picture((14, 24, 20), (3.0, 1.7, 1.7), "full"),),
        tta=False,
    ),
    Scenario("many-classes", classes=60, tta=False),
    Scenario("one-class", classes=1),
    Scenario(
        "export-order-3",
        plans=(
            (
                "segmentation_export_params",
                {"force_separate_z": None, "interpolation_order": 3, "interpolation_order_z": 0},
            ),
        ),
        images=(THICK, BALL),
    ),
    Scenario(
        "export-order-z-1",
        plans=(
            (
                "segmentation_export_params",
                {"force_separate_z": None, "interpolation_order": 1, "interpolation_order_z": 1},
            ),
        ),
        images=(THICK,),
    ),
    Scenario(
        "export-separate-z",
        plans=(
            (
                "segmentation_export_params",
                {"force_separate_z": True, "interpolation_order": 1, "interpolation_order_z": 0},
            ),
        ),
        transpose=(2, 0, 1),
        images=(THICK, BALL),
    ),
    Scenario(
        "export-together",
        plans=(
            (
                "segmentation_export_params",
                {"force_separate_z": False, "interpolation_order": 1, "interpolation_order_z": 999999},
            ),
        ),
        images=(THICK, BALL),
    ),
    Scenario(
        "preprocessor-linear",
        channels=MR,
        plans=(("preprocessor_name", "GenericPreprocessor_linearResampling"),),
        images=(THICK, BALL),
    ),
    Scenario(
        "preprocessor-different",
        channels=MR,
        plans=(("preprocessor_name", "Preprocessor3DDifferentResampling"),),
        images=(THICK, BALL, STEPS),
    ),
    Scenario(
        "preprocessor-better",
        channels=MR,
        plans=(("preprocessor_name", "Preprocessor3DBetterResampling"),),
        images=(THICK, BALL),
    ),
    Scenario("preprocessor-original-z", plans=(("preprocessor_name", "PreprocessorFor3D_LeaveOriginalZSpacing"),)),
    Scenario(
        "rgb",
        channels=(("nonCT", False),) * 3,
        plans=(("preprocessor_name", "GenericPreprocessor_scale_uint8_to_0_1"),),
        images=(Picture((1, 70, 60), (999.0, 1.0, 1.0), "rgb"), Picture((1, 30, 24), (999.0, 1.0, 1.0), "rgb")),
        spacing=(999.0, 1.0, 1.0),
        **FLAT,
    ),
    *(
        Scenario(f"trainer-{name}", trainer=name, images=(SMALL,))
        for name in (
            "nnUNetTrainer",
            "nnUNetTrainerNoDA",
            f"{ROOT}_BN",
            f"{ROOT}_GeLU",
            f"{ROOT}_Mish",
            f"{ROOT}_ReLU",
            f"{ROOT}_ReLU_convReLUIN",
            f"{ROOT}_ReLU_biasInSegOutput",
            f"{ROOT}_lReLU_convReLUIN",
            f"{ROOT}_lReLU_biasInSegOutput",
            f"{ROOT}_LReLU_slope_2en1",
            f"{ROOT}_NoNormalization",
            f"{ROOT}_noDeepSupervision",
            f"{ROOT}_DA5",
            f"{ROOT}_insaneDA",
            f"{ROOT}_3ConvPerStageSameFilters",
            f"{ROOT}_MMS",
            f"{ROOT}_DP",
        )
    ),
    Scenario("trainer-3ConvPerStage", trainer=f"{ROOT}_3ConvPerStage", tta=False, images=(BALL,)),
    Scenario("trainer-GN", trainer=f"{ROOT}_GN", features=8),
    Scenario("trainer-GN-2d", trainer=f"{ROOT}_GN", features=8, **FLAT),
    Scenario(
        "trainer-allConv3x3",
        trainer=f"{ROOT}_allConv3x3",
        kernels=((1, 3, 3), (1, 3, 3), (3, 3, 3)),
        pools=((1, 2, 2), (2, 2, 2)),
        patch=(12, 32, 32),
    ),
    Scenario("trainer-noMirroring", trainer=f"{ROOT}_noMirroring", tta=False),
    Scenario("trainer-noDataAugmentation", trainer=f"{ROOT}_noDataAugmentation", tta=False),
)


def random_scenario(seed: int) -> Scenario:
    """Plans drawn from a seed: patch, spacing, transposition, pooling, kernels, channels, folds, image geometry."""
    draw = random.Random(seed)
    dims = draw.choice((2, 3, 3, 3))
    pools = tuple(tuple(draw.choice((1, 2, 2)) for _ in range(dims)) for _ in range(draw.randint(2, 3)))
    kernels = tuple(tuple(draw.choice((1, 3, 3)) for _ in range(dims)) for _ in range(len(pools) + 1))
    total = [1] * dims
    for pool in pools:
        total = [have * factor for have, factor in zip(total, pool, strict=True)]
    wanted = [draw.randint(7, 20), draw.randint(18, 36), draw.randint(18, 36)][3 - dims :]
    patch = tuple(-(-size // factor) * factor for size, factor in zip(wanted, total, strict=True))
    regions = draw.random() < 0.15
    cascade = dims == 3 and not regions and draw.random() < 0.25
    target = [draw.choice((0.9, 2.0, 5.0, 6.5)), draw.uniform(0.9, 2.5), draw.uniform(0.9, 2.5)]
    if draw.random() < 0.3:
        draw.shuffle(target)
    images = tuple(
        Picture(
            (draw.randint(5, 34), draw.randint(18, 48), draw.randint(18, 48)),
            (draw.uniform(1.0, 7.0), draw.uniform(0.8, 2.5), draw.uniform(0.8, 2.5)),
            draw.choice(("full", "border", "ball")),
            draw.random() < 0.5,
        )
        for _ in range(2)
    )
    schemes = ("CT", "CT2", "nonCT", "nonCT", "noNorm")
    channels = tuple((draw.choice(schemes), draw.random() < 0.5) for _ in range(draw.randint(1, 3)))
    classes = 3 if regions else draw.randint(1, 5)
    cleaned = [draw.randint(1, classes), list(range(1, classes + 1))]
    sizes = {
        "for_which_classes": cleaned,
        "min_valid_object_sizes": f"{{{cleaned[0]}: 80.0, {tuple(cleaned[1])}: 250}}",
    }
    folds = ("0", "1") if draw.random() < 0.2 else ("0",)
    return Scenario(
        f"random-{seed}",
        trainer=f"{ROOT}BraTSRegions" if regions else f"{ROOT}CascadeFullRes" if cascade else ROOT,
        cascade=cascade,
        lowres_spacing=(target[0] * 1.6, target[1] * 1.6, target[2] * 1.6) if cascade else None,
        patch=patch,
        spacing=(target[0], target[1], target[2]),
        transpose=draw.choice(((0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0))),
        channels=channels,
        classes=classes,
        pools=pools,
        kernels=kernels,
        images=images,
        folds=folds,
        asked=folds,
        step_size=draw.choice((0.5, 0.5, 0.5, 0.75, 0.4)),
        tta=draw.random() < 0.7,
        postprocessing=draw.choice(({"for_which_classes": cleaned}, sizes, None, None, None)),
        plans=_random_resampling(draw, dims),
    )


def _random_resampling(draw: random.Random, dims: int) -> tuple[tuple[str, Any], ...]:
    """Entries of the plans that change how images and predictions are resampled; most often none."""
    entries: list[tuple[str, Any]] = []
    if dims == 3 and draw.random() < 0.3:
        names = ("_linearResampling", "DifferentResampling", "BetterResampling", "_LeaveOriginalZSpacing")
        ending = draw.choice(names)
        first = {"_linearResampling": "GenericPreprocessor", "_LeaveOriginalZSpacing": "PreprocessorFor3D"}
        entries.append(("preprocessor_name", first.get(ending, "Preprocessor3D") + ending))
    if draw.random() < 0.3:
        force = draw.choice((None, None, True, False))
        export = {"interpolation_order": draw.choice((0, 1, 1, 3)), "interpolation_order_z": draw.choice((0, 0, 1, 3))}
        entries.append(("segmentation_export_params", {"force_separate_z": force, **export}))
    return tuple(entries)
