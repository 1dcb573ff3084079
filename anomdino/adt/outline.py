"""Outlines of the objects in kept boxes, by the colours of the photo.

A score covers an object in part: its surest pixels lie inside, and the rest of it may score like the road. Inside a box
GrabCut (Rother, Kolmogorov and Blake, "GrabCut", 2004; OpenCV's) separates what has the colours of the surest pixels from
what lies around the box. What it finds stands in for the rectangle where the final score is made
(:func:`anomdino.adt.fusion.fuse`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError
from anomdino.io.boxes import Boxes

SIDE = 256
"""Longest side in pixels at which a window is separated."""
AROUND = 1.0
"""How much of a box's sides its window shows beyond each of them."""
GROWN = 0.05
"""How much of a box's sides its object may lie beyond each of them."""
SURE = 0.5
"""Quantile of the scores of the mask's pixels from which on they are certain to be object."""
ROUNDS = 4
LEAST = 8
"""Fewest pixels, as GrabCut sees them, of an object and of what surrounds it."""
LIKELY = 0.5
"""Confidence from which on a box holds an object more likely than not."""
FRAME_SHARE, FRAME_PIXELS = 0.25, 3
"""How much of a box's sides the frame around it is wide, and how many pixels more."""

FloatMap = npt.NDArray[np.float32]
BoolMap = npt.NDArray[np.bool_]


class Outlines(NamedTuple):
    """Outlines of all boxes of an image, float32 (H, W) in [0, 1], 0 where there are none.

    Attributes:
        shape: The highest outline of the pixel.
        confidence: The highest outline of the pixel times the confidence of its box.
    """

    shape: FloatMap
    confidence: FloatMap


class Span(NamedTuple):
    """The rows or columns of a window, and those among them where the object may lie, in pixels of the image.

    Attributes:
        start: First of the window.
        stop: The one after its last.
        first: Where the object may begin, in [start, stop].
        last: Where it ends at most.
    """

    start: int
    stop: int
    first: float
    last: float


class Known(dict[tuple[Any, ...], FloatMap | None]):
    """Outlines of an image that were separated before, by the box's window and the mask in it.

    For one image and its score: with other thresholds most windows have the mask that they had.
    """


def first_guess(score: FloatMap, boxes: Boxes, mask: BoolMap) -> BoolMap:
    """Give what outlines start from: the mask and, in likely boxes that it leaves empty, what stands out there.

    A box with a confidence of ``LIKELY`` and more has an object in it, however low it scores: a small one, say. Where
    fewer than ``LEAST`` pixels of the mask lie in it, those are added that score as much as the middle between the
    highest score in the box and the mean of the frame around it.

    Args:
        score: float32 (H, W), higher = more anomalous.
        boxes: Kept boxes, inside the image (:meth:`Boxes.clipped`).
        mask: bool (H, W), what the score takes for anomalous; it stays as it is.
    """
    guess = mask.copy()
    likely = boxes.kept(LIKELY)
    ends = np.hstack([np.floor(likely.xyxy[:, :2]), np.ceil(likely.xyxy[:, 2:])]).astype(int)
    for x0, y0, x1, y1 in ends:
        window = np.s_[y0:y1, x0:x1]
        if mask[window].sum() < LEAST:
            inside, around = score[window], _mean_around(score, x0, y0, x1, y1)
            guess[window] |= inside >= (inside.max() + around) / 2
    return guess


def _mean_around(score: FloatMap, x0: int, y0: int, x1: int, y1: int) -> float:
    """Give the mean of a box's frame; where the box fills the image, that of the box."""
    wide, high = int(FRAME_SHARE * (x1 - x0)) + FRAME_PIXELS, int(FRAME_SHARE * (y1 - y0)) + FRAME_PIXELS
    framed = score[max(y0 - high, 0) : y1 + high, max(x0 - wide, 0) : x1 + wide]
    inside = score[y0:y1, x0:x1]
    if framed.size == inside.size:
        return float(inside.mean(dtype=np.float64))
    total = framed.sum(dtype=np.float64) - inside.sum(dtype=np.float64)
    return float(total / (framed.size - inside.size))


