"""From the aggregated map back to the image: resample, decide, un-transpose, un-crop, clean up components.

The map arrives slab by slab along the network's first axis; memory never holds it whole unless probabilities are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.components import apply_component_rules
from offline_infer.arithmetic.geometry import CaseGeometry, permute
from offline_infer.arithmetic.labels import label_dtype
from offline_infer.arithmetic.map_to_labels import MapToLabels
from offline_infer.resampling import lowres_axis
from offline_infer.spec import VolumeSpec


@dataclass(frozen=True)
class Segmentation:
    """A finished case.

    Attributes:
        labels: (z, y, x) uint8, or uint16 where the model has labels from 255 on; the image's own grid.
        probabilities: (k, z, y, x) float32 of the *cropped* region in image axis order, or None.
        geometry: the record of the way back.
    """

    labels: npt.NDArray[np.unsignedinteger]
    probabilities: npt.NDArray[np.float32] | None
    geometry: CaseGeometry


Finish = Callable[[], Segmentation]
"""What is left of a case once the engine has answered: the last slabs, the label map, its components. To be called once."""


class MapFinisher:
    """Turns finished slabs of the network-space map into a :class:`Segmentation`."""

    def __init__(
        self,
        spec: VolumeSpec,
        geometry: CaseGeometry,
        keep_probabilities: bool,
        exact: bool,
        threads: int | None = None,
    ) -> None:
        """
        Args:
            exact: repeat the framework's own rounding (half precision for nnU-Net v2) on the way.
            threads: 0 or None = all cores.
        """
        self._spec = spec
        self._geometry = geometry
        order = geometry.transpose_forward
        self._decider = MapToLabels(
            fine_shape=permute(geometry.cropped_shape, order),
            coarse_shape=geometry.network_shape,
            axis=_export_axis(spec, geometry),
            rule=spec.export.resampling,
            labels=spec.labels,
            aggregation=spec.aggregation,
            keep_probabilities=keep_probabilities,
            framework_exact=exact,
            threads=threads,
        )

    def push(self, slab: npt.NDArray[np.floating]) -> None:
        """Take the next planes (k, dz, y, x) of the map, network order, padding removed."""
        self._decider.push(slab)

    def finish(self) -> Segmentation:
        """The case in its image's own grid."""
        labels, probabilities = self._decider.finish()
        backward = self._geometry.transpose_backward
        whole = np.zeros(self._geometry.image.shape, label_dtype(self._spec.labels))
        box = tuple(slice(first, last) for first, last in self._geometry.crop)
        whole[box] = labels.transpose(backward)
        if probabilities is not None:
            probabilities = np.ascontiguousarray(probabilities.transpose(0, *(axis + 1 for axis in backward)))
        return Segmentation(whole, probabilities, self._geometry)


def clean_components(segmentation: Segmentation, spec: VolumeSpec) -> Segmentation:
    """Apply the model's connected-component rules to the finished label map."""
    if not spec.postprocessing:
        return segmentation
    volume = float(np.prod(segmentation.geometry.image.spacing))
    labels = apply_component_rules(segmentation.labels, spec.postprocessing, volume)
    return Segmentation(labels, segmentation.probabilities, segmentation.geometry)


def _export_axis(spec: VolumeSpec, geometry: CaseGeometry) -> int | None:
    """Network axis along which the map is resampled apart, or None."""
    order = geometry.transpose_forward
    rule = spec.export.resampling
    if spec.export.axis_rule == "network":
        return lowres_axis(geometry.network_spacing, permute(geometry.image.spacing, order), rule)
    # v1 resamples after transposing back, but tests the network spacing in network order: its first axis then stands for
    # the image's first axis, whatever the transposition. See spec.Export.
    axis = lowres_axis(geometry.image.spacing, geometry.network_spacing, rule)
    return None if axis is None else order.index(axis)
