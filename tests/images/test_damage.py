"""Bad files: one readable line that names the file, nothing on stderr, and never voxels that were not in the file."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from image_samples import save, save_plain, voxels
from skimage.io import imsave

from offline_infer.errors import CaseError, GeometryError, ImageError, UsageError
from offline_infer.images import read_image, read_labels, write_labels
from offline_infer.images.cases import find_cases
from offline_infer.images.streams import pieces

ENDINGS = [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl"]
BIG = (40, 60, 70)  # enough that damage in the middle lies beyond every header buffer


def refused(path: Path, reader: str = "SimpleITKIO", capfd: pytest.CaptureFixture[str] | None = None) -> str:
    """The message with which a file is refused; it must be one line that names the file."""
    with pytest.raises(CaseError) as caught:
        read_image([path], reader)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    assert "0x" not in message
    assert len(message) - len(str(path)) < 300
    if capfd is not None:
        out, err = capfd.readouterr()
        assert (out, err) == ("", "")
    return message


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("part", [0.1, 0.66, 0.999])
def test_truncated(tmp_path: Path, ending: str, part: float, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / f"a{ending}", voxels(BIG))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    refused(path, capfd=capfd)
    if ending.startswith(".nii"):
        refused(path, "NibabelIO", capfd)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_damaged_compressed_data(tmp_path: Path, ending: str, place: float, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / f"a{ending}", voxels(BIG))
    data = bytearray(path.read_bytes())
    for offset in range(8):
        data[int(len(data) * place) + offset] ^= 0x5A
    path.write_bytes(bytes(data))
    refused(path, capfd=capfd)


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_missing_checksum(tmp_path: Path, cut: int) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(BIG))
    path.write_bytes(path.read_bytes()[:-cut])
    assert "too early" in refused(path)


def test_header_promises_more_than_there_is(tmp_path: Path) -> None:
    data = bytearray(gzip.decompress(save(tmp_path / "a.nii.gz", voxels()).read_bytes()))
    data[46:48] = struct.pack("<h", 400)  # dim[3]
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(bytes(data)))
    assert "truncated" in refused(path)


@pytest.mark.parametrize("ending", [*ENDINGS, ".mhd"])
@pytest.mark.parametrize(
    "content", [b"", b"hello world, this is no image\n" * 50, bytes(5000), b"\x1f\x8b" + b"x" * 400]
)
def test_not_an_image(tmp_path: Path, ending: str, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    message = refused(path, capfd=capfd)
    if not content:
        assert "empty" in message


@pytest.mark.parametrize("ending", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("reader", ["NaturalImage2DIO", "Tiff3DIO"])
def test_bad_two_dimensional_files(tmp_path: Path, ending: str, reader: str, capfd: pytest.CaptureFixture[str]) -> None:
    if reader == "Tiff3DIO" and ending != ".tif":
        pytest.skip("Tiff3DIO reads TIFF only")
    text = tmp_path / f"text{ending}"
    text.write_text("no image " * 40)
    refused(text, reader, capfd)
    path = tmp_path / f"a{ending}"
    if reader == "Tiff3DIO":
        tifffile.imwrite(path, voxels((6, 40, 50)), compression="zlib")
    else:
        imsave(path, voxels((40, 50), np.uint8), check_contrast=False)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(path, reader, capfd)


def test_missing_folder_and_wrong_kind(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    assert "no DICOM files" in refused(tmp_path / "folder.nii.gz")
    assert "takes .png" in refused(tmp_path / "folder.nii.gz", "NaturalImage2DIO")
    imsave(tmp_path / "a.png", voxels((4, 5), np.uint8), check_contrast=False)
    assert "reads .nii.gz" in refused(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("x")
    assert "convert the image" in refused(tmp_path / "notes.txt")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert "does not exist" in refused(tmp_path / "link.nii.gz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels())
    path.chmod(0)
    assert "permission" in refused(path)


def test_permission_denied_in_other_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii.gz", voxels())
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "permission denied" in refused(path)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_not_finite_voxels(tmp_path: Path, ending: str, value: float, word: str) -> None:
    array = voxels(dtype=np.float32)
    array[2, 3, 4] = array[6, 0, 1] = value
    path = save(tmp_path / f"a{ending}", array)
    message = refused(path)
    assert word in message
    assert "2 of 693" in message
    assert "(2, 3, 4)" in message


def test_not_finite_in_the_second_channel_and_in_tiff(tmp_path: Path) -> None:
    array = voxels(dtype=np.float32)
    array[1, 2, 3] = np.nan
    good, bad = save(tmp_path / "a_0000.nii.gz", voxels()), save(tmp_path / "a_0001.nii.gz", array)
    # In RAS axes x and y run backwards: 9 - 1 - 2 = 6, 11 - 1 - 3 = 7.
    with pytest.raises(ImageError, match=r"a_0001.*\(1, 6, 7\)"):
        read_image([good, bad], "NibabelIOWithReorient")
    tifffile.imwrite(tmp_path / "t_0000.tif", array)
    assert "1 of 693" in refused(tmp_path / "t_0000.tif", "Tiff3DIO")


def test_double_too_large_for_float32(tmp_path: Path) -> None:
    array = voxels(dtype=np.float64)
    array[0, 0, 0] = 1e300
    assert "infinite" in refused(save(tmp_path / "a.nii.gz", array))


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf])
def test_impossible_nifti_spacing(tmp_path: Path, step: float, reader: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(save(tmp_path / "a.nii", voxels()).read_bytes())
    data[84:88] = struct.pack("<f", step)  # pixdim[2]
    path = tmp_path / "b.nii"
    path.write_bytes(bytes(data))
    assert "spacing" in refused(path, reader, capfd)


def meta(folder: Path, name: str = "a.mhd", data: bytes = bytes(128), place: str = "a.raw", **fields: str) -> Path:
    """A hand-made MetaImage of 4 x 4 x 4 shorts."""
    header = {"ObjectType": "Image", "NDims": "3", "DimSize": "4 4 4", "ElementType": "MET_SHORT", **fields}
    text = "".join(f"{key} = {value}\n" for key, value in header.items()) + f"ElementDataFile = {place}\n"
    (folder / name).write_bytes(text.encode() + (data if place == "LOCAL" else b""))
    if place == "a.raw":
        (folder / "a.raw").write_bytes(data)
    return folder / name


def test_hand_made_metaimage_is_read(tmp_path: Path) -> None:
    path = meta(tmp_path, ElementSpacing="1 2 3", data=np.arange(64, dtype="<i2").tobytes())
    image = read_image([path], "SimpleITKIO")
    assert image.geometry.spacing == (3, 2, 1)
    np.testing.assert_array_equal(image.array.ravel(), np.arange(64))
    data = zlib.compress(np.arange(64, dtype=">i2").tobytes())
    packed = meta(tmp_path, "b.mha", data, "LOCAL", CompressedData="True", BinaryDataByteOrderMSB="True")
    np.testing.assert_array_equal(read_image([packed], "SimpleITKIO").array.ravel(), np.arange(64))
    behind = meta(tmp_path, data=b"preamble" + np.arange(64, dtype="<i2").tobytes(), HeaderSize="-1")
    np.testing.assert_array_equal(read_image([behind], "SimpleITKIO").array.ravel(), np.arange(64))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"ElementSpacing": "0 1 1"}, "spacing"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "singular"),
        ({"TransformMatrix": "1 0 0 0.3 1 0 0 0 1"}, "sheared"),
        ({"DimSize": "4 4"}, "DimSize"),
        ({"ElementType": "MET_OTHER"}, "ElementType"),
        ({"place": "a.zraw"}, "missing"),
        ({"place": "ab.raw"}, "not a file of this case"),
        ({"place": "a.nii"}, "not a file of this case"),
        ({"place": "sub/a.raw"}, "outside"),
        ({"place": "../secret.raw"}, "outside"),
        ({"place": "/etc/passwd"}, "outside"),
        ({"place": "LIST"}, "several files"),
        ({"place": "slice%03d.raw"}, "several files"),
        ({"data": bytes(100)}, "truncated"),
        ({"BinaryData": "False"}, "text"),
        ({"ElementNumberOfChannels": "3"}, "3 numbers per voxel"),
        ({"NDims": "4", "DimSize": "4 4 4 2"}, "convert-msd"),
    ],
)
def test_metaimages_that_are_refused(
    tmp_path: Path, fields: dict, word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert word in refused(meta(tmp_path, **fields), capfd=capfd)


def test_nrrd_that_points_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_text("NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: /etc/passwd\n\n")
    assert "outside" in refused(path)


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\nendian: little\n"


def test_hand_made_nrrd_is_read(tmp_path: Path) -> None:
    data = np.arange(64, dtype="<i2")
    plain, pair, apart = tmp_path / "a.nrrd", tmp_path / "b.nrrd", tmp_path / "c_0000.nrrd"
    plain.write_bytes(NRRD.encode() + b"# a remark\n\n" + data.tobytes())
    pair.write_bytes(NRRD.replace("\n", "\r\n").encode() + b"key:=a value\r\n\r\n" + data.tobytes())
    apart.write_bytes(NRRD.replace("raw", "gzip").encode() + b"data file: c.raw.gz\n")
    (tmp_path / "c.raw.gz").write_bytes(gzip.compress(data.tobytes()))
    (tmp_path / "other.raw").write_bytes(np.full(64, 77, "<i2").tobytes())
    text = tmp_path / "d.nrrd"  # a pair whose value reads like a field
    text.write_bytes(NRRD.encode() + b"key:=y data file: other.raw\n\n" + data.tobytes())
    for path in (plain, pair, apart, text):
        np.testing.assert_array_equal(read_image([path], "SimpleITKIO").array.ravel(), data)


@pytest.mark.parametrize(
    "line",
    [
        "data file: other.raw",
        "datafile: other.raw",
        "Data File: other.raw",
        "DATAFILE: other.raw",
        "data file: a.raw\ndata file: other.raw",
        "data file: a.raw\nDataFile: other.raw",
        "data file:= other.raw",
        "data  file: other.raw",
        " data file: other.raw",
        "key:=x\x0bdata file: other.raw",
        "key:=x\x85data file: other.raw",
        "key:=x\rdata file: other.raw",
        "data file: LIST\nother.raw",
        "data file: other%d.raw 1 1 1",
        "sizes: 4 4 2",
    ],
)
def test_no_spelling_of_a_nrrd_header_reads_another_case(tmp_path: Path, line: str) -> None:
    (tmp_path / "other.raw").write_bytes(np.full(64, 77, "<i2").tobytes())
    (tmp_path / "a.raw").write_bytes(bytes(128))
    (tmp_path / "a.nrrd").write_bytes((NRRD + line + "\n\n").encode("latin-1") + bytes(128))
    refused(tmp_path / "a.nrrd")


@pytest.mark.parametrize("kind", ["nrrd", "mhd"])
def test_a_linked_data_file_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "other.raw").write_bytes(np.full(64, 77, "<i2").tobytes())
    path = meta(tmp_path, data=bytes(128))
    if kind == "nrrd":
        path = tmp_path / "a.nrrd"
        path.write_text(NRRD + "data file: a.raw\n\n")
    (tmp_path / "a.raw").unlink()
    for target in ("secret/other.raw", "here.raw"):
        (tmp_path / "here.raw").write_bytes(bytes(128))
        (tmp_path / "a.raw").symlink_to(tmp_path / target)
        assert any(word in refused(path) for word in ("link", "outside"))
        (tmp_path / "a.raw").unlink()


def test_gzip_bombs(tmp_path: Path) -> None:
    header = gzip.decompress(save(tmp_path / "a.nii.gz", voxels()).read_bytes())
    many = tmp_path / "many.nii.gz"
    many.write_bytes(gzip.compress(header) + gzip.compress(b"") * 100_000)
    assert "hold nothing" in refused(many)
    long = tmp_path / "long.nii.gz"
    long.write_bytes(gzip.compress(header + bytes(1 << 27)))
    assert "follow the voxels" in refused(long)


def test_pipes_loops_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    assert "neither a file nor a folder" in refused(tmp_path / "pipe.nii.gz")
    assert "does not exist" in refused(tmp_path / "loop.nii.gz")
    (tmp_path / "device.nii.gz").symlink_to("/dev/zero")
    assert "neither a file nor a folder" in refused(tmp_path / "device.nii.gz")


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_paths_that_are_no_unicode(tmp_path: Path, reader: str) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    save(tmp_path / "a.nii.gz", voxels())
    shutil.copy(tmp_path / "a.nii.gz", folder / "a.nii.gz")
    with pytest.raises(ImageError, match=r"caf\\udce9.*not UTF-8") as caught:
        read_image([folder / "a.nii.gz"], reader)
    assert str(caught.value).isprintable()
    with pytest.raises(ImageError, match="not UTF-8"):
        read_labels(folder / "a.nii.gz")
    with pytest.raises(ImageError, match="not UTF-8"):
        write_labels(folder / "b.nii.gz", *read_labels(tmp_path / "a.nii.gz"))
    with pytest.raises(UsageError, match="not UTF-8"):
        find_cases(folder, 1, ".nii.gz")


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize("place", [256, 268, 280])
def test_a_frame_that_is_not_a_number(tmp_path: Path, reader: str, place: int) -> None:
    """quatern_b, qoffset_x, srow_x: ITK and nibabel make an identity of some of them."""
    data = bytearray(save(tmp_path / "a.nii", voxels()).read_bytes())
    data[252:256] = struct.pack("<hh", place < 280, place >= 280)  # the form that holds it is the one that counts
    data[place : place + 4] = struct.pack("<f", np.nan)
    (tmp_path / "b.nii").write_bytes(bytes(data))
    with pytest.raises(GeometryError):
        read_image([tmp_path / "b.nii"], reader)


def sheared(folder: Path, amount: float) -> Path:
    affine = np.eye(4)
    affine[0, 1] = amount
    path = folder / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels(), affine), path)
    return path


def test_sheared_nifti(tmp_path: Path) -> None:
    path = sheared(tmp_path, 0.3)
    with pytest.raises(GeometryError, match="orthonormal"):
        read_image([path], "SimpleITKIO")
    image = read_image([path], "NibabelIO")  # what this reader is chosen for
    assert "perpendicular" in image.notes[0]


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_singular_affine(tmp_path: Path, reader: str) -> None:
    data = bytearray(save(tmp_path / "a.nii", voxels()).read_bytes())
    data[252:256] = struct.pack("<hh", 0, 1)  # only the sform counts
    data[280:328] = struct.pack("<12f", 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0)
    path = tmp_path / "b.nii"
    path.write_bytes(bytes(data))
    with pytest.raises(GeometryError):
        read_image([path], reader)


@pytest.mark.parametrize(
    ("dtype", "word"),
    [(np.complex64, "complex"), (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "RGB")],
)
def test_voxels_that_are_no_numbers(tmp_path: Path, dtype: np.dtype, word: str) -> None:
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), dtype), np.eye(4)), path)
    assert word in refused(path)


def test_analyze_pair_nifti2_and_misnamed_gzip(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(save(tmp_path / "a.nii", voxels()).read_bytes())
    data[344:348] = b"ni1\0"
    (tmp_path / "b.nii").write_bytes(bytes(data))
    assert "pair" in refused(tmp_path / "b.nii", capfd=capfd)
    nibabel.save(nibabel.Nifti2Image(voxels(), np.eye(4)), tmp_path / "two.nii.gz")
    assert "NIfTI-2" in refused(tmp_path / "two.nii.gz", capfd=capfd)
    assert read_image([tmp_path / "two.nii.gz"], "NibabelIO").array.shape == (1, 11, 9, 7)
    packed = save(tmp_path / "c.nii.gz", voxels()).rename(tmp_path / "c.nii")
    assert "rename" in refused(packed, capfd=capfd)


def test_small_file_cannot_unfold_into_all_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(1 << 26)))
    assert max(len(piece) for piece in pieces(path, compressed=True)) <= 1 << 20


def test_labels_must_be_whole_numbers(tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5), np.float32)
    path = save(tmp_path / "a.nii.gz", array)
    labels, _ = read_labels(path)
    assert labels.dtype == np.uint8
    array[1, 2, 3] = 1.5
    path = save(tmp_path / "b.nii.gz", array)
    with pytest.raises(ImageError, match=r"1\.5.*\(1, 2, 3\)"):
        read_labels(path)
    array[1, 2, 3] = 1e9
    with pytest.raises(ImageError, match="label map"):
        read_labels(save(tmp_path / "c.nii.gz", array))


@pytest.mark.parametrize(("value", "dtype"), [(255, np.uint8), (256, np.uint16), (65536, np.int32), (-1, np.int32)])
def test_label_types(tmp_path: Path, value: int, dtype: type) -> None:
    labels, _ = read_labels(save_plain(tmp_path / "a.nii.gz", np.full((2, 3, 4), value, np.int32)))
    assert labels.dtype == dtype
    assert int(labels[0, 0, 0]) == value


def test_colour_image_is_no_label_map(tmp_path: Path) -> None:
    imsave(tmp_path / "a.png", voxels((4, 5, 3), np.uint8), check_contrast=False)
    with pytest.raises(ImageError, match="3 colour channels"):
        read_labels(tmp_path / "a.png")


def test_itk_warnings_are_as_before(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mha", voxels())
    for state in (True, False):
        sitk.ProcessObject.SetGlobalWarningDisplay(state)
        read_image([path], "SimpleITKIO")
        assert sitk.ProcessObject.GetGlobalWarningDisplay() == state
