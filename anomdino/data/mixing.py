"""Outlier exposure by the improved rule: several foreign objects pasted into a road scene.

Objects are sized by the ground they stand on, matched in colour and light and blended without a seam, with an exact
mask, box and area for every object that stays visible. The published rule is in `anomdino.data.rpl_mixing`.

Everything here is a pure function of its arguments and of the random generator that is passed in; nothing is read
or written.
Images are RGB. Labels are uint8 Cityscapes train ids, 254 = pasted outlier, 255 = void.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

OUTLIER = 254
VOID = 255
ROAD, SIDEWALK, TERRAIN = 0, 1, 9

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
CutOut = tuple[UInt8Array, BoolArray]


def extent(mask: BoolArray) -> tuple[int, int, int, int]:
    """Tight (top, left, bottom, right), half-open, of the True pixels; all zero when there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


@dataclass(frozen=True)
class PasteRules:
    """How `paste_objects` places and blends.

    Attributes:
        scale: `ground_row`: an object stands on the ground, its height follows the distance of the row it stands
            on; `log_uniform`: height log-uniform in `height`, anywhere in the frame; `mixed`: a coin decides
            object by object.
        height: (low, high) share of the image height, for `log_uniform`.
        ground_height: (low, high) height of an object in units of the camera's height over the road,
            log-uniform, for `ground_row`.
        ground: train ids on which objects stand.
        min_height: pixels; smaller draws are raised to it.
        max_extent: largest share of the image height or width that an object may take.
        truncation: probability that a `log_uniform` object may reach over the frame's border, up to half of it.
        edges: `soft`, `hard`, or `mixed` (a coin decides object by object).
        softness: (low, high) Gaussian sigma in pixels of a soft edge.
        erode: pixels cut off the object's own mask before use, against halos.
        match: (low, high) strength with which mean luminance follows the surroundings, 0 none, 1 fully.
        jitter: largest relative change of brightness, contrast, saturation and of each channel's gain.
        blur: largest Gaussian sigma, pixels, of an additional blur of the object.
        shadow: probability of a soft contact shadow under an object that stands on the ground.
        flip: probability of a horizontal flip.
        rotation: largest rotation, degrees.
        min_area: pixels an object must keep visible.
        min_visible: share of its pixels that an object must keep visible behind later ones.
        tries: placements tried before an object is left out.
    """

    scale: Literal["ground_row", "log_uniform", "mixed"] = "mixed"
    height: tuple[float, float] = (0.05, 0.75)
    ground_height: tuple[float, float] = (0.12, 1.4)
    ground: tuple[int, ...] = (ROAD, SIDEWALK, TERRAIN)
    min_height: int = 8
    max_extent: float = 0.8
    truncation: float = 0.2
    edges: Literal["soft", "hard", "mixed"] = "mixed"
    softness: tuple[float, float] = (0.5, 1.5)
    erode: int = 1
    match: tuple[float, float] = (0.0, 0.6)
    jitter: float = 0.25
    blur: float = 0.8
    shadow: float = 0.5
    flip: float = 0.5
    rotation: float = 8.0
    min_area: int = 24
    min_visible: float = 0.35
    tries: int = 8


@dataclass(frozen=True)
class Pasted:
    """What `paste_objects` returns; N objects stayed.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8: 254 on object pixels (alpha >= 0.5), 255 on the softened ring around them
            (0 < alpha < 0.5), else as given.
        boxes: (N, 4) float32 xyxy, half-open, tight around the visible pixels.
        areas: (N,) int64 visible pixels.
        instances: (H, W) uint8, 0 where no object, i + 1 on the visible pixels of object i.
        sources: (N,) int64, index into the objects that were handed in.
    """

    image: UInt8Array
    label: UInt8Array
    boxes: FloatArray
    areas: npt.NDArray[np.int64]
    instances: UInt8Array
    sources: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Sprite:
    """An object at its final size: colour (h, w, 3) float32, alpha (h, w) float32 in [0, 1]."""

    colour: FloatArray
    alpha: FloatArray


