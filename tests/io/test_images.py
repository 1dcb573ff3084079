"""The loader's answers to every fault of input that a user's folder can hold."""

import errno
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from anomdino.errors import DataError
from anomdino.io.images import image_size, read_image, read_label, write_png


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def test_rgb_order_is_kept(photo):
    path, pixels = photo
    np.testing.assert_array_equal(read_image(path), pixels)
    assert image_size(path) == (48, 64)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_files_are_refused(tmp_path, photo, suffix):
    buffer = io.BytesIO()
    Image.fromarray(photo[1]).save(buffer, format="JPEG" if suffix == "jpg" else suffix.upper())
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(DataError, match="truncated or damaged|no image"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>quota exceeded</html>", "HTML page"),
        (b"\n <html><body>", "HTML page"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"just some text that is nothing", "no image in a known format"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, said):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="folder"):
        read_image(tmp_path)


def test_pixel_limit_is_checked_before_decoding(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match="10,000,000,000 pixels, the limit is"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_upright_image_in_every_format(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(path, exif=exif)
    assert image_size(path) == read_image(path).shape[:2] == ((32, 48) if orientation < 5 else (48, 32))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_image(tmp_path, orientation, suffix):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = (255, 0, 0)
    upright[16:, 24:] = (0, 0, 255)
    back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(np.ascontiguousarray(back(upright))).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)
    assert image_size(path) == (32, 48)


def test_sixteen_bit_images_are_scaled_by_257(tmp_path):
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    got = read_image(tmp_path / "grey.png")
    np.testing.assert_array_equal(got, np.repeat((grey // 257).astype(np.uint8)[..., None], 3, axis=2))
    colour = np.stack([grey, grey[::-1], grey.T], axis=2)
    cv2.imwrite(str(tmp_path / "colour.png"), colour[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "colour.png"), (colour // 257).astype(np.uint8))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_rounded_and_composited_as_eight_are(tmp_path, caplog, suffix, channels):
    values = np.random.default_rng(0).integers(0, 65536, (9, 11, channels), dtype=np.uint16)
    values[..., 3:] = 257 * np.array([0, 255])[np.arange(11) % 2][None, :, None]
    path = tmp_path / f"x.{suffix}"
    cv2.imwrite(str(path), values)
    shown = np.round(values[..., min(2, channels - 1) :: -1] / 257)  # OpenCV writes BGR
    expected = shown * (values[..., 3:] > 0) if channels == 4 else np.broadcast_to(shown, (9, 11, 3))
    np.testing.assert_array_equal(read_image(path), expected)
    assert "16 bits" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_images_are_turned_upright_once(tmp_path, suffix):
    grey = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2570
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(grey).save(path, **({"tiffinfo": {0x0112: 6}} if suffix == "tif" else {"exif": turned()}))
    np.testing.assert_array_equal(read_image(path)[..., 0], np.rot90(grey, -1) // 257)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_three_channels(tmp_path, mode):
    image = Image.fromarray(np.full((8, 9, 3), 200, np.uint8)).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    got = read_image(path)
    assert got.shape == (8, 9, 3)
    assert got.dtype == np.uint8
    expected = 255 if mode == "1" else 200
    assert abs(int(got.mean()) - expected) <= (60 if mode in {"1", "P"} else 2)


def test_transparency_is_composited_on_black(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[:2, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "t.png")
    got = read_image(tmp_path / "t.png")
    assert (got[:2] == (255, 0, 0)).all()
    assert (got[2:] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (1, 500)])
def test_tiny_and_narrow_images_are_read(tmp_path, size):
    write_png(tmp_path / "x.png", np.full((*size, 3), 9, np.uint8))
    assert read_image(tmp_path / "x.png").shape == (*size, 3)


def test_palette_labels_keep_their_indices(tmp_path):
    values = np.array([[0, 1, 255], [1, 0, 255]], np.uint8)
    image = Image.fromarray(values, mode="P")
    image.putpalette([0] * 3 + [128, 0, 0] + [0] * (254 * 3))
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_label(tmp_path / "p.png"), values)


def test_colour_labels_are_refused_and_grey_rgb_is_not(tmp_path):
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[0, 0] = (128, 64, 128)
    write_png(tmp_path / "colour.png", colour)
    with pytest.raises(DataError, match="colour image"):
        read_label(tmp_path / "colour.png")
    grey = np.repeat(np.array([[0, 1], [255, 1]], np.uint8)[..., None], 3, axis=2)
    write_png(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(read_label(tmp_path / "grey.png"), grey[..., 0])


def test_sixteen_bit_labels(tmp_path):
    cv2.imwrite(str(tmp_path / "ok.png"), np.array([[0, 1], [255, 7]], np.uint16))
    np.testing.assert_array_equal(read_label(tmp_path / "ok.png"), [[0, 1], [255, 7]])
    cv2.imwrite(str(tmp_path / "big.png"), np.array([[0, 26001]], np.uint16))
    with pytest.raises(DataError, match="up to 26001"):
        read_label(tmp_path / "big.png")


def test_png_round_trip_with_odd_names(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    for name in ["a b.png", "日本.png", "-dash.png", 'quo"te.png', "new\nline.png"]:
        write_png(tmp_path / "sub" / name, pixels)
        np.testing.assert_array_equal(read_image(tmp_path / "sub" / name), pixels)


def test_a_photo_that_may_not_be_read_is_not_said_to_be_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (4, 3)).save(path)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)  # root may read everything
    for read in (read_image, read_label, image_size):
        with pytest.raises(DataError, match=r"a\.jpg: may not be read: permission denied"):
            read(path)
