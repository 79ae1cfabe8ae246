"""What an opened graph takes and gives, whichever library opened it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from offline_infer.engines.base import OPEN


@dataclass(frozen=True)
class Port:
    """An input or output of the graph. ``shape``: ``OPEN`` for open sizes, None where the rank is open too."""

    name: str
    shape: tuple[int, ...] | None
    dtype: np.dtype[Any]

    @property
    def fixed(self) -> tuple[int, ...] | None:
        """The shape, if no size of it is open."""
        return None if self.shape is None or OPEN in self.shape else self.shape
