"""Each of nnU-Net's reader classes is followed: array, spacing, and the frame of the label map that is written.

The expectations are written down with SimpleITK and nibabel themselves, the libraries nnU-Net's readers are made of.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from image_samples import DIRECTIONS, ORIGIN, SPACING, itk_image, save, save_plain, voxels
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from skimage.io import imread, imsave

from offline_infer.arithmetic.axes import Turn
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import GeometryError, ImageError, UsageError
from offline_infer.images import read_image, read_labels, write_labels


def labels_of(array: np.ndarray) -> np.ndarray:
    """Something to write: labels that depend on the voxels."""
    return (np.abs(array[0]).astype(np.int64) % 4).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_simpleitk_values_and_spacing(tmp_path: Path, dtype: type, ending: str) -> None:
    path = save(tmp_path / f"a{ending}", voxels(dtype=dtype), DIRECTIONS["oblique"])
    image = read_image([path], "SimpleITKIO")
    stored = sitk.ReadImage(str(path))
    assert image.array.dtype == np.float32
    assert image.array.flags.c_contiguous
    np.testing.assert_array_equal(image.array[0], sitk.GetArrayFromImage(stored).astype(np.float32))
    assert image.geometry.spacing == tuple(stored.GetSpacing()[::-1])
    assert image.geometry.shape == image.array.shape[1:]
    assert image.geometry.reader == "SimpleITKIO"


def test_nifti_spacing_is_the_float32_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels())
    for reader in ("SimpleITKIO", "NibabelIO"):
        assert read_image([path], reader).geometry.spacing == (2.5, 0.6499999761581421, 0.7799999713897705)


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_simpleitk_round_trip(tmp_path: Path, name: str, ending: str) -> None:
    path = save(tmp_path / f"a{ending}", voxels(), DIRECTIONS[name])
    image = read_image([path], "SimpleITKIO")
    written = tmp_path / f"out{ending}"
    write_labels(written, labels_of(image.array), image.geometry)
    before, after = sitk.ReadImage(str(path)), sitk.ReadImage(str(written))
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(after, get)(), getattr(before, get)(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), labels_of(image.array))
    assert after.GetPixelID() == sitk.sitkUInt8
    again, frame = read_labels(written)
    np.testing.assert_array_equal(again, labels_of(image.array))
    assert frame.spacing == pytest.approx(image.geometry.spacing, rel=1e-12)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_simpleitk_reorient_follows_dicom_orient(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), DIRECTIONS[name])
    stored = sitk.ReadImage(str(path))
    wanted = sitk.DICOMOrient(stored, "RAS")
    image = read_image([path], "SimpleITKIOWithReorient")
    np.testing.assert_array_equal(image.array[0], sitk.GetArrayFromImage(wanted).astype(np.float32))
    assert image.geometry.spacing == tuple(wanted.GetSpacing()[::-1])
    np.testing.assert_allclose(image.geometry.origin, wanted.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(image.geometry.direction, wanted.GetDirection(), atol=1e-9)
    write_labels(tmp_path / "out.nii.gz", labels_of(image.array), image.geometry)
    after = sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(after, get)(), getattr(stored, get)(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(after), labels_of(sitk.GetArrayFromImage(stored).astype(np.float32)[None])
    )


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("turned", [False, True])
def test_nibabel_round_trip(tmp_path: Path, name: str, turned: bool) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), DIRECTIONS[name])
    stored = nibabel.load(path)
    wanted = stored.as_reoriented(io_orientation(stored.affine)) if turned else stored
    image = read_image([path], "NibabelIOWithReorient" if turned else "NibabelIO")
    np.testing.assert_array_equal(image.array[0], wanted.get_fdata().transpose(2, 1, 0).astype(np.float32))
    assert image.geometry.spacing == tuple(float(zoom) for zoom in wanted.header.get_zooms()[::-1])
    labels = labels_of(image.array)
    write_labels(tmp_path / "out.nii.gz", labels, image.geometry)
    after = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(after.affine, stored.affine, atol=1e-5)
    expected = nibabel.Nifti1Image(labels.transpose(2, 1, 0), wanted.affine)
    if turned:
        back = ornt_transform(axcodes2ornt("RAS"), io_orientation(stored.affine))
        expected = expected.as_reoriented(back)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(expected.dataobj))
    assert after.get_data_dtype() == np.uint8


def test_nibabel_frame_agrees_with_itk(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), DIRECTIONS["oblique"])
    ours, itks = (read_image([path], reader).geometry for reader in ("NibabelIO", "SimpleITKIO"))
    np.testing.assert_allclose(ours.origin, itks.origin, atol=1e-4)
    np.testing.assert_allclose(ours.direction, itks.direction, atol=1e-6)
    np.testing.assert_allclose(ours.itk_spacing, itks.itk_spacing, rtol=1e-6)


@pytest.mark.parametrize(("reader", "twin"), [("NibabelIO", "SimpleITKIO"), ("NibabelIOWithReorient", None)])
def test_nibabel_models_read_other_formats_as_itk_does(tmp_path: Path, reader: str, twin: str | None) -> None:
    twin = twin or "SimpleITKIOWithReorient"
    nifti = save(tmp_path / "a.nii.gz", voxels(), DIRECTIONS["oblique_left_handed"])
    other = save(tmp_path / "a.mha", voxels(), DIRECTIONS["oblique_left_handed"])
    image = read_image([other], reader)
    assert image.geometry.reader == twin
    np.testing.assert_array_equal(image.array, read_image([nifti], reader).array)


@pytest.mark.parametrize(
    ("slope", "inter", "dtype"),
    [
        (2.5, -1024, "<i2"),
        (0.1, 0, "u1"),
        (1, -1000, ">u2"),
        (0.0007, 3.3, "<i4"),
        (1.5, 0.25, "<f4"),
        (0.3, 1, ">f8"),
        (0, 7, "<i2"),
        (np.nan, 7, "<i2"),
        (np.inf, 0, "<i2"),
        (1e-20, 5, "<i2"),
    ],
)
def test_scaled_and_foreign_byte_order(tmp_path: Path, slope: float, inter: float, dtype: str) -> None:
    stored = voxels(dtype=np.dtype(dtype).newbyteorder("="), shape=(5, 6, 7))
    header = nibabel.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_shape(stored.shape[::-1])
    header.set_data_dtype(np.dtype(dtype))
    header["pixdim"][1:4] = 1
    header["scl_slope"], header["scl_inter"] = slope, inter
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(header.binaryblock + bytes(4) + stored.astype(dtype).tobytes())
    by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float32)
    by_nibabel = nibabel.load(path).get_fdata().transpose(2, 1, 0).astype(np.float32)
    np.testing.assert_array_equal(read_image([path], "SimpleITKIO").array[0], by_itk)
    np.testing.assert_array_equal(read_image([path], "NibabelIO").array[0], by_nibabel)


def test_two_dimensional_volume_formats(tmp_path: Path) -> None:
    flat = voxels((12, 17), np.uint8)
    path = save(tmp_path / "a.nii.gz", flat, spacing=(0.5, 0.75), origin=(3, 4))
    image = read_image([path], "SimpleITKIO")
    assert image.array.shape == (1, 1, 12, 17)
    assert image.geometry.spacing == (999 * 0.75, 0.75, 0.5)
    write_labels(tmp_path / "out.nii.gz", labels_of(image.array), image.geometry)
    after = sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    assert after.GetDimension() == 2
    assert after.GetSpacing() == (0.5, 0.75)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), labels_of(image.array)[0])
    with pytest.raises(ImageError, match="two-dimensional"):
        read_image([path], "SimpleITKIOWithReorient")
    with pytest.raises(ImageError, match="3-dimensional"):
        read_image([path], "NibabelIO")


def test_trailing_axis_of_one_is_no_fourth_dimension(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    stored = voxels((4, 5, 6, 1))
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([1, 2, 3, 1])), path)
    for reader in ("SimpleITKIO", "NibabelIO"):
        image = read_image([path], reader)
        np.testing.assert_array_equal(image.array[0], stored[..., 0].transpose(2, 1, 0))
        assert image.geometry.spacing == (3, 2, 1)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_four_dimensions_suggest_the_converter(tmp_path: Path, ending: str) -> None:
    path = save_plain(tmp_path / f"a{ending}", np.zeros((2, 5, 6, 7), np.int16))
    if ending == ".mha":
        sitk.WriteImage(sitk.JoinSeries([itk_image(voxels()), itk_image(voxels())]), str(path))
    else:
        nibabel.save(nibabel.Nifti1Image(np.zeros((7, 6, 5, 2), np.int16), np.eye(4)), path)
    for reader in ("SimpleITKIO", "NibabelIO"):
        with pytest.raises(ImageError, match="convert-msd"):
            read_image([path], reader)


def test_colours_in_a_volume_format_are_refused(tmp_path: Path) -> None:
    array = np.zeros((4, 5, 6, 3), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "a.nrrd"))
    with pytest.raises(ImageError, match="3 numbers per voxel"):
        read_image([tmp_path / "a.nrrd"], "SimpleITKIO")


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_natural_images(tmp_path: Path, ending: str) -> None:
    colours = voxels((12, 17, 3), np.uint8)
    imsave(tmp_path / f"rgb{ending}", colours, check_contrast=False)
    imsave(tmp_path / f"grey{ending}", colours[..., 0], check_contrast=False)
    rgb = read_image([tmp_path / f"rgb{ending}"], "NaturalImage2DIO", channels=3)
    assert rgb.array.shape == (3, 1, 12, 17)
    assert rgb.geometry.spacing == (999, 1, 1)
    np.testing.assert_array_equal(rgb.array[:, 0], colours.transpose(2, 0, 1))
    grey = read_image([tmp_path / f"grey{ending}"], "NaturalImage2DIO")
    np.testing.assert_array_equal(grey.array[0, 0], colours[..., 0])
    both = read_image([tmp_path / f"grey{ending}"] * 2, "NaturalImage2DIO")
    assert both.array.shape == (2, 1, 12, 17)
    with pytest.raises(GeometryError, match="1 channels, but the model expects 3"):
        read_image([tmp_path / f"grey{ending}"], "NaturalImage2DIO", channels=3)
    write_labels(tmp_path / f"out{ending}", labels_of(rgb.array), rgb.geometry)
    np.testing.assert_array_equal(imread(tmp_path / f"out{ending}"), labels_of(rgb.array)[0])
    labels, frame = read_labels(tmp_path / f"out{ending}")
    assert labels.shape == (1, 12, 17)
    assert frame.spacing == (999, 1, 1)


def test_sixteen_bit_png_and_labels(tmp_path: Path) -> None:
    imsave(tmp_path / "a.png", voxels((6, 8), np.uint8).astype(np.uint16) * 200, check_contrast=False)
    image = read_image([tmp_path / "a.png"], "NaturalImage2DIO")
    assert image.array.max() > 255
    many = np.full((1, 6, 8), 300, np.uint16)
    write_labels(tmp_path / "out.png", many, image.geometry)
    np.testing.assert_array_equal(read_labels(tmp_path / "out.png")[0], many)
    with pytest.raises(ImageError, match="eight bits"):
        write_labels(tmp_path / "out.bmp", many, image.geometry)
    assert not (tmp_path / "out.bmp").exists()


def test_tiff_stack_with_and_without_spacing(tmp_path: Path) -> None:
    stack = voxels((6, 12, 17), np.uint16)
    tifffile.imwrite(tmp_path / "case_0000.tif", stack)
    image = read_image([tmp_path / "case_0000.tif"], "Tiff3DIO")
    np.testing.assert_array_equal(image.array[0], stack)
    assert image.geometry.spacing == (1, 1, 1)
    assert "case.json" in image.notes[0]
    (tmp_path / "case.json").write_text(json.dumps({"spacing": [3, 1.5, 1.25]}))
    image = read_image([tmp_path / "case_0000.tif"], "Tiff3DIO")
    assert image.geometry.spacing == (3, 1.5, 1.25)
    assert image.notes == ()
    write_labels(tmp_path / "result" / "case.tif", labels_of(image.array), image.geometry)
    labels, frame = read_labels(tmp_path / "result" / "case.tif")
    np.testing.assert_array_equal(labels, labels_of(image.array))
    assert frame.spacing == (3, 1.5, 1.25)
    assert frame.reader == "Tiff3DIO"
    (tmp_path / "case.json").write_text(json.dumps({"spacing": [3, -1.5, 1.25]}))
    with pytest.raises(GeometryError, match="spacing"):
        read_image([tmp_path / "case_0000.tif"], "Tiff3DIO")


def test_a_colour_tiff_is_no_stack(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "rgb_0000.tif", voxels((12, 17, 3), np.uint8), photometric="rgb")
    with pytest.raises(ImageError, match="colours"):
        read_image([tmp_path / "rgb_0000.tif"], "Tiff3DIO")


def test_channels_are_stacked_in_the_given_order(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"c_{i:04d}.nii.gz", voxels(seed=i), DIRECTIONS["oblique"]) for i in range(3)]
    image = read_image(paths, "SimpleITKIO", channels=3)
    for channel in range(3):
        np.testing.assert_array_equal(image.array[channel], voxels(seed=channel))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"shape": (7, 9, 12)}, "shape"),
        ({"spacing": (0.78, 0.65, 2.6)}, "spacing"),
        ({"origin": (-123.4, 55.1, -897.75)}, "origin"),
        ({"direction": DIRECTIONS["flipped_z"]}, "direction"),
    ],
)
def test_channels_must_lie_on_one_grid(tmp_path: Path, change: dict, word: str) -> None:
    first = save(tmp_path / "a_0000.nii.gz", voxels())
    frame = {"spacing": SPACING, "origin": ORIGIN, "direction": None, **change}
    other = save(tmp_path / "a_0001.nii.gz", voxels(frame.pop("shape", (7, 9, 11))), frame.pop("direction"), **frame)
    with pytest.raises(GeometryError, match=word) as caught:
        read_image([first, other], "SimpleITKIO")
    assert str(first) in str(caught.value)
    assert str(other) in str(caught.value)


def test_rounding_between_formats_is_no_different_grid(tmp_path: Path) -> None:
    first = save(tmp_path / "a_0000.nii.gz", voxels(), DIRECTIONS["oblique"])
    other = save(tmp_path / "a_0001.mha", voxels(), DIRECTIONS["oblique"])
    assert read_image([first, other], "SimpleITKIO").array.shape == (2, 7, 9, 11)


def test_uncompressed_file_named_gz_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", voxels())
    renamed = path.rename(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(read_image([renamed], "SimpleITKIO").array[0], voxels())


def test_gzip_of_several_members_is_read(tmp_path: Path) -> None:
    data = save(tmp_path / "a.nii", voxels((20, 30, 40))).read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(b"".join(gzip.compress(data[i : i + 10_000]) for i in range(0, len(data), 10_000)))
    np.testing.assert_array_equal(read_image([path], "SimpleITKIO").array[0], voxels((20, 30, 40)))


def test_names_with_blanks_accents_and_capitals(tmp_path: Path) -> None:
    path = save(tmp_path / "Prüfung 1 (neu).nii.gz", voxels())
    capital = path.rename(tmp_path / "Prüfung 1 (neu).NII.GZ")
    assert read_image([capital], "SimpleITKIO").array.shape == (1, 7, 9, 11)


def test_wrong_reader_and_no_path() -> None:
    with pytest.raises(UsageError, match="SimpleITKIO, "):
        read_image([Path("a.nii.gz")], "MyReader")
    with pytest.raises(UsageError, match="no image"):
        read_image([], "SimpleITKIO")


def test_geometry_survives_json(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), DIRECTIONS["oblique_left_handed"])
    for reader in ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"):
        image = read_image([path], reader)
        copied = ImageGeometry.from_json(json.loads(json.dumps(image.geometry.to_json())))
        write_labels(tmp_path / "one.nii.gz", labels_of(image.array), image.geometry)
        write_labels(tmp_path / "two.nii.gz", labels_of(image.array), copied)
        assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "ASL", "SRP"])
def test_turn_and_back_is_nothing(codes: str) -> None:
    turn = Turn.from_codes(codes)
    array = voxels((3, 4, 5))
    np.testing.assert_array_equal(turn.undo(turn.apply(array)), array)
    assert Turn.from_json(turn.to_json()) == turn


@pytest.mark.parity
def test_real_predictions_are_written_byte_for_byte(goldens: Path, tmp_path: Path) -> None:
    """The framework's own label files, written again from what is read of image and labels."""
    images = goldens / "v2" / "images" / "Dataset003_Liver"
    results = goldens / "v2" / "expected" / "003_3d_f0_tta"
    compared = 0
    for expected in sorted(results.glob("*.nii.gz")):
        case = expected.name.removesuffix(".nii.gz")
        image = read_image([images / f"{case}_0000.nii.gz"], "SimpleITKIO")
        labels, _ = read_labels(expected)
        write_labels(tmp_path / expected.name, labels, image.geometry)
        ours, theirs = gzip.decompress((tmp_path / expected.name).read_bytes()), gzip.decompress(expected.read_bytes())
        assert ours == theirs
        compared += 1
    assert compared >= 3


@pytest.mark.parity
def test_real_images_are_read_as_itk_reads_them(goldens: Path) -> None:
    for path in sorted((goldens / "v2" / "images").glob("*/*.nii.gz")):
        image = read_image([path], "SimpleITKIO")
        stored = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(image.array[0], sitk.GetArrayViewFromImage(stored))
        assert image.geometry.spacing == tuple(stored.GetSpacing()[::-1])
