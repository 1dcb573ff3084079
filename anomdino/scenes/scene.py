"""Drawing a scene: ground, sides, traffic, foreign objects, light and lens."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.scenes import objects, props
from anomdino.scenes.camera import Camera
from anomdino.scenes.canvas import Canvas
from anomdino.scenes.noise import fractal_noise, sample_tile
from anomdino.scenes.world import (
    ROAD,
    SIDEWALK,
    TERRAIN,
    VEGETATION,
    VOID,
    Road,
    Weather,
    draw_camera,
    draw_road,
    draw_weather,
)

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn scene.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        label: uint8 (H, W), Cityscapes train ids, 255 void.
        anomaly: uint8 (H, W), 0 / 1 / 255.
    """

    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    anomaly: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SceneOptions:
    """What a scene may hold.

    Attributes:
        anomalies: Number of foreign objects.
        near_share: Share of foreign objects that stand close to the camera.
        hard_inliers: Draw odd but known things: manholes, patches, puddles, garish cars.
        void_border: Rows and columns of void around the frame, as benchmarks have.
    """

    anomalies: int = 0
    near_share: float = 0.4
    hard_inliers: float = 0.3
    void_border: int = 0


def draw_scene(rng: np.random.Generator, size: tuple[int, int], options: SceneOptions) -> Scene:
    """Draw a scene of (H, W); the same generator state gives the same pixels."""
    weather, camera, road = draw_weather(rng), draw_camera(rng, size), draw_road(rng)
    canvas = Canvas(size, weather)
    props.clouds(canvas, rng, camera.horizon)
    _backdrop(canvas, camera, rng)
    _ground(canvas, camera, road, rng)
    _surface_marks(canvas, camera, road, rng, options.hard_inliers)
    placed = _standing_things(canvas, camera, road, rng, options)
    return _develop(canvas, weather, rng, placed, options.void_border)


def _backdrop(canvas: Canvas, camera: Camera, rng: np.random.Generator) -> None:
    """A line of far trees or hills on the horizon."""
    steps = np.arange(canvas.size[1] + 1)
    wave = fractal_noise(rng, (1, len(steps)), 60, 4)[0] * float(rng.uniform(4, 22)) * canvas.size[0] / 256
    line = [(float(x), camera.horizon - 1 - float(h)) for x, h in zip(steps, wave, strict=True)]
    line += [(float(canvas.size[1]), camera.horizon + 3), (0.0, camera.horizon + 3)]
    tone = np.array([0.2, 0.3, 0.16], np.float32) * np.float32(rng.uniform(0.6, 1.2))
    canvas.polygon(line, tone, VEGETATION, 70)


def _ground(canvas: Canvas, camera: Camera, road: Road, rng: np.random.Generator) -> None:
    sideways, ahead = camera.ground()
    first = canvas.size[0] - len(sideways)
    x = sideways - road.shift(ahead)
    near = np.clip(1.6 - ahead / 30, 0.15, 1)
    grain = sample_tile(x, ahead, 0.03) * near * 0.6 + sample_tile(x, ahead, 0.31) * 0.4
    kind = int(rng.integers(3))
    outside = [
        np.array([0.24, 0.36, 0.14]), np.array([0.42, 0.36, 0.26]), np.array([0.36, 0.4, 0.2]),
    ][kind] + rng.normal(0, 0.03, 3)  # fmt: skip
    label = np.full(x.shape, TERRAIN, np.uint8)
    colour = np.broadcast_to(outside.astype(np.float32), (*x.shape, 3)).copy()
    colour *= (1 + 0.35 * (sample_tile(x, ahead, 0.08) * near + sample_tile(x, ahead, 0.9)))[..., None]
    slab = np.array([0.56, 0.54, 0.51], np.float32) * np.float32(rng.uniform(0.75, 1.1))
    kerb_colour = np.clip(slab * 1.25, 0, 0.9)
    edge_left, edge_right = road.left - road.kerb, road.right + road.kerb
    pavement = ((x < edge_left) & (x > edge_left - road.pavement)) | ((x > edge_right) & (x < edge_right + road.pavement))
    joints = ((np.abs((x - edge_left) % 0.6) < 0.03) | (np.abs(ahead % 0.6) < 0.05)) & (ahead < 16)
    colour[pavement] = (slab * (1 - 0.22 * joints + 0.12 * grain)[..., None])[pavement]
    label[pavement] = SIDEWALK
    kerb = ((x <= road.left) & (x >= edge_left)) | ((x >= road.right) & (x <= edge_right))
    colour[kerb] = (kerb_colour * (1 + 0.1 * grain)[..., None])[kerb]
    label[kerb] = SIDEWALK
    asphalt = (x > road.left) & (x < road.right)
    tracks = 0.05 * np.cos(2 * np.pi * (x - road.left) / (road.lane / 2))
    worn = 0.12 * (sample_tile(x * 0.4, ahead * 0.15, 0.5))
    tar = road.colour * (1 + 0.16 * grain + tracks + worn)[..., None]
    colour[asphalt] = tar[asphalt]
    label[asphalt] = ROAD
    _markings(colour, x, ahead, road, rng)
    canvas.colour[first:] = canvas.hazed(np.clip(colour, 0, 1).astype(np.float32), ahead)
    canvas.label[first:] = label


