"""Draw the embedded images: coloured shapes on a dark ground, with questions about them.

    python -m pipeline.demo.shapes                # the committed folder, into outputs/shapes
    python -m pipeline.demo.shapes --out DIR      # elsewhere

An image has 32 x 32 pixels and two to four quarters with a shape each, all different, in different colours. A question
names the shape and asks for its colour, or the other way round, so that who answers has to find the one by the other:

    <image>
    What colour is the circle? Answer:      red
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["COLOURS", "FOLDER", "SHAPES", "SIDE", "Scene", "draw", "draw_scene", "main", "write_folder"]

FOLDER = Path(__file__).parent / "shapes"
"""The images, and metadata.jsonl with a question and its answers for each."""

SIDE = 32  # pixels of an image
QUARTER, SIZE = SIDE // 2, 12  # pixels of a quarter, and of a shape in it
FINER = 8  # a shape is drawn so many times larger, for smooth edges
GROUND = (24, 24, 32)
COLOURS = {
    "red": (222, 40, 40), "green": (40, 170, 60), "blue": (40, 80, 235), "yellow": (245, 220, 50),
    "purple": (150, 50, 190), "orange": (245, 140, 30), "white": (245, 245, 245), "pink": (250, 150, 190),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
NUM_IMAGES, SEED = 24, 12


@dataclass(frozen=True)
class Scene:
    """What an image shows.

    Arguments:
        things: quarter (0 to 3, by rows) -> (shape, colour).
        shifts: quarter -> (down, right): pixels by which its shape stands off the quarter's corner.
    """

    things: dict[int, tuple[str, str]]
    shifts: dict[int, tuple[int, int]]

    def colour_of(self, shape: str) -> str:
        """The colour of its only such shape."""
        return next(colour for own, colour in self.things.values() if own == shape)


def draw_scene(draws: random.Random, fewest: int = 2, most: int = 4) -> Scene:
    """Draw what an image shows: two to four shapes, or as many as are asked for, each in a colour of its own."""
    count = draws.randint(fewest, most)
    quarters = sorted(draws.sample(range(4), count))
    pairs = zip(draws.sample(SHAPES, count), draws.sample(list(COLOURS), count), strict=True)
    room = QUARTER - SIZE
    shifts = {quarter: (draws.randint(0, room), draws.randint(0, room)) for quarter in quarters}
    return Scene(dict(zip(quarters, pairs, strict=True)), shifts)


def draw(scene: Scene) -> NDArray[np.uint8]:
    """The image of a scene, (height, width, 3)."""
    pixels = np.full((SIDE, SIDE, 3), GROUND, dtype=np.float32)
    for quarter, (shape, colour) in scene.things.items():
        down, right = scene.shifts[quarter]
        top, left = QUARTER * (quarter // 2) + down, QUARTER * (quarter % 2) + right
        covered = _cover(shape)[:, :, None]
        under = pixels[top : top + SIZE, left : left + SIZE]
        under += covered * (np.array(COLOURS[colour], dtype=np.float32) - under)
    return pixels.round().astype(np.uint8)


@cache
def _cover(shape: str) -> NDArray[np.float32]:
    """How much of each pixel a shape covers, (SIZE, SIZE) from 0 to 1."""
    size = SIZE * FINER
    image = Image.new("L", (size, size))
    pen, last = ImageDraw.Draw(image), size - 1
    if shape in ("circle", "ring"):
        pen.ellipse((0, 0, last, last), fill=255)
        if shape == "ring":
            pen.ellipse((size // 4, size // 4, last - size // 4, last - size // 4), fill=0)
    elif shape == "square":
        pen.rectangle((FINER // 2, FINER // 2, last - FINER // 2, last - FINER // 2), fill=255)
    elif shape == "triangle":
        pen.polygon([(size // 2, 0), (last, last), (0, last)], fill=255)
    else:
        third = size // 3
        pen.rectangle((0, third, last, last - third), fill=255)
        if shape == "cross":
            pen.rectangle((third, 0, last - third, last), fill=255)
    finer = np.asarray(image, dtype=np.float32) / 255
    return finer.reshape(SIZE, FINER, SIZE, FINER).mean(axis=(1, 3))


def write_folder(folder: Path) -> None:
    """Write the images and metadata.jsonl, as `datasets` reads a folder of images.

    The columns beside `file_name`: `prompt`; `shape`, whose colour it asks for; `answer`, that colour; `other`, that of
    another shape in the image.

    Arguments:
        folder: made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draws = random.Random(SEED)
    rows = []
    for number in range(NUM_IMAGES):
        scene = draw_scene(draws)
        asked, other = draws.sample(list(scene.things.values()), 2)
        name = f"{number:02}.png"
        Image.fromarray(draw(scene)).save(folder / name, optimize=True)
        prompt = f"<image>\nWhat colour is the {asked[0]}? Answer:"
        rows.append({"file_name": name, "prompt": prompt, "shape": asked[0], "answer": asked[1], "other": other[1]})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.shapes", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/shapes"), help="folder to write (%(default)s)")
    write_folder(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
