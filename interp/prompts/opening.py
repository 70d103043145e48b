"""Opens an image as it was taken: a path, a PIL image, an array or a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.errors import InterpError

__all__ = ["opened"]


def opened(image: Any) -> Any:
    """An image as a processor takes it: upright where a camera says how it was held, in eight bits a channel.

    Raises:
        InterpError: no such file, something that is no image, or one whose numbers are not 0 to 255.
    """
    from PIL import Image

    if isinstance(image, str | Path):
        path = Path(image).expanduser()
        try:
            with Image.open(path) as file:
                return _upright(file)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InterpError(f"images: expected the path of an image, got {str(image)!r} ({error}).") from error
    if isinstance(image, Image.Image):
        return _upright(image)
    shape = getattr(image, "shape", None)
    if shape is None or len(shape) != 3 or shape[-1] != 3:
        came = type(image).__name__ if shape is None else f"shape {tuple(shape)}"
        raise InterpError(
            f"images: expected a PIL image, a path, or an array (height, width, 3) of numbers 0 to 255, got {came}."
        )
    return Image.fromarray(_in_eight_bits(image))


def _upright(image: Any) -> Any:
    """As `transformers.image_utils.load_image` has it."""
    from PIL import ImageOps

    if image.mode in ("I", "F") or image.mode.startswith("I;"):  # it would be cut off at 255
        raise InterpError(
            f"images: expected eight bits a channel, got a PIL image of mode {image.mode!r}. Scale its numbers to 0 to "
            "255, and save it as 'L' or 'RGB'."
        )
    return ImageOps.exif_transpose(image).convert("RGB")


def _in_eight_bits(image: Any) -> Any:
    import numpy as np
    import torch

    numbers = image.detach().cpu() if isinstance(image, torch.Tensor) else image
    numbers = np.asarray(numbers.float() if getattr(numbers, "dtype", None) == torch.bfloat16 else numbers)
    with np.errstate(invalid="ignore"):
        pixels = numbers.astype(np.uint8)
    is_scaled = numbers.dtype.kind in "fb" and bool(numbers.any()) and numbers.max() <= 1
    if is_scaled or not (pixels == numbers).all():
        which = f"numbers of {numbers.dtype} from {numbers.min():g} to {numbers.max():g}" if numbers.size else "none"
        raise InterpError(
            f"images: expected whole numbers 0 to 255, got {which}. Write (255 * image).round() of one from 0 to 1."
        )
    return pixels
