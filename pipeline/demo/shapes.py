"""Draw the embedded images: a coloured shape on a dark ground, with a question about each.

    python -m pipeline.demo.shapes                # the committed folder, into outputs/shapes
    python -m pipeline.demo.shapes --out DIR      # elsewhere

An image has 32 x 32 pixels and one shape, of any size and in any place. A question asks for its colour or its shape:
both are to be seen, and the text alone says which is wanted.

    <image>
    What colour is it? Answer:      red
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
SIZES = (12, 22)  # pixels of a shape, at least and at most
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
        shape, colour: of the thing.
        size: its height and width in pixels.
        top, left: pixels above it, and beside it.
    """

    shape: str
    colour: str
    size: int
    top: int
    left: int


def draw_scene(draws: random.Random) -> Scene:
    """Draw what an image shows."""
    size = draws.randint(*SIZES)
    room = SIDE - size
    return Scene(
        draws.choice(SHAPES), draws.choice(list(COLOURS)), size, draws.randint(0, room), draws.randint(0, room)
    )


def draw(scene: Scene) -> NDArray[np.uint8]:
    """The image of a scene, (height, width, 3)."""
    pixels = np.full((SIDE, SIDE, 3), GROUND, dtype=np.float32)
    under = pixels[scene.top : scene.top + scene.size, scene.left : scene.left + scene.size]
    under += _cover(scene.shape, scene.size)[:, :, None] * (np.array(COLOURS[scene.colour], dtype=np.float32) - under)
    return pixels.round().astype(np.uint8)


@cache
def _cover(shape: str, pixels: int) -> NDArray[np.float32]:
    """How much of each pixel a shape covers, (pixels, pixels) from 0 to 1."""
    size = pixels * FINER
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
    return finer.reshape(pixels, FINER, pixels, FINER).mean(axis=(1, 3))


def write_folder(folder: Path) -> None:
    """Write the images and metadata.jsonl, as `datasets` reads a folder of images.

    The columns beside `file_name`: `prompt`; `asked`, what it asks for, in turns colour and shape; `answer`; and
    `other`, which is to be seen as well and is not asked for.

    Arguments:
        folder: made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draws = random.Random(SEED)
    rows = []
    for number in range(NUM_IMAGES):
        scene = draw_scene(draws)
        name = f"{number:02}.png"
        Image.fromarray(draw(scene)).save(folder / name, optimize=True)
        asked, answer, other = ("colour", scene.colour, scene.shape)
        if number % 2:
            asked, answer, other = ("shape", scene.shape, scene.colour)
        prompt = f"<image>\nWhat {asked} is it? Answer:"
        rows.append({"file_name": name, "prompt": prompt, "asked": asked, "answer": answer, "other": other})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.shapes", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/shapes"), help="folder to write (%(default)s)")
    write_folder(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
