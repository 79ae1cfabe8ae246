"""From an image to the array the network sees: transpose, crop to non-zero, resample, normalise.

The order of the last two and every constant come from the :class:`~offline_infer.spec.Spec`. Axis order of the result is
the network's: ``(c, z, y, x)`` after ``transpose_forward``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import (
    Box,
    CaseGeometry,
    ImageGeometry,
    Spacing3,
    bounding_box,
    nonzero_mask,
)
from offline_infer.arithmetic.normalization import normalize
from offline_infer.errors import GeometryError
from offline_infer.resampling import lowres_axis, resample_image, resample_labels
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.volume.tiles import network_grid

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PreparedCase:
    """A case ready to be cut into tiles.

    Attributes:
        array: (c, z, y, x) float32, network order, unpadded; previous-stage channels last.
        geometry: the way back.
    """

    array: FloatArray
    geometry: CaseGeometry

    def emptied(self) -> PreparedCase:
        """The way back alone: the voxels are not needed once the case is inferred."""
        return PreparedCase(np.empty((0, 0, 0, 0), np.float32), self.geometry)


def prepare(
    image: FloatArray,
    frame: ImageGeometry,
    spec: VolumeSpec,
    previous: npt.NDArray[np.integer] | None = None,
    threads: int = 0,
    *,
    consume: bool = False,
) -> PreparedCase:
    """Prepare one case.

    Args:
        image: (c, z, y, x) float32 as the reader gives it.
        frame: where it lies.
        spec: the model.
        previous: label map (z, y, x) of the previous stage in the image's own grid; needed by a cascade.
        threads: for resampling; 0 = all cores.
        consume: the caller gives ``image`` up: its memory may be overwritten and used for the result. Saves a copy.

    Raises:
        GeometryError: number of channels or shape of ``previous`` does not fit.
    """
    if image.shape[0] != len(spec.channels):
        names = ", ".join(channel.name for channel in spec.channels)
        raise GeometryError(f"the image has {image.shape[0]} channels, the model needs {len(spec.channels)} ({names})")
    if spec.previous_stage is not None and previous is None:
        raise GeometryError("this model is the second stage of a cascade: it needs the label map of its previous stage")

    order = spec.transpose_forward
    turned = image.transpose(0, *(axis + 1 for axis in order))
    mask = nonzero_mask(turned)
    box = bounding_box(mask)
    window = tuple(slice(first, last) for first, last in box)
    cropped = turned[(slice(None), *window)]
    # The mask is freed as soon as it is no longer needed: it is a quarter of the image.
    whole: npt.NDArray[np.bool_] | None = mask[window] if any(channel.use_mask for channel in spec.channels) else None
    del mask

    grid = network_grid(
        spec, frame, tuple(last - first for first, last in _to_image_order(box, spec.transpose_backward))
    )
    spacing, target, shape = grid.spacing, grid.target, grid.shape

    if spec.normalize_after_resampling:
        array = resample_image(cropped, shape, spacing, target, spec.resampling, threads=threads)
        array = array if consume and array.flags.c_contiguous else _own(array, cropped)
        inside = None if whole is None or whole.all() else whole
        if inside is not None:
            axis = lowres_axis(spacing, target, spec.resampling)
            inside = _resampled_mask(inside, shape, axis, spec)
        for channel, rule in zip(array, spec.channels, strict=True):
            normalize(channel, inside if rule.use_mask else None, rule)
    else:
        if not (consume and cropped.flags.c_contiguous and cropped.flags.writeable):
            cropped = np.array(cropped, dtype=np.float32, order="C")
        for channel, rule in zip(cropped, spec.channels, strict=True):
            # Without a hole the mask is everything, which is what nnU-Net's own mask then says too.
            normalize(channel, (whole if rule.use_mask else None), rule)
        whole = None
        array = resample_image(cropped, shape, spacing, target, spec.resampling, threads=threads)

    if spec.previous_stage is not None and previous is not None:
        array = np.concatenate([array, _previous_channels(previous, frame, spec, box, spacing, target, shape)])

    geometry = CaseGeometry(
        image=frame,
        crop=_to_image_order(box, spec.transpose_backward),
        network_shape=shape,
        network_spacing=target,
        transpose_forward=order,
    )
    return PreparedCase(np.ascontiguousarray(array), geometry)


def _own(array: FloatArray, source: FloatArray) -> FloatArray:
    """``array``, copied where it shares memory with the caller's image, since normalising works in place."""
    return np.array(array, order="C") if np.shares_memory(array, source) else array


def _resampled_mask(
    inside: npt.NDArray[np.bool_], shape: tuple[int, int, int], axis: int | None, spec: VolumeSpec
) -> npt.NDArray[np.bool_]:
    """The non-zero mask on the network's grid, as nnU-Net v1 resamples it: a label map of 0 (inside) and -1.

    Order 1 in plane, nearest along a low-resolution axis; inside wins ties and whatever rounding leaves undecided. Of the
    framework's preprocessors, the one that interpolates the image along such an axis interpolates the mask too (order
    1), and the one that never treats an axis apart uses the image's order.
    """
    image = spec.resampling
    order = image.order if image.force_separate_z is False else 1
    rule = image.model_copy(update={"order": order, "order_z": min(image.order_z, 1)})
    labels = inside.view(np.int8) - np.int8(1)
    mask: npt.NDArray[np.bool_] = resample_labels(labels, shape, axis, rule, ties="higher_label") == 0
    return mask


def _previous_channels(
    previous: npt.NDArray[np.integer],
    frame: ImageGeometry,
    spec: VolumeSpec,
    box: Box,
    spacing: Spacing3,
    target: Spacing3,
    shape: tuple[int, int, int],
) -> FloatArray:
    """The previous stage's label map as one-hot channels on the network's grid, (labels, z, y, x) float32."""
    stage = spec.previous_stage
    assert stage is not None
    if previous.shape != frame.shape:
        raise GeometryError(
            f"the previous stage's label map has shape {previous.shape}, the image {frame.shape}; it must be of the same image"
        )
    turned = previous.transpose(spec.transpose_forward)
    if stage.rule == "nnunet_v2":
        turned = turned[tuple(slice(first, last) for first, last in box)]
        axis = lowres_axis(spacing, target, stage.resampling)
        labels = resample_labels(np.ascontiguousarray(turned), shape, axis, stage.resampling, ties="argmax")
    else:
        # v1 resizes the uncropped map to the cropped image's grid. It misplaces it, but the network was trained so.
        labels = resample_labels(np.ascontiguousarray(turned), shape, None, stage.resampling, ties="higher_label")
    return np.stack([labels == label for label in stage.labels]).astype(np.float32)


def _to_image_order(box: Box, backward: tuple[int, int, int]) -> Box:
    a, b, c = (box[axis] for axis in backward)
    return (a, b, c)
