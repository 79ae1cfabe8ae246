"""Pictures as nnU-Net's reader sees them (scikit-image is the oracle), and TIFF files that name others."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_samples import voxels
from mutants import mutants
from PIL import Image as Pillow
from skimage.io import imread, imsave

from offline_infer.errors import CaseError
from offline_infer.images import read_image, read_labels, write_labels
from offline_infer.images.decoding import read_image as read_photograph
from offline_infer.spec import Pixels

OME = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="11" SizeY="9" SizeZ="4" SizeC="1" SizeT="1">
<Channel ID="Channel:0:0" SamplesPerPixel="1"/>
<TiffData IFD="0" PlaneCount="2"><UUID FileName="mine.ome.tif">urn:uuid:00000000-0000-0000-0000-000000000001</UUID></TiffData>
<TiffData FirstZ="2" IFD="0" PlaneCount="2">
<UUID FileName="other.ome.tif">urn:uuid:00000000-0000-0000-0000-000000000002</UUID></TiffData>
</Pixels></Image></OME>"""


def pictures(folder: Path) -> list[Path]:
    """Files of every kind of pixel."""
    random = np.random.default_rng(0)
    grey, deep = random.integers(0, 256, (9, 11), np.uint8), random.integers(0, 65536, (9, 11), np.uint16)
    colours = random.integers(0, 256, (9, 11, 4), np.uint8)
    imsave(folder / "grey.png", grey, check_contrast=False)
    imsave(folder / "grey.bmp", grey, check_contrast=False)
    imsave(folder / "deep.png", deep, check_contrast=False)
    for name, array in (("rgb", colours[..., :3]), ("rgba", colours)):
        imsave(folder / f"{name}.png", array, check_contrast=False)
        imsave(folder / f"{name}.tif", array, check_contrast=False)
    imsave(folder / "rgb.bmp", colours[..., :3], check_contrast=False)
    imsave(folder / "rgb.jpg", colours[..., :3], check_contrast=False)
    imsave(folder / "grey.jpg", grey, check_contrast=False)
    Pillow.fromarray(colours[..., :3]).quantize(7).save(folder / "palette.png")
    Pillow.fromarray(grey > 100).save(folder / "bilevel.png")
    Pillow.fromarray(colours[..., :3]).save(folder / "misnamed.png", format="JPEG")
    tifffile.imwrite(folder / "deep.tif", deep)
    tifffile.imwrite(folder / "float.tif", random.random((9, 11)).astype(np.float32))
    tifffile.imwrite(
        folder / "planar.tif", np.moveaxis(colours[..., :3], -1, 0), photometric="rgb", planarconfig="separate"
    )
    return sorted(folder.iterdir())


def test_pixels_are_those_of_the_framework(tmp_path: Path) -> None:
    paths = pictures(tmp_path)
    assert len(paths) >= 15
    for path in paths:
        expected = np.asarray(imread(path))
        expected = expected[None, None] if expected.ndim == 2 else expected.transpose(2, 0, 1)[:, None]
        np.testing.assert_array_equal(
            read_image([path], "NaturalImage2DIO").array, expected.astype(np.float32), err_msg=path.name
        )


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_label_maps_are_written_as_the_framework_reads_them(tmp_path: Path, ending: str, dtype: type) -> None:
    if (ending, dtype) == (".bmp", np.uint16):
        pytest.skip("BMP has eight bits")
    labels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (1, 9, 11)).astype(dtype)
    imsave(tmp_path / "in.png", voxels((9, 11), np.uint8), check_contrast=False)
    geometry = read_image([tmp_path / "in.png"], "NaturalImage2DIO").geometry
    path = tmp_path / f"out{ending}"
    write_labels(path, labels, geometry)
    written = imread(path)
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, labels[0])
    np.testing.assert_array_equal(read_labels(path)[0], labels)


@pytest.mark.parametrize("reader", ["NaturalImage2DIO", "Tiff3DIO"])
def test_a_tiff_that_names_other_files_is_refused(tmp_path: Path, reader: str) -> None:
    other = np.full((2, 9, 11), 77, np.uint8)
    tifffile.imwrite(tmp_path / "other.ome.tif", other, description=OME, metadata=None, photometric="minisblack")
    mine = tmp_path / "mine.ome.tif"
    tifffile.imwrite(mine, np.zeros((2, 9, 11), np.uint8), description=OME, metadata=None, photometric="minisblack")
    with pytest.raises(CaseError, match="several files"):
        read_image([mine], reader)


def test_an_ome_tiff_on_its_own_is_read(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 200, (5, 9, 11)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZYX"}, ome=True)
    np.testing.assert_array_equal(read_image([tmp_path / "a.ome.tif"], "Tiff3DIO").array[0], stack)


@pytest.mark.parametrize(
    "content", [b"[" * 60_000, b'{"spacing": [1, 1, 1e999]}', b'{"spacing": [0, 1, 1]}', b"\xff\xfe"]
)
def test_damaged_spacing_files(tmp_path: Path, content: bytes) -> None:
    tifffile.imwrite(tmp_path / "a_0000.tif", np.zeros((5, 9, 11), np.uint8))
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CaseError, match="spacing"):
        read_image([tmp_path / "a_0000.tif"], "Tiff3DIO")


@pytest.mark.parametrize("number", [2, 33, 133, 139])
def test_stacks_that_decode_to_nothing(tmp_path: Path, number: int) -> None:
    """Found among the mutants: the directory promises a stack, the decoder gives none of its slices."""
    tifffile.imwrite(tmp_path / "a.tif", voxels((6, 12, 14)), compression="zlib")
    data = (tmp_path / "a.tif").read_bytes()
    *_, mutant = itertools.islice(mutants(data, "tiff", number + 1), number + 1)
    (tmp_path / "a.tif").write_bytes(mutant)
    with pytest.raises(CaseError, match=r"a\.tif"):
        read_image([tmp_path / "a.tif"], "Tiff3DIO")


def test_a_tile_far_larger_than_its_image_is_refused(tmp_path: Path) -> None:
    """A megabyte of zeros, compressed, would become a tile of a gigabyte for an image of 16 x 16."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for name in ("TileWidth", "TileLength"):
            tiff.pages[0].tags[name].overwrite(1 << 15, dtype="I")
    for read in (lambda: read_image([path], "NaturalImage2DIO"), lambda: read_photograph(path, Pixels())):
        with pytest.raises(CaseError, match="tiles"):
            read()
