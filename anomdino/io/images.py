"""One loader for images and labels, so that every part sees the same pixels (EXIF, depth, colour model)."""

from __future__ import annotations

import logging
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from anomdino.errors import DataError
from anomdino.io.atomic import atomic_path

try:
    import pyspng
except ImportError:
    pyspng = None

log = logging.getLogger(__name__)

ImageFile.LOAD_TRUNCATED_IMAGES = False
Image.MAX_IMAGE_PIXELS = None  # the limit is `max_pixels`, checked before a pixel is decoded

MAX_PIXELS = 64_000_000
BACKGROUND = (0, 0, 0)

_HAS_FILTERS = hasattr(cv2, "IMWRITE_PNG_FILTER")
_NO_FILTER = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE) if _HAS_FILTERS else ()
_AVERAGE_FILTER = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG) if _HAS_FILTERS else ()
_COLOUR, _GREY = b"\x08\x02", b"\x08\x00"
_WIDTH, _HEIGHT, _BITS, _ORIENTATION = 0x0100, 0x0101, 0x0102, 0x0112  # tags of EXIF and TIFF
_PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"tIME"}
_MAGIC = {
    b"<!DOC": "an HTML page (a download page saved under its name?)",
    b"<html": "an HTML page (a download page saved under its name?)",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read an image as RGB, upright.

    EXIF orientation is applied once, here. 16-bit images are scaled to 8 bits by division by 257. Transparency is
    composited on black. Grey and 1-bit images are replicated to three channels; CMYK and palette images are converted.

    Args:
        path: A file in a format that Pillow reads.
        max_pixels: Images with more pixels are refused before they are decoded.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DataError: The file is missing, empty, truncated, no image, or larger than ``max_pixels``.
    """
    path = Path(path)
    pixels = _plain_png(path, max_pixels, _COLOUR)
    if pixels is not None:
        return pixels
    with _Opened(path, max_pixels) as image:
        if image.mode.startswith(("I;16", "I", "F")) or _is_16_bit_colour(path, image):
            image = _eight_bits(path, image.getexif().get(_ORIENTATION, 1))
        image = ImageOps.exif_transpose(image)
        if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
            image = image.convert("RGBA")
            canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
            image = Image.alpha_composite(canvas, image)
        return np.array(image.convert("RGB"), dtype=np.uint8)


def read_label(path: Path | str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Read a label image as the raw values it stores; palette images give their indices.

    Returns:
        uint8 (H, W).

    Raises:
        DataError: The file cannot be read, has colour channels that differ, or values above 255.
    """
    path = Path(path)
    pixels = _plain_png(path, max_pixels, _GREY)
    if pixels is not None:
        return pixels
    with _Opened(path, max_pixels) as image:
        values = np.array(image)
    if values.ndim == 3:
        if values.shape[2] in {2, 4}:
            values = values[..., :-1]
        if not (values == values[..., :1]).all():
            raise DataError(
                path,
                f"is a colour image ({image.mode}), labels are single-channel class numbers",
                "export the label ids instead of the colours, or declare a colour map for the data set",
            )
        values = values[..., 0]
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise DataError(path, f"holds label values up to {values.max()}", "labels are 0..255")
    return np.ascontiguousarray(values.astype(np.uint8))


def image_size(path: Path | str) -> tuple[int, int]:
    """Give the upright (H, W) of an image from its header, without decoding it.

    Raises:
        DataError: The file is missing, empty or no image.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            tags = getattr(image, "tag_v2", {})  # a TIFF's own; Pillow says the one or the other size of it
            width, height = tags.get(_WIDTH, image.size[0]), tags.get(_HEIGHT, image.size[1])
            plain = image.format == "PNG" and set(_png_chunks(path.read_bytes())) <= _PLAIN_CHUNKS
            turned = not plain and (tags or image.getexif()).get(_ORIENTATION, 1) >= 5
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise _explained(path, error) from error
    return (width, height) if turned else (height, width)


def write_png(path: Path | str, array: npt.NDArray[np.uint8], compression: int = 3) -> None:
    """Write uint8 (H, W) or RGB (H, W, 3) as PNG, whole or not at all.

    Args:
        path: The final file.
        array: The pixels; a colour image is in RGB order. Labels and masks are written without PNG's filters, which
            cost time and help flat areas nothing.
        compression: zlib level 0..9. A colour image at level 1 is coded by Huffman codes of averaged differences
            alone: more than twice as fast as zlib's own level 1, and smaller for photographs.
    """
    if array.dtype != np.uint8 or array.ndim not in {2, 3}:
        raise ValueError(f"expected uint8 (H, W) or (H, W, 3), got {array.dtype} {array.shape}")
    pixels = array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    if array.ndim == 2:
        options += _NO_FILTER
    elif compression == 1:
        options += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY, *_AVERAGE_FILTER]
    good, encoded = cv2.imencode(".png", pixels, options)
    if not good:
        raise DataError(path, "could not be encoded as PNG", "")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _plain_png(path: Path, max_pixels: int, kind: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode an 8-bit PNG of a kind (depth and colour type) faster than Pillow does.

    None for any other file, for one with transparency or orientation, and for a damaged one: the careful path then
    reads it or says what is wrong.
    """
    try:
        with path.open("rb") as file:
            head = file.read(33)
            if head[:8] != b"\x89PNG\r\n\x1a\n" or head[24:26] != kind:
                return None
            if int.from_bytes(head[16:20]) * int.from_bytes(head[20:24]) > max_pixels:
                return None
            content = head + file.read()
    except OSError:
        return None
    if not set(_png_chunks(content)) <= _PLAIN_CHUNKS:
        return None
    if kind == _GREY:
        grey = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
        return None if grey is None else np.asarray(grey, np.uint8)
    return _colours(content)


def _colours(content: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode an RGB PNG whose checksums are right; None where its data are damaged.

    libspng takes two thirds of OpenCV's time, but its binding keeps other threads from running: it is for programs of
    one thread, as the processes that compose. Where it is not installed OpenCV does the same.
    """
    if pyspng is not None and threading.active_count() == 1:
        try:
            return np.asarray(pyspng.load(content, format="RGB"), np.uint8)
        except RuntimeError:
            return None
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return None if bgr is None else np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _png_chunks(content: bytes) -> Iterator[bytes]:
    """Names of the chunks of a PNG; `damaged` where a checksum is wrong or the end is missing."""
    place, name = 8, b""
    while name != b"IEND":
        length, name = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        end = place + 8 + length
        checksum = zlib.crc32(memoryview(content)[place + 4 : end])
        if len(content) < end + 4 or checksum != int.from_bytes(content[end : end + 4]):
            yield b"damaged"
            return
        yield name
        place = end + 4


class _Opened:
    """Open an image, check its size, decode it fully, and turn each fault into a :class:`DataError`."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.path, self.max_pixels = path, max_pixels

    def __enter__(self) -> Image.Image:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                self.image = Image.open(self.path)
                width, height = self.image.size
                if width * height > self.max_pixels:
                    raise DataError(
                        self.path,
                        f"has {width} x {height} = {width * height:,} pixels, the limit is {self.max_pixels:,}",
                        "shrink the image or raise the limit",
                    )
                self.image.load()
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise _explained(self.path, error) from error
        return self.image

    def __exit__(self, *_: Any) -> None:
        self.image.close()


def known_content(path: Path) -> str:
    """Say what a file is that often lies under the name of a picture or a video; empty where nothing is known."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError:
        return ""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic.lower())), "")


def _explained(path: Path, error: Exception) -> DataError:
    if isinstance(error, PermissionError):
        cause, cure = "may not be read: permission denied", "make the file and its folders readable"
    elif not path.exists():
        cause, cure = "does not exist", "check the path"
    elif path.is_dir():
        cause, cure = "is a folder, not an image", ""
    elif path.stat().st_size == 0:
        cause, cure = "is empty (0 bytes)", "copy or download it again"
    elif known := known_content(path):
        cause, cure = f"is no image but {known}", "get the image itself"
    elif isinstance(error, UnidentifiedImageError):
        cause, cure = "is no image in a known format", "use png, jpg, webp, bmp or tiff"
    else:
        cause, cure = f"is truncated or damaged ({error})", "copy or download it again"
    return DataError(path, cause, cure)


def _is_16_bit_colour(path: Path, image: Image.Image) -> bool:
    """Tell whether a file, just opened, has 16 bits a channel, of which Pillow gives the upper 8."""
    if image.format == "PNG" and image.mode in {"RGB", "RGBA", "LA"}:
        with path.open("rb") as file:
            return file.read(25)[24:25] == b"\x10"
    tags = getattr(image, "tag_v2", {})
    return image.format == "TIFF" and image.mode in {"RGB", "RGBA"} and 16 in tags.get(_BITS, ())


def _eight_bits(path: Path, orientation: int) -> Image.Image:
    """Read an image of 16 bits a channel as one of 8, RGB or RGBA, still turned as it is stored."""
    orders = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    channels = 1 if values is None or values.ndim == 2 else values.shape[2]
    if values is None or values.dtype not in (np.uint8, np.uint16) or channels not in orders:
        raise DataError(path, "has a pixel type that is not supported", "save it with 8 or 16 bits a channel")
    if values.dtype == np.uint16:
        log.warning("%s has 16 bits a channel; scaled to 8 bits by division by 257", path)
        values = np.round(values / 257.0).astype(np.uint8)
    image = Image.fromarray(np.asarray(cv2.cvtColor(values, orders[channels]), np.uint8))
    image.getexif()[_ORIENTATION] = orientation
    return image
