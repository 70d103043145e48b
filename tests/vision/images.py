"""Images made of numbers."""

from __future__ import annotations

import numpy as np
from PIL import Image


def image(seed: int = 0, height: int = 48, width: int = 40) -> Image.Image:
    """An image of random pixels, the same at every call.

    Arguments:
        seed: which of them.
        height, width: its size in pixels.
    """
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
