"""What nnU-Net v1's trainer classes change about inference, by class name.

A trainer's code is not in the checkpoint, so its name has to tell. Whatever shows in the weights (normalisation with
running statistics, biases, kernel sizes, feature counts) is read from them; this table holds what does not show.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from offline_infer.errors import CheckpointError

BRATS_REGIONS: dict[str, int | tuple[int, ...]] = {
    "background": 0,
    "whole tumor": (1, 2, 3),
    "tumor core": (2, 3),
    "enhancing tumor": 3,
}
BRATS_ORDER = (1, 2, 3)


@dataclass(frozen=True)
class Traits:
    """What a trainer does differently at inference.

    Attributes:
        known: whether the name is one of nnU-Net 1.7.1's trainers (or the UNet++ fork's counterpart).
        activation, negative_slope, norm_last, group_norm: of the network's blocks.
        mirror: whether test-time mirroring is allowed.
        regions: sigmoid heads for the BraTS regions instead of exclusive classes.
        cascade: sees the previous stage's labels as further channels.
    """

    known: bool = True
    activation: str = "leaky_relu"
    negative_slope: float = 0.01
    norm_last: bool = False
    group_norm: bool = False
    mirror: bool = True
    regions: bool = False
    cascade: bool = False


_BASE = "nnUNetTrainer"

_SPECIAL: dict[str, Traits] = {
    "NoDA": Traits(mirror=False),
    "V2_noMirroring": Traits(mirror=False),
    "V2_noDataAugmentation": Traits(mirror=False),
    "V2_GN": Traits(group_norm=True),
    "V2_GeLU": Traits(activation="gelu"),
    "V2_Mish": Traits(activation="mish"),
    "V2_ReLU": Traits(activation="relu"),
    "V2_ReLU_biasInSegOutput": Traits(activation="relu"),
    "V2_ReLU_convReLUIN": Traits(activation="relu", norm_last=True),
    "V2_lReLU_convReLUIN": Traits(norm_last=True),
    "V2_LReLU_slope_2en1": Traits(negative_slope=0.2),
    # By name a region trainer, but it only swaps the normalisation and keeps exclusive classes.
    "V2BraTSRegions_BN": Traits(),
}

_PLAIN_NAMES = """
    CE CascadeFullRes V2 V2_DDP V2_DP V2_fp32 V2_fp16 V2_MMS V2_BN V2_3ConvPerStage V2_3ConvPerStageSameFilters
    V2_NoNormalization V2_NoNormalization_lr1en3 V2_allConv3x3 V2_lReLU_biasInSegOutput V2_noDeepSupervision
    V2_softDeepSupervision V2_2epochs V2_5epochs V2_5epochs_CEnoDS V2_5epochs_noDS V2_5epochs_dummyLoad
    V2_5epochs_dummyLoadCEnoDS V2_2epochs_dummyLoad V2_DDP_5epochs V2_DDP_5epochs_dummyLoad V2_DA2 V2_DA3 V2_DA3_BN
    V2_DA5 V2_independentScalePerAxis V2_insaneDA V2_ForceBD V2_ForceSD V2_Loss_CE V2_Loss_CEGDL V2_Loss_Dice
    V2_Loss_DiceCE_noSmooth V2_Loss_DiceTopK10 V2_Loss_Dice_LR1en3 V2_Loss_Dice_squared V2_Loss_DicewithBG
    V2_Loss_DicewithBG_LR1en3 V2_Loss_MCC V2_Loss_MCCnoBG V2_Loss_TopK10 V2_SegLoss_Focal V2_fullEvals V2_Adam
    V2_Adam_ReduceOnPlateau V2_Adam_nnUNetTrainerlr V2_Ranger_lr1en2 V2_Ranger_lr3en3 V2_Ranger_lr3en4
    V2_SGD_ReduceOnPlateau V2_SGD_fixedSchedule V2_SGD_fixedSchedule2 V2_SGD_lr1en1 V2_SGD_lr1en3 V2_cycleAtEnd
    V2_cycleAtEnd2 V2_momentum09 V2_momentum095 V2_momentum098 V2_momentum09in2D V2_reduceMomentumDuringTraining
    V2_warmup V2_resample33 V2_graduallyTransitionFromCEToDice V2CascadeFullRes V2CascadeFullRes_EducatedGuess
    V2CascadeFullRes_EducatedGuess2 V2CascadeFullRes_EducatedGuess3 V2CascadeFullRes_lowerLR
    V2CascadeFullRes_noConnComp V2CascadeFullRes_shorter V2CascadeFullRes_shorter_lowerLR
    V2CascadeFullRes_smallerBinStrel V2BraTSRegions V2BraTSRegions_DA3 V2BraTSRegions_DA3_BD V2BraTSRegions_DA3_BN
    V2BraTSRegions_DA3_BN_BD V2BraTSRegions_DA4_BN V2BraTSRegions_DA4_BN_BD V2BraTSRegions_DDP V2BraTSRegions_Dice
"""
_PLAIN = {"", *_PLAIN_NAMES.split()}
"""Trainers that change nothing about inference beyond what the weights show (names without the common beginning)."""


def traits(trainer: str) -> Traits:
    """What the trainer of that name does; an unknown one counts as plain, with ``known`` False.

    Raises:
        CheckpointError: a trainer whose network is known not to be supported.
    """
    variant = trainer.replace("nnUNetPlusPlusTrainer", _BASE, 1)
    if "Resenc" in variant or variant.endswith("_FRN"):
        raise CheckpointError(
            f"trainer {trainer} builds a network that is not supported (residual encoder or filter response "
            "normalisation of nnU-Net v1); supported are Generic_UNet and UNet++"
        )
    suffix = re.sub(r"_copy\d$", "", variant.removeprefix(_BASE))
    found = _SPECIAL.get(suffix) if variant.startswith(_BASE) else None
    if found is None:
        found = Traits(known=variant.startswith(_BASE) and suffix in _PLAIN, regions="BraTSRegions" in variant)
    return replace(found, cascade="Cascade" in variant)
