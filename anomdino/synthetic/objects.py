"""Foreign objects: shapes built of rounded or flat parts, with surface patterns, shaded by the scene's light.

Training and evaluation draw from families that share neither shapes nor patterns (`TRAINING`, `EVALUATION`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomdino.synthetic.camera import FloatArray, Reals
from anomdino.synthetic.canvas import fixed
from anomdino.synthetic.light import Light
from anomdino.synthetic.noise import fractal, sample, tile
from anomdino.synthetic.pixels import put, shaded

Points = npt.NDArray[np.float64]
Colour = tuple[float, float, float]
Pattern = Callable[[Reals, Reals, float], Reals]


@dataclass(frozen=True)
class Part:
    """A piece of an object in its own frame: x to the right, y up, the object 1 high and standing on y = 0.

    Attributes:
        outline: (N, 2) corners.
        tone: 0 main colour, 1 second colour, 2 dark, 3 third colour.
        bulge: 0 flat face .. 1 round.
        shade: brightness of a flat face.
        patterned: whether the object's pattern covers it.
    """

    outline: Points
    tone: int = 0
    bulge: float = 0.9
    shade: float = 1.0
    patterned: bool = True


@dataclass(frozen=True)
class Look:
    """How one object looks: parts, three colours, the pattern with its scale and turn, gloss 0 .. 1."""

    family: str
    parts: tuple[Part, ...]
    colours: tuple[Colour, Colour, Colour]
    pattern: str
    scale: float
    gloss: float
    offset: float

    @property
    def width(self) -> float:
        """Width over height."""
        points = np.concatenate([part.outline for part in self.parts])
        return float(np.ptp(points[:, 0]))


@dataclass(frozen=True)
class Kind:
    """A family: how its parts are drawn, and its (least, most) real height in metres."""

    parts: Callable[[np.random.Generator], list[Part]]
    metres: tuple[float, float]


# --- outlines ----------------------------------------------------------------------------------------------------


def oval(x: float, y: float, a: float, b: float, turn: float = 0.0, power: float = 2.0) -> Points:
    """A (super-)ellipse with half axes a, b, turned by `turn` radians."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    u = a * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** (2 / power)
    v = b * np.sign(np.sin(t)) * np.abs(np.sin(t)) ** (2 / power)
    return np.stack(
        [x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], axis=1
    )


def limb(x0: float, y0: float, x1: float, y1: float, start: float, end: float) -> Points:
    """A tapering rod with rounded ends, half widths `start` and `end`."""
    angle = np.arctan2(y1 - y0, x1 - x0)
    first = angle + np.pi / 2 + np.linspace(0, np.pi, 9)
    second = angle - np.pi / 2 + np.linspace(0, np.pi, 9)
    head = np.stack([x0 + start * np.cos(first), y0 + start * np.sin(first)], axis=1)
    tail = np.stack([x1 + end * np.cos(second), y1 + end * np.sin(second)], axis=1)
    return np.concatenate([head, tail])


def quad(*corners: tuple[float, float]) -> Points:
    """A polygon from its corners."""
    return np.asarray(corners, dtype=np.float64)


