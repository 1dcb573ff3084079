"""What stands beside and on the road: buildings, trees, poles, signs, cars, people."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.scenes.camera import Camera
from anomdino.scenes.canvas import Canvas, Points
from anomdino.scenes.noise import fractal_noise
from anomdino.scenes.world import BUILDING, CAR, FENCE, LIGHT, PERSON, POLE, SIGN, TRUCK, VEGETATION, WALL

Rgb = npt.NDArray[np.float32]


def rgb(*values: float) -> Rgb:
    """An RGB colour in [0, 1]."""
    return np.array(values, np.float32)


def building(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, side: float, near: float, far: float, shift: float
) -> None:
    """A house whose front runs along the road from ``near`` to ``far`` metres at ``side`` metres."""
    tall, base = float(rng.uniform(5, 16)), rng.uniform(0.3, 0.75)
    wall = np.clip(base + rng.normal(0, 0.07, 3), 0.1, 0.95).astype(np.float32)
    x_near, x_far = side + shift, side + shift
    corners = [camera.project(x_near, 0, near), camera.project(x_near, tall, near)]
    corners += [camera.project(x_far, tall, far), camera.project(x_far, 0, far)]
    label = BUILDING if tall > 5.5 else WALL
    canvas.polygon(corners, wall, label, (near + far) / 2)
    outer = x_far + np.sign(side) * float(rng.uniform(5, 12))
    gable = [camera.project(x_near, 0, near), camera.project(x_near, tall, near)]
    gable += [camera.project(outer, tall, near), camera.project(outer, 0, near)]
    canvas.polygon(gable, wall * 0.82, label, near)
    glass, floors = wall * float(rng.uniform(0.35, 0.6)), int(tall // 2.8)
    columns = max(1, int((far - near) // float(rng.uniform(2.2, 3.5))))
    for floor in range(floors):
        for column in range(columns):
            a = near + (far - near) * (column + 0.25) / columns
            b = near + (far - near) * (column + 0.75) / columns
            low, high = 0.9 + 2.8 * floor, 2.3 + 2.8 * floor
            window = [camera.project(x_near, low, a), camera.project(x_near, high, a)]
            window += [camera.project(x_near, high, b), camera.project(x_near, low, b)]
            canvas.polygon(window, glass * float(rng.uniform(0.8, 1.3)), None, a)


def tree(canvas: Canvas, camera: Camera, rng: np.random.Generator, side: float, ahead: float) -> None:
    """A tree or a bush with a noisy outline."""
    bush = rng.random() < 0.4
    tall, wide = (float(rng.uniform(0.8, 1.8)), 1.2) if bush else (float(rng.uniform(3.5, 8)), 0.75)
    high = int(np.clip(camera.pixels(tall, ahead), 4, 2 * camera.height))
    across = max(4, int(high * wide))
    x, ground = camera.project(side, 0, ahead)
    crown_low = ground if bush else ground - 0.25 * high
    if not bush:
        trunk = max(1.0, 0.04 * high)
        points = [(x - trunk, ground), (x - trunk, crown_low - 4), (x + trunk, crown_low - 4), (x + trunk, ground)]
        canvas.polygon(points, rgb(0.25, 0.2, 0.15), VEGETATION, ahead)
    crown = max(3, int(high if bush else 0.8 * high))
    y, column = np.mgrid[:crown, :across].astype(np.float32)
    round_ = ((column - across / 2) / (across / 2)) ** 2 + ((y - crown / 2) / (crown / 2)) ** 2
    ragged = fractal_noise(rng, (crown, across), max(3.0, across / 4))
    alpha = (round_ < 0.55 + 0.55 * ragged).astype(np.float32)
    leaf = rgb(0.16, 0.3, 0.1) + rng.normal(0, 0.04, 3).astype(np.float32)
    light = 0.55 + 0.9 * fractal_noise(rng, (crown, across), max(2.0, across / 9))[..., None]
    canvas.stamp(np.clip(leaf * light, 0, 1), alpha, x - across / 2, crown_low - crown, VEGETATION, ahead)


def pole(canvas: Canvas, camera: Camera, rng: np.random.Generator, side: float, ahead: float) -> None:
    """A lamp post, a traffic light or a sign post."""
    kind = rng.choice(["lamp", "sign", "light"], p=[0.45, 0.4, 0.15])
    tall = {"lamp": 6.0, "sign": 2.6, "light": 3.4}[str(kind)] * float(rng.uniform(0.9, 1.2))
    x, ground = camera.project(side, 0, ahead)
    top, half = ground - camera.pixels(tall, ahead), max(0.7, camera.pixels(0.06, ahead))
    grey = rgb(0.42, 0.43, 0.45) * float(rng.uniform(0.6, 1.2))
    canvas.polygon([(x - half, ground), (x - half, top), (x + half, top), (x + half, ground)], grey, POLE, ahead)
    if kind == "lamp":
        reach = -np.sign(side) * camera.pixels(1.2, ahead)
        canvas.polygon([(x, top), (x + reach, top - half), (x + reach, top + half), (x, top + 2 * half)], grey, POLE, ahead)
    if kind == "sign":
        _sign(canvas, rng, x, top, max(2.0, camera.pixels(0.36, ahead)), ahead)
    if kind == "light":
        wide, high = max(1.2, camera.pixels(0.17, ahead)), max(3.0, camera.pixels(0.95, ahead))
        canvas.polygon([(x - wide, top), (x + wide, top), (x + wide, top + high), (x - wide, top + high)], rgb(0.09, 0.1, 0.1), LIGHT, ahead)
        row = int(rng.integers(3))
        lamp = [rgb(0.95, 0.15, 0.1), rgb(0.95, 0.7, 0.1), rgb(0.15, 0.9, 0.45)][row]
        y = top + high * (row + 0.5) / 3
        canvas.polygon([(x - 0.6 * wide, y - wide * 0.6), (x + 0.6 * wide, y - wide * 0.6), (x + 0.6 * wide, y + wide * 0.6), (x - 0.6 * wide, y + wide * 0.6)], lamp, None, ahead)


def _sign(canvas: Canvas, rng: np.random.Generator, x: float, y: float, radius: float, ahead: float) -> None:
    corners = int(rng.choice([3, 4, 8, 16]))
    turn = np.pi / 2 if corners == 3 else np.pi / corners
    rim, face = [
        (rgb(0.8, 0.1, 0.1), rgb(0.95, 0.95, 0.93)),
        (rgb(0.1, 0.25, 0.7), rgb(0.15, 0.35, 0.8)),
        (rgb(0.9, 0.75, 0.1), rgb(0.95, 0.8, 0.15)),
    ][int(rng.integers(3))]
    for size, colour in ((1.0, rim), (0.72, face)):
        ring = [
            (x + size * radius * np.cos(turn + 2 * np.pi * i / corners), y - size * radius * np.sin(turn + 2 * np.pi * i / corners))
            for i in range(corners)
        ]
        canvas.polygon(ring, colour, SIGN, ahead)


def fence(canvas: Canvas, camera: Camera, rng: np.random.Generator, side: float, near: float, far: float, shift: float) -> None:
    """A fence along the road."""
    tall, colour = float(rng.uniform(0.9, 1.5)), np.clip(rng.uniform(0.25, 0.6) + rng.normal(0, 0.05, 3), 0, 1)
    corners = [camera.project(side + shift, 0, near), camera.project(side + shift, tall, near)]
    corners += [camera.project(side + shift, tall, far), camera.project(side + shift, 0, far)]
    canvas.polygon(corners, colour.astype(np.float32), FENCE, (near + far) / 2)
    for ahead in np.linspace(near, far, 10):
        bar = [camera.project(side + shift, up, ahead + gap) for up, gap in ((0, 0), (tall, 0), (tall, 0.25), (0, 0.25))]
        canvas.polygon(bar, (colour * 0.6).astype(np.float32), None, float(ahead))


CAR_COLOURS = (
    (0.75, 0.75, 0.77), (0.12, 0.12, 0.13), (0.92, 0.92, 0.92), (0.45, 0.08, 0.08),
    (0.1, 0.18, 0.4), (0.35, 0.36, 0.38), (0.2, 0.3, 0.22), (0.55, 0.5, 0.42),
)  # fmt: skip


def car(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, sideways: float, ahead: float, colour: Rgb | None = None
) -> None:
    """A car, or at times a van, seen from behind or in front."""
    van = rng.random() < 0.2
    wide = camera.pixels(2.1 if van else 1.8, ahead)
    high = camera.pixels(2.5 if van else 1.48, ahead)
    paint = rgb(*CAR_COLOURS[int(rng.integers(len(CAR_COLOURS)))]) if colour is None else colour
    x, ground = camera.project(sideways, 0, ahead)
    label = TRUCK if van else CAR
    half, waist = wide / 2, ground - high * (0.62 if van else 0.55)
    canvas.shade(x, ground - 0.02 * high, (0.62 * wide, 0.12 * high), 0.75)
    roof = 0.46 if van else 0.36
    lean = -np.sign(sideways) * 0.12 * wide
    flank = [(x + half * np.sign(lean or 1), ground - 0.1 * high), (x + half * np.sign(lean or 1) + 2.2 * lean, ground - 0.16 * high)]
    flank += [(x + half * np.sign(lean or 1) + 2.2 * lean, waist + 0.05 * high), (x + half * np.sign(lean or 1), waist)]
    canvas.polygon(flank, paint * 0.65, label, ahead)
    for side in (-1, 1):
        tyre = [(x + side * half * 0.95, ground), (x + side * half * 0.62, ground)]
        tyre += [(x + side * half * 0.62, ground - 0.22 * high), (x + side * half * 0.95, ground - 0.22 * high)]
        canvas.polygon(tyre, rgb(0.04, 0.04, 0.05), label, ahead)
    body: Points = [(x - half, ground - 0.12 * high), (x - half, waist), (x + half, waist), (x + half, ground - 0.12 * high)]
    canvas.polygon(body, paint * 0.95, label, ahead)
    cabin: Points = [(x - half * 0.95, waist), (x - wide * roof, ground - high), (x + wide * roof, ground - high), (x + half * 0.95, waist)]
    canvas.polygon(cabin, paint * 0.8, label, ahead)
    glass: Points = [(x - half * 0.8, waist), (x - wide * roof * 0.86, ground - 0.94 * high)]
    glass += [(x + wide * roof * 0.86, ground - 0.94 * high), (x + half * 0.8, waist)]
    canvas.polygon(glass, rgb(0.12, 0.15, 0.18), None, ahead)
    lamp = rgb(0.75, 0.08, 0.06) if rng.random() < 0.6 else rgb(0.95, 0.93, 0.8)
    for side in (-1, 1):
        box = [(x + side * half * a, waist + high * b) for a, b in ((0.98, 0.06), (0.72, 0.06), (0.72, 0.16), (0.98, 0.16))]
        canvas.polygon(box, lamp, None, ahead)
    plate = [(x + half * a, waist + high * b) for a, b in ((-0.25, 0.2), (0.25, 0.2), (0.25, 0.28), (-0.25, 0.28))]
    canvas.polygon(plate, rgb(0.85, 0.85, 0.82), None, ahead)


def person(canvas: Canvas, camera: Camera, rng: np.random.Generator, sideways: float, ahead: float) -> None:
    """A pedestrian."""
    tall = camera.pixels(float(rng.uniform(1.5, 1.9)), ahead)
    x, ground = camera.project(sideways, 0, ahead)
    coat, legs = (np.clip(rng.uniform(0.08, 0.7, 3) * rng.uniform(0.5, 1), 0, 1).astype(np.float32) for _ in range(2))
    skin, wide = rgb(0.75, 0.55, 0.45) * float(rng.uniform(0.5, 1.1)), 0.26 * tall / 2
    canvas.shade(x, ground, (0.2 * tall, 0.04 * tall), 0.5)
    step = float(rng.uniform(0.02, 0.09)) * tall
    for side in (-1, 1):
        leg = [(x + side * wide * 0.1, ground - 0.5 * tall), (x + side * wide * 0.75, ground - 0.5 * tall)]
        leg += [(x + side * (step + 0.03 * tall), ground), (x + side * (step - 0.02 * tall), ground)]
        canvas.polygon(leg, legs, PERSON, ahead)
    body = [(x - wide * 0.8, ground - 0.45 * tall), (x - wide, ground - 0.83 * tall), (x + wide, ground - 0.83 * tall), (x + wide * 0.8, ground - 0.45 * tall)]
    canvas.polygon(body, coat, PERSON, ahead)
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    head = [(x + 0.075 * tall * np.cos(a), ground - 0.91 * tall + 0.09 * tall * np.sin(a)) for a in angles]
    canvas.polygon(head, skin, PERSON, ahead)


def clouds(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    """Sky with a gradient and clouds above the horizon."""
    rows = int(np.clip(horizon + 6, 1, canvas.size[0]))
    share = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    sky = canvas.weather.sky[0] * (1 - share) + canvas.weather.sky[1] * share
    veil = fractal_noise(rng, (rows, canvas.size[1]), 90.0, 5)[..., None]
    cover = np.clip((veil - 0.5) * 2.5, 0, 1) * 0.7
    canvas.colour[:rows] = sky * (1 - cover) + np.float32(0.93) * cover
    cv2.GaussianBlur(canvas.colour[:rows], (0, 0), 1.0, dst=canvas.colour[:rows])
