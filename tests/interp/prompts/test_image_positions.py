"""Every name of a position of an image, in every family, against token ids by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from interp.errors import InterpError
from interp.model.image_inputs import encoded_with_images
from interp.positions import Position
from interp.prompts import Prompt
from tests.vision import FAMILIES, image
from tests.vision.seeing import Seeing

# Of two images side by side behind a word, each 16 by 16 pixels: before the image tokens, their number, behind them.
_ALONE: dict[str, tuple[list[str], int, list[str]]] = {
    "llava": ([], 16, []),
    "llava_next": ([], 16 + 16 + 4, []),
    "llava_onevision": ([], 16 + 1, []),  # two images: none is cut into tiles
    "gemma3": (["\n\n", "<start_of_image>"], 4, ["<end_of_image>", "\n\n"]),
    "qwen2_vl": (["<|vision_start|>"], 4, ["<|vision_end|>"]),
    "chameleon": (["<racm3:break>"], 64, ["<eoss>"]),
    "internvl": (["<img>"], 4, ["</img>"]),
}
_ALONE["qwen2_5_vl"] = _ALONE["qwen3_vl"] = _ALONE["qwen2_vl"]
# Rows and tiles stand between markers: image tokens by hand, "i" for one of them.
_ROWS = {
    "pixtral": ["i", "i", "i", "i", "[IMG_BREAK]"] * 3 + ["i", "i", "i", "i", "[IMG_END]"],
    "idefics3": [
        *(part for row in (1, 2) for column in (1, 2) for part in
          ("<fake_token_around_image>", f"<row_{row}_col_{column}>", "i", "i", "i", "i", *["\n"] * (column == 2))),
        "\n", "<fake_token_around_image>", "<global-img>", "i", "i", "i", "i", "<fake_token_around_image>",
    ],
}  # fmt: skip
_ROWS["smolvlm"] = _ROWS["idefics3"]
_MARKED = {
    "gemma3": ("<start_of_image>", "<end_of_image>"),
    "qwen2_vl": ("<|vision_start|>", "<|vision_end|>"),
    "chameleon": ("<racm3:break>", "<eoss>"),
    "internvl": ("<img>", "</img>"),
    "idefics3": ("<fake_token_around_image>", "<fake_token_around_image>"),
    "pixtral": (None, "[IMG_END]"),
}
_MARKED["smolvlm"] = _MARKED["idefics3"]
_MARKED["qwen2_5_vl"] = _MARKED["qwen3_vl"] = _MARKED["qwen2_vl"]


def _by_hand(family: str) -> list[str]:
    """The pieces of one image: `i` where the model puts what it sees, else what marks it."""
    if family in _ROWS:
        return _ROWS[family]
    before, count, behind = _ALONE[family]
    return [*before, *["i"] * count, *behind]


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.startswith("paligemma")])
def test_names_of_positions(family: str, seeing: Callable[[str], Seeing]) -> None:
    model, mark = seeing(family).model, FAMILIES[family].image
    encoded = encoded_with_images(model, Prompt(f"a{mark}{mark}b", images=(image(0, 16, 16), image(1, 16, 16))))
    tokens = [model.tokenizer.decode([token]) for token in encoded.input_ids]
    one = _by_hand(family)
    merged = "".join(one).replace("\n\n", "\n")  # a tokenizer may take line breaks together
    size = (len(tokens) - 3) // 2
    assert (
        "".join(tokens[2 : 2 + size])
        .replace(model.tokenizer.decode([model._module.config.image_token_id]), "i")
        .replace("\n\n", "\n")
        == merged
    )
    images = [
        [at for at in range(2 + k * size, 2 + (k + 1) * size)
         if encoded.input_ids[at] == model._module.config.image_token_id] for k in (0, 1)
    ]  # fmt: skip
    assert all(len(own) == one.count("i") for own in images)

    def at(name: str) -> list[int]:
        return Position.parse(name).resolve(len(tokens), encoded.spans)

    for k, own in enumerate(images):
        assert (
            at(f"image[{k}].all") == own and at(f"image[{k}].first") == own[:1] and at(f"image[{k}].last") == own[-1:]
        )
        assert at(f"image[{k}].1") == own[1:2]
    assert at("image.all") == at("all-image") == images[0] + images[1]
    assert at("start-image") == images[0][:1] and at("last-image") == images[0][-1:]
    assert at("text.all") == at("all-text") == [0, 1, len(tokens) - 1]
    assert at("text.after_image[1]") == at("text.after_image[1].first") == [len(tokens) - 1] == at("last")
    assert at("random-image-3") == at("image.random:3") and set(at("random-image-3")) <= set(at("image.all"))
    assert at("random-text") == at("text.random:1") and at("last-2") == at("-2") == [len(tokens) - 2]
    with pytest.raises(InterpError, match=r"no span 'text.after_image\[0\]'"):  # nothing stands between them
        at("text.after_image[0]")
    begin, end = _MARKED.get(family, (None, None))
    for side, marker, instead in (("begin", begin, "first"), ("end", end, "last")):
        for k, own in enumerate(images):
            if marker is None:
                with pytest.raises(InterpError, match=rf"no marker .* Write image\[{k}\].{instead}"):
                    at(f"image[{k}].{side}")
                continue
            (found,) = at(f"image[{k}].{side}")
            assert tokens[found] == marker
            assert own[0] - 3 <= found < own[0] if side == "begin" else found == own[-1] + 1
    assert at("end-image") == (at("image[0].end") if end else at("image[0].last"))


@pytest.mark.parametrize("family", ["paligemma", "paligemma2"])
def test_names_where_images_come_first(family: str, seeing: Callable[[str], Seeing]) -> None:
    model = seeing(family).model
    encoded = encoded_with_images(model, Prompt("a cat", images=(image(0), image(1))).marked("animal", "cat"))

    def at(name: str) -> list[int]:
        return Position.parse(name).resolve(len(encoded.input_ids), encoded.spans)

    tokens = [model.tokenizer.decode([token]) for token in encoded.input_ids]
    assert tokens[32] == "<s>" and tokens[-1] == "\n" and "".join(tokens[33:-1]) == "a cat"
    assert (
        at("image[0].all") == list(range(16)) and at("image[1].all") == list(range(16, 32)) and at("end-image") == [15]
    )
    assert at("text.all") == at("text.after_image[1]") == list(range(32, len(tokens)))
    assert "".join(tokens[index] for index in at("animal.all")).strip() == "cat"


def test_names_without_images_and_names_that_are_taken(seeing: Callable[[str], Seeing]) -> None:
    assert Position.parse("all-text").resolve(4, {}) == Position.parse("text.all").resolve(4, {}) == [0, 1, 2, 3]
    for name in ("image[0].first", "end-image", "all-image", "text.after_image[0]"):
        with pytest.raises(InterpError, match="the prompt has no image"):
            Position.parse(name).resolve(4, {"query": (1, 3)})
    for name in ("image[0]", "image[x].first", "last-x"):
        with pytest.raises(InterpError):
            Position.parse(name)
    with pytest.raises(InterpError, match="that is a name of theirs"):
        encoded_with_images(seeing("llava").model, Prompt("<image> a cat", images=(image(),)).marked("image", "cat"))
