"""What an image may be given as, and what is refused, so that no model sees other numbers than the user has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from interp import InterpError
from interp.prompts.opening import opened
from tests.vision import image

PIXELS = np.asarray(image(0, 6, 4))


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        PIXELS.astype(float),
        torch.from_numpy(PIXELS.copy()).bfloat16(),
        torch.from_numpy(PIXELS.astype(np.float32)).requires_grad_(),
        Image.fromarray(PIXELS).convert("RGBA"),
    ],
    ids=["uint8", "float", "bfloat16", "gradient", "RGBA"],
)
def test_the_same_image_in_other_types(given: object) -> None:
    numbers = given.detach().float().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    np.testing.assert_array_equal(np.asarray(opened(given)), numbers[..., :3])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (PIXELS / 255, r"whole numbers 0 to 255, got numbers of float64 from 0.*255 \* image"),
        (PIXELS > 100, "got numbers of bool"),
        (PIXELS.astype(int) - 300, "got numbers of int64 from -"),
        (np.full((2, 2, 3), np.nan), "whole numbers 0 to 255"),
        (PIXELS.transpose(2, 0, 1), r"an array \(height, width, 3\) of numbers 0 to 255, got shape \(3, 6, 4\)"),
        (
            Image.fromarray(np.full((2, 2), 256, dtype=np.uint16)),
            "eight bits a channel, got a PIL image of mode 'I;16'",
        ),
        (Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)), "mode 'F'"),
        ("a\0b", "the path of an image"),
    ],
    ids=["0 to 1", "bool", "negative", "nan", "channels first", "16 bits", "float", "no path"],
)
def test_other_numbers_are_refused(given: object, said: str) -> None:
    with pytest.raises(InterpError, match=said):
        opened(given)


def test_a_photograph_is_upright(tmp_path: Path) -> None:
    path, turned = tmp_path / "turned.png", Image.Exif()
    turned[0x0112] = 6  # a camera held on its side
    Image.fromarray(PIXELS).save(path, exif=turned)
    expected = np.asarray(load_image(str(path)))
    assert expected.shape == (4, 6, 3)
    np.testing.assert_array_equal(np.asarray(opened(path)), expected)
    with Image.open(path) as file:
        np.testing.assert_array_equal(np.asarray(opened(file)), expected)
