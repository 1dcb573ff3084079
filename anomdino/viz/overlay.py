"""Overlays: a photo under its scores, with boxes, mask outline and a colour bar that states the range."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from anomdino.errors import ConfigError
from anomdino.io.boxes import Boxes

Rgb = tuple[int, int, int]

BOX_COLOUR: Rgb = (64, 224, 255)
MASK_COLOUR: Rgb = (80, 255, 120)
TRUTH_COLOUR: Rgb = (255, 255, 255)
INK: Rgb = (235, 235, 235)
PAPER: Rgb = (24, 26, 30)
FOOTER = 46
NARROWEST = 300
"""Width that the footer's words need; narrower pictures have empty paper beside them."""


@dataclass(frozen=True)
class ScoreRange:
    """The fixed range that a colour bar spans, with the words that say where it comes from.

    Attributes:
        low: Score drawn as the lower end.
        high: Score drawn as the upper end, above ``low``.
        origin: For example ``2 - 99.8 percentile of the set``.
    """

    low: float
    high: float
    origin: str = ""

    def unit(self, score: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Map a score map linearly to [0, 1], clipped; a range without width gives zeros."""
        if self.high <= self.low:
            return np.zeros(score.shape, np.float32)
        share = (score.astype(np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        return np.asarray(np.clip(share, 0, 1), np.float32)


@lru_cache(maxsize=8)
def colour_table(name: str) -> npt.NDArray[np.uint8]:
    """The 256 colours of a matplotlib colour map, uint8 (256, 3), RGB."""
    import matplotlib as mpl

    if name not in mpl.colormaps:
        near = difflib.get_close_matches(name, mpl.colormaps, 1)
        cure = f"did you mean '{near[0]}'?" if near else "see matplotlib's list of colour maps"
        raise ConfigError("score_view.colormap", f"'{name}' is unknown", cure)
    return (mpl.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def heat_overlay(
    image: npt.NDArray[np.uint8],
    score: npt.NDArray[np.float32],
    span: ScoreRange,
    colormap: str = "inferno",
    blend: float = 0.55,
) -> npt.NDArray[np.uint8]:
    """Blend the heat of a score over a photo, more of it where the score is higher.

    Args:
        image: uint8 (H, W, 3), RGB.
        score: float32 (H, W), higher = more anomalous.
        span: The range of the colour bar.
        colormap: A matplotlib colour map.
        blend: Share of the heat colour at the upper end; at the lower end it is a quarter of that.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    unit = span.unit(score)
    colours = colour_table(colormap)[(unit * 255).round().astype(np.uint8)]
    share = (blend * (0.25 + 0.75 * unit))[..., None]
    return (image * (1 - share) + colours * share + 0.5).astype(np.uint8)


def draw_overlay(
    image: npt.NDArray[np.uint8],
    score: npt.NDArray[np.float32],
    span: ScoreRange,
    *,
    boxes: Boxes | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    truth: npt.NDArray[np.uint8] | None = None,
    numbers: Sequence[tuple[int, Sequence[float]]] = (),
    title: str = "",
    colormap: str = "inferno",
    blend: float = 0.55,
    max_side: int = 1280,
) -> npt.NDArray[np.uint8]:
    """Draw one picture: heat over the photo, boxes with confidence, mask outline, and a footer with the colour bar.

    Args:
        image: uint8 (H, W, 3), RGB.
        score: float32 (H, W), higher = more anomalous.
        span: The range of the colour bar; its ends and origin are written beside it.
        boxes: Boxes in pixels of ``image``.
        mask: bool (H, W), the predicted anomaly; its outline is drawn.
        truth: uint8 (H, W) with 0 / 1 / 255; the outline of 1 is drawn and 255 is hatched dark.
        numbers: Of objects that are followed through a video, with their boxes, xyxy; written below them.
        title: Written at the left of the footer.
        colormap: A matplotlib colour map.
        blend: Share of the heat colour at the upper end.
        max_side: The longer side of the picture; larger photos are shrunk.

    Returns:
        uint8 (H', W', 3), RGB, the photo at the upper left, the footer below it; at least 300 wide.
    """
    scale = min(1.0, max_side / max(image.shape[:2]))
    width, height = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    shrunk_score = cv2.resize(score.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    canvas = heat_overlay(
        np.asarray(small, np.uint8), np.asarray(shrunk_score, np.float32), span, colormap, blend
    )
    thickness = max(1, round(max(width, height) / 640))
    if truth is not None:
        labels = cv2.resize(truth, (width, height), interpolation=cv2.INTER_NEAREST)
        canvas[labels == 255] = canvas[labels == 255] // 2
        outline(canvas, shrunk(truth == 1, (width, height)), TRUTH_COLOUR, thickness)
    if mask is not None:
        outline(canvas, shrunk(mask, (width, height)), MASK_COLOUR, thickness)
    picture = Image.fromarray(canvas)
    if boxes is not None:
        _draw_boxes(picture, boxes, scale, thickness)
    for number, box in numbers:
        _draw_tag(picture, f"#{number}", [float(v) * scale for v in box], MASK_COLOUR, below=True)
    return _with_footer(
        picture, span, colormap, title, boxes is not None, mask is not None, truth is not None
    )


def shrunk(region: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Shrink a region so that no part of it is lost, however small: a pixel is in it where any that it shows is.

    Args:
        region: bool (H, W).
        size: Width and height of the result, no larger than the region's.

    Returns:
        bool (height, width).
    """
    share = cv2.resize(region.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(share > 0, np.bool_)


def outline(
    canvas: npt.NDArray[np.uint8], region: npt.NDArray[np.bool_], colour: Rgb, thickness: int
) -> None:
    """Draw the outline of a region, bool (H, W), into a picture, uint8 (H, W, 3), RGB, with a dark rim."""
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, (0, 0, 0), thickness + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, colour, thickness, cv2.LINE_AA)


def _draw_boxes(picture: Image.Image, boxes: Boxes, scale: float, thickness: int) -> None:
    draw = ImageDraw.Draw(picture)
    for index in np.argsort(boxes.scores, kind="stable"):
        x0, y0, x1, y1 = box = [float(v) * scale for v in boxes.xyxy[index]]
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=BOX_COLOUR, width=thickness)
        _draw_tag(picture, f"{boxes.scores[index]:.2f}", box, BOX_COLOUR)


def _draw_tag(
    picture: Image.Image, text: str, box: Sequence[float], colour: Rgb, *, below: bool = False
) -> None:
    """Write a few signs above a box, or below it; on its other side where there is no room."""
    draw, font = ImageDraw.Draw(picture), _font(max(11, round(max(picture.size) / 70)))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    wide, high = right - left + 4, bottom - top + 4
    at_x = min(max(box[0], 0), picture.width - wide)
    lowest = picture.height - high
    if below:
        at_y = box[3] if box[3] <= lowest else max(0, box[1] - high)
    else:
        at_y = box[1] - high if box[1] >= high else min(box[3], lowest)
    draw.rectangle((at_x, at_y, at_x + wide, at_y + high), fill=colour)
    draw.text((at_x + 2 - left, at_y + 2 - top), text, fill=(0, 0, 0), font=font)


def _with_footer(
    picture: Image.Image, span: ScoreRange, colormap: str, title: str, boxes: bool, mask: bool, truth: bool
) -> npt.NDArray[np.uint8]:
    width = max(picture.width, NARROWEST)
    sheet = Image.new("RGB", (width, picture.height + FOOTER), PAPER)
    sheet.paste(picture, (0, 0))
    draw, font, top = ImageDraw.Draw(sheet), _font(12), picture.height
    bar = min(220, width // 3)
    left = width - bar - 12
    strip = np.repeat(colour_table(colormap)[np.linspace(0, 255, bar).astype(np.uint8)][None], 10, axis=0)
    sheet.paste(Image.fromarray(strip), (left, top + 8))
    draw.text((left, top + 22), f"{span.low:.3g}", fill=INK, font=font)
    high = f"{span.high:.3g}"
    draw.text((left + bar - draw.textlength(high, font=font), top + 22), high, fill=INK, font=font)
    caption = "score" if not span.origin or bar < 160 else span.origin
    middle = left + (bar - draw.textlength(caption, font=font)) / 2
    draw.text((middle, top + 22), caption, fill=INK, font=font)
    legend = (
        [("box", BOX_COLOUR)] * boxes + [("mask", MASK_COLOUR)] * mask + [("truth", TRUTH_COLOUR)] * truth
    )
    at = 10.0
    for name, colour in legend:
        draw.rectangle((at, top + 26, at + 12, top + 38), outline=colour, width=2)
        draw.text((at + 17, top + 24), name, fill=INK, font=font)
        at += 30 + draw.textlength(name, font=font)
    title = "".join(sign if _is_drawn(sign) else "?" for sign in title)  # a name may hold a line break
    room, font = left - 20, font if title.isascii() else _wide_font(12)
    while title and draw.textlength(title, font=font) > room:
        title = "..." + title[4:] if len(title) > 8 else ""
    draw.text((10, top + 6), title, fill=INK, font=font)
    return np.asarray(sheet, dtype=np.uint8)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=8)
def _wide_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Give matplotlib's font, for names with more than ASCII: Pillow's own has hardly any accents."""
    return ImageFont.truetype(_wide_font_file(), size)


def _is_drawn(sign: str) -> bool:
    """Whether :func:`_wide_font` has a sign; of others, Chinese ones or most of the small pictures, it draws a frame."""
    return ord(sign) in _signs()


@lru_cache(maxsize=1)
def _signs() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_wide_font_file())).get_charmap())


def _wide_font_file() -> Path:
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
