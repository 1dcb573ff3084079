"""A network that outlines the object of a box: from a window of the photo, its score and the box to the object's pixels.

The network sees a box with its surroundings, enlarged or shrunk to one size, so that a lost box far away and a cow close
by look alike. What it outlines may lie outside the box, for the boxes of objects that a detector saw in part are too
small. It is a :class:`anomdino.scorer.photo_unet.PhotoUNet`.

:func:`draw` is the network's side of what :func:`anomdino.adt.outline.draw_outlines` does by colours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from anomdino.adt.outline import Outlines, check_sizes
from anomdino.errors import CheckpointError
from anomdino.io.boxes import Boxes
from anomdino.io.tensors import write_tensors
from anomdino.scorer.base import normalise
from anomdino.scorer.photo_unet import PhotoUNet

FILE = "outline.safetensors"
FORMAT = "anomdino-outline-1"
SIDE = 160
"""Side of a window as the network sees it, in pixels."""
AROUND = 0.75
"""How much of a box's longer side its window shows beyond each side of the box, at least."""
LEVEL = 3.0
"""Standard deviations of the score that are 1 to the network; the score is cut off at three times as much."""
SURE = 2.2
"""Standardised score of what stands out for certain, S~ = 0.9: a loose box is drawn tighter around it."""
LOOSE, SPARE = 0.35, 0.15
"""Share of a box below which what stands out in it shows that the box is loose, and how much of what stands out a tighter
box leaves on each side of it. In a loose box around a small obstacle the bright end of the road is the largest thing.
"""
SPECK, LEAST_SPECK = 0.05, 8
"""Parts of what stands out that are smaller than this share of the largest one, or have fewer pixels, do not count."""
BATCH = 16
"""Windows that are looked at together; memory does not grow with the boxes."""
OWN, LARGE = 0.2, 0.1
"""Least share of a part of an outline that lies in the box, and least size beside the outline's largest part."""

FloatMap = npt.NDArray[np.float32]
BoolMap = npt.NDArray[np.bool_]


class Window(NamedTuple):
    """A square of an image, which may lie beyond its borders in part: left and upper end and side, in pixels."""

    x: int
    y: int
    side: int


class View(NamedTuple):
    """A window as the network sees it.

    Attributes:
        image: float32 (3, 160, 160), normalised RGB, 0 beyond the image.
        context: float32 (2, 160, 160): the standardised score in units of ``LEVEL``, 0 beyond the image, and 1 in
            the box.
    """

    image: Tensor
    context: Tensor


class OutlineNet(PhotoUNet):
    """The network: (B, 3, 160, 160) photo and (B, 2, 160, 160) score and box to logits (B, 160, 160).

    Attributes:
        details: Where it comes from, as its file says; JSON values.
    """

    details: dict[str, Any]

    def __init__(self) -> None:
        super().__init__(maps=2)
        self.details = {}


@torch.inference_mode()
def draw(network: OutlineNet, image: npt.NDArray[np.uint8], standardised: FloatMap, boxes: Boxes) -> Outlines:
    """Outline the object in every box; the same input gives the same outlines.

    Args:
        network: In evaluation mode, on any device.
        image: uint8 (H, W, 3), RGB.
        standardised: float32 (H, W), standardised scores (:meth:`anomdino.adt.model.AdtNet.standardise`).
        boxes: Kept boxes, inside the image (:meth:`Boxes.clipped`). An outline may reach three quarters of a box's
            longer side beyond it.

    Raises:
        DataError: Score and image are not of one size, or the image is not RGB.
    """
    check_sizes(image, standardised)
    drawn = Outlines(np.zeros_like(standardised), np.zeros_like(standardised))
    around = np.array([tightened(box, standardised) for box in boxes.xyxy], np.float32).reshape(-1, 4)
    windows = [window_of(box) for box in around]
    device = next(network.parameters()).device
    for first in range(0, len(boxes), BATCH):
        part = slice(first, first + BATCH)
        views = [
            view(image, standardised, box, window)
            for box, window in zip(around[part], windows[part], strict=True)
        ]
        images, context = (torch.stack(tensors).to(device) for tensors in zip(*views, strict=True))
        outlines = torch.sigmoid(network(images, context)).cpu().numpy()
        for outline, one, window, confidence in zip(
            outlines, context[:, 1].cpu().numpy(), windows[part], boxes.scores[part], strict=True
        ):
            put(drawn, parts_of_box(outline, one > 0), window, float(confidence))
    return drawn


def tightened(box: npt.NDArray[np.floating[Any]], standardised: FloatMap) -> npt.NDArray[np.floating[Any]]:
    """Draw a loose box tighter, around what stands out in it; others stay, and those in which nothing does.

    Args:
        box: (x0, y0, x1, y1), inside the image.
        standardised: float32 (H, W), standardised scores.
    """
    x0, y0, x1, y1 = (round(float(end)) for end in box)
    sure = standardised[y0:y1, x0:x1] >= SURE
    if not sure.any():
        return box
    _, _, figures, _ = cv2.connectedComponentsWithStats(sure.astype(np.uint8), connectivity=8)
    left, top, width, height, pixels = figures[1:].T
    counts = pixels >= max(LEAST_SPECK, SPECK * pixels.max())
    if not counts.any():
        return box
    low = np.array([left[counts].min(), top[counts].min()])
    sides = np.array([(left + width)[counts].max(), (top + height)[counts].max()]) - low
    if sides.prod() >= LOOSE * sure.size:
        return box
    spare = SPARE * sides + 1
    corner = low + np.array([x0, y0])
    ends = np.concatenate([corner - spare, corner + sides + spare])
    return np.asarray(np.clip(ends, np.tile(box[:2], 2), np.tile(box[2:], 2)))


