"""A road scene: what is in it, and how it is rendered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.synthetic import props
from anomdino.synthetic.camera import Camera
from anomdino.synthetic.canvas import VOID, Canvas, fixed
from anomdino.synthetic.ground import Road, draw_road, paint_ground
from anomdino.synthetic.light import Light, draw_light
from anomdino.synthetic.noise import fractal, sample
from anomdino.synthetic.objects import EVALUATION, Look, draw_look, render
from anomdino.synthetic.pixels import shaded
from anomdino.synthetic.props import Prop

SKY, VEGETATION, BUILDING = 10, 8, 2
SUPERSAMPLING = 2

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Style:
    """What a set of scenes is like.

    Attributes:
        clutter: expected manholes, puddles and patches an image, each.
        odd: probability that a vehicle or coat has a rare colour.
        traffic: expected vehicles on the road.
        people: expected people.
        families: families of foreign objects; empty for none.
        objects: (fewest, most) foreign objects in a frame that has any.
        clean_every: every so many frames one stays without foreign objects; 0 for never.
        near: (nearest, farthest) place of a foreign object, metres.
        border: pixels of void along the frame's border, at most.
    """

    clutter: float = 0.5
    odd: float = 0.02
    traffic: float = 2.5
    people: float = 2.4
    families: tuple[str, ...] = ()
    objects: tuple[int, int] = (1, 3)
    clean_every: int = 0
    near: tuple[float, float] = (5.0, 40.0)
    border: int = 0


@dataclass(frozen=True)
class Foreign:
    """A foreign object in a scene: look, place on the ground (road coordinates, metres), height in metres."""

    look: Look
    x: float
    z: float
    height: float


@dataclass(frozen=True)
class Frame:
    """A rendered scene.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 Cityscapes train ids, 255 for the own bonnet and on foreign objects.
        anomaly: (H, W) uint8, 0 known, 1 foreign object, 255 void (own bonnet, mixed pixels at an edge, border).
        objects: families of the foreign objects that were placed.
    """

    image: UInt8Array
    label: UInt8Array
    anomaly: UInt8Array
    objects: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """Everything that `render_scene` needs."""

    camera: Camera
    light: Light
    road: Road
    props: tuple[Prop, ...]
    foreign: tuple[Foreign, ...]
    bonnet: float
    border: int
    texture: int


def draw_scene(rng: np.random.Generator, size: tuple[int, int], style: Style) -> Scene:
    """Draw a scene for an image of `size` (H, W)."""
    camera = _draw_camera(rng, size)
    light, road = draw_light(rng), draw_road(rng, style.clutter)
    camera = replace(camera, offset=float(rng.uniform(0.15, 0.6) * road.half))
    things: list[Prop] = []
    for side in (-1, 1):
        things += _roadside(rng, side, road)
    things += _traffic(rng, road, style)
    things += _people(rng, road, style)
    foreign = _draw_foreign(rng, road, camera, style)
    things = [thing for thing in things if not _collides(thing, foreign, camera)]
    return Scene(
        camera=camera,
        light=light,
        road=road,
        props=tuple(things),
        foreign=tuple(foreign),
        bonnet=float(rng.uniform(0.03, 0.09)) if rng.random() < 0.35 else 0.0,
        border=int(rng.integers(0, style.border + 1)) if style.border else 0,
        texture=int(rng.integers(2**31)),
    )


def _draw_camera(rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    height, width = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    return Camera(
        height=height,
        width=width,
        focal=width * rng.uniform(0.62, 0.95),
        horizon=height * rng.uniform(0.36, 0.5),
        eye=rng.uniform(1.2, 1.7),
        offset=0.0,
        curvature=float(rng.normal(0, 0.0016)),
        yaw=float(rng.normal(0, 0.04)),
    )


def _roadside(rng: np.random.Generator, side: int, road: Road) -> list[Prop]:
    """Buildings, gardens, trees and street furniture of one side; -1 left, 1 right."""
    pavement = road.pavement[0 if side < 0 else 1]
    kerb = road.half + pavement
    style = str(rng.choice(["urban", "suburban", "rural"], p=[0.45, 0.3, 0.25]))
    things: list[Prop] = []
    z = rng.uniform(2.5, 8)
    if style == "urban":
        front = kerb + rng.uniform(0.2, 3)
        while z < 110:
            length = rng.uniform(8, 20)
            things.append(props.building(rng, side, front + rng.uniform(0, 0.6), z, z + length))
            z += length + (rng.uniform(4, 9) if rng.random() < 0.2 else 0)
        trees, bushes = rng.poisson(1.5), 0
    elif style == "suburban":
        while z < 90:
            length = rng.uniform(8, 13)
            things.append(props.building(rng, side, kerb + rng.uniform(5, 9), z, z + length))
            z += length + rng.uniform(4, 14)
        start = rng.uniform(2, 12)
        things.append(
            props.garden_wall(rng, side, kerb + rng.uniform(0.3, 0.9), start, start + rng.uniform(15, 50))
        )
        trees, bushes = rng.poisson(4), rng.poisson(3)
    else:
        if rng.random() < 0.4:
            things.append(
                props.garden_wall(
                    rng, side, kerb + rng.uniform(1, 4), rng.uniform(2, 10), rng.uniform(40, 80)
                )
            )
        trees, bushes = rng.poisson(9), rng.poisson(5)
    for _ in range(trees):
        away = kerb + (
            rng.uniform(-0.8, -0.2) if style == "urban" and pavement > 1.8 else rng.uniform(0.8, 9)
        )
        things.append(props.tree(rng, side * away, rng.uniform(7, 75), rng.uniform(3.5, 10)))
    things += [
        props.bush(rng, side * (kerb + rng.uniform(1.4, 5)), rng.uniform(5, 50)) for _ in range(bushes)
    ]
    edge = side * (road.half + (0.5 if pavement > 0 else 0.9))
    spacing, first = rng.uniform(18, 32), rng.uniform(6, 24)
    if rng.random() < 0.75:
        things += [props.lamp_post(rng, edge, at) for at in np.arange(first, 90, spacing)]
    for maker, chance in ((props.sign, 0.6), (props.sign, 0.35), (props.traffic_light, 0.4)):
        if rng.random() < chance:
            things.append(maker(rng, edge + side * rng.uniform(0, 0.3), rng.uniform(6, 35)))
    return things


def _traffic(rng: np.random.Generator, road: Road, style: Style) -> list[Prop]:
    things: list[Prop] = []
    taken: list[tuple[float, float]] = []
    lanes = [*road.lanes, road.half]
    for _ in range(rng.poisson(style.traffic)):
        left = -road.half
        lane = int(rng.integers(len(lanes)))
        x = 0.5 * ((lanes[lane - 1] if lane else left) + lanes[lane]) + rng.normal(0, 0.2)
        z = float(np.exp(rng.uniform(np.log(7), np.log(70))))
        if all(abs(x - other) > 2.2 or abs(z - far) > 12 for other, far in taken):
            taken.append((x, z))
            things.append(props.vehicle(rng, x, z, style.odd))
    if rng.random() < 0.45:
        side = rng.choice([-1.0, 1.0])
        x = side * (road.half - 0.95) if rng.random() < 0.6 else side * (road.half + 1.2)
        z = rng.uniform(5, 12)
        for _ in range(int(rng.integers(1, 6))):
            if all(abs(x - other) > 2.2 or abs(z - far) > 12 for other, far in taken):
                things.append(props.vehicle(rng, x, z, style.odd))
                taken.append((x, z))
            z += rng.uniform(12.2, 16)
    return things


def _people(rng: np.random.Generator, road: Road, style: Style) -> list[Prop]:
    things = []
    for _ in range(rng.poisson(style.people)):
        side = int(rng.integers(2))
        pavement = road.pavement[side]
        x = (side * 2 - 1) * (road.half + rng.uniform(0.3, max(pavement, 0.8)))
        if rng.random() < 0.15:
            x = rng.uniform(-road.half, road.half)
        things.append(props.person(rng, x, float(np.exp(rng.uniform(np.log(5), np.log(32)))), style.odd))
    if rng.random() < 0.4:
        x = (road.half - 0.5) * rng.choice([-1.0, 1.0])
        things.append(props.cyclist(rng, x, rng.uniform(5, 18), style.odd))
    return things


def _draw_foreign(rng: np.random.Generator, road: Road, camera: Camera, style: Style) -> list[Foreign]:
    if not style.families:
        return []
    chosen: list[Foreign] = []
    for _ in range(int(rng.integers(style.objects[0], style.objects[1] + 1))):
        family = str(rng.choice(style.families))
        look = draw_look(rng, family, evaluation=True)
        low, high = EVALUATION[family].metres
        height = float(rng.uniform(low, high))
        for _ in range(12):
            z = float(np.exp(rng.uniform(np.log(style.near[0]), np.log(style.near[1]))))
            z = max(z, 1.2 * height * look.width + 2, 3.2 * height)
            x = float(rng.uniform(-road.half, road.half) * 1.1)
            column = camera.project([(x, 0, z)])[0, 0] / camera.width
            apart = all(
                abs(x - o.x) > 0.6 * (o.height * o.look.width + height * look.width) or abs(z - o.z) > 4
                for o in chosen
            )
            if 0.06 < column < 0.94 and apart:
                chosen.append(Foreign(look, x, z, height))
                break
    return chosen


def _collides(thing: Prop, foreign: Sequence[Foreign], camera: Camera) -> bool:
    """Whether a road user or furniture stands in or closely before a foreign object."""
    if thing.distance > 400 or not thing.footprint.size:
        return False
    x0, x1 = thing.footprint[:, 0].min(), thing.footprint[:, 0].max()
    z0, z1 = thing.footprint[:, 2].min(), thing.footprint[:, 2].max()
    for other in foreign:
        half = 0.5 * other.height * other.look.width
        overlaps = x0 < other.x + half and x1 > other.x - half and z0 < other.z + 1.5 and z1 > other.z - 1.0
        near = camera.project([(x0, 0, z0), (x1, 0, z0)])[:, 0]
        far = camera.project([(other.x - half, 0, other.z), (other.x + half, 0, other.z)])[:, 0]
        covered = min(near[1], far[1]) - max(near[0], far[0])
        if overlaps or (z0 < other.z and covered > 0.5 * (far[1] - far[0])):
            return True
    return False


# --- rendering ---------------------------------------------------------------------------------------------------


def render_scene(scene: Scene) -> Frame:
    """Render a scene: sky, backdrop, ground, shadows, things from far to near, haze, lens and sensor."""
    rng = np.random.default_rng(scene.texture)
    canvas = Canvas(scene.camera, scene.light)
    _paint_sky(canvas, rng)
    _paint_backdrop(canvas, rng)
    things = [*scene.props, *(_foreign_prop(item, index + 1) for index, item in enumerate(scene.foreign))]
    first, colour, label, depth = paint_ground(scene.camera, scene.road, scene.light)
    colour *= shaded(_shadows(canvas, things, first) * _ground_light(scene.light), (1, 1, 1))
    canvas.image[first:] = np.clip(colour, 0, 255, out=colour).astype(np.uint8)
    canvas.label[first:], canvas.depth[first:] = label, depth
    for thing in sorted(things, key=lambda item: -item.distance):
        thing.paint(canvas)
    _paint_bonnet(canvas, scene.bonnet)
    image = _develop(canvas, rng)
    return Frame(
        image, *_planes(canvas, scene.border), objects=tuple(item.look.family for item in scene.foreign)
    )


def _ground_light(light: Light) -> float:
    return light.shade((0, 1, 0)) * 0.95


def _paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    rows = int(canvas.camera.horizon) + 3
    light = canvas.light
    up = np.linspace(1, 0, rows, dtype=np.float32)[:, None, None] ** 0.8
    sky = np.asarray(light.haze, dtype=np.float32) * (1 - up) + np.asarray(light.sky, dtype=np.float32) * up
    elevation = np.linspace(1.0, 0.04, rows, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, canvas.camera.width, dtype=np.float32)[None, :]
    shift = rng.uniform(0, 1, 2).astype(np.float32)
    clouds = sample(
        fractal(2, 7, int(rng.integers(4))),
        across / elevation / 9 + shift[0],
        0.35 / elevation + shift[1] + 0 * across,
    )
    amount = np.clip((clouds - rng.uniform(-0.3, 1.0)) * 0.8, 0, 1) * np.clip(elevation * 3, 0, 1)
    white = np.asarray(light.haze, dtype=np.float32) * 1.06
    amount *= np.float32(0.8)
    painted = cv2.merge([sky[..., c] + amount * (white - sky)[..., c] for c in range(3)])
    canvas.image[:rows] = np.clip(painted, 0, 255, out=painted).astype(np.uint8)
    canvas.label[:rows] = SKY


def _paint_backdrop(canvas: Canvas, rng: np.random.Generator) -> None:
    """A line of trees or roofs at the horizon."""
    camera = canvas.camera
    columns = np.arange(camera.width)
    profile = fractal(2, 6, int(rng.integers(4)))[int(rng.integers(512))]
    wave = np.interp(columns, np.linspace(0, camera.width, 512), profile)
    height = np.clip((0.05 + 0.018 * wave) * camera.height * rng.uniform(0.4, 1.6), 1, None)
    label, colour = VEGETATION, np.array([74, 92, 58]) * rng.uniform(0.8, 1.2)
    if rng.random() < 0.35:
        step = int(rng.integers(14, 50)) * SUPERSAMPLING
        height = np.repeat(height[::step], step)[: camera.width] * 1.3
        label, colour = BUILDING, np.array([124, 118, 112]) * rng.uniform(0.8, 1.2)
    base = camera.horizon + 3
    points = np.concatenate([np.stack([columns, base - height], axis=1), [[camera.width, base], [0, base]]])
    shade = canvas.light.shade((0, 0, -1)) * colour
    canvas.polygon(points, (shade[0], shade[1], shade[2]), label, 130.0)


def _shadows(canvas: Canvas, things: Sequence[Prop], first: int) -> npt.NDArray[np.float32]:
    """Factor (H - first, W) of the ground's brightness: cast shadows of the sun, and the dark under things."""
    light, camera = canvas.light, canvas.camera
    cast = np.zeros(canvas.label.shape, dtype=np.uint8)
    under = np.zeros(canvas.label.shape, dtype=np.uint8)
    drift = np.array([-light.sun[0] / light.sun[1], -light.sun[2] / light.sun[1]])
    for thing in things:
        if not thing.footprint.size:
            continue
        ground = thing.footprint.copy()
        ground[:, 0] += thing.footprint[:, 1] * drift[0]
        ground[:, 2] += thing.footprint[:, 1] * drift[1]
        ground[:, 1] = 0
        if (ground[:, 2] > 1.0).any():
            _fill_hull(cast, camera.project(ground))
        foot = thing.footprint[thing.footprint[:, 1] == 0]
        if thing.distance < 400 and foot.size:
            grown = foot + np.sign(foot - foot.mean(axis=0)) * np.array([0.12, 0, 0.25])
            _fill_hull(under, camera.project(grown))
    lost = light.direct * light.sun[1] / (light.ambient + light.direct * light.sun[1])
    soft = cv2.GaussianBlur(cast, (0, 0), 1.2 * SUPERSAMPLING)[first:].astype(np.float32) * np.float32(lost)
    dark = cv2.GaussianBlur(under, (0, 0), 1.6 * SUPERSAMPLING)[first:].astype(np.float32) * np.float32(0.5)
    return np.asarray((1 - soft / 255) * (1 - dark / 255), dtype=np.float32)


