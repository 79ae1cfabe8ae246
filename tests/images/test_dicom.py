"""DICOM: one series in position order; gaps, tilts, phases and strangers are refused."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from image_samples import dicom_enhanced, dicom_series, dicom_slice, rotation, voxels
from limited import limited

from offline_infer.errors import GeometryError, ImageError
from offline_infer.images import read_image, write_labels
from offline_infer.images.dicom_tags import check_pixels

PIXELS = voxels((12, 20, 30), np.uint8).astype(np.int16)


def heights(count: int = 12, step: float = 2.5) -> list[tuple[float, float, float]]:
    return [(10.0, 20.0, step * i) for i in range(count)]


def by_itk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    (series,) = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series))
    return reader.Execute()


@pytest.mark.parametrize("suffix", [".dcm", ".IMA", ""])
def test_series_as_itk_reads_it(tmp_path: Path, suffix: str) -> None:
    folder = dicom_series(tmp_path / "case", PIXELS, heights(), suffix)
    image = read_image([folder], "SimpleITKIO")
    np.testing.assert_array_equal(image.array[0], PIXELS - 1024)
    expected = by_itk(folder)
    np.testing.assert_array_equal(image.array[0], sitk.GetArrayFromImage(expected))
    assert image.geometry.spacing == expected.GetSpacing()[::-1]
    np.testing.assert_allclose(image.geometry.origin, expected.GetOrigin())
    np.testing.assert_allclose(image.geometry.direction, expected.GetDirection())
    assert image.notes == ()


def test_oblique_series_and_label_map(tmp_path: Path) -> None:
    axes = rotation(0.3, 0.2, -0.6)
    positions = [tuple(np.array([10, 20, 5]) + axes[:, 2] * 2.5 * i) for i in range(12)]
    folder = dicom_series(tmp_path / "case", PIXELS, positions, orientation=(*axes[:, 0], *axes[:, 1]))
    image = read_image([folder], "SimpleITKIO")
    np.testing.assert_allclose(np.reshape(image.geometry.direction, (3, 3)), axes, atol=1e-6)
    assert image.geometry.spacing == pytest.approx((2.5, 0.7, 0.7))
    labels = (PIXELS % 3).astype(np.uint8)
    write_labels(tmp_path / "out.nii.gz", labels, image.geometry)
    written = sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    np.testing.assert_allclose(written.GetOrigin(), by_itk(folder).GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(written.GetDirection(), by_itk(folder).GetDirection(), atol=1e-6)


def test_head_first_and_feet_first_are_one_image(tmp_path: Path) -> None:
    up = dicom_series(tmp_path / "up", PIXELS, heights())
    down = dicom_series(tmp_path / "down", PIXELS[::-1], heights()[::-1])
    np.testing.assert_array_equal(*(read_image([folder], "SimpleITKIO").array for folder in (up, down)))


def test_reoriented_series(tmp_path: Path) -> None:
    folder = dicom_series(tmp_path / "case", PIXELS, heights())
    image = read_image([folder], "NibabelIOWithReorient")
    expected = sitk.DICOMOrient(by_itk(folder), "RAS")
    np.testing.assert_array_equal(image.array[0], sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(image.geometry.origin, expected.GetOrigin())


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    for index, (position, slope) in enumerate(zip(heights(3), (1, 0.5, 2.25), strict=True)):
        dicom_slice(tmp_path / f"{index}.dcm", PIXELS[index], position, slope=slope)
    image = read_image([tmp_path], "SimpleITKIO")
    for index, slope in enumerate((1, 0.5, 2.25)):
        np.testing.assert_array_equal(image.array[0, index], PIXELS[index] * slope - 1024)


def test_several_series_are_listed(tmp_path: Path) -> None:
    dicom_series(tmp_path, PIXELS[:3], heights(3), suffix="a.dcm", description="thin")
    dicom_series(tmp_path, PIXELS[:2], heights(2), suffix="b.dcm", series="5.6.7", description="thick")
    with pytest.raises(ImageError) as caught:
        read_image([tmp_path], "SimpleITKIO")
    message = str(caught.value)
    for part in ("2 DICOM series", "3 files, e.g. im", "2 files, e.g. im", "own folder"):
        assert part in message
    for private in ("thin", "thick", "1.2.3.4", "5.6.7", "nobody"):
        assert private not in message.replace(str(tmp_path), "")


def test_strangers_beside_the_series(tmp_path: Path) -> None:
    folder = dicom_series(tmp_path, PIXELS[:4], heights(4))
    dicom_slice(folder / "report.dcm", PIXELS[0], (0, 0, 99), sop_class="1.2.840.10008.5.1.4.1.1.88.22", series="8")
    (folder / "readme.txt").write_text("hello")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / ".hidden.dcm").write_bytes(b"x")
    (folder / "sub").mkdir()
    assert read_image([folder], "SimpleITKIO").array.shape == (1, 4, 20, 30)


@pytest.mark.parametrize("missing", [1, 6, 10])
def test_missing_slice(tmp_path: Path, missing: int) -> None:
    keep = [i for i in range(12) if i != missing]
    folder = dicom_series(tmp_path, PIXELS[keep], [heights()[i] for i in keep])
    with pytest.raises(GeometryError, match=r"5\.000 mm between .* usually 2\.500 mm"):
        read_image([folder], "SimpleITKIO")


def test_varying_distances(tmp_path: Path) -> None:
    places = [(10, 20, z) for z in (0, 1, 2, 3, 8, 13, 18)]
    with pytest.raises(GeometryError, match="uneven"):
        read_image([dicom_series(tmp_path, PIXELS, places)], "SimpleITKIO")


def test_positions_rounded_to_tenths_are_even_enough(tmp_path: Path) -> None:
    places = [(10, 20, round(0.625 * i, 1)) for i in range(12)]
    image = read_image([dicom_series(tmp_path, PIXELS, places)], "SimpleITKIO")
    assert image.geometry.spacing[0] == pytest.approx(0.625, rel=0.01)
    assert "slice distances vary" in image.notes[0]


def test_two_phases(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="same place"):
        read_image([dicom_series(tmp_path, PIXELS, heights(6) * 2)], "SimpleITKIO")


def test_gantry_tilt(tmp_path: Path) -> None:
    places = [(10, 20 + 0.4 * 2.5 * i, 2.5 * i) for i in range(12)]
    with pytest.raises(GeometryError, match=r"gantry tilt of 21\.8 degrees"):
        read_image([dicom_series(tmp_path, PIXELS, places)], "SimpleITKIO")


def test_scout_in_the_series(tmp_path: Path) -> None:
    folder = dicom_series(tmp_path, PIXELS[:5], heights(5))
    dicom_slice(folder / "scout.dcm", PIXELS[5], (0, 0, 0), orientation=(1, 0, 0, 0, 0, -1))
    with pytest.raises(GeometryError, match="one stack"):
        read_image([folder], "SimpleITKIO")


@pytest.mark.parametrize(
    "orientation", [[0] * 6, [1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0], [2, 0, 0, 0, 2, 0], [1e200, 0, 0, 0, 1, 0]]
)
@pytest.mark.parametrize("count", [1, 3])
def test_an_impossible_orientation_is_no_identity(tmp_path: Path, orientation: list[float], count: int) -> None:
    for index, position in enumerate(heights(count)):
        dicom_slice(tmp_path / f"{index}.dcm", PIXELS[index], position, orientation=orientation)
    with pytest.raises(GeometryError, match="orientation"):
        read_image([tmp_path], "SimpleITKIO")


def test_a_size_that_the_file_cannot_hold(tmp_path: Path) -> None:
    """GDCM makes an image of zeros of it, in as much memory as the header asks for."""
    path = dicom_slice(tmp_path / "a.dcm", PIXELS[0], (0, 0, 0))
    data = path.read_bytes()
    for tag in (b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x11\x00US\x02\x00"):  # Rows and Columns
        place = data.index(tag) + len(tag)
        data = data[:place] + b"\xff\xff" + data[place + 2 :]
    path.write_bytes(data)
    with pytest.raises(GeometryError, match="cannot hold"):
        read_image([path], "SimpleITKIO")


def test_without_any_orientation(tmp_path: Path) -> None:
    import pydicom

    folder = dicom_series(tmp_path / "a", PIXELS[:3], heights(3))
    paths = sorted(folder.iterdir())
    for path in paths:
        dataset = pydicom.dcmread(path)
        del dataset.ImageOrientationPatient
        dataset.save_as(path)
    with pytest.raises(GeometryError, match="no orientation"):
        read_image([folder], "SimpleITKIO")
    assert "orientation" in read_image([paths[0]], "SimpleITKIO").notes[0]


@pytest.mark.parametrize("orientation", [[0] * 6, [0, 1, 0, 0, 0, 1]])
def test_orientations_of_enhanced_frames(tmp_path: Path, orientation: list[float]) -> None:
    import pydicom
    from pydicom.dataset import Dataset

    path = dicom_enhanced(tmp_path / "a.dcm", PIXELS[:4], [0, 2.5, 5, 7.5])
    dataset = pydicom.dcmread(path)
    plane = Dataset()
    plane.ImageOrientationPatient = orientation
    dataset.PerFrameFunctionalGroupsSequence[2].PlaneOrientationSequence = [plane]
    dataset.save_as(path)
    with pytest.raises(GeometryError, match="orientation"):
        read_image([path], "SimpleITKIO")


def test_slices_without_a_position(tmp_path: Path) -> None:
    import pydicom

    folder = dicom_series(tmp_path, PIXELS[:3], heights(3))
    path = sorted(folder.iterdir())[1]
    dataset = pydicom.dcmread(path)
    del dataset.ImagePositionPatient
    dataset.save_as(path)
    with pytest.raises(GeometryError, match="no position"):
        read_image([folder], "SimpleITKIO")


def test_one_slice_takes_its_thickness(tmp_path: Path) -> None:
    path = dicom_slice(tmp_path / "a.dcm", PIXELS[0], (1, 2, 3))
    image = read_image([path], "SimpleITKIO")
    assert image.array.shape == (1, 1, 20, 30)
    assert image.geometry.spacing == (2.5, 0.7, 0.7)


def test_truncated_slice_and_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = dicom_series(tmp_path / "series", PIXELS[:4], heights(4))
    victim = sorted(folder.iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:-300])
    with pytest.raises(ImageError, match=victim.name):
        read_image([folder], "SimpleITKIO")
    (tmp_path / "text.dcm").write_text("hello " * 100)
    with pytest.raises(ImageError, match=r"text\.dcm"):
        read_image([tmp_path / "text.dcm"], "SimpleITKIO")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sign", [1, -1])
def test_enhanced_multi_frame(tmp_path: Path, sign: int) -> None:
    path = dicom_enhanced(tmp_path / "a.dcm", PIXELS, [sign * 2.5 * i for i in range(12)])
    image = read_image([path], "SimpleITKIO")
    np.testing.assert_array_equal(image.array[0], PIXELS - 1024)
    assert image.geometry.spacing == pytest.approx((2.5, 0.7, 0.7))
    assert image.geometry.direction[8] == sign


@pytest.mark.parametrize("places", [[0, 5, 2.5, 7.5, 10, 12.5], [0, 2.5, 5, 10, 12.5, 15], [0, 0, 2.5, 2.5, 5, 5]])
def test_enhanced_frames_that_are_no_stack(tmp_path: Path, places: list[float]) -> None:
    path = dicom_enhanced(tmp_path / "a.dcm", PIXELS[:6], places)
    with pytest.raises(GeometryError, match=r"a\.dcm"):
        read_image([path], "SimpleITKIO")


def test_frames_without_positions(tmp_path: Path) -> None:
    path = dicom_slice(tmp_path / "a.dcm", PIXELS[:6], (1, 2, 3))
    with pytest.raises(GeometryError, match="no positions"):
        read_image([path], "SimpleITKIO")


def test_two_dicom_channels_must_agree(tmp_path: Path) -> None:
    first = dicom_series(tmp_path / "a_0000", PIXELS, heights())
    second = dicom_series(tmp_path / "a_0001", PIXELS, heights(), series="2.2")
    assert read_image([first, second], "SimpleITKIO").array.shape == (2, 12, 20, 30)
    third = dicom_series(tmp_path / "b_0001", PIXELS, heights(step=3), series="2.3")
    with pytest.raises(GeometryError, match="spacing"):
        read_image([first, third], "SimpleITKIO")


def test_two_dimensional_models_take_no_dicom(tmp_path: Path) -> None:
    path = dicom_slice(tmp_path / "a.dcm", PIXELS[0], (1, 2, 3))
    with pytest.raises(ImageError, match="DICOM"):
        read_image([path], "NaturalImage2DIO")


def changed(folder: Path, **fields: object) -> Path:
    """The series with other values of these tags in every slice; None takes a tag out."""
    import pydicom

    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        for name, value in fields.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        dataset.save_as(path)
    return folder


@pytest.mark.parametrize("kept", [0, 20, 1198])
def test_pixels_that_are_not_there_are_not_made_up(tmp_path: Path, kept: int) -> None:
    """GDCM gave whatever lay in the process's memory where a slice held too few bytes."""
    folder = changed(dicom_series(tmp_path / "case", PIXELS, heights()), PixelData=bytes(kept))
    with pytest.raises(ImageError, match=r"truncated|cannot be read"):
        read_image([folder], "SimpleITKIO")
    frames = dicom_enhanced(tmp_path / "frames.dcm", PIXELS, [2.5 * i for i in range(12)])
    frames.write_bytes(frames.read_bytes()[:-300])
    with pytest.raises(ImageError, match="truncated"):
        read_image([frames], "SimpleITKIO")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"PixelSpacing": [0, 0]}, "PixelSpacing"),
        ({"PixelSpacing": [0.7]}, "PixelSpacing"),
        ({"RescaleSlope": 0}, "RescaleSlope"),
        ({"ImageOrientationPatient": [0] * 6}, "ImageOrientationPatient"),
    ],
)
def test_damaged_geometry_is_not_replaced_by_a_guess(tmp_path: Path, fields: dict[str, object], said: str) -> None:
    folder = changed(dicom_series(tmp_path / "case", PIXELS, heights()), **fields)
    with pytest.raises((GeometryError, ImageError), match=said):
        read_image([folder], "SimpleITKIO")


