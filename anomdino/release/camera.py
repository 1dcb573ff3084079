"""A composed image as another camera would have taken it, for trainings on scores that are less sure.

The colour changes of the scorer's own training (:func:`anomdino.scorer.augment.change_colours`) will not do: the scorer
has learnt to see past them.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt


def other_camera(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Change gamma, channel gains and contrast of an image, blur every second one, and add noise.

    Args:
        image: uint8 (H, W, 3), RGB.
        rng: Random numbers; the same state gives the same image.

    Returns:
        uint8 (H, W, 3), RGB; what was where stays there.
    """
    x = image.astype(np.float32) / 255
    x = x ** np.exp(rng.uniform(-0.6, 0.6))
    mean = x.mean((0, 1))
    x = (x - mean) * np.exp(rng.uniform(-0.4, 0.4)) + mean * np.exp(rng.uniform(-0.3, 0.3, 3))
    if rng.random() < 0.5:
        x = np.asarray(cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.2)))
    x = x + rng.normal(0, rng.uniform(0.01, 0.06), x.shape)
    return np.asarray(np.clip(x, 0, 1) * 255, np.uint8)
