"""The ground plane: asphalt, markings, kerbs, pavement, grass, and what lies flat on them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from anomdino.synthetic.camera import Camera, FloatArray
from anomdino.synthetic.light import Light
from anomdino.synthetic.noise import fractal, pick, sample, tile, wrap
from anomdino.synthetic.pixels import put, shaded, take

ROAD, SIDEWALK, TERRAIN = 0, 1, 9
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Disc:
    """Something round and flat on the road: manhole or puddle; metres."""

    x: float
    z: float
    radius: float
    stretch: float = 1.0
    variant: int = 0


@dataclass(frozen=True)
class Rectangle:
    """Something rectangular and flat on the road: a patch, a crossing, a stop line; metres, grey as a factor."""

    x0: float
    x1: float
    z0: float
    z1: float
    grey: float = 1.0


@dataclass(frozen=True)
class Road:
    """How the ground is laid out and looks; metres.

    Attributes:
        half: half the width of the carriageway.
        lanes: x of the dashed lines.
        pavement: width of the pavement on the (left, right); 0 for none.
        asphalt: RGB.
        paving: RGB of the pavement.
        grass: RGB beyond the pavement.
        marking: RGB of the paint.
        worn: 0 fresh .. 1 nearly gone paint.
        edge_lines: whether solid lines run along the kerbs.
        phase: offset of dashes and textures.
        slab: side of the paving slabs.
        cracks: strength of cracks, 0 .. 1.
        variant: which noise is used.
        manholes, puddles: discs.
        patches: mended asphalt.
        crossings: bars of paint across the road (zebra).
        bands: whole-width coloured surfacing.
        band_colour: RGB of `bands`.
        arrows: x, z of painted arrows.
    """

    half: float
    lanes: tuple[float, ...]
    pavement: tuple[float, float]
    asphalt: tuple[float, float, float]
    paving: tuple[float, float, float]
    grass: tuple[float, float, float]
    marking: tuple[float, float, float]
    worn: float
    edge_lines: bool
    phase: float
    slab: float
    cracks: float
    variant: int
    manholes: tuple[Disc, ...] = ()
    puddles: tuple[Disc, ...] = ()
    patches: tuple[Rectangle, ...] = ()
    crossings: tuple[Rectangle, ...] = ()
    bands: tuple[Rectangle, ...] = ()
    band_colour: tuple[float, float, float] = (140.0, 70.0, 60.0)
    arrows: tuple[tuple[float, float], ...] = field(default=())


def draw_road(rng: np.random.Generator, clutter: float) -> Road:
    """Draw a road.

    Args:
        rng: source of chance.
        clutter: expected number of manholes, puddles and patches each; more is harder.
    """
    count = int(rng.choice([2, 2, 2, 3, 4]))
    lane = rng.uniform(2.9, 3.6)
    half = count * lane / 2 + rng.uniform(0.1, 0.7)
    grey = rng.uniform(58, 108)
    warmth = rng.normal(0, 3)
    paving = rng.uniform(138, 182)
    hue = rng.normal(7, 4)
    yellow = rng.random() < 0.15
    green = np.array([84, 104, 52]) * rng.uniform(0.75, 1.25) + rng.normal(0, 8, 3)
    return Road(
        half=half,
        lanes=tuple(-count * lane / 2 + lane * index for index in range(1, count)),
        pavement=(_pavement(rng), _pavement(rng)),
        asphalt=(grey + warmth, grey, grey - warmth + rng.normal(0, 2)),
        paving=(paving + hue, paving, paving - hue - 4),
        grass=(float(green[0]), float(green[1]), float(green[2])),
        marking=(225.0, 190.0, 80.0) if yellow else (222.0, 222.0, 218.0),
        worn=rng.uniform(0.0, 0.75),
        edge_lines=rng.random() < 0.6,
        phase=rng.uniform(0, 100),
        slab=rng.choice([0.5, 0.8, 1.2]),
        cracks=rng.uniform(0, 1) ** 2,
        variant=int(rng.integers(4)),
        manholes=tuple(
            Disc(
                rng.uniform(-0.8, 0.8) * half,
                rng.uniform(4, 28),
                rng.uniform(0.28, 0.4),
                1.0,
                int(rng.integers(3)),
            )
            for _ in range(rng.poisson(clutter))
        ),
        puddles=tuple(
            Disc(
                rng.uniform(-0.9, 0.9) * half,
                rng.uniform(5, 25),
                rng.uniform(0.4, 1.3),
                rng.uniform(1, 2.5),
                0,
            )
            for _ in range(rng.poisson(0.7 * clutter))
        ),
        patches=tuple(_patch(rng, half) for _ in range(rng.poisson(clutter))),
        crossings=_crossing(rng, half) if rng.random() < 0.1 + 0.06 * clutter else (),
        bands=(_band(rng, half, lane),) if rng.random() < 0.05 + 0.04 * clutter else (),
        band_colour=((150.0, 72.0, 62.0), (84.0, 120.0, 84.0), (80.0, 98.0, 134.0))[int(rng.integers(3))],
        arrows=tuple(
            (-count * lane / 2 + lane * (rng.integers(count) + 0.5), rng.uniform(7, 22))
            for _ in range(rng.poisson(0.25))
        ),
    )


def _pavement(rng: np.random.Generator) -> float:
    return 0.0 if rng.random() < 0.15 else float(rng.uniform(1.5, 4.5))


def _patch(rng: np.random.Generator, half: float) -> Rectangle:
    x, z = rng.uniform(-0.9, 0.9) * half, rng.uniform(4, 30)
    across, along = rng.uniform(0.4, 1.6), rng.uniform(0.8, 6)
    return Rectangle(
        x - across, x + across, z, z + along, rng.choice([rng.uniform(0.55, 0.85), rng.uniform(1.12, 1.4)])
    )


def _crossing(rng: np.random.Generator, half: float) -> tuple[Rectangle, ...]:
    z, depth = rng.uniform(6, 20), rng.uniform(2.5, 4)
    return tuple(Rectangle(x, x + 0.5, z, z + depth) for x in np.arange(-half + 0.3, half - 0.5, 1.0))


def _band(rng: np.random.Generator, half: float, lane: float) -> Rectangle:
    if rng.random() < 0.5:
        return Rectangle(half - lane, half, 0, 200)
    z = rng.uniform(6, 16)
    return Rectangle(-half, half, z, z + rng.uniform(2, 8))


def paint_ground(camera: Camera, road: Road, light: Light) -> tuple[int, FloatArray, UInt8Array, FloatArray]:
    """Paint the ground as every pixel sees it.

    Returns:
        First row of the ground, colour (h, W, 3) float32 0..255 before shadows, label (h, W) uint8 and depth (h, W)
        float32 in metres.
    """
    first, x, z = camera.ground_grid()
    view = _View(x, z, z / np.float32(camera.focal), z * z / np.float32(camera.focal * camera.eye))
    fine = np.minimum(np.float32(0.06) / view.along, 1)
    u, v = (x + road.phase) / 9, (z + 3 * road.phase) / 9
    grain = sample(tile(9, road.variant), u * 2.3, v * 2.3) * fine
    mottle = sample(fractal(2, 6, road.variant), u * 0.35, v * 0.12)

    pavement = np.where(x < 0, np.float32(road.pavement[0]), np.float32(road.pavement[1]))
    beyond = np.abs(x) - np.float32(road.half)
    on_road = beyond < 0
    on_pavement = ~on_road & (beyond < pavement)
    label = np.full(x.shape, TERRAIN, np.uint8)
    label[on_road], label[on_pavement] = ROAD, SIDEWALK

    tone = _asphalt(road, view, mottle, grain)
    colour = shaded(tone, road.asphalt)
    _paint_bands(colour, road, view, tone)
    _paint_marks(colour, road, view)
    _paint_manholes(colour, road, view)
    _paint_puddles(colour, road, view, light)
    if light.wet > 0.3:
        shine = np.clip(0.25 + 0.2 * mottle, 0, 0.7) * np.float32(0.6 * light.wet)
        colour += shine[..., None] * (0.8 * np.asarray(light.haze, dtype=np.float32) - colour)
    _paint_off_road(colour, road, view, (mottle, grain, fine), (on_pavement, label == TERRAIN))
    near_kerb = np.abs(beyond - np.float32(0.09))
    kerb = np.clip(0.5 + (0.09 - near_kerb) / view.footprint, 0, 1) * (pavement > 0)
    touched = kerb > 0
    stones = 156 + 20 * (wrap(z[touched] + road.phase, 1.0) > 0.04)
    seen = take(colour, touched)
    put(colour, touched, seen + kerb[touched][:, None] * (stones[:, None] - seen))
    return first, colour, label, z


@dataclass(frozen=True)
class _View:
    """The ground under every pixel: x, z in metres, and the pixel's extent across and along in metres."""

    x: FloatArray
    z: FloatArray
    footprint: FloatArray
    along: FloatArray

    def rows(self, z0: float, z1: float) -> slice:
        """Rows that see the ground between the distances z0 and z1."""
        far_to_near = -self.z[:, 0]
        return slice(int(np.searchsorted(far_to_near, -z1)), int(np.searchsorted(far_to_near, -z0)))


