"""The record beside saved probabilities, as nnU-Net's own commands read it: ``case.pkl``.

nnU-Net v1 keeps where the cropped array lies. nnU-Net v2 keeps what its reader's ``write_seg`` needs, and that differs
from reader to reader. Lists, numbers and strings only, so that any version of NumPy can read them.
"""

from __future__ import annotations

from typing import Any

from offline_infer.arithmetic.axes import AffineAxes, Matrix4, TurnedAxes, ras_affine
from offline_infer.arithmetic.geometry import CaseGeometry, ImageGeometry


def v1_properties(geometry: CaseGeometry) -> dict[str, Any]:
    """What nnU-Net v1 writes beside the softmax of a cropped image."""
    frame = geometry.image
    return {
        "original_size_of_raw_data": list(frame.shape),
        "original_spacing": list(frame.spacing),
        "list_of_data_files": [],
        "seg_file": None,
        "itk_origin": tuple(frame.origin),
        "itk_spacing": tuple(frame.itk_spacing),
        "itk_direction": tuple(frame.direction),
        "crop_bbox": [list(pair) for pair in geometry.crop],
        "size_after_cropping": geometry.cropped_shape,
        "size_after_resampling": geometry.network_shape,
        "spacing_after_resampling": list(geometry.network_spacing),
        "regions_class_order": None,
    }


def v2_properties(geometry: CaseGeometry, reader: str) -> dict[str, Any]:
    """What nnU-Net v2 writes beside the probabilities of a whole image.

    Args:
        reader: the reader class of the plans. It need not be the one the image was read with: a model whose reader is
            ``NibabelIO`` also takes images that nibabel does not read, and writes its label maps as NIfTI.
    """
    frame, order = geometry.image, geometry.transpose_forward
    return {
        "spacing": list(frame.spacing),
        "shape_before_cropping": tuple(frame.shape[axis] for axis in order),
        "bbox_used_for_cropping": [list(geometry.crop[axis]) for axis in order],
        "shape_after_cropping_and_before_resampling": tuple(geometry.cropped_shape[axis] for axis in order),
        **_reader_part(frame, reader),
    }


def _reader_part(frame: ImageGeometry, reader: str) -> dict[str, Any]:
    if reader.startswith("SimpleITKIO"):
        return {"sitk_stuff": _itk_part(frame)}
    if reader.startswith("NibabelIO"):
        part = {"original_affine": _stored_affine(frame)}
        if reader == "NibabelIOWithReorient":
            part["reoriented_affine"] = ras_affine(frame.itk_spacing, frame.origin, frame.direction)
        return {"nibabel_stuff": {key: [list(row) for row in affine] for key, affine in part.items()}}
    return {}


def _itk_part(frame: ImageGeometry) -> dict[str, Any]:
    """``write_seg`` tells a two-dimensional image by the number of spacings, and turns back to ``original_orientation``."""
    if frame.dimensions == 2:
        a, b, _, c, d, *_ = frame.direction
        return {"spacing": tuple(frame.itk_spacing[:2]), "origin": tuple(frame.origin[:2]), "direction": (a, b, c, d)}
    part: dict[str, Any] = {
        "spacing": tuple(frame.itk_spacing),
        "origin": tuple(frame.origin),
        "direction": tuple(frame.direction),
    }
    if isinstance(frame.axes, TurnedAxes):
        part["original_orientation"] = frame.axes.turn.stored_codes
    return part


def _stored_affine(frame: ImageGeometry) -> Matrix4:
    if isinstance(frame.axes, AffineAxes):
        return frame.axes.affine
    if isinstance(frame.axes, TurnedAxes):
        return ras_affine(frame.axes.spacing, frame.axes.origin, frame.axes.direction)
    return ras_affine(frame.itk_spacing, frame.origin, frame.direction)
