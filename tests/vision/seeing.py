"""One family in a test: our model, the plain one, and prompts with no image, one, and several of different sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interp.model import StandardizedTransformer
from tests.vision.cases import FAMILIES
from tests.vision.images import image
from tests.vision.plain import Plain


@dataclass(frozen=True)
class Seeing:
    """A family.

    Arguments:
        family: a key of `FAMILIES`.
        model: ours.
        plain: the same in plain transformers.
    """

    family: str
    model: StandardizedTransformer
    plain: Plain

    @property
    def images_first(self) -> bool:
        """The family writes images before the text, wherever it stands."""
        return self.family.startswith("paligemma")

    @property
    def texts(self) -> list[str]:
        """Prompts with no image, one image, and several: two of them side by side."""
        mark = FAMILIES[self.family].image
        if self.images_first:
            return ["hello there", f"{mark}a dog", f"{mark}{mark}it is a cat"]
        return ["hello there", f"the {mark} dog", f"{mark}{mark}it is {mark} a cat"]

    @property
    def images(self) -> list[list[Any]]:
        """Their images, of different sizes."""
        several = [image(1, 32, 64), image(2, 16, 16), image(3, 40, 24)]
        return [[], [image(0)], several[: 2 if self.images_first else 3]]