def paste_objects(
    image: UInt8Array,
    label: UInt8Array,
    objects: Sequence[CutOut],
    rng: np.random.Generator,
    rules: PasteRules | None = None,
) -> Pasted:
    """Paste every one of `objects` that finds a place into a road scene.

    Far objects are painted before near ones. A pixel that no object touches keeps its label and its colour, contact
    shadows apart: they darken the ground, and their pixels keep their label.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 train ids, 255 void.
        objects: pairs of (h, w, 3) uint8 RGB and (h, w) bool mask; at most 254.
        rng: numpy generator; the same state gives the same bytes.
        rules: placement and blending, defaults when None.

    Returns:
        Pasted; `boxes` is (0, 4) if nothing was handed in or nothing found a place.

    Raises:
        ValueError: sizes of image and label differ, or there are more than 254 objects.
    """
    rules = rules or PasteRules()
    if image.shape[:2] != label.shape:
        raise ValueError(f"image {image.shape[:2]} and label {label.shape} differ in size")
    if len(objects) > 254:
        raise ValueError(f"{len(objects)} objects: at most 254 fit the instance map")
    ground = _Ground.of(label, rules)
    plans = [
        _plan(index, cutout, ground, rng, rules) for index, cutout in enumerate(objects) if cutout[1].any()
    ]
    plans.sort(key=lambda plan: (plan.foot_row, plan.index))
    canvas = _Canvas(image, label)
    for plan in plans:
        _paste(canvas, plan, objects[plan.index], ground, rng, rules)
    return canvas.result()


@dataclass(frozen=True)
class _Ground:
    """Where objects can stand: flat indices of ground pixels, the horizon row, the frame's size."""

    pixels: npt.NDArray[np.int64]
    horizon: float
    height: int
    width: int

    @classmethod
    def of(cls, label: UInt8Array, rules: PasteRules) -> _Ground:
        height, width = label.shape
        lookup = np.zeros(256, dtype=np.uint8)
        lookup[list(rules.ground)] = 1
        coarse = lookup[label[::4, ::4]]
        rows, columns = np.nonzero(coarse)
        road_rows = np.flatnonzero((label[::4, ::4] == ROAD).any(axis=1)) * 4
        top = float(road_rows[0]) if road_rows.size else 0.45 * height
        return cls((rows * 4 * width + columns * 4).astype(np.int64), top - 0.02 * height, height, width)


@dataclass(frozen=True)
class _Plan:
    index: int
    on_ground: bool
    height: float
    foot_row: float
    column: float


def _plan(index: int, cutout: CutOut, ground: _Ground, rng: np.random.Generator, rules: PasteRules) -> _Plan:
    on_ground = rules.scale == "ground_row" or (rules.scale == "mixed" and rng.random() < 0.5)
    return _draw_place(index, cutout, on_ground and ground.pixels.size > 0, ground, rng, rules)


