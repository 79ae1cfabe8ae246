"""Every colour mode has one stated treatment, and a damaged file is an error that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from photo_samples import photo, save
from PIL import Image

from offline_infer.errors import ImageError
from offline_infer.images.decoding import image_size, read_image, read_mask, read_mask_values, upright_size
from offline_infer.spec import Pixels

RGB = Pixels()


def test_grey_is_repeated_and_black_and_white_is_0_and_255(tmp_path: Path) -> None:
    grey = photo(7, 9)[:, :, 0]
    image = read_image(save(tmp_path / "g.png", grey), RGB)
    assert image.shape == (7, 9, 3)
    assert all((image[:, :, c] == grey).all() for c in range(3))
    save(tmp_path / "b.png", np.array([[False, True]]))
    assert read_image(tmp_path / "b.png", RGB)[0, :, 0].tolist() == [0, 255]


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    picture.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png", RGB).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_alpha_is_dropped_even_where_it_hides_the_colour(tmp_path: Path) -> None:
    picture = np.zeros((1, 2, 4), np.uint8)
    picture[0, 0] = (9, 8, 7, 0)
    assert read_image(save(tmp_path / "a.png", picture), RGB)[0, 0].tolist() == [9, 8, 7]


def test_sixteen_bit_grey_is_clipped_or_its_high_byte_kept(tmp_path: Path) -> None:
    save(tmp_path / "d.png", np.array([[100, 255, 256, 65535]], np.uint16))
    assert read_image(tmp_path / "d.png", RGB)[0, :, 0].tolist() == [100, 255, 255, 255]
    assert read_image(tmp_path / "d.png", Pixels(sixteen_bit="high_byte"))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_float_tiff_is_cut_off_and_nan_refused(tmp_path: Path) -> None:
    save(tmp_path / "f.tif", np.array([[-3.0, 7.9, 300.0]], np.float32))
    assert read_image(tmp_path / "f.tif", RGB)[0, :, 0].tolist() == [0, 7, 255]
    save(tmp_path / "n.tif", np.array([[np.nan]], np.float32))
    with pytest.raises(ImageError, match="NaN"):
        read_image(tmp_path / "n.tif", RGB)


def test_cmyk_is_converted_and_the_first_frame_taken(tmp_path: Path) -> None:
    Image.fromarray(photo(4, 4)).convert("CMYK").save(tmp_path / "c.tif")
    assert read_image(tmp_path / "c.tif", RGB).shape == (4, 4, 3)
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "m.tif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "m.tif", RGB)[0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_ignored_or_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(20, 30)).save(tmp_path / "e.jpg", exif=exif)
    stored = read_image(tmp_path / "e.jpg", RGB)
    applied = Pixels(exif="applied")
    turned = read_image(tmp_path / "e.jpg", applied)
    assert stored.shape == (20, 30, 3)
    assert image_size(tmp_path / "e.jpg") == (20, 30)
    assert upright_size(tmp_path / "e.jpg", applied) == (30, 20)
    np.testing.assert_array_equal(turned, np.rot90(stored, -1))


def test_channel_orders(tmp_path: Path) -> None:
    path = save(tmp_path / "o.png", np.array([[[10, 20, 30]]], np.uint8))
    assert read_image(path, Pixels(order="bgr"))[0, 0].tolist() == [30, 20, 10]
    assert read_image(path, Pixels(order="gray", mean=(0.5,), std=(0.5,)))[0, 0].tolist() == [18]


def test_a_mask_is_positive_above_the_mean_of_127_5(tmp_path: Path) -> None:
    colours = np.array([[[127, 128, 127], [128, 128, 127], [255, 255, 0]]], np.uint8)
    assert read_mask(save(tmp_path / "m.png", colours)).tolist() == [[False, True, True]]
    assert read_mask(save(tmp_path / "g.png", np.array([[127, 128]], np.uint8))).tolist() == [[False, True]]


@pytest.mark.parametrize("kept", [0, 10, 400])
def test_a_truncated_jpeg_is_named(tmp_path: Path, kept: int) -> None:
    whole = save(tmp_path / "whole.jpg", photo(64, 64)).read_bytes()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(whole[:kept])
    with pytest.raises(ImageError, match=r"broken\.jpg.*truncated"):
        read_image(broken, RGB)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_image(tmp_path / "x.png", RGB)
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / "missing.png", RGB)
    with pytest.raises(ImageError, match="regular file"):
        image_size(tmp_path)


def test_a_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    Image.new("1", (20000, 18000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "bomb.png", RGB)


def test_soft_masks_are_grey(tmp_path: Path) -> None:
    assert read_mask_values(save(tmp_path / "s.png", np.array([[3, 200]], np.uint8))).tolist() == [[3, 200]]
    with pytest.raises(ImageError, match="8-bit grey"):
        read_mask_values(save(tmp_path / "c.png", photo(3, 3)))