def _asphalt(road: Road, view: _View, mottle: FloatArray, grain: FloatArray) -> FloatArray:
    """Brightness of the bare carriageway, about 1."""
    x, z, lane = view.x, view.z, 3.2
    track = np.abs(wrap(x + road.half, lane) - lane / 2)
    tone = 1 + 0.05 * mottle + 0.07 * grain - 0.06 * np.exp(-(((track - 0.8) / 0.35) ** 2))
    if road.cracks > 0.15:
        rows = view.rows(0, 40)
        near_x, near_z = x[rows], z[rows]
        vein = sample(fractal(4, 8, road.variant + 1), (near_x + road.phase) / 23, (near_z + road.phase) / 23)
        region = (
            sample(tile(2, road.variant + 2), (near_x + road.phase) / 50, (near_z + road.phase) / 50) > 0.4
        )
        cracked = region & (np.abs(vein) < 0.03 + 0.5 * np.minimum(near_z / 200, 0.2))
        away = near_z[cracked]
        tone[rows][cracked] -= np.float32(0.3 * road.cracks) * (np.clip(12 / away, 0, 1) * (1 - away / 40))
    for patch in road.patches:
        rows = view.rows(patch.z0, patch.z1)
        inside = (x[rows] > patch.x0) & (x[rows] < patch.x1)
        tone[rows][inside] *= np.float32(patch.grey)
    return np.asarray(tone, dtype=np.float32)


