"""The world of one scene: road, sides, what stands on them, and the light; drawn by :mod:`anomdino.scenes.scene`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomdino.scenes.camera import Camera

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN = 0, 1, 2, 3, 4, 5, 6, 7
VEGETATION, TERRAIN, SKY, PERSON, CAR, TRUCK = 8, 9, 10, 11, 13, 14
VOID = 255

Rgb = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Weather:
    """Light and air.

    Attributes:
        name: clear, overcast, evening, fog or rain.
        gain: RGB factor of the light.
        sky: RGB of the sky at the top and at the horizon, (2, 3).
        haze: Metres over which a third of the contrast remains.
        shadows: Strength of cast shadows, 0..1.
        noise: Standard deviation of the sensor's noise in grey levels of 255.
        blur: Sigma of the optics in pixels.
    """

    name: str
    gain: Rgb
    sky: Rgb
    haze: float
    shadows: float
    noise: float
    blur: float


@dataclass(frozen=True)
class Road:
    """Course and cross-section of the road, metres.

    Attributes:
        left: Left edge at the camera, negative.
        right: Right edge at the camera.
        bend: Curvature: the road moves sideways by ``bend * ahead ** 2``.
        kerb: Width of the kerb stones.
        pavement: Width of the pavement on each side.
        lane: Width of a lane; markings lie between lanes.
        dash: Length of a dash, the gap is as long; 0 draws solid lines.
        colour: RGB of the asphalt.
    """

    left: float
    right: float
    bend: float
    kerb: float
    pavement: float
    lane: float
    dash: float
    colour: Rgb

    def shift(self, ahead: npt.NDArray[np.float32] | float) -> npt.NDArray[np.float32]:
        """Sideways shift of the road at a distance."""
        return np.asarray(self.bend * np.square(np.minimum(ahead, 120.0)), np.float32)


def draw_weather(rng: np.random.Generator) -> Weather:
    """Draw light and air."""
    name = str(rng.choice(["clear", "overcast", "evening", "fog", "rain"], p=[0.35, 0.3, 0.15, 0.1, 0.1]))
    gains = {
        "clear": (1.05, 1.02, 0.98),
        "overcast": (0.88, 0.9, 0.93),
        "evening": (0.95, 0.76, 0.6),
        "fog": (0.9, 0.92, 0.94),
        "rain": (0.7, 0.74, 0.78),
    }
    skies = {
        "clear": ((0.35, 0.55, 0.85), (0.75, 0.85, 0.95)),
        "overcast": ((0.7, 0.72, 0.75), (0.82, 0.83, 0.85)),
        "evening": ((0.35, 0.35, 0.55), (0.95, 0.68, 0.45)),
        "fog": ((0.78, 0.8, 0.82), (0.85, 0.86, 0.87)),
        "rain": ((0.5, 0.53, 0.57), (0.66, 0.68, 0.7)),
    }
    haze = {"clear": 260.0, "overcast": 170.0, "evening": 150.0, "fog": 38.0, "rain": 80.0}
    gain = np.array(gains[name], np.float32) * np.float32(rng.uniform(0.85, 1.12))
    return Weather(
        name=name,
        gain=gain,
        sky=np.array(skies[name], np.float32) + rng.normal(0, 0.02, 3).astype(np.float32),
        haze=haze[name] * float(rng.uniform(0.8, 1.3)),
        shadows=float(rng.uniform(0.3, 0.55)) if name in {"clear", "evening"} else 0.0,
        noise=float(rng.uniform(1.0, 5.0)),
        blur=float(rng.uniform(0.35, 0.8)),
    )


def draw_camera(rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    """Draw a camera for an image of (H, W)."""
    height, width = size
    return Camera(
        height=height,
        width=width,
        horizon=height * float(rng.uniform(0.34, 0.45)),
        centre=width * float(rng.uniform(0.4, 0.6)),
        focal=width * float(rng.uniform(0.75, 1.0)),
        above=float(rng.uniform(1.25, 1.75)),
    )


def draw_road(rng: np.random.Generator) -> Road:
    """Draw course and cross-section of a road."""
    grey = float(rng.uniform(0.26, 0.46))
    tint = rng.normal(0, 0.012, 3)
    return Road(
        left=-float(rng.uniform(3.0, 6.5)),
        right=float(rng.uniform(2.2, 5.0)),
        bend=float(rng.normal(0, 0.0025)),
        kerb=float(rng.uniform(0.15, 0.35)),
        pavement=float(rng.uniform(1.6, 3.5)),
        lane=float(rng.uniform(2.8, 3.6)),
        dash=float(rng.choice([0.0, 2.0, 3.0, 4.0])),
        colour=np.clip(np.array([grey, grey, grey * 1.02]) + tint, 0.1, 0.7).astype(np.float32),
    )