def _markings(colour: FloatImage, x: FloatImage, ahead: FloatImage, road: Road, rng: np.random.Generator) -> None:
    white = np.array([0.86, 0.86, 0.84] if rng.random() < 0.85 else [0.88, 0.72, 0.2], np.float32)
    wear = np.clip(0.75 + 0.5 * sample_tile(x, ahead, 0.05), 0.2, 1)[..., None]
    width = np.maximum(0.07, 0.004 * ahead)
    dashed = np.ones(x.shape, bool) if not road.dash else (ahead + rng.uniform(0, 9)) % (2 * road.dash) < road.dash
    lanes = int(round((road.right - road.left) / road.lane))
    for index in range(1, lanes):
        at = road.left + (road.right - road.left) * index / lanes
        line = (np.abs(x - at) < width) & dashed
        colour[line] = (colour * (1 - wear) + white * wear)[line]
    if rng.random() < 0.5:
        for at in (road.left + 0.25, road.right - 0.25):
            line = np.abs(x - at) < width
            colour[line] = (colour * (1 - wear) + white * wear)[line]
    if rng.random() < 0.15:
        start = rng.uniform(7, 22)
        bars = (ahead > start) & (ahead < start + 3) & ((x - road.left) % 1.0 < 0.5) & (x > road.left) & (x < road.right)
        colour[bars] = (colour * (1 - wear) + white * wear)[bars]


def _surface_marks(canvas: Canvas, camera: Camera, road: Road, rng: np.random.Generator, chance: float) -> None:
    """Shadows, manholes, patches, puddles and cracks: odd to look at, road all the same."""
    sideways, ahead = camera.ground()
    first = canvas.size[0] - len(sideways)
    x, ground = sideways - road.shift(ahead), canvas.colour[first:]
    if canvas.weather.shadows:
        cover = sample_tile(x * 0.35 + rng.uniform(0, 60), ahead * 0.2 + rng.uniform(0, 60), 0.22)
        blurred = cv2.GaussianBlur(cover, (0, 0), 1.5)
        side = (x < road.left + rng.uniform(0, 4)) | (blurred > rng.uniform(0.1, 0.4))
        soft = cv2.GaussianBlur(side.astype(np.float32), (0, 0), 1.2)[..., None]
        ground *= 1 - canvas.weather.shadows * soft
    for kind in ("manhole", "patch", "puddle", "crack"):
        if rng.random() > chance:
            continue
        at_x, at_z = rng.uniform(road.left + 0.6, road.right - 0.6), float(np.exp(rng.uniform(np.log(5), np.log(22))))
        dx, dz = x - at_x, ahead - at_z
        if kind == "manhole":
            inside, tone = np.hypot(dx, dz) < 0.34, 0.55 + 0.35 * (((dx * 9).astype(int) + (dz * 9).astype(int)) % 2)
        elif kind == "patch":
            inside, tone = (np.abs(dx) < rng.uniform(0.4, 1.2)) & (np.abs(dz) < rng.uniform(0.8, 3)), rng.choice([0.68, 1.3])
        elif kind == "puddle":
            reach = 1 + 0.5 * sample_tile(x, ahead, 0.25)
            inside, tone = (dx / 0.9) ** 2 + (dz / 1.6) ** 2 < reach, 1.0
            ground[inside] = 0.55 * ground[inside] + 0.45 * canvas.weather.sky[0] * 0.9
        else:
            wander = 0.6 * np.sin(ahead * 1.7) + 0.3 * np.sin(ahead * 5.1 + 1)
            inside, tone = (np.abs(dx - wander) < 0.02 + 0.0015 * ahead) & (np.abs(dz) < 6), 0.55
        tones = np.broadcast_to(np.asarray(tone, np.float32), x.shape)
        ground[inside] *= tones[inside][:, None]


