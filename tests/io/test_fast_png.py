"""The fast way through plain PNG files gives what Pillow gives, and never what Pillow would refuse."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from anomdino.errors import DataError
from anomdino.io import images
from anomdino.io.images import read_image, write_png


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
        assert (images._plain_png(path, 10**6) is not None) == (name == "plain"), name
    assert read_image(tmp_path / "turned.png").shape == (60, 40, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png"), photo())
    assert images._plain_png(tmp_path / "plain.png", 100) is None
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
        assert images._plain_png(tmp_path / "a.png", 10**6) is None
