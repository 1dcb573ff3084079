"""What stands beside and on a road and is known: buildings, trees, fences, poles, signs, vehicles, people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.synthetic.canvas import Canvas, Colour
from anomdino.synthetic.noise import fractal, tile

BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, SIGN, VEGETATION, TERRAIN = 2, 3, 4, 5, 6, 7, 8, 9
PERSON, RIDER, CAR, TRUCK, BUS, BICYCLE = 11, 12, 13, 14, 15, 18

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prop:
    """Something to paint.

    Attributes:
        distance: z that orders painting, metres.
        footprint: (N, 3) road coordinates whose shadow falls on the ground (corners of its outer box), or empty.
        paint: paints it.
    """

    distance: float
    footprint: npt.NDArray[np.float64]
    paint: Callable[[Canvas], None]


def lit(colour: Colour, factor: float) -> Colour:
    """Colour times a brightness factor."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def box_corners(x0: float, x1: float, height: float, z0: float, z1: float) -> npt.NDArray[np.float64]:
    """The eight corners of an upright box on the ground."""
    return np.array([(x, y, z) for x in (x0, x1) for y in (0.0, height) for z in (z0, z1)])


# --- buildings ---------------------------------------------------------------------------------------------------


def facade(rng: np.random.Generator, length: float, height: float) -> UInt8Array:
    """A wall with rows of windows, 16 pixels a metre at most 512 wide, uint8 (h, w, 3)."""
    density = min(16.0, 512 / max(length, height))
    rows, columns = max(int(height * density), 8), max(int(length * density), 8)
    base = _wall_colour(rng)
    grain = tile(8, int(rng.integers(4)))[:rows, :columns]
    stain = fractal(2, 5, int(rng.integers(4)))[:rows, :columns]
    tone = (1 + 0.03 * grain + 0.05 * stain).astype(np.float64)
    cornice = max(int(0.4 * density), 1)
    planes = [tone * part for part in base]
    for plane in planes:
        plane[:cornice] *= 0.8
    wall = np.asarray(cv2.merge([np.clip(plane, 0, 255).astype(np.uint8) for plane in planes]))

    def fill(top: int, bottom: int, left: int, right: int, colour: npt.NDArray[np.float64]) -> None:
        for low, high, factor in ((top, bottom, 1.0), (top, min(bottom, cornice), 0.8)):
            if low < high and left < right:
                shade = [int(min(max(part * factor, 0), 255)) for part in colour.tolist()]
                cv2.rectangle(wall, (left, low), (right - 1, high - 1), shade, cv2.FILLED)

    storey, bay = rng.uniform(2.7, 3.6), rng.uniform(1.6, 3.4)
    window_height, window_width = rng.uniform(0.4, 0.62) * storey, rng.uniform(0.35, 0.7) * bay
    glass = np.array([58, 68, 80]) * rng.uniform(0.6, 1.5)
    frame = base * rng.uniform(0.75, 1.25)
    shop = rng.random() < 0.3
    for level in np.arange(0, height - 1.5, storey):
        for column in np.arange(bay * 0.2, length - window_width, bay):
            top = rows - int((level + 0.25 * storey + window_height) * density)
            bottom = rows - int((level + 0.25 * storey) * density)
            left, right = int(column * density), int((column + window_width) * density)
            if level == 0 and shop:
                bottom, right = rows - int(0.2 * density), int((column + 0.9 * bay) * density)
            fill(max(top - 1, 0), bottom + 1, max(left - 1, 0), right + 1, frame)
            fill(max(top, 0), bottom, left, right, glass * rng.uniform(0.75, 1.45))
            middle = (left + right) // 2
            fill(max(top, 0), bottom, middle, middle + 1, frame)
    return wall