def lumpy(rng: np.random.Generator, x: float, y: float, a: float, b: float, rough: float) -> Points:
    """An irregular closed curve about an ellipse."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = np.ones_like(t)
    for order in range(2, 7):
        radius += rough / order * rng.normal() * np.cos(order * t + rng.uniform(0, 2 * np.pi))
    return np.stack([x + a * radius * np.cos(t), y + b * radius * np.sin(t)], axis=1)


def angular(rng: np.random.Generator, x: float, y: float, a: float, b: float, corners: int) -> Points:
    """A convex-looking polygon with uneven corners about an ellipse."""
    t = np.sort((np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * 2 * np.pi / corners)
    radius = rng.uniform(0.8, 1.08, corners)
    return np.stack([x + a * radius * np.cos(t), y + b * radius * np.sin(t)], axis=1)


# --- training families -------------------------------------------------------------------------------------------


def _dog(rng: np.random.Generator) -> list[Part]:
    length, leg, belly = rng.uniform(0.5, 0.8), rng.uniform(0.3, 0.45), rng.uniform(0.15, 0.24)
    back = leg + belly
    far = [
        Part(limb(x, leg + 0.1, x + rng.uniform(-0.06, 0.06), 0.03, 0.06, 0.04), 1)
        for x in (-0.38 * length, 0.42 * length)
    ]
    near = [
        Part(limb(x, leg + 0.1, x + rng.uniform(-0.06, 0.06), 0.03, 0.07, 0.045))
        for x in (-0.46 * length, 0.5 * length)
    ]
    head_x, head_y = 0.5 * length + 0.16, min(back + 0.25, 0.82)
    return [
        *far,
        Part(limb(-0.5 * length, back, -0.5 * length - 0.25, back + rng.uniform(-0.1, 0.25), 0.035, 0.02)),
        Part(oval(0, back - 0.05, 0.62 * length, belly)),
        *near,
        Part(limb(0.45 * length, back, head_x, head_y, 0.12, 0.1)),
        Part(oval(head_x + 0.03, head_y + 0.03, 0.15, 0.12)),
        Part(oval(head_x + 0.16, head_y - 0.02, 0.09, 0.06), 1),
        Part(oval(head_x - 0.06, head_y + 0.08, 0.045, 0.09, 0.5), 1),
        Part(oval(head_x + 0.06, head_y + 0.06, 0.016, 0.016), 2, patterned=False),
    ]


def _ball(rng: np.random.Generator) -> list[Part]:
    return [Part(oval(0, 0.5, 0.5 * rng.uniform(0.9, 1.1), 0.5))]


def _crate(rng: np.random.Generator) -> list[Part]:
    w, d, rise = rng.uniform(0.5, 1.2), rng.uniform(0.15, 0.5), rng.uniform(0.1, 0.25)
    h = 1 - rise
    return [
        Part(quad((-w / 2, 0), (w / 2, 0), (w / 2, h), (-w / 2, h)), 0, 0, 0.85),
        Part(quad((w / 2, 0), (w / 2 + d, rise), (w / 2 + d, 1), (w / 2, h)), 0, 0, 0.6),
        Part(quad((-w / 2, h), (w / 2, h), (w / 2 + d, 1), (-w / 2 + d, 1)), 1, 0, 1.1),
        Part(quad((-w / 2, 0.45 * h), (w / 2, 0.45 * h), (w / 2, 0.55 * h), (-w / 2, 0.55 * h)), 1, 0, 0.9),
    ]


def _tyre(rng: np.random.Generator) -> list[Part]:
    a = rng.uniform(0.35, 0.5)
    return [
        Part(oval(0.08, 0.5, a, 0.5), 2),
        Part(oval(0, 0.5, a, 0.5)),
        Part(oval(0, 0.5, 0.55 * a, 0.28), 2, 0.1, 0.5, False),
    ]


def _chair(rng: np.random.Generator) -> list[Part]:
    seat, wide = rng.uniform(0.38, 0.5), rng.uniform(0.4, 0.6)
    legs = [
        Part(limb(x, seat, x + lean, 0.02, 0.035, 0.03), 1)
        for x, lean in ((-wide / 2, -0.04), (wide / 2, 0.04), (-wide / 4, 0), (wide * 0.3, 0))
    ]
    return [
        *legs,
        Part(oval(-wide * 0.42, 0.5 * (1 + seat), 0.07, 0.5 * (1 - seat), 0.08, 4)),
        Part(oval(0, seat, wide * 0.6, 0.07, 0, 4)),
    ]


def _sofa(rng: np.random.Generator) -> list[Part]:
    w = rng.uniform(1.0, 1.6)
    return [
        Part(oval(0, 0.65, 0.5 * w, 0.35, 0, 5)),
        Part(oval(-0.26 * w, 0.36, 0.27 * w, 0.16, 0, 4), 1),
        Part(oval(0.26 * w, 0.36, 0.27 * w, 0.16, 0, 4), 1),
        Part(oval(0, 0.14, 0.52 * w, 0.14, 0, 6)),
        Part(oval(-0.54 * w, 0.34, 0.1 * w, 0.32, 0, 4)),
        Part(oval(0.54 * w, 0.34, 0.1 * w, 0.32, 0, 4)),
    ]


def _barrel(rng: np.random.Generator) -> list[Part]:
    a = rng.uniform(0.28, 0.4)
    body = quad(
        (-a, 0.06),
        (-0.5 * a, 0),
        (0.5 * a, 0),
        (a, 0.06),
        (1.1 * a, 0.5),
        (a, 0.92),
        (-a, 0.92),
        (-1.1 * a, 0.5),
    )
    hoops = [
        Part(quad((-1.06 * a, y), (1.06 * a, y), (1.06 * a, y + 0.05), (-1.06 * a, y + 0.05)), 2, 0.4)
        for y in (0.2, 0.72)
    ]
    return [Part(body), *hoops, Part(oval(0, 0.92, a, 0.08), 1, 0.1, 1.05)]


def _bird(rng: np.random.Generator) -> list[Part]:
    tail = rng.uniform(0.3, 0.5)
    return [
        Part(limb(-0.05, 0.35, -0.05, 0.02, 0.02, 0.02), 1, patterned=False),
        Part(limb(0.08, 0.35, 0.1, 0.02, 0.02, 0.02), 1, patterned=False),
        Part(quad((-0.2, 0.5), (-0.3 - tail, 0.35), (-0.3 - tail, 0.5), (-0.2, 0.62)), 1, 0.3),
        Part(oval(0, 0.5, 0.36, 0.22, 0.3)),
        Part(oval(-0.05, 0.52, 0.26, 0.12, 0.1), 1),
        Part(oval(0.3, 0.83, 0.16, 0.15)),
        Part(quad((0.42, 0.87), (0.6, 0.8), (0.42, 0.78)), 1, 0.3, patterned=False),
        Part(oval(0.34, 0.86, 0.025, 0.025), 2, patterned=False),
    ]


def _sack(rng: np.random.Generator) -> list[Part]:
    return [
        Part(lumpy(rng, 0, 0.4, rng.uniform(0.4, 0.6), 0.42, 0.12)),
        Part(lumpy(rng, 0, 0.86, 0.14, 0.14, 0.2), 1),
    ]


def _umbrella(rng: np.random.Generator) -> list[Part]:
    t = np.linspace(0, np.pi, 24)
    dome = np.stack([0.6 * np.cos(t), 0.55 + 0.45 * np.sin(t)], axis=1)
    parts = [Part(limb(0, 0.6, 0, 0.04, 0.02, 0.02), 2), Part(dome)]
    return parts + [Part(limb(0, 1.0, x, 0.56, 0.01, 0.012), 1) for x in (-0.3, 0.3)]


def _bottle(rng: np.random.Generator) -> list[Part]:
    a = rng.uniform(0.14, 0.22)
    outline = quad(
        (-a, 0),
        (a, 0),
        (a, 0.55),
        (0.4 * a, 0.75),
        (0.4 * a, 0.95),
        (-0.4 * a, 0.95),
        (-0.4 * a, 0.75),
        (-a, 0.55),
    )
    return [Part(outline), Part(oval(0, 0.96, 0.45 * a, 0.04), 1), Part(oval(0, 0.3, a, 0.14, 0, 5), 1)]


def _toy(rng: np.random.Generator) -> list[Part]:
    arms = int(rng.integers(4, 8))
    turn = rng.uniform(0, np.pi)
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = 0.34 + 0.16 * np.cos(arms * t + turn)
    return [
        Part(np.stack([radius * np.cos(t), 0.5 + radius * np.sin(t)], axis=1)),
        Part(oval(0, 0.5, 0.16, 0.16), 1),
    ]


# --- evaluation families -----------------------------------------------------------------------------------------


def _boulder(rng: np.random.Generator) -> list[Part]:
    a = rng.uniform(0.5, 0.9)
    return [
        Part(angular(rng, 0, 0.48, a, 0.5, 9), 0, 0.6),
        Part(angular(rng, rng.uniform(-0.2, 0.2), 0.62, 0.55 * a, 0.3, 6), 1, 0.35),
        Part(angular(rng, rng.uniform(-0.3, 0.3), 0.25, 0.4 * a, 0.2, 5), 0, 0.3, 0.8),
    ]


def _cone(rng: np.random.Generator) -> list[Part]:
    a = rng.uniform(0.26, 0.34)
    bands = [
        Part(
            quad(
                (-a * (1 - y), y), (a * (1 - y), y), (a * (0.84 - y), y + 0.16), (-a * (0.84 - y), y + 0.16)
            ),
            1,
            0.5,
        )
        for y in (0.3, 0.6)
    ]
    base = Part(quad((-0.42, 0), (0.42, 0), (0.36, 0.09), (-0.36, 0.09)), 2, 0.2)
    return [base, Part(quad((-a, 0.08), (a, 0.08), (0.04, 1), (-0.04, 1)), 0, 0.9), *bands]


def _antelope(rng: np.random.Generator) -> list[Part]:
    back = rng.uniform(0.52, 0.6)
    turned = rng.choice([-1.0, 1.0])

    def at(points: Points) -> Points:
        return np.asarray(points * np.array([turned, 1.0]))

    legs = [
        Part(at(limb(x, back - 0.05, x + d, 0.27, 0.05, 0.028)), tone)
        for x, d, tone in ((-0.3, 0.04, 1), (0.24, -0.02, 1), (-0.24, -0.05, 0), (0.3, 0.03, 0))
    ] + [
        Part(at(limb(x + d, 0.27, x + 0.4 * d, 0.015, 0.024, 0.02)), 2)
        for x, d in ((-0.3, 0.04), (0.24, -0.02), (-0.24, -0.05), (0.3, 0.03))
    ]
    horns = [
        Part(at(limb(0.5 + s, 0.84, 0.4 + 2.2 * s, 1.0, 0.015, 0.006)), 2, patterned=False)
        for s in (-0.02, 0.05)
    ]
    return [
        *legs,
        Part(at(oval(0, back + 0.02, 0.4, 0.13, 0.05))),
        Part(at(limb(0.3, back + 0.05, 0.46, 0.76, 0.09, 0.055))),
        Part(at(limb(0.46, 0.8, 0.66, 0.72, 0.055, 0.03))),
        Part(at(oval(0.42, 0.86, 0.025, 0.06, 0.6)), 1),
        *horns,
    ]


def _elephant(rng: np.random.Generator) -> list[Part]:
    turned = rng.choice([-1.0, 1.0])
    pieces = [
        Part(limb(-0.3, 0.4, -0.32, 0.06, 0.1, 0.09), 1),
        Part(limb(0.22, 0.4, 0.2, 0.06, 0.1, 0.09), 1),
        Part(oval(-0.05, 0.62, 0.48, 0.33)),
        Part(limb(-0.38, 0.45, -0.42, 0.06, 0.11, 0.1)),
        Part(limb(0.3, 0.45, 0.34, 0.06, 0.11, 0.1)),
        Part(oval(0.46, 0.72, 0.2, 0.24)),
        Part(limb(0.6, 0.66, 0.72, 0.3, 0.08, 0.05)),
        Part(limb(0.72, 0.3, 0.66, 0.08, 0.05, 0.035)),
        Part(lumpy(rng, 0.36, 0.72, 0.15, 0.22, 0.1), 1, 0.4),
        Part(limb(0.58, 0.52, 0.74, 0.5, 0.022, 0.01), 3, patterned=False),
    ]
    return [Part(p.outline * np.array([turned, 1.0]), p.tone, p.bulge, p.shade, p.patterned) for p in pieces]


def _logs(rng: np.random.Generator) -> list[Part]:
    length, parts = rng.uniform(1.6, 2.8), []
    for x, y in ((0.0, 0.24), (0.1, 0.25), (0.05, 0.72))[: int(rng.integers(1, 4))]:
        slope = rng.uniform(-0.05, 0.05)
        parts.append(Part(limb(x - length / 2, y - slope, x + length / 2, y + slope, 0.25, 0.24)))
        parts.append(Part(oval(x + length / 2 + 0.03, y + slope, 0.14, 0.24), 3, 0.1, 1.0))
        parts.append(Part(oval(x + length / 2 + 0.03, y + slope, 0.07, 0.13), 1, 0.1, 0.9))
    return parts


def _pallet(rng: np.random.Generator) -> list[Part]:
    w, tilt = rng.uniform(1.4, 2.2), rng.uniform(0, 0.5)
    boards = [
        Part(
            quad((-w / 2, y), (w / 2, y + tilt), (w / 2, y + 0.13 + tilt), (-w / 2, y + 0.13)),
            k % 2,
            0.15,
            0.95,
        )
        for k, y in enumerate((0.02, 0.2, 0.38, 0.56))
    ]
    posts = [
        Part(quad((x, 0), (x + 0.12, 0), (x + 0.12, 0.68 + tilt / 2), (x, 0.6 + tilt / 2)), 2, 0, 0.6)
        for x in (-w / 2, 0, w / 2 - 0.12)
    ]
    return [*posts, *boards]


def _tent(rng: np.random.Generator) -> list[Part]:
    w, d = rng.uniform(0.8, 1.2), rng.uniform(0.4, 0.9)
    return [
        Part(quad((w / 2, 0), (w / 2 + d, 0.14), (d, 1), (0, 0.9)), 0, 0.15, 0.65),
        Part(quad((-w / 2, 0), (w / 2, 0), (0, 0.9)), 0, 0.15, 1.0),
        Part(quad((-0.13 * w, 0), (0.13 * w, 0), (0, 0.75)), 2, 0, 0.6, False),
    ]


def _boat(rng: np.random.Generator) -> list[Part]:
    w = rng.uniform(1.6, 2.6)
    hull = quad((-0.36 * w, 0), (0.3 * w, 0), (0.52 * w, 0.5), (-0.46 * w, 0.42))
    return [
        Part(hull, 0, 0.5),
        Part(quad((-0.46 * w, 0.42), (0.52 * w, 0.5), (0.5 * w, 0.58), (-0.46 * w, 0.5)), 1, 0.2),
        Part(quad((-0.25 * w, 0.5), (0.12 * w, 0.53), (0.05 * w, 0.85), (-0.22 * w, 0.85)), 3, 0.2),
        Part(limb(-0.1 * w, 0.85, -0.1 * w, 0.98, 0.02, 0.02), 2, patterned=False),
    ]


def _dinosaur(rng: np.random.Generator) -> list[Part]:
    turned = rng.choice([-1.0, 1.0])
    pieces = [
        Part(limb(-0.15, 0.42, -0.62, 0.14, 0.14, 0.03)),
        Part(limb(0.02, 0.4, 0.12, 0.05, 0.11, 0.07), 1),
        Part(oval(-0.02, 0.48, 0.24, 0.26, 0.5)),
        Part(limb(-0.1, 0.35, -0.02, 0.05, 0.12, 0.07)),
        Part(limb(0.1, 0.6, 0.26, 0.84, 0.13, 0.1)),
        Part(oval(0.36, 0.88, 0.2, 0.11, -0.1)),
        Part(limb(0.18, 0.55, 0.34, 0.46, 0.035, 0.02), 1),
        *[
            Part(quad((x, y), (x - 0.1, y + 0.1), (x + 0.06, y + 0.06)), 3, 0.2)
            for x, y in ((-0.3, 0.36), (-0.18, 0.52), (-0.06, 0.7))
        ],
        Part(oval(0.36, 0.93, 0.022, 0.022), 2, patterned=False),
    ]
    return [Part(p.outline * np.array([turned, 1.0]), p.tone, p.bulge, p.shade, p.patterned) for p in pieces]


def _machine(rng: np.random.Generator) -> list[Part]:
    arm = rng.uniform(0.3, 0.6)
    return [
        Part(oval(0, 0.12, 0.6, 0.12, 0, 4), 2),
        Part(quad((-0.45, 0.22), (0.4, 0.22), (0.4, 0.5), (-0.45, 0.5)), 0, 0.15, 0.95),
        Part(quad((-0.2, 0.5), (0.2, 0.5), (0.16, 0.86), (-0.2, 0.86)), 0, 0.1, 0.85),
        Part(quad((-0.14, 0.55), (0.14, 0.55), (0.12, 0.8), (-0.14, 0.8)), 2, 0.1, 1.3, False),
        Part(limb(0.3, 0.5, 0.3 + arm, 0.95, 0.06, 0.05), 0, 0.4),
        Part(limb(0.3 + arm, 0.95, 0.5 + arm, 0.45, 0.05, 0.04), 0, 0.4),
        Part(
            quad((0.4 + arm, 0.3), (0.62 + arm, 0.32), (0.56 + arm, 0.5), (0.44 + arm, 0.5)),
            2,
            0.2,
            1.0,
            False,
        ),
    ]


TRAINING: dict[str, Kind] = {
    "dog": Kind(_dog, (0.3, 0.9)),
    "ball": Kind(_ball, (0.2, 1.0)),
    "crate": Kind(_crate, (0.3, 1.4)),
    "tyre": Kind(_tyre, (0.5, 1.0)),
    "chair": Kind(_chair, (0.7, 1.2)),
    "sofa": Kind(_sofa, (0.7, 1.1)),
    "barrel": Kind(_barrel, (0.6, 1.2)),
    "bird": Kind(_bird, (0.2, 0.9)),
    "sack": Kind(_sack, (0.3, 0.9)),
    "umbrella": Kind(_umbrella, (0.7, 1.2)),
    "bottle": Kind(_bottle, (0.3, 1.0)),
    "toy": Kind(_toy, (0.3, 1.0)),
}
EVALUATION: dict[str, Kind] = {
    "boulder": Kind(_boulder, (0.25, 1.6)),
    "cone": Kind(_cone, (0.45, 0.9)),
    "antelope": Kind(_antelope, (1.0, 1.8)),
    "elephant": Kind(_elephant, (2.0, 3.2)),
    "logs": Kind(_logs, (0.3, 0.9)),
    "pallet": Kind(_pallet, (0.35, 0.9)),
    "tent": Kind(_tent, (1.0, 1.8)),
    "boat": Kind(_boat, (0.8, 1.8)),
    "dinosaur": Kind(_dinosaur, (0.8, 2.6)),
    "machine": Kind(_machine, (1.2, 2.6)),
}


# --- patterns ----------------------------------------------------------------------------------------------------


def _plain(u: Reals, v: Reals, offset: float) -> Reals:
    return np.zeros_like(u)


def _stripes(u: Reals, v: Reals, offset: float) -> Reals:
    return np.asarray(np.mod(u * np.cos(offset) + v * np.sin(offset), 1.0) < 0.5, dtype=np.float32)


def _dots(u: Reals, v: Reals, offset: float) -> Reals:
    return np.asarray(np.hypot(np.mod(u + offset, 1.0) - 0.5, np.mod(v, 1.0) - 0.5) < 0.3, dtype=np.float32)


def _checks(u: Reals, v: Reals, offset: float) -> Reals:
    return np.asarray((np.floor(u + offset) + np.floor(v)) % 2, dtype=np.float32)


def _marble(u: Reals, v: Reals, offset: float) -> Reals:
    return np.asarray(np.clip(0.5 + 0.4 * sample(fractal(3, 7, 0), u / 8 + offset, v / 8), 0, 1))


def _speckle(u: Reals, v: Reals, offset: float) -> Reals:
    return (sample(tile(6, 2), u / 6 + offset, v / 6) > 0.7).astype(np.float32)


def _waves(u: Reals, v: Reals, offset: float) -> Reals:
    bend = 0.5 * sample(tile(4, 1), u / 10 + offset, v / 10)
    return (np.mod(u + bend, 1.0) < 0.45).astype(np.float32)


def _camouflage(u: Reals, v: Reals, offset: float) -> Reals:
    level = sample(fractal(4, 6, 3), u / 10 + offset, v / 10)
    return np.where(level > 0.5, 1.0, np.where(level < -0.4, 0.5, 0.0)).astype(np.float32)


def _grain(u: Reals, v: Reals, offset: float) -> Reals:
    rings = v * 1.5 + 0.7 * sample(tile(3, 2), u / 14 + offset, v / 14)
    return np.asarray(0.35 + 0.35 * np.sin(2 * np.pi * rings), dtype=np.float32)


def _gradient(u: Reals, v: Reals, offset: float) -> Reals:
    return np.asarray(0.5 + 0.5 * np.sin(0.9 * u + 0.5 * v + offset), dtype=np.float32)


def _fur(u: Reals, v: Reals, offset: float) -> Reals:
    return np.asarray(np.clip(0.35 + 0.3 * sample(fractal(6, 9, 1), u / 4 + offset, v / 16), 0, 1))


PATTERNS: dict[str, Pattern] = {
    "plain": _plain,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "marble": _marble,
    "speckle": _speckle,
    "waves": _waves,
    "camouflage": _camouflage,
    "grain": _grain,
    "gradient": _gradient,
    "fur": _fur,
}
TRAINING_PATTERNS = ("plain", "stripes", "dots", "checks", "marble", "speckle")
EVALUATION_PATTERNS = ("waves", "camouflage", "grain", "gradient", "fur")


# --- drawing -----------------------------------------------------------------------------------------------------


def draw_look(rng: np.random.Generator, family: str, evaluation: bool) -> Look:
    """Draw one object of a family; evaluation objects have their own patterns and a share of road-like colours."""
    kinds, patterns = (EVALUATION, EVALUATION_PATTERNS) if evaluation else (TRAINING, TRAINING_PATTERNS)
    parts = tuple(kinds[family].parts(rng))
    drab = rng.random() < (0.45 if evaluation else 0.3)
    return Look(
        family=family,
        parts=parts,
        colours=(_colour(rng, drab), _colour(rng, drab), _colour(rng, False)),
        pattern=str(rng.choice(patterns)),
        scale=float(rng.uniform(3, 9)),
        gloss=float(rng.uniform(0, 0.7)),
        offset=float(rng.uniform(0, 3)),
    )


def _colour(rng: np.random.Generator, drab: bool) -> Colour:
    if drab:
        grey = rng.uniform(45, 175) + rng.normal(0, 9, 3) + np.array([8, 2, -8]) * rng.uniform(0, 2)
        clipped = np.clip(grey, 10, 240)
    else:
        hsv = np.array(
            [[[rng.uniform(0, 180), rng.uniform(60, 230), rng.uniform(60, 240)]]], dtype=np.float32
        )
        hsv[..., 1:] /= 255
        hsv[..., 0] *= 2
        clipped = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255
    return float(clipped[0]), float(clipped[1]), float(clipped[2])


def render(look: Look, height: int, light: Light) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draw an object `height` pixels high.

    Returns:
        Colour (h, w, 3) uint8 RGB, and where the object is (h, w) bool; tight but for a pixel.
    """
    points = np.concatenate([part.outline for part in look.parts])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = height / (high[1] - low[1])
    width = max(int(np.ceil((high[0] - low[0]) * scale)), 1)
    shape = (height + 1, width + 1)
    rows, columns = np.meshgrid(
        np.arange(shape[0], dtype=np.float32), np.arange(shape[1], dtype=np.float32), indexing="ij"
    )
    u, v = (
        columns / np.float32(scale) * np.float32(look.scale),
        rows / np.float32(scale) * np.float32(look.scale),
    )
    weight = PATTERNS[look.pattern](u, v, look.offset)
    colour = np.zeros((*shape, 3), dtype=np.float32)
    inside = np.zeros(shape, dtype=bool)
    for part in look.parts:
        outline = np.stack(
            [(part.outline[:, 0] - low[0]) * scale, (high[1] - part.outline[:, 1]) * scale], axis=1
        )
        mask = np.zeros(shape, dtype=np.uint8)
        cv2.fillPoly(mask, fixed(outline), [1], shift=4)
        chosen = mask > 0
        if not chosen.any():
            continue
        surface = _surface(look, part, weight[chosen])
        put(colour, chosen, surface * _shading(mask, part, light, look.gloss)[:, None])
        inside |= chosen
    occlusion = np.clip(0.75 + 0.25 * (1 - rows / shape[0]) * 3, 0, 1)
    colour *= shaded(occlusion, (1, 1, 1))
    return np.clip(colour, 0, 255, out=colour).astype(np.uint8), inside


