"""Processors: the family's own, with torchvision or without, and errors that name the remedy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor

from interp.errors import InterpError
from interp.model import StandardizedTransformer, processor
from interp.model.processor import load_processor
from tests.tiny import tiny_tokenizer
from tests.vision import FAMILIES, image

# Of these transformers' own AutoProcessor loads without torchvision.
_WITHOUT_VIDEOS = [name for name, family in FAMILIES.items() if family.video is None and name != "pixtral"]
# Tokens of an image of 32 by 64 pixels, by hand: see the comments.
_TOKENS = {
    "llava": "<image>" * 16,  # resized to 16 by 16, patches of 4
    "llava_next": "<image>" * (16 + 4 * 8 + 4),  # the whole, the grid of two tiles, a newline for each of its rows
    "llava_onevision": "<image>" * (16 + 4 * 8 + 4),
    "idefics3": "<fake_token_around_image><row_1_col_1>" + "<image>" * 4  # tiles of 16 by 16, merged by twos
    + "<fake_token_around_image><row_1_col_2>" + "<image>" * 4 + "\n\n"
    + "<fake_token_around_image><global-img>" + "<image>" * 4 + "<fake_token_around_image>",
    "gemma3": "\n\n<start_of_image>" + "<image_soft_token>" * 4 + "<end_of_image>\n\n",
    # 32 by 64 pixels are too many: 16 by 40 are left, as 4 by 10 patches, merged by twos
    "qwen2_vl": "<|vision_start|>" + "<|image_pad|>" * 10 + "<|vision_end|>",
    "pixtral": "[IMG][IMG][IMG][IMG][IMG_BREAK][IMG][IMG][IMG][IMG][IMG_END]",  # 8 by 16 pixels
    "chameleon": "<racm3:break>" + "<image>" * 64 + "<eoss>",
    "internvl": "<img>" + "<IMG_CONTEXT>" * 12 + "</img>",  # two tiles and the whole
}  # fmt: skip
_TOKENS["smolvlm"] = _TOKENS["idefics3"]
_TOKENS["qwen2_5_vl"] = _TOKENS["qwen3_vl"] = _TOKENS["qwen2_vl"]
_TOKENS["paligemma"] = _TOKENS["paligemma2"] = "<image>" * 16


def _loaded(folder: Path) -> Any:
    return load_processor(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_becomes_the_tokens_of_its_family(family: str, vision_folder: Callable[[str], Path]) -> None:
    processor = _loaded(vision_folder(family))
    placeholder = FAMILIES[family].image
    text = f"{placeholder}dog" if family.startswith("paligemma") else f"cat {placeholder}dog"
    ids = processor(images=[image(0, 32, 64)], text=text)["input_ids"][0]
    expected = {
        "chameleon": f"<s>cat {_TOKENS[family]}dog<reserved08706>",
        "paligemma": f"{_TOKENS[family]}<s>dog\n",
        "paligemma2": f"{_TOKENS[family]}<s>dog\n",
    }.get(family, f"<s>cat {_TOKENS[family]}dog")
    assert processor.tokenizer.decode(ids) == expected
    assert type(processor).__name__ == FAMILIES[family].processor_class


@pytest.mark.parametrize("family", _WITHOUT_VIDEOS)
def test_gives_what_auto_processor_gives(family: str, vision_folder: Callable[[str], Path]) -> None:
    ours, theirs = _loaded(vision_folder(family)), AutoProcessor.from_pretrained(vision_folder(family))
    text = [FAMILIES[family].image + "dog"]
    mine, plain = (
        dict(processor(images=[image(0, 32, 64)], text=text, return_tensors="np")) for processor in (ours, theirs)
    )
    assert type(ours) is type(theirs) and mine.keys() == plain.keys()
    assert all(np.array_equal(mine[name], plain[name]) for name in plain)


def test_saves_and_loads_again(tmp_path: Path, vision_folder: Callable[[str], Path]) -> None:
    for family in ("pixtral", "qwen2_vl"):
        first = _loaded(vision_folder(family))
        folder = tmp_path / family
        shutil.copytree(vision_folder(family), folder)
        first.save_pretrained(folder)
        given = dict(images=[image()], text=[FAMILIES[family].image], return_tensors="np")
        before, after = dict(first(**given)), dict(_loaded(folder)(**given))
        assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


def test_says_what_is_missing(tmp_path: Path, vision_folder: Callable[[str], Path]) -> None:
    processor = _loaded(vision_folder("smolvlm"))
    with pytest.raises(InterpError, match="pip install torchvision"):
        processor(videos=[np.zeros((2, 8, 8, 3), dtype=np.uint8)], text="<video>")
    shutil.copytree(vision_folder("llava"), tmp_path / "llava")
    (tmp_path / "llava" / "preprocessor_config.json").unlink()
    with pytest.raises(InterpError, match="Expected preprocessor_config"):
        _loaded(tmp_path / "llava")


def test_what_says_where_files_are_holds_for_the_processor(
    vision_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(processor, "load_processor", lambda source, **named: asked.append(named["options"]))
    given: dict[str, Any] = dict(local_files_only=True, cache_dir="cache", tie_word_embeddings=False)
    StandardizedTransformer(vision_folder("llava"), tokenizer=tiny_tokenizer(), dtype="float32", verify=False, **given)
    assert asked == [{"local_files_only": True, "cache_dir": "cache"}]
