"""Whether an answer of a device can be believed, as far as its numbers alone tell.

A device in trouble answers NaN or the same number everywhere. Half precision that overflowed shows as infinity or, where
the run time saturates, as the largest finite half-precision number: looking for infinity alone does not find it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from offline_infer.errors import Remedy

Fault = Literal["NaN", "overflow", "flat"]

LARGEST_HALF = 65504.0
"""The largest finite float16."""

EXPLANATIONS: dict[Fault, str] = {
    "NaN": "the answer holds NaN",
    "overflow": f"the answer reaches {LARGEST_HALF:g} or infinity: half precision overflowed",
    "flat": "the answer is the same number everywhere",
}
_WIDER = Remedy("compile-wider")
REMEDIES: dict[Fault, str] = {
    "NaN": "check the device (npu-smi info); if every device does it, half precision is too narrow for this model "
    + str(_WIDER),
    "overflow": f"half precision is too narrow for this model {_WIDER}",
    "flat": "check the device (npu-smi info) and compile again with the CANN release of this machine",
}


def fault_of(answer: npt.NDArray[Any]) -> Fault | None:
    """What is wrong with an answer of floating-point numbers, or None. Integer answers are not judged.

    ``flat`` is a suspicion: a constant input may have a constant answer.
    """
    if answer.dtype.kind != "f" or answer.size == 0:
        return None
    low, high = float(answer.min()), float(answer.max())
    if np.isnan(low) or np.isnan(high):
        return "NaN"
    if high >= LARGEST_HALF or low <= -LARGEST_HALF:
        return "overflow"
    return "flat" if low == high and answer.size > 1 else None


def is_constant(batch: npt.NDArray[Any]) -> bool:
    """Whether every channel of an input (n, c, *spatial) is one number."""
    flat = batch.reshape(batch.shape[0] * batch.shape[1], -1) if batch.ndim > 1 else batch.reshape(1, -1)
    return bool((flat == flat[:, :1]).all())