def _fill_hull(mask: UInt8Array, points: npt.NDArray[np.float64]) -> None:
    hull = cv2.convexHull(np.clip(points, -2e4, 2e4).astype(np.float32))[:, 0]
    cv2.fillPoly(mask, fixed(hull.astype(np.float64)), [255], shift=4)


def _foreign_prop(item: Foreign, number: int) -> Prop:
    half = 0.5 * item.height * item.look.width

    def paint(canvas: Canvas) -> None:
        scale = canvas.camera.scale(item.z)
        rgb, inside = render(item.look, max(round(item.height * scale), 3), canvas.light)
        foot = canvas.camera.project([(item.x, 0, item.z)])[0]
        corner = (round(foot[1]) - inside.shape[0] + 1, round(foot[0] - inside.shape[1] / 2))
        canvas.stamp(rgb, inside, corner, VOID, item.z, number)

    return Prop(
        item.z,
        props.box_corners(item.x - 0.8 * half, item.x + 0.8 * half, item.height, item.z - 0.2, item.z + 0.3),
        paint,
    )


def _paint_bonnet(canvas: Canvas, share: float) -> None:
    """The front of the own car at the frame's foot: void in every label."""
    if share <= 0:
        return
    height, width = canvas.label.shape
    t = np.linspace(0, np.pi, 40)
    rise = height * share
    points = np.stack([width / 2 - 0.56 * width * np.cos(t), height - rise * np.sin(t) ** 0.6], axis=1)
    bright = canvas.light.shade((0, 1, 0))
    canvas.polygon(points, (46 * bright, 48 * bright, 52 * bright), VOID, 1.0)
    gloss = points + np.array([0, 0.25 * rise])
    canvas.polygon(gloss, (34 * bright, 36 * bright, 40 * bright), VOID, 1.0)


