"""What a processor makes of texts and images, by easyroutine's names: each family, several images, padded batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp import InterpError
from interp.activations.prompt_batches import encoded_prompts
from interp.compat.easyroutine import HookedModel
from interp.compat.easyroutine.input_batch import InputBatch
from interp.model.processor import image_feeds
from interp.prompts import Prompt
from tests.vision import FAMILIES, image

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword"
)  # transformers'

TEXTS = ("king {0} hello", "{0} hello {0} book", "hello king")
IMAGES = ([image(0)], [image(1, 32, 48), image(2)], [])


def prompts_of(family: str, count: int) -> list[Prompt]:
    placeholder = "" if family.startswith("paligemma") else FAMILIES[family].image
    return [Prompt(text.format(placeholder), images=tuple(own)) for text, own in zip(TEXTS, IMAGES, strict=True)][
        :count
    ]


def processed(model: HookedModel, family: str, rows: slice, side: str = "left") -> dict[str, Any]:
    prompts = prompts_of(family, 3)[rows]
    processor = model.get_processor()
    processor.tokenizer.padding_side = side
    texts = [prompt.text for prompt in prompts]
    if family.startswith("paligemma"):
        texts = ["<image>" * len(prompt.images) + prompt.text for prompt in prompts]
    completed = {"return_for_text_completion": True} if family == "chameleon" else {}
    given = processor(
        text=texts, images=[list(prompt.images) for prompt in prompts], padding=True, return_tensors="pt",
        return_mm_token_type_ids=True, **completed,
    )  # fmt: skip
    processor.tokenizer.padding_side = "left"
    return dict(given)


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_of_a_processors_batch_are_what_prompts_with_images_are(
    seeing: Callable[[str], HookedModel], family: str
) -> None:
    model = seeing(family)
    expected = encoded_prompts(model.standardized, prompts_of(family, 2))
    for side in ("left", "right"):
        batch = InputBatch.of(model.standardized, {**processed(model, family, slice(2), side), "labels": [1, 2]})
        assert batch.others == {"labels": [1, 2]}
        for found, want in zip(batch.encoded, expected, strict=True):
            assert found.input_ids == want.input_ids
            assert found.spans == want.spans
            assert found.media is not None and want.media is not None
            assert found.media.inputs.keys() == want.media.inputs.keys()
            assert found.media.by_token == want.media.by_token


# Family -> tokens around an image: its first, the last, and the one that ends it, by hand.
ENDS = {
    "gemma3": "<end_of_image>", "qwen2_vl": "<|vision_end|>", "qwen2_5_vl": "<|vision_end|>",
    "qwen3_vl": "<|vision_end|>", "pixtral": "[IMG_END]", "chameleon": "<eoss>", "internvl": "</img>",
    "idefics3": "<fake_token_around_image>",
    "smolvlm": "<fake_token_around_image>",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_with_images_gives_what_transformers_gives_of_each_example(
    seeing: Callable[[str], HookedModel], family: str
) -> None:
    model = seeing(family)
    names = ["last", "end-image", "last-image", "start-image", "all-image", "all-text", "random-image-2"]
    flags = dict(extract_resid_out=True, extract_attn_pattern=True, attn_heads=[{"layer": 1, "head": 2}])
    cache = model.forward(processed(model, family, slice(2), "right"), names, **flags)  # type: ignore[arg-type]
    tokenizer = model.get_text_tokenizer()
    image_id = model.hf_model.config.image_token_id
    fed = {"input_ids", "attention_mask", *image_feeds(model.hf_model)}
    for row in range(2):
        ids = cache["input_ids"][row]
        length = len(ids) - int((ids == tokenizer.pad_token_id).sum())
        named = cache["token_dict"][row]
        pictured = [token for token in range(length) if ids[token] == image_id]
        assert named["all-image"] == pictured and named["last"] == [length - 1]
        assert len(named["start-image"]) == len(named["last-image"]) == len(named["end-image"]) == row + 1
        assert named["start-image"][0] == pictured[0] and named["last-image"][-1] == pictured[-1]
        if family in ENDS:
            end = tokenizer.convert_tokens_to_ids(ENDS[family])
            assert all(ids[token] == end for token in named["end-image"])
            assert all(ids[token - 1] == image_id for token in named["end-image"])
        else:
            assert named["end-image"] == named["last-image"]
        assert not set(named["all-text"]) & set(pictured) and set(named["random-image-2"]) <= set(pictured)
        tokens = [token for name in names for token in named[name]]
        places = [
            place + shift
            for name in names
            for shift, place in enumerate(cache["mapping_index"][name][:1] * len(named[name]))
        ]
        given = {key: value for key, value in processed(model, family, slice(row, row + 1)).items() if key in fed}
        with torch.no_grad():
            alone = model.hf_model(**given, output_hidden_states=True, output_attentions=True, use_cache=False)
        for layer in range(2):  # the last one is given behind the norm
            found = cache[f"resid_out_{layer}"][row, places]
            torch.testing.assert_close(found, alone.hidden_states[layer + 1][0, tokens], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(cache["logits"][row], alone.logits[0, -1], rtol=1e-3, atol=1e-3)
        pattern = alone.attentions[1][0, 2][tokens][:, tokens]
        torch.testing.assert_close(cache["pattern_L1H2"][row][places][:, places], pattern, rtol=1e-3, atol=1e-4)
        assert {0, length - 1} <= set(named["all-text"]) | set(pictured)


def test_examples_with_and_without_images_are_one_batch(seeing: Callable[[str], HookedModel]) -> None:
    model = seeing("llava")
    whole = processed(model, "llava", slice(3))
    loaders = ([whole], [processed(model, "llava", slice(row, row + 1)) for row in range(3)])
    first, second = (
        model.extract_cache(loader, ["all", "last"], extract_resid_mid=True, extract_head_out=True)
        for loader in loaders
    )
    for key in ("resid_mid_2", "head_out_L1H3", "logits"):
        torch.testing.assert_close(
            first[key].as_subclass(torch.Tensor), second[key].as_subclass(torch.Tensor), equal_nan=True,
            rtol=1e-3, atol=1e-4,
        )  # fmt: skip
    assert first["token_dict"] == second["token_dict"]
    with pytest.raises(InterpError, match=r"example 2.*no image"):
        model.forward(whole, ["all-image"])


def test_averages_of_image_and_text_and_what_must_add_up(seeing: Callable[[str], HookedModel]) -> None:
    model, names = seeing("llava"), ["all-image", "all-text", "all"]
    inputs = processed(model, "llava", slice(2))
    flags = dict.fromkeys(["extract_resid_in", "extract_attn_out", "extract_resid_mid", "extract_mlp_out"], True)
    whole = model.forward(inputs, names, extract_resid_out=True, **flags)
    for layer in range(3):
        middle = whole[f"resid_in_{layer}"] + whole[f"attn_out_{layer}"]
        torch.testing.assert_close(whole[f"resid_mid_{layer}"], middle, equal_nan=True, rtol=1e-4, atol=1e-4)
        last = middle + whole[f"mlp_out_{layer}"]
        torch.testing.assert_close(whole[f"resid_out_{layer}"], last, equal_nan=True, rtol=1e-4, atol=1e-4)
    means = model.forward(inputs, names, extract_avg=True, extract_resid_mid=True)
    assert means["mapping_index"] == {"all-image": [0], "all-text": [1], "all": [2]}
    parts = whole.map_to_dict("resid_mid_1")
    expected = torch.stack([parts[name].nanmean(1) for name in names], 1)
    torch.testing.assert_close(means["resid_mid_1"], expected, rtol=1e-4, atol=1e-5)


def test_images_that_cannot_be_told_apart_are_refused(seeing: Callable[[str], HookedModel]) -> None:
    model = seeing("llava_next")
    both = model.get_processor()(text=["<image><image> hello"], images=[[image(0), image(1)]], return_tensors="pt")
    with pytest.raises(InterpError, match="2 images, and tokens by which 1 can be told apart"):
        model.forward(dict(both), ["last"])
    with pytest.raises(InterpError, match="return_tensors='pt'"):
        model.forward({**both, "pixel_values": both["pixel_values"].tolist()})


def test_a_model_that_sees_gives_its_processor(seeing: Callable[[str], HookedModel]) -> None:
    model = seeing("llava")
    assert model.get_processor() is model.standardized.processor is model.get_tokenizer() and model.is_multimodal()
    assert model.get_text_tokenizer() is model.get_processor().tokenizer is model.standardized.tokenizer
    assert model.get_image_placeholder() == "<image>"
    assert model.get_last_layernorm() is model.hf_model.model.language_model.norm
    assert model.get_lm_head() is model.hf_model.lm_head.weight


@pytest.mark.parametrize("family", ["llava", "chameleon"])
def test_the_language_model_alone(seeing: Callable[[str], HookedModel], family: str) -> None:
    model = seeing(family)
    seen, text = processed(model, family, slice(1)), {"input_ids": torch.tensor([[1, 5, 9]])}
    whole, layer = model.forward(text, ["all"], extract_resid_out=True), model.standardized.layer(1)._module
    assert model.use_language_model_only() is None  # type: ignore[func-returns-value]
    try:
        assert model.get_module_from_string("model.layers[1]") is layer
        alone = model.forward(text, ["all"], extract_resid_out=True)
        torch.testing.assert_close(alone["resid_out_2"], whole["resid_out_2"])
        with pytest.raises(InterpError, match="takes no images"):
            model.forward(seen)
    finally:
        model.use_full_model()
    assert model.forward(seen)["logits"].shape[0] == 1
    if family == "llava":
        with pytest.raises(InterpError, match="no module"):
            model.get_module_from_string("model.layers[1]")


def test_a_model_of_text_alone_is_its_language_model(hooked: Callable[[str], HookedModel]) -> None:
    model = hooked("llama")
    model.use_language_model()
    assert model.get_module_from_string("model.layers[1]") is model.standardized.layer(1)._module
    model.use_full_model()
    with pytest.raises(InterpError, match="no processor"):
        model.get_image_placeholder()