def _surface(look: Look, part: Part, weight: Reals) -> FloatArray:
    first, second, third = (np.asarray(c, dtype=np.float32) for c in look.colours)
    base = (first, 0.55 * first + 0.45 * second, 0.22 * first + 8, third)[part.tone]
    if not part.patterned:
        return np.broadcast_to(base, (weight.size, 3)).astype(np.float32)
    return np.asarray(base + weight[:, None] * (second - base), dtype=np.float32)


def _shading(mask: npt.NDArray[np.uint8], part: Part, light: Light, gloss: float) -> FloatArray:
    """Brightness of a part's pixels, (N,): normals of a pillow inflated over the outline, lit by sun and sky."""
    base, inside = light.ambient * part.shade, mask > 0
    if part.bulge == 0:
        return np.full(np.count_nonzero(mask), base + 0.5 * light.direct * part.shade, dtype=np.float32)
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    away = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    radius = max(float(away.max()), 1.0)
    height = np.zeros(mask.shape, dtype=np.float32)
    rise = 1 - (1 - np.clip(away[inside] / radius, 0, 1)) ** 2
    height[inside] = part.bulge * radius * np.sqrt(np.clip(rise, 0, 1))
    height = np.asarray(cv2.GaussianBlur(height, (0, 0), max(radius / 8, 0.8)))
    across = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)[inside]
    down = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)[inside]
    length = np.sqrt(across**2 + down**2 + 1)
    sun = light.sun
    facing = np.clip((-across * sun[0] + down * sun[1] - sun[2] * 0.6 + 0.25) / length, 0, 1)
    sky = 0.72 + 0.28 * np.clip(down / length, -1, 1)
    shine = gloss * light.direct * facing**12
    return np.asarray(base * sky + 1.1 * light.direct * facing * part.shade + shine, dtype=np.float32)