def _draw_place(
    index: int, cutout: CutOut, on_ground: bool, ground: _Ground, rng: np.random.Generator, rules: PasteRules
) -> _Plan:
    top, left, bottom, right = extent(cutout[1])
    mask_height, mask_width = bottom - top, right - left
    if on_ground:
        pixel = int(ground.pixels[rng.integers(ground.pixels.size)])
        foot_row, column = divmod(pixel, ground.width)
        height = _log_uniform(rng, rules.ground_height) * max(foot_row - ground.horizon, 1.0)
    else:
        height = _log_uniform(rng, rules.height) * ground.height
        foot_row = column = 0
    height = max(height, float(rules.min_height))
    height = min(
        height, rules.max_extent * ground.height, rules.max_extent * ground.width * mask_height / mask_width
    )
    if not on_ground:
        over = 0.5 if rng.random() < rules.truncation else 0.0
        half_width = 0.5 * height * mask_width / mask_height
        foot_row = round(rng.uniform((1 - over) * height, ground.height + over * height))
        column = round(rng.uniform((1 - 2 * over) * half_width, ground.width - (1 - 2 * over) * half_width))
    return _Plan(index, on_ground, height, float(foot_row), float(column))


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def _paste(
    canvas: _Canvas, plan: _Plan, cutout: CutOut, ground: _Ground, rng: np.random.Generator, rules: PasteRules
) -> None:
    """Make the sprite and put it down; when it would hide too much of another object, try another place."""
    for _ in range(rules.tries):
        sprite = _sprite(cutout, plan.height, rng, rules)
        window = canvas.window(sprite, plan)
        if window is not None and canvas.accepts(window, rules):
            coloured = _match_colour(window.colour, window.alpha, canvas.image[window.target], rng, rules)
            if plan.on_ground and rng.random() < rules.shadow:
                canvas.cast_shadow(window, plan, rng)
            canvas.put(window, coloured, plan.index)
            return
        moved = _draw_place(plan.index, cutout, plan.on_ground, ground, rng, rules)
        plan = _Plan(plan.index, plan.on_ground, moved.height, moved.foot_row, moved.column)


def _sprite(cutout: CutOut, height: float, rng: np.random.Generator, rules: PasteRules) -> _Sprite:
    """Cut, flip, rotate and scale an object (area-averaged, so that nothing aliases) and give it its edge.

    Colour is resampled premultiplied by the mask: the object's own background never bleeds into its border.
    """
    rgb, mask = _tight(cutout, rules.erode)
    if rng.random() < rules.flip:
        rgb, mask = np.asarray(cv2.flip(rgb, 1), np.uint8), mask[:, ::-1]
    angle = float(rng.uniform(-rules.rotation, rules.rotation))
    soft = rules.edges == "soft" or (rules.edges == "mixed" and rng.random() < 0.5)
    sigma = float(rng.uniform(*rules.softness)) if soft else 0.0
    blur = float(rng.uniform(0.0, rules.blur))

    scale = height / mask.shape[0]
    size = (max(round(mask.shape[1] * scale), 1), max(round(height), 1))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    weighted = cv2.copyTo(np.ascontiguousarray(rgb), mask.astype(np.uint8))
    weight = _reals(cv2.resize(mask.astype(np.float32), size, interpolation=interpolation))
    premultiplied = _reals(cv2.resize(weighted, size, interpolation=interpolation))
    margin = int(np.ceil(2.5 * sigma)) + 1
    premultiplied, weight = _rotate(premultiplied, weight, angle, margin)
    if blur > 0.3:
        premultiplied = _reals(cv2.GaussianBlur(premultiplied, (0, 0), blur))
        spread = _reals(cv2.GaussianBlur(weight, (0, 0), blur))
    else:
        spread = weight
    if sigma > 0:
        alpha = _soft_alpha(weight, sigma)
        outside = weight < 0.5
        far_colour = cv2.GaussianBlur(premultiplied, (0, 0), 2 * sigma)
        far_weight = cv2.GaussianBlur(spread, (0, 0), 2 * sigma)
        premultiplied = _reals(cv2.copyTo(far_colour, outside.astype(np.uint8), premultiplied))
        spread = _reals(np.where(outside, far_weight, spread))
    else:
        alpha = (weight >= 0.5).astype(np.float32)
    colour = premultiplied / _threefold(np.maximum(spread, 1e-3))
    return _Sprite(np.clip(colour, 0, 255, out=colour), alpha)


def _threefold(plane: np.ndarray) -> np.ndarray:
    """Repeat (h, w) as (h, w, 3): numpy works on whole rows of it, where it would loop over a last axis of 3."""
    return np.asarray(cv2.merge((plane, plane, plane)))


def _reals(values: npt.ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float32)


def _soft_alpha(weight: FloatArray, sigma: float) -> FloatArray:
    """Blurred silhouette; values under 2 % are cut so that the ring is finite."""
    alpha = cv2.GaussianBlur(weight, (0, 0), sigma)
    return np.where(alpha < 0.02, np.float32(0), alpha).astype(np.float32)