def window_of(box: npt.NDArray[np.floating[Any]]) -> Window:
    """Give the window of a box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = (float(end) for end in box)
    side = max(8, round((1 + 2 * AROUND) * max(x1 - x0, y1 - y0)) + 4)
    return Window(round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2), side)


def view(
    image: npt.NDArray[np.uint8], standardised: FloatMap, box: npt.NDArray[np.floating[Any]], window: Window
) -> View:
    """Show a window of an image, uint8 (H, W, 3), and of its standardised score, float32 (H, W), to the network."""
    colours = normalise(torch.from_numpy(resized(cut(image, window, 0)))[None])[0]
    score = resized(cut(standardised, window, 0.0))
    frame = torch.from_numpy(inside(image.shape[:2], window))
    levels = torch.from_numpy(np.clip(score / LEVEL, -LEVEL, LEVEL))
    return View(colours * frame, torch.stack([levels, torch.from_numpy(box_map(box, window))]) * frame)


def cut(values: npt.NDArray[Any], window: Window, beyond: float) -> npt.NDArray[Any]:
    """Cut a window out of (H, W) or (H, W, 3); ``beyond`` fills what lies outside."""
    result = np.full((window.side, window.side, *values.shape[2:]), beyond, values.dtype)
    here, there = shared(values.shape, window)
    result[there] = values[here]
    return result


def shared(size: tuple[int, ...], window: Window) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Give the part that an image of ``size`` (H, W, ...) and a window share: in the image, and in the window."""
    ends = [
        (min(max(0, start), side), max(0, min(side, start + window.side)))
        for start, side in ((window.y, size[0]), (window.x, size[1]))
    ]
    (top, bottom), (left, right) = ((low, max(low, high)) for low, high in ends)
    here = slice(top, bottom), slice(left, right)
    return here, (
        slice(top - window.y, bottom - window.y),
        slice(left - window.x, right - window.x),
    )


def resized(values: npt.NDArray[Any], side: int = SIDE) -> npt.NDArray[Any]:
    """Bring a square to another side: averaged where it shrinks, interpolated where it grows."""
    how = cv2.INTER_AREA if side < len(values) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, (side, side), interpolation=how))


def inside(size: tuple[int, ...], window: Window) -> FloatMap:
    """Tell which of a window's 160 x 160 cells lie in an image of ``size`` (H, W): float32, 1 or 0."""
    frame = np.array([0, 0, size[1], size[0]], np.float64)
    return box_map(frame, window)


def box_map(box: npt.NDArray[np.floating[Any]], window: Window) -> FloatMap:
    """Draw a box into its window: float32 (160, 160), 1 or 0; half-open, to the nearest cell."""
    scale = SIDE / window.side
    x0, y0, x1, y1 = (
        int(np.clip(round((float(end) - start) * scale), 0, SIDE))
        for end, start in zip(box, (window.x, window.y) * 2, strict=True)
    )
    canvas = np.zeros((SIDE, SIDE), np.float32)
    canvas[y0:y1, x0:x1] = 1
    return canvas


def parts_of_box(outline: FloatMap, in_box: BoolMap) -> FloatMap:
    """Take the parts out of an outline that belong to something else: other objects in the window, and crumbs.

    A part is an 8-connected component of what is at least 0.5. It stays if a fifth of it lies in the box and it has a
    tenth of the size of the largest part.
    """
    count, labels, figures, _ = cv2.connectedComponentsWithStats(
        (outline >= 0.5).astype(np.uint8), connectivity=8
    )
    if count == 1:
        return outline
    sizes = figures[:, cv2.CC_STAT_AREA]
    own = np.bincount(labels[in_box], minlength=count)
    stays = (own >= OWN * sizes) & (sizes >= LARGE * sizes[1:].max())
    stays[0] = True
    if stays.all():
        return outline
    gone = ~stays[labels]
    rim = cv2.dilate(gone.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    rim &= (labels == 0) | gone
    return np.where(rim, np.float32(0), outline)


def put(drawn: Outlines, outline: FloatMap, window: Window, confidence: float) -> None:
    """Put an outline, float32 (160, 160), where its window lies in the image."""
    here, there = shared(drawn.shape.shape, window)
    piece = np.asarray(resized(outline, window.side)[there], np.float32)
    for canvas, values in zip(drawn, (piece, piece * np.float32(confidence)), strict=True):
        np.maximum(canvas[here], values, out=canvas[here])


def save_outline_net(network: OutlineNet, folder: Path | str) -> None:
    """Write a network into the folder of an ADT-Net, in half precision, whole or not at all."""
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    config = json.dumps({"format": FORMAT, "details": network.details}, sort_keys=True)
    write_tensors(Path(folder) / FILE, tensors, {"config": config})


def load_outline_net(folder: Path | str, device: str | torch.device = "cpu") -> OutlineNet | None:
    """Load the network beside an ADT-Net, in evaluation mode; None if there is none. No code of the file is executed.

    Raises:
        CheckpointError: The file is damaged or of another kind.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    cure = (
        "train it: `python -m pipeline.release_outline`, or delete it: objects are then outlined by colours"
    )
    try:
        with safe_open(path, framework="pt") as stored:
            config = json.loads((stored.metadata() or {}).get("config", "{}"))
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(path, f"is no safetensors file or is damaged ({error})", cure) from error
    if config.get("format") != FORMAT:
        raise CheckpointError(path, f"is no outline network (format {config.get('format')})", cure)
    network = OutlineNet()
    network.details = dict(config.get("details", {}))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(path, f"does not fit this version's network ({error})", cure) from error
    return network.to(device).eval().requires_grad_(False)
