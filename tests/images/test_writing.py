"""Label maps: whole or not there, in the wanted type, in the image's frame."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from image_samples import DIRECTIONS, save, voxels

from offline_infer.errors import GeometryError, ImageError, UsageError
from offline_infer.images import Image, itk, read_image, write_labels


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return read_image([save(tmp_path / "in" / "a.nii.gz", voxels(), DIRECTIONS["oblique"])], "SimpleITKIO")


@pytest.mark.parametrize(
    ("dtype", "largest", "stored"),
    [
        (np.uint8, 255, sitk.sitkUInt8),
        (np.uint16, 3, sitk.sitkUInt16),
        (np.int64, 254, sitk.sitkUInt8),
        (np.int64, 255, sitk.sitkUInt16),
        (np.int32, 65535, sitk.sitkUInt16),
        (np.bool_, 1, sitk.sitkUInt8),
    ],
)
def test_type_of_the_file(tmp_path: Path, image: Image, dtype: type, largest: int, stored: int) -> None:
    labels = np.zeros(image.geometry.shape, dtype)
    labels[1, 2, 3] = largest
    write_labels(tmp_path / "a.nii.gz", labels, image.geometry)
    written = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert written.GetPixelID() == stored
    assert int(sitk.GetArrayFromImage(written)[1, 2, 3]) == largest


def test_what_is_refused(tmp_path: Path, image: Image) -> None:
    labels = np.zeros(image.geometry.shape, np.int32)
    with pytest.raises(UsageError, match=r"\.nii\.gz, "):
        write_labels(tmp_path / "a.jpg", labels, image.geometry)
    with pytest.raises(UsageError, match="legal"):
        write_labels(tmp_path / "a.mhd", labels, image.geometry)
    with pytest.raises(GeometryError, match="shape"):
        write_labels(tmp_path / "a.nii.gz", labels[1:], image.geometry)
    with pytest.raises(ImageError, match="integers"):
        write_labels(tmp_path / "a.nii.gz", labels.astype(np.float32), image.geometry)
    with pytest.raises(ImageError, match="16 bits"):
        write_labels(tmp_path / "a.nii.gz", labels - 1, image.geometry)
    with pytest.raises(ImageError, match="two-dimensional"):
        write_labels(tmp_path / "a.png", labels, image.geometry)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nothing_half_written(tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up: ITK says nothing for some formats, the check afterwards does."""
    real = sitk.WriteImage
    monkeypatch.setattr(itk.sitk, "WriteImage", lambda *a, **k: (real(*a, **k), _cut(Path(a[1])))[0])
    labels = np.random.default_rng(0).integers(0, 200, image.geometry.shape).astype(np.uint8)
    for ending in (".nii.gz", ".nii", ".nrrd", ".gipl"):
        path = tmp_path / f"a{ending}"
        path.write_bytes(b"the old one")
        with pytest.raises(ImageError, match="disk full"):
            write_labels(path, labels, image.geometry)
        assert path.read_bytes() == b"the old one"
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_unwritable_folder(tmp_path: Path, image: Image) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ImageError, match="cannot be written"):
        write_labels(tmp_path / "file" / "a.nii.gz", np.zeros(image.geometry.shape, np.uint8), image.geometry)


def test_same_bytes_every_time(tmp_path: Path, image: Image) -> None:
    labels = np.ones(image.geometry.shape, np.uint8)
    for ending in (".nii.gz", ".mha", ".tif"):
        for name in ("one", "two"):
            write_labels(tmp_path / f"{name}{ending}", labels, image.geometry)
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()
    nibabels = read_image([tmp_path / "in" / "a.nii.gz"], "NibabelIO").geometry
    for name in ("one", "two"):
        write_labels(tmp_path / f"{name}.nii.gz", labels, nibabels)
    one, two = (gzip.decompress((tmp_path / f"{name}.nii.gz").read_bytes()) for name in ("one", "two"))
    assert one == two


def test_missing_folders_are_made(tmp_path: Path, image: Image) -> None:
    write_labels(tmp_path / "x" / "y" / "a.nii.gz", np.ones(image.geometry.shape, np.uint8), image.geometry)
    assert (tmp_path / "x" / "y" / "a.nii.gz").is_file()
