"""The record beside saved probabilities holds what nnU-Net v2's own readers put there, for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from image_samples import DIRECTIONS, itk_image, save, voxels
from specimens import tiny_spec

from offline_infer.arithmetic.geometry import CaseGeometry
from offline_infer.checkpoints.pickles.reading import read_pickle
from offline_infer.images import read_image
from offline_infer.nnunet_files.probabilities import write_probabilities


def record_of(path: Path, reader: str) -> dict[str, Any]:
    """The record that is written for an image read by ``reader``."""
    frame = read_image([path], reader).geometry
    z, y, x = frame.shape
    case = CaseGeometry(frame, ((0, z), (0, y), (0, x)), frame.shape, frame.spacing, (0, 1, 2))
    spec = tiny_spec().model_copy(update={"reader": reader})
    write_probabilities(path.parent / "case", np.zeros((3, *frame.shape), np.float32), case, spec)
    record = read_pickle(path.parent / "case.pkl")
    assert isinstance(record, dict)
    return record


@pytest.mark.parametrize("name", sorted(DIRECTIONS))
def test_simple_itk(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), DIRECTIONS[name])
    image = sitk.ReadImage(str(path))
    record = record_of(path, "SimpleITKIO")
    assert record["spacing"] == list(image.GetSpacing()[::-1])
    assert record["sitk_stuff"] == {
        "spacing": image.GetSpacing(),
        "origin": image.GetOrigin(),
        "direction": image.GetDirection(),
    }


@pytest.mark.parametrize("name", sorted(DIRECTIONS))
def test_simple_itk_turned(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), DIRECTIONS[name])
    image = sitk.ReadImage(str(path))
    turned = sitk.DICOMOrient(image, "RAS")
    stuff = record_of(path, "SimpleITKIOWithReorient")["sitk_stuff"]
    codes = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    assert stuff["original_orientation"] == codes
    np.testing.assert_allclose(stuff["spacing"], turned.GetSpacing())
    np.testing.assert_allclose(stuff["origin"], turned.GetOrigin())
    np.testing.assert_allclose(stuff["direction"], turned.GetDirection(), atol=1e-12)


@pytest.mark.parametrize("name", sorted(DIRECTIONS))
@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient"])
def test_nibabel(tmp_path: Path, name: str, reader: str) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), DIRECTIONS[name])
    image = nibabel.load(path)
    record = record_of(path, reader)
    assert "sitk_stuff" not in record
    stuff = record["nibabel_stuff"]
    np.testing.assert_array_equal(stuff["original_affine"], image.affine)
    if reader == "NibabelIO":
        assert set(stuff) == {"original_affine"}
        assert record["spacing"] == [float(zoom) for zoom in image.header.get_zooms()[::-1]]
    else:
        turned = image.as_reoriented(nibabel.io_orientation(image.affine))
        np.testing.assert_allclose(stuff["reoriented_affine"], turned.affine, rtol=1e-6, atol=1e-4)
        assert record["spacing"] == [float(zoom) for zoom in turned.header.get_zooms()[::-1]]


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient"])
def test_a_volume_that_nibabel_does_not_read_gets_an_affine_all_the_same(tmp_path: Path, reader: str) -> None:
    direction = DIRECTIONS["oblique"]
    same = record_of(save(tmp_path / "nifti" / "a.nii", voxels(), direction), reader)["nibabel_stuff"]
    stuff = record_of(save(tmp_path / "a.mha", voxels(), direction), reader)["nibabel_stuff"]
    assert set(stuff) == set(same)
    for key, affine in stuff.items():
        np.testing.assert_allclose(affine, same[key], rtol=1e-5, atol=1e-3)


def test_a_two_dimensional_image_has_two_spacings(tmp_path: Path) -> None:
    """nnU-Net writes the label map with as many axes as there are spacings."""
    path = tmp_path / "a.mha"
    sitk.WriteImage(itk_image(voxels((9, 11)), spacing=(0.5, 0.75), origin=(1.0, 2.0)), str(path))
    record = record_of(path, "SimpleITKIO")
    assert record["spacing"] == [999 * 0.75, 0.75, 0.5]
    assert record["sitk_stuff"] == {"spacing": (0.5, 0.75), "origin": (1.0, 2.0), "direction": (1.0, 0.0, 0.0, 1.0)}


def test_pictures_have_a_spacing_only(tmp_path: Path) -> None:
    from skimage.io import imsave

    imsave(tmp_path / "a.png", voxels((9, 11), np.uint8), check_contrast=False)
    record = record_of(tmp_path / "a.png", "NaturalImage2DIO")
    assert record["spacing"] == [999.0, 1.0, 1.0]
    assert not {"sitk_stuff", "nibabel_stuff"} & set(record)