def _wall_colour(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    palette = np.array(
        [
            (178, 160, 134),
            (150, 92, 72),
            (196, 188, 172),
            (128, 126, 124),
            (206, 178, 120),
            (164, 130, 110),
            (108, 112, 120),
        ]
    )
    return np.asarray(palette[rng.integers(len(palette))] * rng.uniform(0.75, 1.15) + rng.normal(0, 7, 3))


def building(rng: np.random.Generator, side: int, front: float, z0: float, z1: float) -> Prop:
    """A house along the road: side -1 left, 1 right; `front` metres from the centre line, from z0 to z1."""
    height, depth = rng.uniform(5, 17), rng.uniform(7, 12)
    along, across = facade(rng, z1 - z0, height), facade(rng, depth, height)
    pitched, roof = rng.random() < 0.4, (rng.uniform(80, 130), rng.uniform(55, 80), rng.uniform(48, 70))
    near, far = side * front, side * (front + depth)

    def paint(canvas: Canvas) -> None:
        light = canvas.light
        if pitched:
            ridge = 0.5 * (near + far)
            slope = [(near, height, z0), (near, height, z1), (ridge, height + 3, z1), (ridge, height + 3, z0)]
            canvas.face(slope, lit(roof, light.shade((0, 0.8, 0))), BUILDING, z0)
            gable = [(near, height, z0), (far, height, z0), (ridge, height + 3, z0)]
            canvas.face(gable, lit(roof, 0.8 * light.shade((0, 0, -1))), BUILDING, z0)
        front_wall = [(near, 0, z0), (far, 0, z0), (far, height, z0), (near, height, z0)]
        canvas.textured(front_wall, _scaled(across, light.shade((0, 0, -1))), BUILDING, z0)
        road_wall = [(near, 0, z0), (near, 0, z1), (near, height, z1), (near, height, z0)]
        canvas.textured(road_wall, _scaled(along, light.shade((-side, 0, 0))), BUILDING, 0.6 * z0 + 0.4 * z1)

    shade = box_corners(min(near, far), max(near, far), min(height, 9), z0, z1)
    return Prop(z0 + 1000, shade, paint)


def _scaled(texture: UInt8Array, factor: float) -> UInt8Array:
    return np.asarray(cv2.convertScaleAbs(texture, alpha=float(factor)), dtype=np.uint8)


def garden_wall(rng: np.random.Generator, side: int, front: float, z0: float, z1: float) -> Prop:
    """A low wall or a fence along the road."""
    fenced = rng.random() < 0.55
    height = rng.uniform(0.9, 1.6)
    colour = _wall_colour(rng)
    label = FENCE if fenced else WALL
    wall = _fence(rng, z1 - z0) if fenced else _bricks(rng, colour, z1 - z0, height)

    def paint(canvas: Canvas) -> None:
        x = side * front
        quad = [(x, 0, z0), (x, 0, z1), (x, height, z1), (x, height, z0)]
        canvas.textured(quad, _scaled(wall, canvas.light.shade((-side, 0, 0))), label, 0.5 * (z0 + z1))

    return Prop(z0 + 500, np.empty((0, 3)), paint)


def _fence(rng: np.random.Generator, length: float) -> UInt8Array:
    columns = int(min(length * 16, 640))
    base = np.array([(120, 92, 64), (150, 150, 150), (70, 84, 70)][int(rng.integers(3))]) * rng.uniform(
        0.8, 1.2
    )
    boards = np.tile(base, (32, columns, 1)) * (
        1 + 0.06 * rng.standard_normal((1, columns // 2 + 1, 1)).repeat(2, 1)[:, :columns]
    )
    boards[:, ::4] *= 0.55
    boards[6:8] *= 0.8
    boards[24:26] *= 0.8
    return np.clip(boards, 0, 255).astype(np.uint8)


def _bricks(
    rng: np.random.Generator, colour: npt.NDArray[np.float64], length: float, height: float
) -> UInt8Array:
    rows, columns = 32, int(min(length * 16, 640))
    wall = colour * (1 + 0.07 * tile(8, int(rng.integers(4)))[:rows, : min(columns, 512)])[..., None]
    wall[:: max(int(4 / height), 2)] *= 0.88
    return np.clip(wall, 0, 255).astype(np.uint8)


# --- vegetation --------------------------------------------------------------------------------------------------


def tree(rng: np.random.Generator, x: float, z: float, height: float) -> Prop:
    """A trunk with a crown of leaves; class vegetation."""
    green = np.array(
        [(70, 96, 42), (92, 108, 50), (58, 78, 46), (112, 100, 48)][int(rng.integers(4))]
    ) * rng.uniform(0.75, 1.2)
    bark = np.array([84, 70, 56]) * rng.uniform(0.7, 1.2)
    width = height * rng.uniform(0.4, 0.75)
    seed = int(rng.integers(2**31))
    slender = rng.random() < 0.2

    def paint(canvas: Canvas) -> None:
        local = np.random.default_rng(seed)
        scale = canvas.camera.scale(z)
        foot = canvas.camera.project([(x, 0, z), (x, height, z)])
        trunk = max(0.035 * height * scale, 1.0)
        mid = foot[0] + 0.5 * (foot[1] - foot[0])
        canvas.stroke(
            np.stack([foot[0], mid]), trunk, lit(tuple(bark), canvas.light.shade((0, 0, -1))), VEGETATION, z
        )
        crown = foliage(local, int(width * scale) + 2, int(0.72 * height * scale) + 2, green, canvas)
        if slender:
            crown = crown[0], crown[1] & _cone(crown[1].shape)
        corner = (int(foot[1][1]), int(foot[1][0] - crown[1].shape[1] / 2))
        canvas.stamp(crown[0], crown[1], corner, VEGETATION, z)

    shade = box_corners(x - width / 2, x + width / 2, height, z - 0.4, z + 0.4)
    return Prop(z, shade, paint)


def foliage(
    rng: np.random.Generator, width: int, height: int, green: npt.NDArray[np.float64], canvas: Canvas
) -> tuple[UInt8Array, npt.NDArray[np.bool_]]:
    """A clump of leaves: colour (height, width, 3) and where it is; lit from the sun's side."""
    width, height = min(max(width, 2), 1400), min(max(height, 2), 1400)
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    offset = rng.integers(0, 256, 2)
    cut = fractal(3, 7, int(rng.integers(4)))[offset[0] : offset[0] + 256, offset[1] : offset[1] + 256]
    noise = cv2.resize(np.ascontiguousarray(cut), (width, height), interpolation=cv2.INTER_LINEAR)
    inside = rows**2 + columns**2 + 0.2 * noise < 0.86
    sun = canvas.light.sun
    relief = 0.35 * noise + 0.45 * (sun[0] * columns - sun[1] * rows) * (0.35 + canvas.light.direct)
    brightness = canvas.light.ambient * 0.85 + canvas.light.direct * 0.5 + 0.3 * relief
    fleck = cv2.resize(tile(8, 1)[:height, :width], (width, height), interpolation=cv2.INTER_NEAREST)
    tone = np.clip(brightness, 0.25, 1.5) * (1 + 0.09 * fleck)
    leaves = cv2.merge([np.clip(tone * part, 0, 255).astype(np.uint8) for part in green])
    return np.asarray(leaves, dtype=np.uint8), np.asarray(inside)


def _cone(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    rows, columns = np.linspace(0, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None, :]
    return np.asarray(np.abs(columns) < 0.15 + 0.85 * rows)


def bush(rng: np.random.Generator, x: float, z: float) -> Prop:
    """A bush; class vegetation."""
    height, width = rng.uniform(0.7, 1.8), rng.uniform(1.0, 3.5)
    green = np.array([78, 98, 48]) * rng.uniform(0.7, 1.2)
    seed = int(rng.integers(2**31))

    def paint(canvas: Canvas) -> None:
        scale = canvas.camera.scale(z)
        foot = canvas.camera.project([(x, height, z)])[0]
        clump = foliage(
            np.random.default_rng(seed), int(width * scale), int(1.1 * height * scale), green, canvas
        )
        canvas.stamp(*clump, (int(foot[1]), int(foot[0] - clump[1].shape[1] / 2)), VEGETATION, z)

    return Prop(z, box_corners(x - width / 2, x + width / 2, height, z - 0.3, z + 0.3), paint)


# --- street furniture --------------------------------------------------------------------------------------------


def lamp_post(rng: np.random.Generator, x: float, z: float) -> Prop:
    """A post, with a lamp on an arm towards the road in most cases; class pole."""
    height, arm = rng.uniform(4.5, 8), rng.uniform(0.8, 1.8) if rng.random() < 0.7 else 0.0
    grey: Colour = lit((110, 114, 116), rng.uniform(0.5, 1.2))

    def paint(canvas: Canvas) -> None:
        width = max(0.18 * canvas.camera.scale(z), 2.0)
        colour = lit(grey, canvas.light.shade((0, 0, -1)))
        points = [(x, 0, z), (x, height, z)] + ([(x - np.sign(x) * arm, height + 0.25, z)] if arm else [])
        canvas.stroke(canvas.camera.project(points), width, colour, POLE, z)

    return Prop(z, box_corners(x - 0.06, x + 0.06, height, z - 0.06, z + 0.06), paint)


def sign(rng: np.random.Generator, x: float, z: float) -> Prop:
    """A traffic sign on a post."""
    height, radius = rng.uniform(2.1, 2.8), rng.uniform(0.34, 0.5)
    kind = int(rng.integers(5))

    def paint(canvas: Canvas) -> None:
        scale, bright = canvas.camera.scale(z), canvas.light.shade((0, 0, -1))
        feet = canvas.camera.project([(x, 0, z), (x, height, z)])
        canvas.stroke(feet, max(0.1 * scale, 1.8), lit((140, 142, 144), bright), POLE, z)
        column, row, size = feet[1][0], feet[1][1] - radius * scale * 0.4, max(radius * scale, 2.0)
        sides = (24, 3, 4, 8, 4)[kind]
        outer = ((200, 30, 36), (200, 30, 36), (40, 84, 160), (190, 28, 34), (232, 196, 60))[kind]
        inner = ((232, 232, 228), (232, 232, 228), (60, 110, 190), (200, 40, 46), (240, 240, 236))[kind]
        for scale_down, paint_colour in ((1.0, outer), (0.66, inner)):
            turn = np.linspace(0, 2 * np.pi, sides, endpoint=False) - np.pi / 2
            points = np.stack(
                [column + size * scale_down * np.cos(turn), row + size * scale_down * np.sin(turn)], axis=1
            )
            canvas.polygon(points, lit(paint_colour, bright), SIGN, z)
        if kind in (0, 2, 3):
            bar = np.array([[column - 0.35 * size, row], [column + 0.35 * size, row]])
            canvas.stroke(
                bar, max(0.18 * size, 1), lit((30, 30, 34) if kind == 0 else (236, 236, 236), bright), SIGN, z
            )

    return Prop(z, box_corners(x - radius, x + radius, height, z - 0.04, z + 0.04), paint)


def traffic_light(rng: np.random.Generator, x: float, z: float) -> Prop:
    """A traffic light on a post."""
    height = rng.uniform(2.6, 3.2)
    on = int(rng.integers(3))

    def paint(canvas: Canvas) -> None:
        scale, bright = canvas.camera.scale(z), canvas.light.shade((0, 0, -1))
        feet = canvas.camera.project([(x, 0, z), (x, height, z)])
        canvas.stroke(feet, max(0.16 * scale, 2.0), lit((70, 74, 74), bright), POLE, z)
        column, row = feet[1]
        half, tall = max(0.2 * scale, 2.0), max(1.05 * scale, 5.0)
        case = np.array(
            [
                [column - half, row],
                [column + half, row],
                [column + half, row - tall],
                [column - half, row - tall],
            ]
        )
        canvas.polygon(case, lit((38, 42, 40), bright), TRAFFIC_LIGHT, z)
        for index, lamp in enumerate(((240, 50, 40), (250, 190, 50), (60, 220, 120))):
            centre = (column, row - tall * (0.83 - 0.33 * index))
            colour = lamp if index == on else lit(lamp, 0.22)
            canvas.ellipse(centre, (0.62 * half, 0.62 * half), colour, TRAFFIC_LIGHT, z)

    return Prop(z, box_corners(x - 0.1, x + 0.1, height, z - 0.1, z + 0.1), paint)


# --- road users --------------------------------------------------------------------------------------------------

_PAINTS = (
    (40, 42, 46),
    (222, 222, 220),
    (150, 154, 158),
    (120, 24, 28),
    (34, 56, 110),
    (88, 92, 96),
    (28, 70, 56),
    (176, 168, 150),
)
_ODD_PAINTS = (
    (236, 120, 178),
    (240, 150, 30),
    (150, 220, 60),
    (120, 60, 170),
    (250, 220, 60),
    (60, 200, 210),
)


@dataclass(frozen=True)
class Body:
    """Measures of a vehicle, metres: width, length, height, height of the belt line, roof inset front and rear, class."""

    width: float
    length: float
    height: float
    belt: float
    front_inset: float
    rear_inset: float
    label: int


def vehicle(rng: np.random.Generator, x: float, z: float, odd: float) -> Prop:
    """A car, van, lorry or bus, its rear or front towards the camera; `odd` is the probability of a rare colour."""
    body, paint_colour = _body(rng), _PAINTS[int(rng.integers(len(_PAINTS)))]
    if rng.random() < odd:
        paint_colour = _ODD_PAINTS[int(rng.integers(len(_ODD_PAINTS)))]
    colour = tuple(
        float(c)
        for c in np.clip(np.asarray(paint_colour) * rng.uniform(0.8, 1.15) + rng.normal(0, 5, 3), 8, 250)
    )
    coming = x < 0 and rng.random() < 0.7
    two_tone = rng.random() < 0.1

    def paint(canvas: Canvas) -> None:
        _paint_vehicle(canvas, body, (x, z), (colour[0], colour[1], colour[2]), coming, two_tone)

    return Prop(
        z, box_corners(x - body.width / 2, x + body.width / 2, 0.8 * body.height, z, z + body.length), paint
    )


def _body(rng: np.random.Generator) -> Body:
    kind = rng.choice(["car", "van", "truck", "bus"], p=[0.78, 0.1, 0.07, 0.05])
    if kind == "car":
        height = rng.uniform(1.4, 1.72)
        return Body(
            rng.uniform(1.65, 1.9),
            rng.uniform(3.7, 4.8),
            height,
            0.62 * height,
            1.3,
            rng.uniform(0.2, 0.9),
            CAR,
        )
    if kind == "van":
        return Body(1.95, rng.uniform(4.8, 5.6), rng.uniform(1.95, 2.4), 1.15, 0.9, 0.05, CAR)
    if kind == "truck":
        return Body(2.45, rng.uniform(7, 10), rng.uniform(3.1, 3.7), 1.5, 0.1, 0.02, TRUCK)
    return Body(2.5, rng.uniform(10, 12), rng.uniform(2.9, 3.2), 1.1, 0.1, 0.05, BUS)


def _paint_vehicle(
    canvas: Canvas, body: Body, place: tuple[float, float], colour: Colour, coming: bool, two_tone: bool
) -> None:
    x, z = place
    light, label = canvas.light, body.label
    half, floor = body.width / 2, 0.22
    near_inset, far_inset = (
        (body.front_inset, body.rear_inset) if coming else (body.rear_inset, body.front_inset)
    )
    z_far = z + body.length
    roof_half = half * 0.82
    eye = canvas.camera.offset - float(canvas.camera.bend(np.array(z)))
    toward = -1.0 if x > eye else 1.0
    side_x, roof_x = x + toward * half, x + toward * roof_half
    end, flank, top = light.shade((0, 0, -1)), light.shade((toward, 0, 0)), light.shade((0, 1, 0))
    glass: Colour = (46.0, 56.0, 66.0)
    upper = (232.0, 232.0, 228.0) if two_tone else colour

    _wheels(canvas, side_x, z, body)
    flank_quad = [
        (side_x, floor, z),
        (side_x, floor, z_far),
        (side_x, body.belt, z_far),
        (side_x, body.belt, z),
    ]
    canvas.face(flank_quad, lit(colour, flank), label, z)
    stripe = 0.5 * (floor + body.belt)
    canvas.face([(side_x, floor, z), (side_x, floor, z_far), (side_x, 0.6 * stripe, z_far), (side_x, 0.6 * stripe, z)],
                lit(colour, 0.7 * flank), label, z)  # fmt: skip
    bonnet = [
        (x - half, body.belt, z),
        (x + half, body.belt, z),
        (x + half, body.belt, z_far),
        (x - half, body.belt, z_far),
    ]
    canvas.face(bonnet, lit(colour, top), label, z)
    cabin_near, cabin_far = z + near_inset, z_far - far_inset
    pillar = [(side_x, body.belt, z + 0.3 * near_inset), (side_x, body.belt, z_far - 0.4 * far_inset),
              (roof_x, body.height, cabin_far), (roof_x, body.height, cabin_near)]  # fmt: skip
    canvas.face(pillar, lit(upper, flank), label, z)
    length = cabin_far - cabin_near
    for start, stop in ((0.04, 0.46), (0.54, 0.95)):
        low, high = body.belt + 0.06, body.height - 0.1
        quad = [(side_x, low, cabin_near + start * length), (side_x, low, cabin_near + stop * length),
                (roof_x, high, cabin_near + stop * length), (roof_x, high, cabin_near + start * length)]  # fmt: skip
        if label != TRUCK:
            canvas.face(quad, lit(glass, 0.6 + 0.5 * flank), label, z)
    roof = [(x - roof_half, body.height, cabin_near), (x + roof_half, body.height, cabin_near),
            (x + roof_half, body.height, cabin_far), (x - roof_half, body.height, cabin_far)]  # fmt: skip
    canvas.face(roof, lit(upper, top), label, z)
    screen = [(x - half, body.belt, z + 0.3 * near_inset), (x + half, body.belt, z + 0.3 * near_inset),
              (x + roof_half, body.height, cabin_near), (x - roof_half, body.height, cabin_near)]  # fmt: skip
    canvas.face(screen, lit(upper, end), label, z)
    if label != TRUCK or coming:
        inner = _shrunk(screen, 0.84)
        canvas.face(inner, lit(glass, 0.7 + 0.5 * end), label, z)
    _paint_end(canvas, body, place, lit(colour, end), coming)


def _wheels(canvas: Canvas, side_x: float, z: float, body: Body) -> None:
    radius = 0.33 if body.label == CAR else 0.48
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for centre in (z + 0.19 * body.length, z + 0.8 * body.length):
        rim = np.stack(
            [np.full(16, side_x), radius + radius * np.sin(turn), centre + radius * np.cos(turn)], axis=1
        )
        canvas.face(rim, (24, 24, 26), body.label, z)


def _paint_end(canvas: Canvas, body: Body, place: tuple[float, float], colour: Colour, coming: bool) -> None:
    """The face towards the camera: panel, tyres, bumper, lamps, number plate."""
    (x, z), half, label = place, body.width / 2, body.label
    for sign_ in (-1, 1):
        inner, outer = x + sign_ * (half - 0.28), x + sign_ * (half - 0.04)
        canvas.face([(inner, 0, z), (outer, 0, z), (outer, 0.4, z), (inner, 0.4, z)], (18, 18, 20), label, z)

    def panel(left: float, right: float, low: float, high: float, shade: Colour) -> None:
        canvas.face([(left, low, z), (right, low, z), (right, high, z), (left, high, z)], shade, label, z)

    top = body.height if label == TRUCK and not coming else body.belt
    panel(x - half, x + half, 0.22, top, colour)
    panel(x - half, x + half, 0.22, 0.45, lit(colour, 0.55))
    lamp_low, lamp_high = 0.62 * body.belt, 0.82 * body.belt
    for sign_ in (-1, 1):
        inner, outer = sorted((x + sign_ * half * 0.66, x + sign_ * half * 0.96))
        panel(inner, outer, lamp_low, lamp_high, (236, 234, 220) if coming else (172, 26, 28))
    if coming:
        panel(x - 0.4 * half, x + 0.4 * half, 0.5, 0.72, (34, 34, 38))
    panel(x - 0.26, x + 0.26, 0.46, 0.58, (226, 226, 214))


def _shrunk(corners: list[tuple[float, float, float]], factor: float) -> npt.NDArray[np.float64]:
    points = np.asarray(corners, dtype=np.float64)
    middle = points.mean(axis=0)
    return np.asarray(middle + factor * (points - middle))


def person(rng: np.random.Generator, x: float, z: float, odd: float) -> Prop:
    """Someone standing or walking."""
    tall = rng.uniform(1.5, 1.9)
    clothes = [_cloth(rng, odd), _cloth(rng, odd)]
    skin: Colour = lit((214, 168, 138), rng.uniform(0.45, 1.1))
    hair: Colour = lit((60, 44, 34), rng.uniform(0.4, 2.2))
    stride, lean = rng.uniform(-0.28, 0.28), rng.normal(0, 0.03)

    def paint(canvas: Canvas) -> None:
        _paint_person(canvas, (x, z), tall, (clothes[0], clothes[1], skin, hair), (stride, lean), PERSON)

    return Prop(z, box_corners(x - 0.25, x + 0.25, tall, z - 0.15, z + 0.15), paint)


def _cloth(rng: np.random.Generator, odd: float) -> Colour:
    if rng.random() < odd:
        return tuple(float(c) for c in _ODD_PAINTS[int(rng.integers(len(_ODD_PAINTS)))])  # type: ignore[return-value]
    colour = np.clip(rng.normal(84, 42) + rng.normal(0, 18, 3), 15, 225)
    return float(colour[0]), float(colour[1]), float(colour[2])


def _paint_person(
    canvas: Canvas,
    place: tuple[float, float],
    tall: float,
    colours: tuple[Colour, ...],
    pose: tuple[float, float],
    label: int,
) -> None:
    (x, z), (stride, lean) = place, pose
    scale, bright = canvas.camera.scale(z), canvas.light.shade((0, 0, -1)) * 0.95
    coat, trousers, skin, hair = (lit(c, bright) for c in colours)
    foot = canvas.camera.project([(x, 0, z)])[0]

    def at(across: float, up: float) -> npt.NDArray[np.float64]:
        return np.array([foot[0] + (across + lean * up) * scale, foot[1] - up * tall * scale])

    limb = max(0.14 * scale, 1.0)
    for sign_ in (-1, 1):
        knee = at(sign_ * (0.09 + 0.5 * abs(stride)), 0.26)
        canvas.stroke(
            np.stack([at(sign_ * 0.09, 0.5), knee, at(sign_ * (0.08 + abs(stride)), 0.0)]),
            limb,
            trousers,
            label,
            z,
        )
        arm = np.stack(
            [at(sign_ * 0.21, 0.8), at(sign_ * 0.27, 0.62), at(sign_ * (0.24 + 0.3 * stride), 0.46)]
        )
        canvas.stroke(arm, 0.75 * limb, lit(coat, 0.85), label, z)
    torso = np.stack(
        [at(-0.2, 0.82), at(-0.1, 0.85), at(0.1, 0.85), at(0.2, 0.82), at(0.17, 0.46), at(-0.17, 0.46)]
    )
    canvas.polygon(torso, coat, label, z)
    canvas.stroke(np.stack([at(0, 0.84), at(0, 0.9)]), 0.1 * scale, skin, label, z)
    head = at(0, 0.93)
    canvas.ellipse((head[0], head[1] - 0.02 * scale), (0.1 * scale, 0.13 * scale), hair, label, z)
    canvas.ellipse((head[0], head[1] + 0.02 * scale), (0.085 * scale, 0.1 * scale), skin, label, z)


def cyclist(rng: np.random.Generator, x: float, z: float, odd: float) -> Prop:
    """Someone on a bicycle, seen from behind: classes bicycle and rider."""
    clothes = [_cloth(rng, odd), _cloth(rng, odd)]
    frame = _cloth(rng, 0.5)

    def paint(canvas: Canvas) -> None:
        scale, bright = canvas.camera.scale(z), canvas.light.shade((0, 0, -1))
        foot = canvas.camera.project([(x, 0, z)])[0]
        canvas.ellipse(
            (foot[0], foot[1] - 0.34 * scale), (0.05 * scale + 0.6, 0.34 * scale), (26, 26, 28), BICYCLE, z
        )
        bar = np.array(
            [[foot[0] - 0.28 * scale, foot[1] - 1.0 * scale], [foot[0] + 0.28 * scale, foot[1] - 1.0 * scale]]
        )
        canvas.stroke(bar, max(0.05 * scale, 1), lit(frame, bright), BICYCLE, z)
        post = np.array([[foot[0], foot[1] - 0.6 * scale], [foot[0], foot[1] - 0.95 * scale]])
        canvas.stroke(post, max(0.06 * scale, 1), lit(frame, bright), BICYCLE, z)
        colours = (clothes[0], clothes[1], (204.0, 160.0, 130.0), clothes[1])
        _paint_person(_Raised(canvas, 0.45), (x, z), 1.35, colours, (0.05, 0.0), RIDER)

    return Prop(z, box_corners(x - 0.2, x + 0.2, 1.7, z - 0.8, z + 0.8), paint)


class _Raised(Canvas):
    """A canvas whose ground lies `by` metres higher, sharing the planes of another."""

    def __init__(self, canvas: Canvas, by: float) -> None:
        self.__dict__.update(canvas.__dict__)
        self.camera = replace(canvas.camera, eye=canvas.camera.eye - by)
