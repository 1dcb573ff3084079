"""Weather: the colours of sun, sky and haze, where shadows fall, and how the camera records them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """One kind of light.

    Attributes:
        name: kind of weather.
        sun: (x, y, z) unit vector towards the sun, in road coordinates.
        direct: strength of the sun, 0 .. 1.
        ambient: strength of the sky's light.
        tint: RGB factors of all light.
        sky: RGB at the zenith, 0 .. 255.
        haze: RGB at the horizon and of fog.
        visibility: metres after which contrast has fallen to 37 %.
        wet: 0 dry .. 1 wet road.
        exposure: factor of the final image.
        noise: standard deviation of sensor noise, grey levels.
        blur: Gaussian sigma of the lens, pixels of the final image.
    """

    name: str
    sun: Colour
    direct: float
    ambient: float
    tint: Colour
    sky: Colour
    haze: Colour
    visibility: float
    wet: float
    exposure: float
    noise: float
    blur: float

    def shade(self, normal: Colour) -> float:
        """Brightness of a matt face with the given outward unit normal."""
        facing = sum(a * b for a, b in zip(normal, self.sun, strict=True))
        return self.ambient + self.direct * max(facing, 0.0)


_KINDS = ("sunny", "overcast", "hazy", "wet", "dusk")
_FREQUENCY = (0.36, 0.34, 0.12, 0.11, 0.07)


def draw_light(rng: np.random.Generator) -> Light:
    """Draw a kind of weather and its details."""
    kind = str(rng.choice(_KINDS, p=_FREQUENCY))
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(np.deg2rad(25), np.deg2rad(60))
    sun = (np.cos(elevation) * np.cos(azimuth), np.sin(elevation), np.cos(elevation) * np.sin(azimuth))
    warm = rng.uniform(-0.04, 0.06)
    direct, ambient, visibility, wet, exposure = {
        "sunny": (0.62, 0.52, 400.0, 0.0, 1.02),
        "overcast": (0.12, 0.86, 260.0, 0.0, 0.95),
        "hazy": (0.1, 0.88, 100.0, 0.1, 1.0),
        "wet": (0.06, 0.8, 150.0, 0.8, 0.88),
        "dusk": (0.12, 0.6, 200.0, 0.1, 0.9),
    }[kind]
    sky, haze = {
        "sunny": ((92, 142, 210), (196, 214, 232)),
        "overcast": ((172, 178, 186), (206, 209, 212)),
        "hazy": ((190, 194, 198), (205, 206, 206)),
        "wet": ((140, 147, 158), (178, 182, 188)),
        "dusk": ((70, 78, 118), (212, 160, 128)),
    }[kind]
    vary = rng.uniform(0.9, 1.1, 5)
    tone = rng.normal(0, 3.5, 3)
    return Light(
        name=kind,
        sun=(float(sun[0]), float(sun[1]), float(sun[2])),
        direct=direct * vary[0],
        ambient=ambient * vary[1],
        tint=(1.0 + warm, 1.0, 1.0 - warm) if kind != "dusk" else (0.98, 0.93, 1.0),
        sky=_shifted(sky, tone),
        haze=_shifted(haze, tone),
        visibility=visibility * vary[2],
        wet=wet * vary[3],
        exposure=exposure * vary[4],
        noise=float(rng.uniform(0.8, 2.6) + (1.5 if kind == "dusk" else 0)),
        blur=float(rng.uniform(0.25, 0.7)),
    )


def _shifted(colour: tuple[int, int, int], tone: np.ndarray) -> Colour:
    moved = np.clip(np.asarray(colour) + tone, 0, 255)
    return float(moved[0]), float(moved[1]), float(moved[2])
