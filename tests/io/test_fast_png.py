"""The fast way through plain PNG files gives what Pillow gives, and never what Pillow would refuse."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from anomdino.errors import DataError
from anomdino.io import images
from anomdino.io.images import read_image, read_label, write_png


def photo(height=40, width=60):
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([rows * 3, columns * 2, rows + columns], axis=2) % 256
    return (smooth + np.random.default_rng(0).integers(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("compression", range(10))
@pytest.mark.parametrize("shape", [(40, 60), (1, 1), (3, 700), (33, 1)])
def test_written_images_are_read_back_unchanged(tmp_path, compression, shape):
    image = photo(*shape)
    write_png(tmp_path / "a.png", image, compression)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.png")), image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


def test_the_fast_way_is_taken_for_plain_files_alone(tmp_path):
    image = Image.fromarray(photo())
    turned = Image.Exif()
    turned[0x0112] = 6
    variants = {
        "plain": (image, {}),
        "turned": (image, {"exif": turned}),
        "transparent": (image, {"transparency": (1, 2, 3)}),
        "grey": (image.convert("L"), {}),
        "palette": (image.convert("P"), {}),
        "alpha": (image.convert("RGBA"), {}),
    }
    for name, (variant, options) in variants.items():
        path = tmp_path / f"{name}.png"
        variant.save(path, **options)
        for kind, taken in ((images._COLOUR, "plain"), (images._GREY, "grey")):
            assert (images._plain_png(path, 10**6, kind) is not None) == (name == taken), name
    assert read_image(tmp_path / "turned.png").shape == (60, 40, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png"), photo())
    assert images._plain_png(tmp_path / "plain.png", 100, images._COLOUR) is None
    with pytest.raises(DataError, match="limit"):
        read_image(tmp_path / "plain.png", 100)


def test_damaged_files_never_take_the_fast_way(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "PNG")
    whole, rng = buffer.getvalue(), np.random.default_rng(1)
    damaged = [whole[:cut] for cut in rng.integers(30, len(whole) - 14, 40)]
    for place, bit in zip(rng.integers(45, len(whole) - 20, 60), rng.integers(0, 8, 60), strict=True):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        damaged.append(bytes(flipped))
    for content in damaged:
        (tmp_path / "a.png").write_bytes(content)
        assert images._plain_png(tmp_path / "a.png", 10**6, images._COLOUR) is None


ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def _png(pixels, data, interlaced=0, extra=()):
    """A PNG put together by hand from filtered rows."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, interlaced)
    body = b"".join(chunk(name, content) for name, content in (*extra, (b"IDAT", data), (b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def _rows(pixels):
    return b"".join(b"\0" + row.tobytes() for row in pixels)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(37, 53, 3), (1, 9, 3), (37, 53), (9, 1)])
def test_every_decoder_gives_the_pixels_that_were_stored(tmp_path, monkeypatch, threads, shape):
    monkeypatch.setattr("anomdino.io.images.threading.active_count", lambda: threads)
    pixels = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    gamma, srgb = (b"gAMA", struct.pack(">I", 45455)), (b"sRGB", b"\0")
    written = {
        "plain": _png(pixels, zlib.compress(_rows(pixels))),
        "gamma": _png(pixels, zlib.compress(_rows(pixels)), extra=(gamma,)),
        "linear": _png(pixels, zlib.compress(_rows(pixels)), extra=((b"gAMA", struct.pack(">I", 100000)),)),
        "srgb": _png(pixels, zlib.compress(_rows(pixels)), extra=(srgb, gamma)),
        "interlaced": _png(
            pixels,
            zlib.compress(
                b"".join(_rows(pixels[a::c, b::d]) for a, b, c, d in ADAM7 if pixels[a::c, b::d].size)
            ),
            1,
        ),
    }
    for name in ("fast", "small"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1, optimize=name == "small")
        written[name] = buffer.getvalue()
    for level in (0, 1, 3, 9):
        write_png(tmp_path / "own.png", pixels, level)
        written[f"own {level}"] = (tmp_path / "own.png").read_bytes()
    for name, content in written.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        got = read_image(path) if pixels.ndim == 3 else read_label(path)
        np.testing.assert_array_equal(got, pixels, err_msg=name)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(37, 53, 3), (37, 53)])
def test_damaged_data_are_refused_though_their_checksum_is_right(tmp_path, monkeypatch, threads, shape):
    monkeypatch.setattr("anomdino.io.images.threading.active_count", lambda: threads)
    pixels = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    stream = zlib.compress(_rows(pixels))
    for name, data in {"garbage": b"\x78\x9c" + b"\xff" * 40, "short": stream[: len(stream) // 2]}.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(_png(pixels, data))
        with pytest.raises(DataError, match=r"damaged|truncated"):
            read_image(path) if pixels.ndim == 3 else read_label(path)
