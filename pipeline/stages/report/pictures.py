"""Show the images of a prompt on the page: small copies inside it, as the model is fed them, each with words for it.

A page loads nothing, so a copy stands in its text (a `data:` address). The same image gives the same bytes.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from interp.prompts.opening import opened
from interp.text import readable
from pipeline.artifacts.tokens import IMAGES, Row

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Picture", "pictures_of"]

SIDE = 224  # pixels of a copy at most, twice what it has on the page
MOST = 12  # images of a prompt
QUALITY = 85  # of a JPEG


@dataclass(frozen=True)
class Picture:
    """A small copy of an image.

    Arguments:
        address: the copy itself, as a `data:` address.
        alt: the image in words.
        width, height: of the copy, in pixels.
    """

    address: str
    alt: str
    width: int
    height: int

    @property
    def is_tiny(self) -> bool:
        """Whether it is shown larger than it is, so that its pixels should stay pixels."""
        return max(self.width, self.height) <= SIDE // 2


def pictures_of(row: Row) -> list[Picture]:
    """The images of a prompt of the run folder, in their order; of very many the first ones."""
    names = row.labels.get("image", "").split(", ")
    total = len(row.images)
    shown = []
    for number, image in enumerate(row.images[:MOST]):
        address, size, full = _copy(IMAGES / image)
        called = f", {readable(names[number])}" if len(names) == total and names[number] else ""
        which = f"Image {number + 1} of {total}" if total > 1 else "The prompt’s image"
        shown.append(Picture(address, f"{which}{called}, {full[0]} × {full[1]} pixels", *size))
    return shown


@lru_cache(maxsize=256)  # each lens shows the same prompts
def _copy(path: Path) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """The address of a small copy, its size, and the image's own."""
    image: Image = opened(path)
    full = image.size
    image.thumbnail((SIDE, SIDE))
    kinds = {"png": _written(image, "PNG", optimize=True), "jpeg": _written(image, "JPEG", quality=QUALITY)}
    kind = min(kinds, key=lambda name: len(kinds[name]))
    return f"data:image/{kind};base64,{base64.b64encode(kinds[kind]).decode()}", image.size, full


def _written(image: Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
