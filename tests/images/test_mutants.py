"""Seeded mutants of every image format: each gives an image or one readable line, and nothing on stderr.

A few in an ordinary run; many with ``IMAGE_MUTANTS=1000 python -m pytest tests/images/test_mutants.py``. They are read in
child processes, so that a crash is a failure with a number and not the end of the tests. What was found is kept as a test
of its own in ``test_damage.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_samples import DIRECTIONS, dicom_enhanced, dicom_slice, save, voxels
from mutants import mutants
from PIL import Image as Pillow

from offline_infer.errors import OfflineInferError
from offline_infer.images import read_image
from offline_infer.images.isolation import can_isolate, isolated_readers

COUNT = int(os.environ.get("IMAGE_MUTANTS", "10"))
SHAPE = (6, 12, 14)


def _itk(folder: Path, ending: str) -> Path:
    return save(folder / f"a{ending}", voxels(SHAPE), DIRECTIONS["oblique"])


def _mhd(folder: Path) -> Path:
    return save(folder / "a.mhd", voxels(SHAPE))


def _tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", voxels(SHAPE), compression="zlib")
    return folder / "a.tif"


def _ome(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.ome.tif", voxels(SHAPE), metadata={"axes": "ZYX"}, ome=True)
    return folder / "a.ome.tif"


def _picture(folder: Path, ending: str) -> Path:
    Pillow.fromarray(voxels((12, 14, 3), np.uint8)).save(folder / f"a{ending}")
    return folder / f"a{ending}"


FORMATS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "nifti": ("SimpleITKIO", lambda folder: _itk(folder, ".nii")),
    "nifti_gz": ("SimpleITKIOWithReorient", lambda folder: _itk(folder, ".nii.gz")),
    "nifti_nibabel": ("NibabelIOWithReorient", lambda folder: _itk(folder, ".nii")),
    "metaimage": ("SimpleITKIO", lambda folder: _itk(folder, ".mha")),
    "metaimage_apart": ("SimpleITKIO", _mhd),
    "nrrd": ("SimpleITKIO", lambda folder: _itk(folder, ".nrrd")),
    "gipl": ("SimpleITKIO", lambda folder: _itk(folder, ".gipl")),
    "dicom": ("SimpleITKIO", lambda folder: dicom_slice(folder / "a.dcm", voxels(SHAPE[1:]), (1, 2, 3))),
    "dicom_enhanced": ("SimpleITKIO", lambda folder: dicom_enhanced(folder / "a.dcm", voxels(SHAPE), range(6))),
    "tiff": ("Tiff3DIO", _tiff),
    "ome_tiff": ("Tiff3DIO", _ome),
    "png": ("NaturalImage2DIO", lambda folder: _picture(folder, ".png")),
    "bmp": ("NaturalImage2DIO", lambda folder: _picture(folder, ".bmp")),
    "jpeg": ("NaturalImage2DIO", lambda folder: _picture(folder, ".jpg")),
}


@pytest.mark.skipif(not can_isolate(), reason="a crash would end the tests here")
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_mutant_is_an_image_or_a_reason(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    reader, make = FORMATS[name]
    path = make(tmp_path)
    data = path.read_bytes()
    with isolated_readers(seconds=120):
        for number, mutant in enumerate(mutants(data, name, COUNT)):
            path.write_bytes(mutant)
            try:
                image = read_image([path], reader)
            except OfflineInferError as error:
                text = str(error)
                assert text.isprintable(), (name, number)
                assert len(text) < 1000, (name, number)
                assert path.name in text, (name, number, text)
                for word in ("process that read it", "cannot be read (", "took more than"):
                    assert word not in text or "it is damaged or not" in text or "it is damaged, truncated" in text, (
                        name,
                        number,
                        text,
                    )
            else:
                assert np.isfinite(image.array).all(), (name, number)
    assert capfd.readouterr() == ("", "")
