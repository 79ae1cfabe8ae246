"""The recorded answers of the real frameworks: checkpoint, images and settings of each, paths under the folder of goldens."""

from __future__ import annotations

from dataclasses import dataclass

V1_MODEL = "v1/model/nnUNet/3d_fullres/Task003_Liver/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1"
V1B = "v1b/model/nnUNet/{}/Task021_AbdCT/{}__nnUNetPlansv2.1"


@dataclass(frozen=True)
class Recorded:
    """One recorded answer."""

    name: str
    model: str
    images: tuple[str, ...]
    answer: str
    folds: tuple[str, ...] = ("0",)
    tta: bool = True
    postprocess: bool = True
    previous: str | None = None


RECORDED = (
    Recorded("v1-ct3mm", V1_MODEL, ("v1/images/ct3mm_0000.nii.gz",), "v1/expected/ct3mm_fold0/ct3mm.nii.gz"),
    Recorded("v1-crop", V1_MODEL, ("v1/images/ctborder_0000.nii.gz",), "v1/expected/ctborder_fold0/ctborder.nii.gz"),
    Recorded("v1-separate-z", V1_MODEL, ("v1/images/ctthick_0000.nii.gz",), "v1/expected/ctthick_fold0/ctthick.nii.gz"),
    Recorded(
        "v1-two-folds",
        V1_MODEL,
        ("v1/images/ctthick_0000.nii.gz",),
        "v1/expected/ctthick_fold0+1/ctthick.nii.gz",
        ("0", "1"),
    ),
    Recorded(
        "v1-2d-tiny",
        V1B.format("2d", "nnUNetTrainerV2"),
        ("v1b/images/ct/tiny_0000.nii.gz",),
        "v1b/expected/a/tiny.nii.gz",
    ),
    Recorded(
        "v1-2d-small",
        V1B.format("2d", "nnUNetTrainerV2"),
        ("v1b/images/ct/small_0000.nii.gz",),
        "v1b/expected/a/small.nii.gz",
    ),
    Recorded(
        "v1-2d-thick",
        V1B.format("2d", "nnUNetTrainerV2"),
        ("v1b/images/ct/thick_0000.nii.gz",),
        "v1b/expected/a/thick.nii.gz",
    ),
    Recorded(
        "v1-cascade-tiny",
        V1B.format("3d_cascade_fullres", "nnUNetTrainerV2CascadeFullRes"),
        ("v1b/images/ct/tiny_0000.nii.gz",),
        "v1b/expected/c/tiny.nii.gz",
        previous=V1B.format("3d_lowres", "nnUNetTrainerV2"),
    ),
    Recorded(
        "v1-cascade-thick",
        V1B.format("3d_cascade_fullres", "nnUNetTrainerV2CascadeFullRes"),
        ("v1b/images/ct/thick_0000.nii.gz",),
        "v1b/expected/c/thick.nii.gz",
        previous=V1B.format("3d_lowres", "nnUNetTrainerV2"),
    ),
    Recorded(
        "v1-postprocessed",
        V1B.format("3d_fullres", "nnUNetTrainerV2"),
        ("v1b/images/ct/tiny_0000.nii.gz",),
        "v1b/expected/d/tiny.nii.gz",
    ),
    Recorded(
        "v1-raw",
        V1B.format("3d_fullres", "nnUNetTrainerV2"),
        ("v1b/images/ct/tiny_0000.nii.gz",),
        "v1b/expected/d_raw/tiny.nii.gz",
        postprocess=False,
    ),
    *(
        Recorded(
            f"v2-2d-{case}",
            "v2/models/Dataset003_Liver/nnUNetTrainer__nnUNetPlans__2d",
            (f"v2/images/Dataset003_Liver/case_{case}_0000.nii.gz",),
            f"v2/expected/003_2d_f0_tta/case_{case}.nii.gz",
        )
        for case in ("small", "border", "3mm", "aniso")
    ),
    *(
        Recorded(
            f"v2-3d-{case}",
            "v2/models/Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres",
            (f"v2/images/Dataset003_Liver/case_{case}_0000.nii.gz",),
            f"v2/expected/003_3d_f0_tta/case_{case}.nii.gz",
        )
        for case in ("small", "border", "3mm", "aniso")
    ),
    *(
        Recorded(
            f"v2-3d-no-mirrors-{case}",
            "v2/models/Dataset003_Liver/nnUNetTrainer__nnUNetPlans__3d_fullres",
            (f"v2/images/Dataset003_Liver/case_{case}_0000.nii.gz",),
            f"v2/expected/003_3d_f0_notta/case_{case}.nii.gz",
            tta=False,
        )
        for case in ("small", "3mm")
    ),
    Recorded(
        "v2-regions",
        "v2/models/Dataset010_Regions/nnUNetTrainer__nnUNetPlans__3d_fullres",
        ("v2/images/Dataset010_Regions/rcase_3mm_0000.nii.gz", "v2/images/Dataset010_Regions/rcase_3mm_0001.nii.gz"),
        "v2/expected/010_3d_f0_tta/rcase_3mm.nii.gz",
    ),
)