def test_what_a_series_does_not_say_is_remarked(tmp_path: Path) -> None:
    folder = changed(dicom_series(tmp_path / "case", PIXELS, heights()), PixelSpacing=None)
    (note,) = read_image([folder], "SimpleITKIO").notes
    assert "how far its voxels are apart (1 mm was taken)" in note
    (tmp_path / "one").mkdir()
    dicom_slice(tmp_path / "one" / "s.dcm", PIXELS[0], (1, 2, 3))
    assert not read_image([tmp_path / "one"], "SimpleITKIO").notes
    changed(tmp_path / "one", ImagePositionPatient=None, ImageOrientationPatient=None, SliceThickness=None)
    said = " ".join(read_image([tmp_path / "one"], "SimpleITKIO").notes)
    for words in ("how thick its slice is", "where it lies", "how it is turned"):
        assert words in said
    single = dicom_enhanced(tmp_path / "frame.dcm", PIXELS[:1], [0.0])
    assert not any("turned" in note for note in read_image([single], "SimpleITKIO").notes)


@pytest.mark.parametrize("tag", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_slices_of_several_patients_are_no_volume(tmp_path: Path, tag: str) -> None:
    """A series number may be missing, or used twice; what the tags say is not repeated."""
    for part, value in enumerate(("1.2.77", "1.2.88")):
        folder = dicom_series(tmp_path / f"{part}", PIXELS[:3], [(0, 0, 2.5 * i + 7.5 * part) for i in range(3)])
        for path in changed(folder, **{tag: value}).iterdir():
            path.rename(tmp_path / "0" / f"{part}_{path.name}")
    with pytest.raises(ImageError, match="its slices belong to 2") as error:
        read_image([tmp_path / "0"], "SimpleITKIO")
    assert "1.2.77" not in str(error.value)


def test_a_deflated_file_is_not_inflated_to_count_its_pixels(tmp_path: Path) -> None:
    from pydicom.filereader import read_file_meta_info
    from pydicom.filewriter import write_file_meta_info

    path = dicom_slice(tmp_path / "a.dcm", PIXELS[0], (0, 0, 0))
    meta = read_file_meta_info(path)
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    deflate = zlib.compressobj(9, wbits=-15)
    with path.open("wb") as stream:
        stream.write(bytes(128) + b"DICM")
        write_file_meta_info(stream, meta)
        for _ in range(16):
            stream.write(deflate.compress(bytes(1 << 24)))
        stream.write(deflate.flush())
    limited(check_pixels, path, memory=1 << 27)


def test_uncompressed_pixels_have_a_length(tmp_path: Path) -> None:
    path = dicom_slice(tmp_path / "a.dcm", PIXELS[0], (0, 0, 0))
    size = PIXELS[0].nbytes.to_bytes(4, "little")
    head = b"\xe0\x7f\x10\x00OW\0\0"
    assert head + size in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(head + size, head + b"\xff\xff\xff\xff"))
    with pytest.raises(ImageError):
        read_image([path], "SimpleITKIO")
