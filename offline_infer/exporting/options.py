"""How to export: what every graph of a bundle is made with."""

from __future__ import annotations

from dataclasses import dataclass

from offline_infer.errors import ExportError, UsageError
from offline_infer.exporting.tracing import OPSETS

PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        opset: ONNX opset, 11 to 17.
        precision: ``fp32``, or ``fp16`` (weights and most operators half precision, normalisation float32).
        keep_deep_supervision: keep all heads as outputs ``logits``, ``logits_1``, ...; the first is the final one.
        verify: compare every graph with the checkpoint's network.
        overwrite: replace an existing bundle; it stays intact until the new one is complete.

    Raises:
        ExportError: an opset that cannot be written.
        UsageError: an unknown precision.
    """

    opset: int = 17
    precision: str = "fp32"
    keep_deep_supervision: bool = False
    verify: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise ExportError(f"opset {self.opset} cannot be written; legal: {OPSETS[0]} to {OPSETS[-1]}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}; legal: {', '.join(PRECISIONS)}")