def _paint_bands(colour: FloatArray, road: Road, view: _View, tone: FloatArray) -> None:
    for band in road.bands:
        rows = view.rows(band.z0, band.z1)
        inside = (view.x[rows] > band.x0) & (view.x[rows] < band.x1)
        put(colour[rows], inside, shaded(tone[rows][inside], road.band_colour))


def _paint_marks(colour: FloatArray, road: Road, view: _View) -> None:
    """Dashed lane lines, edge lines, crossings and arrows, with analytic anti-aliasing across."""
    x, z, footprint = view.x, view.z, view.footprint
    cover = np.zeros_like(x)
    dash = np.where(
        view.along[:, :1] > 3, np.float32(0.4), (wrap(z[:, :1] + road.phase, 9.0) < 4).astype(np.float32)
    )
    for line in road.lanes:
        np.maximum(cover, dash * np.clip(0.5 + (0.07 - np.abs(x - line)) / footprint, 0, 1), out=cover)
    if road.edge_lines:
        edge = np.abs(np.abs(x) - (road.half - 0.25))
        np.maximum(cover, np.clip(0.5 + (0.07 - edge) / footprint, 0, 1), out=cover)
    for bar in road.crossings:
        rows = view.rows(bar.z0, bar.z1)
        aside = np.abs(x[rows] - 0.5 * (bar.x0 + bar.x1))
        across = np.clip(0.5 + (0.5 * (bar.x1 - bar.x0) - aside) / footprint[rows], 0, 1)
        np.maximum(cover[rows], across, out=cover[rows])
    for arrow_x, arrow_z in road.arrows:
        rows = view.rows(arrow_z, arrow_z + 3.6)
        ahead, aside = z[rows] - arrow_z, np.abs(x[rows] - arrow_x)
        head = (ahead >= 2.2) & (aside < 0.45 * (3.6 - ahead) / 1.4)
        cover[rows][((aside < 0.1) & (ahead < 2.2)) | head] = 1
    touched = cover > 0
    worn = fractal(4, 9, road.variant + 3)
    wear = pick(worn, (x[touched] + road.phase) / 7, (z[touched] - road.phase) / 7)
    paint = np.clip(0.95 - road.worn * np.clip(0.55 + 0.45 * wear, 0, 1), 0.05, 1)
    amount = (cover[touched] * paint).astype(np.float32)[:, None]
    seen = take(colour, touched)
    put(colour, touched, seen + amount * (np.asarray(road.marking, dtype=np.float32) - seen))


