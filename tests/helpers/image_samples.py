"""Images made up for the tests: known voxels, awkward frames, DICOM series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk


def rotation(a: float, b: float, c: float) -> np.ndarray:
    """A rotation by three angles in radians."""
    (ca, cb, cc), (sa, sb, sc) = np.cos([a, b, c]), np.sin([a, b, c])
    about_z = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_x = np.array([[1, 0, 0], [0, cc, -sc], [0, sc, cc]])
    return about_z @ about_y @ about_x


DIRECTIONS = {
    "identity": np.eye(3),
    "ras": np.diag([-1.0, -1.0, 1.0]),
    "flipped_z": np.diag([1.0, 1.0, -1.0]),
    "sagittal": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "oblique": rotation(0.3, -0.2, 0.15),
    "oblique_left_handed": rotation(1.9, 0.5, -2.8) @ np.diag([1.0, 1.0, -1.0]),
}
SPACING = (0.78, 0.65, 2.5)
ORIGIN = (-123.4, 55.1, -900.25)


def voxels(shape: Sequence[int] = (7, 9, 11), dtype: Any = np.int16, seed: int = 0) -> np.ndarray:
    """Random numbers that fit the type, (z, y, x)."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "u":
        return random.integers(0, 250, shape).astype(dtype)
    return random.normal(0, 300, shape).astype(dtype)


def itk_image(
    array: np.ndarray,
    direction: np.ndarray | None = None,
    spacing: Sequence[float] = SPACING,
    origin: Sequence[float] = ORIGIN,
) -> sitk.Image:
    """A SimpleITK image of ``array`` (z, y, x) in an awkward frame."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(direction.ravel().tolist())
    return image


def save(path: Path, array: np.ndarray, direction: np.ndarray | None = None, **frame: Any) -> Path:
    """Write ``array`` (z, y, x) with SimpleITK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(itk_image(array, direction, **frame), str(path), True)
    return path


def save_plain(path: Path, array: np.ndarray) -> Path:
    """Write an array without any frame, of any number of dimensions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), True)
    return path


def dicom_slice(
    path: Path,
    pixels: np.ndarray,
    position: Sequence[float],
    *,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    series: str = "1.2.3.4",
    description: str = "thorax",
    slope: float = 1,
    sop_class: str = "1.2.840.10008.5.1.4.1.1.2",
) -> Path:
    """Write one CT slice (y, x), pixel spacing 0.7 mm, thickness 2.5 mm, rescale intercept -1024."""
    dataset = _dicom(path, pixels, series, sop_class)
    dataset.SeriesDescription = description
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, -1024
    dataset.PixelSpacing, dataset.SliceThickness = [0.7, 0.7], 2.5
    dataset.ImageOrientationPatient = [f"{value:.12g}"[:16] for value in orientation]
    dataset.ImagePositionPatient = [f"{value:.12g}"[:16] for value in position]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = pixels.shape[0]
    dataset.save_as(path, enforce_file_format=True)
    return path


def dicom_enhanced(path: Path, pixels: np.ndarray, heights: Sequence[float]) -> Path:
    """Write an enhanced multi-frame CT (z, y, x), one position per frame."""
    from pydicom.dataset import Dataset

    def holder(**fields: Any) -> Any:
        made = Dataset()
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    dataset = _dicom(path, pixels, "9.9", "1.2.840.10008.5.1.4.1.1.2.1")
    dataset.NumberOfFrames = pixels.shape[0]
    shared = holder(
        PixelMeasuresSequence=[holder(PixelSpacing=[0.7, 0.7], SliceThickness=2.5)],
        PlaneOrientationSequence=[holder(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelValueTransformationSequence=[holder(RescaleIntercept=-1024, RescaleSlope=1, RescaleType="HU")],
    )
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        holder(PlanePositionSequence=[holder(ImagePositionPatient=[10, 20, height])]) for height in heights
    ]
    dataset.save_as(path, enforce_file_format=True)
    return path


def dicom_series(
    folder: Path, pixels: np.ndarray, positions: Sequence[Sequence[float]], suffix: str = ".dcm", **options: Any
) -> Path:
    """Write a series (z, y, x); file names do not follow the positions."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, position in enumerate(positions):
        name = f"im{(index * 7) % 1000:03d}_{index % 3}{suffix}"
        dicom_slice(folder / name, pixels[index], position, **options)
    return folder


def _dicom(path: Path, pixels: np.ndarray, series: str, sop_class: str) -> Any:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", series
    dataset.Modality, dataset.PatientName, dataset.PatientID = "CT", "nobody", "0"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation, dataset.SamplesPerPixel = 1, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = pixels.astype("<i2").tobytes()
    return dataset
