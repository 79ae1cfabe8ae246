"""What the Python interface gives for a volume."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.images import write_labels
from offline_infer.images.objects import to_nibabel, to_sitk


@dataclass(frozen=True)
class LabelMap:
    """A segmentation in its image's own grid.

    Attributes:
        array: (z, y, x), uint8 or uint16; 0 is background.
        frame: shape, spacing (z, y, x) in mm, origin and direction (ITK, LPS) of the image it belongs to.
        names: label name -> value, or -> values for a region.
        probabilities: (k, z, y, x) float32 over the image's non-zero box ``crop``, or None unless asked for.
        crop: that box, ((z0, z1), (y0, y1), (x0, x1)), half-open.
    """

    array: npt.NDArray[np.unsignedinteger]
    frame: ImageGeometry
    names: dict[str, Any]
    probabilities: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    crop: tuple[tuple[int, int], ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, (z, y, x)."""
        return self.frame.spacing

    def save(self, path: str | Path) -> Path:
        """Write the label map; the ending decides the format. The file appears only when it is complete."""
        write_labels(Path(path), self.array, self.frame)
        return Path(path)

    def to_sitk(self) -> Any:
        """The label map as a ``SimpleITK.Image`` in the image's own frame."""
        return to_sitk(self.array, self.frame)

    def to_nibabel(self) -> Any:
        """The label map as a ``nibabel.Nifti1Image``, (x, y, z), in the image's own frame."""
        return to_nibabel(self.array, self.frame)

    def __repr__(self) -> str:
        present = np.unique(self.array)
        return (
            f"LabelMap(shape={self.array.shape}, spacing={tuple(round(s, 4) for s in self.spacing)} mm, "
            f"labels={[int(value) for value in present]})"
        )