def _develop(canvas: Canvas, rng: np.random.Generator) -> UInt8Array:
    """Haze, down-sampling, lens blur, exposure, tint, vignette, sensor noise."""
    light = canvas.light
    clear = np.exp(-canvas.depth / np.float32(light.visibility))
    clear[canvas.label == SKY] = 1.0
    height, width = canvas.label.shape
    size = (width // SUPERSAMPLING, height // SUPERSAMPLING)
    hazed = canvas.image * shaded(clear, (1, 1, 1)) + shaded(1 - clear, light.haze)
    small = cv2.resize(hazed, size, interpolation=cv2.INTER_AREA)
    image = np.asarray(cv2.GaussianBlur(small, (0, 0), light.blur), dtype=np.float32)
    rows, columns = np.linspace(-1, 1, size[1])[:, None], np.linspace(-1, 1, size[0])[None, :]
    vignette = 1 - 0.1 * (rows**2 + columns**2)
    image *= shaded((light.exposure * vignette).astype(np.float32), light.tint)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(light.noise)
    return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)


def _planes(canvas: Canvas, border: int) -> tuple[UInt8Array, UInt8Array]:
    """Class label, and anomaly label, at the final size; mixed pixels at an object's edge become void."""
    step = SUPERSAMPLING
    label = np.ascontiguousarray(canvas.label[::step, ::step])
    hits = sum(
        (canvas.foreign[i::step, j::step] > 0).astype(np.uint8) for i in range(step) for j in range(step)
    )
    anomaly = np.where(hits >= 3, 1, np.where(hits > 0, VOID, 0)).astype(np.uint8)
    own = (label == VOID) & (hits == 0)
    label[hits > 0] = VOID
    anomaly[own] = VOID
    if border:
        frame = np.ones(anomaly.shape, dtype=bool)
        frame[border:-border, border:-border] = False
        anomaly[frame] = VOID
    return label, anomaly


__all__ = ["Foreign", "Frame", "Scene", "Style", "draw_scene", "render_scene"]