def _standing_things(
    canvas: Canvas, camera: Camera, road: Road, rng: np.random.Generator, options: SceneOptions
) -> npt.NDArray[np.uint8]:
    """Draw everything that stands, from far to near; returns 0 / 1 for foreign objects."""
    todo: list[tuple[float, str, tuple[float, ...]]] = []

    def bend(ahead: float) -> float:
        return float(road.shift(ahead))

    for side in (-1, 1):
        edge = (road.left - road.kerb - road.pavement) if side < 0 else (road.right + road.kerb + road.pavement)
        style, back = rng.random(), edge + side * float(rng.uniform(0.5, 3))
        if style < 0.6:
            at = float(rng.uniform(6, 14))
            while at < 95:
                deep = float(rng.uniform(7, 20))
                if rng.random() < 0.8:
                    todo.append((at + deep, "building", (back, at, at + deep, bend(at))))
                at += deep + float(rng.uniform(0, 4))
        elif style < 0.75:
            todo += [(at + 8, "fence", (back, at, at + 8, bend(at))) for at in np.arange(7, 60, 8.0)]
        for _ in range(int(rng.integers(1, 7 if style < 0.6 else 16))):
            at = float(rng.uniform(7, 70))
            todo.append((at, "tree", (edge + side * float(rng.uniform(0.2, 9)) + bend(at), at)))
        for _ in range(int(rng.integers(1, 5))):
            at = float(rng.uniform(6, 45))
            todo.append((at, "pole", (edge - side * road.pavement * float(rng.uniform(0.6, 0.95)) + bend(at), at)))
        for _ in range(int(rng.integers(0, 4))):
            at = float(rng.uniform(6, 35))
            todo.append((at, "person", (edge - side * road.pavement * float(rng.uniform(0.1, 0.85)) + bend(at), at)))
    for _ in range(int(rng.integers(0, 5))):
        at = float(rng.uniform(8, 60))
        lane = float(rng.uniform(road.left + 1.0, road.right - 1.0))
        garish = rng.random() < 0.25 * options.hard_inliers
        todo.append((at, "garish car" if garish else "car", (lane + bend(at), at)))
    if rng.random() < 0.12:
        at = float(rng.uniform(8, 30))
        todo.append((at, "person", (float(rng.uniform(road.left, road.right)) + bend(at), at)))
    nearest = camera.distance(canvas.size[0] * 0.97)
    for index in range(options.anomalies):
        close = rng.random() < options.near_share
        low, high = (nearest * 1.05, 9.0) if close else (9.0, 32.0)
        at = float(np.exp(rng.uniform(np.log(low), np.log(max(high, low * 1.2)))))
        half = min(road.right - 0.5, 0.42 * canvas.size[1] / camera.focal * at)
        todo.append((at, "object", (float(rng.uniform(max(road.left + 0.5, -half), half)) + bend(at), at, float(index))))

    anomaly = np.zeros(canvas.size, np.uint8)
    for _, kind, where in sorted(todo, key=lambda item: (-item[0], item[1])):
        before = canvas.label.copy() if options.anomalies and kind != "object" else None
        colours = canvas.colour.copy() if before is not None and anomaly.any() else None
        if kind == "building":
            props.building(canvas, camera, rng, *where)
        elif kind == "fence":
            props.fence(canvas, camera, rng, *where)
        elif kind == "tree":
            props.tree(canvas, camera, rng, *where)
        elif kind == "pole":
            props.pole(canvas, camera, rng, *where)
        elif kind == "person":
            props.person(canvas, camera, rng, *where)
        elif kind == "car":
            props.car(canvas, camera, rng, *where)
        elif kind == "garish car":
            props.car(canvas, camera, rng, *where, colour=rng.uniform(0, 1, 3).astype(np.float32))
        else:
            anomaly[_foreign_object(canvas, camera, rng, where[0], where[1])] = 1
        if colours is not None:
            covered = (np.abs(canvas.colour - colours).max(axis=2) > 0.08) & (canvas.label != VOID)
            anomaly[covered & (canvas.label != before)] = 0
    return anomaly


def _foreign_object(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, sideways: float, ahead: float
) -> npt.NDArray[np.bool_]:
    """Render an evaluation object into the scene, with its shadow; returns its pixels."""
    family = objects.EVALUATION[str(rng.choice(sorted(objects.EVALUATION)))]
    metres = float(rng.uniform(*family.metres))
    high = int(np.clip(camera.pixels(metres, ahead), 6, 0.75 * canvas.size[0]))
    colour, alpha = objects.draw_object(rng, family, objects.EVALUATION_PATTERNS, high, float(rng.uniform(*family.aspect)))
    wide = alpha.shape[1]
    x, ground = camera.project(sideways, 0, ahead)
    canvas.shade(x + 0.05 * wide, ground - 1, (0.55 * wide, max(1.0, 0.08 * high)), 0.65)
    taken = canvas.stamp(colour, alpha, x - wide / 2, ground - high, None, ahead)
    canvas.label[taken] = VOID
    return taken


def _develop(
    canvas: Canvas, weather: Weather, rng: np.random.Generator, anomaly: npt.NDArray[np.uint8], border: int
) -> Scene:
    """Light, lens and sensor."""
    height, width = canvas.size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    corner = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) * 2
    lit = canvas.colour * weather.gain * (1 - 0.22 * corner)[..., None]
    lit = cv2.GaussianBlur(np.clip(lit, 0, 1), (0, 0), weather.blur)
    lit = np.power(lit, np.float32(rng.uniform(0.85, 1.15)))
    sensor = rng.standard_normal(lit.shape, dtype=np.float32) * (weather.noise / 255)
    image = (np.clip(lit + sensor, 0, 1) * 255 + 0.5).astype(np.uint8)
    label, truth = canvas.label.copy(), anomaly.copy()
    if border:
        for plane in (label, truth):
            plane[:border] = plane[-border:] = VOID
            plane[:, :border] = plane[:, -border:] = VOID
    return Scene(image, label, truth)
