"""What a user may change about a run without changing the model."""

from __future__ import annotations

from dataclasses import dataclass

from offline_infer.errors import UsageError
from offline_infer.spec import VolumeSpec


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run.

    Attributes:
        step_size: tile step as a fraction of the patch, None = the model's own.
        tta: mirror along the model's axes and average.
        accumulate: precision of the sums over tiles: ``framework`` (nnU-Net v1: float32, v2: float16), ``float32``, or
            ``float16`` (nnU-Net v2 models only).
        save_probabilities: also keep the class probabilities.
        postprocess: apply the model's connected-component rules.
    """

    step_size: float | None = None
    tta: bool = True
    accumulate: str = "framework"
    save_probabilities: bool = False
    postprocess: bool = True


def sum_dtype(spec: VolumeSpec, settings: RunSettings) -> str:
    """Precision of the sums over tiles: ``float32`` or ``float16``.

    Raises:
        UsageError: half-precision sums for a model whose framework does not make them.
    """
    if settings.accumulate == "framework":
        return spec.aggregation.accumulate
    if settings.accumulate == "float16" and spec.aggregation.accumulate != "float16":
        raise UsageError(
            f"{spec.source.framework} sums in {spec.aggregation.accumulate}, and half precision would lose its smallest "
            "weights; --accumulate float16 repeats the sums of nnU-Net v2 models only"
        )
    return settings.accumulate