def _tight(cutout: CutOut, erode: int) -> CutOut:
    rgb, mask = cutout
    if erode and min(mask.shape) > 16 * erode:
        kernel = np.ones((2 * erode + 1, 2 * erode + 1), dtype=np.uint8)
        eroded = cv2.erode(mask.astype(np.uint8), kernel, borderValue=1) > 0
        mask = eroded if eroded.any() else mask
    top, left, bottom, right = extent(mask)
    return rgb[top:bottom, left:right], mask[top:bottom, left:right]


def _rotate(
    colour: FloatArray, weight: FloatArray, angle: float, margin: int
) -> tuple[FloatArray, FloatArray]:
    """Rotate about the centre on a canvas grown to hold the result and `margin` empty pixels on every side."""
    height, width = weight.shape
    cosine, sine = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
    grown = (
        int(np.ceil(width * cosine + height * sine)) + 2 * margin,
        int(np.ceil(width * sine + height * cosine)) + 2 * margin,
    )
    if abs(angle) < 0.5:
        pads = ((grown[1] - height) // 2, grown[1] - height - (grown[1] - height) // 2)
        sides = ((grown[0] - width) // 2, grown[0] - width - (grown[0] - width) // 2)
        return np.pad(colour, (pads, sides, (0, 0))), np.pad(weight, (pads, sides))
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    turn[0, 2] += (grown[0] - width) / 2
    turn[1, 2] += (grown[1] - height) / 2
    return _reals(cv2.warpAffine(colour, turn, grown)), _reals(cv2.warpAffine(weight, turn, grown))


def _match_colour(
    colour: FloatArray,
    alpha: FloatArray,
    surroundings: UInt8Array,
    rng: np.random.Generator,
    rules: PasteRules,
) -> FloatArray:
    """Follow the light of the place, then jitter: one affine map of RGB (saturation, gains, contrast, offset)."""
    strength = float(rng.uniform(*rules.match))
    brightness, contrast, saturation = rng.uniform(1 - rules.jitter, 1 + rules.jitter, 3)
    gains = rng.uniform(1 - rules.jitter / 2, 1 + rules.jitter / 2, 3)
    luma = np.array([0.299, 0.587, 0.114])
    inside = (alpha >= 0.5).astype(np.uint8)
    mean = np.array(cv2.mean(colour, inside)[:3])
    around = np.array(cv2.mean(surroundings)[:3])
    shift = strength * float(luma @ (around - mean))
    mix = contrast * gains[:, None] * (saturation * np.eye(3) + (1 - saturation) * np.tile(luma, (3, 1)))
    offset = brightness * (mean + shift) - mix @ mean
    moved = cv2.transform(colour, np.hstack([mix, offset[:, None]]).astype(np.float32))
    return np.asarray(np.clip(moved, 0, 255), dtype=np.float32)


@dataclass(frozen=True)
class _Window:
    """A sprite clipped to the frame: the frame's slices, its colour and alpha there, pixels it has in all."""

    target: tuple[slice, slice]
    colour: FloatArray
    alpha: FloatArray
    full_area: int


class _Canvas:
    """The image being composed, and which object owns which pixel."""

    def __init__(self, image: UInt8Array, label: UInt8Array) -> None:
        self.image = image.copy()
        self.label = label.copy()
        self.owner: UInt8Array = np.zeros(label.shape, dtype=np.uint8)
        self.areas: list[int] = []
        self.sources: list[int] = []

    def window(self, sprite: _Sprite, plan: _Plan) -> _Window | None:
        """Clip a sprite that stands at the plan's place to the frame; None when nothing of it is inside."""
        height, width = sprite.alpha.shape
        rows = np.flatnonzero((sprite.alpha >= 0.5).any(axis=1))
        if rows.size == 0:
            return None
        top = round(plan.foot_row) - int(rows[-1])
        left = round(plan.column) - width // 2
        frame_height, frame_width = self.owner.shape
        row0, row1 = max(top, 0), min(top + height, frame_height)
        column0, column1 = max(left, 0), min(left + width, frame_width)
        if row0 >= row1 or column0 >= column1:
            return None
        part = (slice(row0 - top, row1 - top), slice(column0 - left, column1 - left))
        full_area = int(np.count_nonzero(sprite.alpha >= 0.5))
        return _Window(
            (slice(row0, row1), slice(column0, column1)), sprite.colour[part], sprite.alpha[part], full_area
        )

    def accepts(self, window: _Window, rules: PasteRules) -> bool:
        """Whether the new object and every object under it keep enough visible pixels."""
        solid = window.alpha >= 0.5
        area = int(np.count_nonzero(solid))
        if area < rules.min_area or area < rules.min_visible * window.full_area:
            return False
        covered = np.bincount(self.owner[window.target][window.alpha > 0], minlength=len(self.areas) + 1)
        visible = (
            np.bincount(self.owner.ravel(), minlength=len(self.areas) + 1) if covered[1:].any() else None
        )
        if visible is None:
            return True
        left = visible[1:] - covered[1:]
        return all(
            keep >= max(rules.min_area, rules.min_visible * total)
            for keep, total in zip(left, self.areas, strict=True)
        )

    def cast_shadow(self, window: _Window, plan: _Plan, rng: np.random.Generator) -> None:
        """Darken the ground around the object's foot by a soft ellipse; labels stay."""
        columns = window.target[1]
        width = columns.stop - columns.start
        depth = max(2.0, 0.12 * width)
        pad = int(np.ceil(2 * depth))
        row0, row1 = max(int(plan.foot_row) - pad, 0), min(int(plan.foot_row) + pad, self.owner.shape[0])
        column0, column1 = max(columns.start - pad, 0), min(columns.stop + pad, self.owner.shape[1])
        if row0 >= row1 or column0 >= column1:
            return
        centre = plan.column + float(rng.uniform(-0.15, 0.15)) * width
        across = ((np.arange(column0, column1) - centre) / max(0.5 * width, 1.0)) ** 2
        along = ((np.arange(row0, row1) - plan.foot_row) / depth) ** 2
        strength = float(rng.uniform(0.2, 0.55))
        shade = (1 - strength * np.exp(-1.2 * (across[None, :] + along[:, None]))).astype(np.float32)
        region = self.image[row0:row1, column0:column1]
        darkened = region * shade[..., None]
        free = (self.owner[row0:row1, column0:column1] == 0)[..., None]
        self.image[row0:row1, column0:column1] = np.where(free, np.rint(darkened).astype(np.uint8), region)

    def put(self, window: _Window, colour: FloatArray, source: int) -> None:
        region = self.image[window.target]
        touched, solid = window.alpha > 0, window.alpha >= 0.5
        behind = region.astype(np.float32)
        blended = colour - behind
        blended *= _threefold(window.alpha)
        blended += behind
        blended = np.rint(blended, out=blended).astype(np.uint8)
        region[...] = cv2.copyTo(blended, touched.astype(np.uint8), region.copy())
        label = self.label[window.target]
        owner = self.owner[window.target]
        ring = touched & ~solid
        label[ring] = VOID
        owner[ring] = 0
        label[solid] = OUTLIER
        owner[solid] = len(self.areas) + 1
        self.areas.append(window.full_area)
        self.sources.append(source)

    def result(self) -> Pasted:
        count = len(self.areas)
        boxes = np.zeros((count, 4), dtype=np.float32)
        for index in range(count):
            top, left, bottom, right = extent(self.owner == index + 1)
            boxes[index] = (left, top, right, bottom)
        areas = np.bincount(self.owner.ravel(), minlength=count + 1)[1:].astype(np.int64)
        sources = np.asarray(self.sources, dtype=np.int64)
        return Pasted(self.image, self.label, boxes, areas, self.owner, sources)