def draw_outlines(
    image: npt.NDArray[np.uint8], score: FloatMap, boxes: Boxes, mask: BoolMap, known: Known | None = None
) -> Outlines:
    """Outline the object in every box, as many at a time as OpenCV has threads; the same input gives the same outlines.

    Args:
        image: uint8 (H, W, 3), RGB.
        score: float32 (H, W), higher = more anomalous.
        boxes: Kept boxes, inside the image (:meth:`Boxes.clipped`). No outline leaves its box, grown by a twentieth.
        mask: bool (H, W), what the score takes for anomalous. A box without a pixel of it has no outline, nor has one
            that fills the image.
        known: What was separated before of the same image and score; it is used, and added to.

    Raises:
        DataError: Score, image and mask are not of one size, or the image is not RGB.
    """
    check_sizes(image, score, mask)
    known = Known() if known is None else known
    drawn = Outlines(np.zeros_like(score), np.zeros_like(score))
    spans = [(_span(box[1::2], score.shape[0]), _span(box[0::2], score.shape[1])) for box in boxes.xyxy]
    cases = [(rows, columns, mask[_window(rows, columns)].tobytes()) for rows, columns in spans]
    unknown = {case: case[:2] for case in cases if case not in known}

    def separated(rows: Span, columns: Span) -> FloatMap | None:
        window = _window(rows, columns)
        return separate(image[window], score[window], mask[window], rows, columns)

    with ThreadPoolExecutor(max(1, cv2.getNumThreads())) as pool:
        found = pool.map(separated, *zip(*unknown.values(), strict=True)) if unknown else ()
        known.update(zip(unknown, found, strict=True))
    for case, confidence in zip(cases, boxes.scores, strict=True):
        outline, window = known[case], _window(*case[:2])
        if outline is not None:
            for canvas, one in zip(drawn, (outline, outline * confidence), strict=True):
                np.maximum(canvas[window], one, out=canvas[window])
    return drawn


def check_sizes(image: npt.NDArray[np.uint8], score: FloatMap, mask: BoolMap | None = None) -> None:
    """Refuse an image that is not RGB, or is not of the size of its score, float32 (H, W), and its mask, bool (H, W)."""
    if image.shape != (*score.shape, 3) or (mask is not None and mask.shape != score.shape):
        also = "" if mask is None else f", its mask {mask.shape}"
        raise DataError(
            "image",
            f"has the shape {image.shape}, its score {score.shape}{also}",
            "give an image (H, W, 3) of the score's size",
        )


def separate(
    image: npt.NDArray[np.uint8], score: FloatMap, mask: BoolMap, rows: Span, columns: Span
) -> FloatMap | None:
    """Separate the object in a window from what surrounds it.

    Args:
        image: uint8 (h, w, 3), RGB.
        score: float32 (h, w).
        mask: bool (h, w), what is taken for the object at first.
        rows: The window's rows.
        columns: Its columns.

    Returns:
        float32 (h, w) in [0, 1], soft by a pixel of GrabCut's; None where object or surroundings are too small to tell.
    """
    height, width = score.shape
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small, levels, covered = (
        cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        for part in (image, score, mask.astype(np.float32))
    )
    inside = np.zeros(levels.shape, bool)
    inside[_cells(rows, size[1]), _cells(columns, size[0])] = True
    seeds = inside & (covered > 0.5)
    if seeds.sum() < LEAST or (~inside).sum() < LEAST:
        return None
    trimap = np.full(levels.shape, cv2.GC_BGD, np.uint8)
    trimap[inside] = cv2.GC_PR_BGD
    trimap[seeds] = cv2.GC_PR_FGD
    trimap[seeds & (levels >= np.quantile(levels[seeds], SURE))] = cv2.GC_FGD
    cv2.setRNGSeed(0)  # of the clusters that GrabCut begins with, and of this thread alone
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, trimap, (0, 0, 1, 1), *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    soft = cv2.resize(cv2.GaussianBlur(found, (0, 0), 1.0), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(np.asarray(soft, np.float32), 0, 1)  # a blurred 1 may be 1.0000001


def _span(ends: npt.NDArray[np.float32], side: int) -> Span:
    """Give the window of a box along an axis of an image."""
    low, high = float(ends[0]), float(ends[1])
    length = high - low
    start, stop = max(0.0, low - AROUND * length - 2), min(float(side), high + AROUND * length + 3)
    return Span(
        int(start), int(stop), max(0.0, low - GROWN * length), min(float(side), high + GROWN * length)
    )


def _window(rows: Span, columns: Span) -> tuple[slice, slice]:
    return slice(rows.start, rows.stop), slice(columns.start, columns.stop)


def _cells(span: Span, cells: int) -> slice:
    """Give the cells of a window, shrunk to so many, where the object may lie."""
    scale = cells / (span.stop - span.start)
    return slice(int((span.first - span.start) * scale), int(np.ceil((span.last - span.start) * scale)))