def _paint_manholes(colour: FloatArray, road: Road, view: _View) -> None:
    for hole in road.manholes:
        rows = view.rows(hole.z - hole.radius, hole.z + hole.radius)
        x, z = view.x[rows], view.z[rows]
        reach = np.hypot(x - hole.x, z - hole.z) / hole.radius
        if hole.variant == 2:
            reach = np.maximum(np.abs(x - hole.x), np.abs(z - hole.z)) / hole.radius
        inside = reach < 1
        relief = (np.mod(x[inside], 0.1) < 0.05) ^ (np.mod(z[inside], 0.1) < 0.05)
        grey = np.where(reach[inside] > 0.85, 0.45, 0.62 + 0.16 * relief)
        colour[rows][inside] = grey[:, None] * np.asarray(road.asphalt, dtype=np.float32) + 6


def _paint_puddles(colour: FloatArray, road: Road, view: _View, light: Light) -> None:
    """Water that mirrors the sky, with an uneven shore."""
    mirrored = 0.47 * np.asarray(light.sky, dtype=np.float32) + 0.3 * np.asarray(light.haze, dtype=np.float32)
    for puddle in road.puddles:
        extent = 1.7 * puddle.radius * puddle.stretch
        rows = view.rows(puddle.z - extent, puddle.z + extent)
        x, z = view.x[rows], view.z[rows]
        wobble = sample(fractal(2, 5, road.variant), x / 11, z / 11)
        reach = np.hypot(x - puddle.x, (z - puddle.z) / puddle.stretch) / puddle.radius + 0.22 * wobble
        water = 0.75 * np.clip((1.0 - reach) * 6, 0, 1) * (np.abs(x) < road.half)
        colour[rows] += water[..., None] * (mirrored * (1 + 0.04 * wobble[..., None]) - colour[rows])


def _paint_off_road(
    colour: FloatArray,
    road: Road,
    view: _View,
    textures: tuple[FloatArray, FloatArray, FloatArray],
    places: tuple[BoolArray, BoolArray],
) -> None:
    """Paving slabs and grass, only where they are seen."""
    mottle, grain, fine = textures
    paved, grown = places
    x, z = view.x[paved], view.z[paved]
    joint = np.maximum(_lines(x, road.slab, view.footprint[paved]), _lines(z, road.slab, view.along[paved]))
    tone = 1 + 0.05 * mottle[paved] + 0.05 * grain[paved] - 0.25 * joint
    put(colour, paved, shaded(tone, road.paving))
    x, z = view.x[grown], view.z[grown]
    blades = pick(fractal(5, 9, 1), (x + road.phase) * 0.089, (z + road.phase) * 0.056)
    tone = 1 + 0.16 * mottle[grown] + 0.2 * blades * np.clip(fine[grown] + 0.2, 0, 1)
    put(colour, grown, shaded(tone, road.grass))


def _lines(position: FloatArray, step: float, pixel: FloatArray) -> FloatArray:
    """Coverage of joints every `step` metres, fading where a pixel holds several."""
    away = np.abs(wrap(position + step / 2, step) - np.float32(step / 2))
    covered = np.clip(0.5 + (0.012 - away) / pixel, 0, 1) * np.clip(step / (4 * pixel), 0, 1)
    return np.asarray(covered, dtype=np.float32)
