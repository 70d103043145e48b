"""Extraction of prompts with images: batches, named positions of images, attention that is not causal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.activations import Extraction
from interp.prompts import Prompt
from tests.vision import FAMILIES, image
from tests.vision.plain import Plain

TEXT = " king hello"
SITES = "resid_post.1 pattern.1 pattern_ratio.1 last_norm_second_moment logits"


def plain(folder: Path, model: StandardizedTransformer, prompt: Prompt) -> tuple[Tensor, Tensor, Tensor]:
    """(head, query, key) pattern of layer 1, (position, vocabulary) logits, and token ids, by plain transformers."""
    twin = Plain(folder, model.processor, "model.language_model.layers")
    twin.model.set_attn_implementation("eager")
    inputs = twin.inputs(prompt.text, prompt.images)
    with torch.no_grad():
        output = twin.model(**inputs, output_attentions=True)
    return output.attentions[1][0].float(), output.logits[0].float(), inputs["input_ids"][0]


def seen_by_hand(family: str, ids: Tensor, is_image: Tensor) -> Tensor:
    """(query, key), whether a query sees a key: a whole prefix, the tokens of one image, or what came before."""
    at = torch.arange(len(ids))
    causal = at[:, None] >= at
    if family == "paligemma":
        return torch.ones_like(causal)
    return causal | (is_image[:, None] & is_image) if family == "gemma3" else causal


@pytest.mark.parametrize("family", ["paligemma", "gemma3", "qwen2_vl"])
def test_prompts_with_images(family: str, vision_folder: Callable[[str], Path]) -> None:
    folder = vision_folder(family)
    model = StandardizedTransformer(str(folder))
    marked = ("" if family == "paligemma" else FAMILIES[family].image) + TEXT
    prompts = [Prompt(marked, images=(image(0),)), "hello hello king", Prompt(marked, images=(image(3),))]
    extraction = Extraction(SITES, "last", queries="last all", keys="first all")
    result = extraction.run(model, [prompts], progress=False)
    blocks = extraction.blocks(model, prompts, block_size=2, batch_size=2)
    in_blocks = [blocks.block(index) for index in range(2)]
    rows = [{"text": marked, "image": image(0)}, {"text": "hello hello king", "image": float("nan")}]  # as of a table
    of_rows = extraction.run(model, rows, progress=False)
    for row, prompt in enumerate(prompts):
        alone = extraction.run(model, [prompt], progress=False)
        for site in blocks.sites:
            name = str(site)
            own = tuple(slice(count) for count in alone[name].shape[1:])
            close(result[name][row][own], alone[name][0])
            close(in_blocks[row // 2][site][row % 2][own], alone[name][0])
            if row < 2:
                close(of_rows[name][row][own], alone[name][0])
    for row in (0, 2):
        pattern, logits, ids = plain(folder, model, prompts[row])  # type: ignore[arg-type]
        count = len(ids)
        assert result.input_ids[row] == ids.tolist()
        close(result["pattern.1"][row, :, 1 : count + 1, 1 : count + 1], pattern)
        close(result["logits"][row, 0], logits[-1])
        config: Any = model._module.config
        seen = seen_by_hand(family, ids, ids == config.image_token_id).float()
        uniform = seen / seen.sum(-1, keepdim=True)
        close(result["pattern_ratio.1"][row, :, 1, 0], pattern[:, :, 0].mean(1) / uniform[:, 0].mean())
        close(result["pattern_ratio.1"][row, :, 0, 0], pattern[:, -1, 0] / uniform[-1, 0])
    images = Extraction("resid_post.1 pattern_sum.1", "image[0].all image[0].last", keys="image[0].all")
    found = images.run(model, prompts[::2], progress=False)
    for row, ids in enumerate(found.input_ids):
        places = [at for at, token in enumerate(ids) if token == config.image_token_id]
        assert found.tokens("image[0].all")[row] == places and found.tokens("image[0].last")[row] == places[-1:]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5, equal_nan=True)
