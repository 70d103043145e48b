"""Target tokens over real tokenizer algorithms, and probabilities summed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.compat.nnterp.interventions import logit_lens
from interp.compat.nnterp.prompt_utils import (
    Prompt,
    TokenizationError,
    get_first_tokens,
    next_token_probs_unsqueeze,
    run_prompts,
)
from interp.errors import InterpError
from tests.interp.compat.nnterp.models import CLOSE, PROMPTS, next_probs, raw, standardized
from tests.interp.compat.nnterp.test_lenses import lens_by_hand
from tests.tiny import tiny_tokenizer


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space before every text, and bytes for characters that have no piece."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", *"kinghelo.\n", "ki", "ng", "king", "▁king", "▁k", "he", "▁he", "llo"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, *letters])}
    merges = [("k", "i"), ("n", "g"), ("ki", "ng"), ("▁", "king"), ("▁", "k"), ("h", "e"), ("▁", "he")]
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("word", "tokens"),
    [("king", ["king", "▁king"]), ("hello", ["he", "▁he"]), (".", ["."]), ("世", ["<0xE4>"]), ("\n", ["\n"])],
)
def test_metaspace_and_byte_fallback(word: str, tokens: list[str]) -> None:
    tokenizer = metaspace_tokenizer()
    assert tokenizer.convert_ids_to_tokens(get_first_tokens(word, tokenizer)) == tokens


def test_byte_level() -> None:
    tokenizer = tiny_tokenizer()
    texts = (
        "king",
        " king",
        "hello",
        " hello",
        "book",
    )  # " book" begins with the token of a space, which tells nothing
    by_hand = [tokenizer(text, add_special_tokens=False).input_ids[0] for text in texts]
    assert get_first_tokens(["king", "hello", "book"], tokenizer) == by_hand


def test_any_holder_of_a_tokenizer_will_do_and_order_and_duplicates_are_minded() -> None:
    tokenizer = tiny_tokenizer()
    expected = get_first_tokens(["king", "hello"], tokenizer)
    assert get_first_tokens(["king", "hello", "king"], standardized("llama")) == expected
    assert get_first_tokens(["king", "hello"], raw("llama")) == expected
    assert get_first_tokens("king", tokenizer) == get_first_tokens([" king"], tokenizer) == expected[:2]


def test_without_space_only() -> None:
    tokenizer = metaspace_tokenizer()
    found = get_first_tokens(["king", "hello"], tokenizer, use_hacky_implementation=True)
    assert tokenizer.convert_ids_to_tokens(found) == ["king", "he"]


def test_a_word_without_a_token_of_its_own() -> None:
    with pytest.raises(TokenizationError, match="no token"):
        get_first_tokens("", tiny_tokenizer())


def test_prompt_from_strings() -> None:
    tokenizer = tiny_tokenizer()
    for words in ("king", ["king"], {"target": "king"}):
        prompt = Prompt.from_strings("a", words, tokenizer)
        assert prompt.target_tokens == {"target": get_first_tokens("king", tokenizer)}
        assert prompt.target_strings == {"target": words if not isinstance(words, dict) else "king"}
    prompt = Prompt.from_strings("a", {"x": ["king", "hello"], "y": "book"}, standardized("llama"))
    assert prompt.target_tokens["x"] == get_first_tokens(["king", "hello"], tokenizer)


def test_collisions() -> None:
    prompt = Prompt("a", {"x": [1, 2], "y": [3], "z": [2, 4]})
    assert not prompt.has_no_collisions()
    assert prompt.has_no_collisions("z") and prompt.has_no_collisions(["x"]) and not prompt.has_no_collisions("y")
    assert not Prompt("a", {"x": [1, 1]}).has_no_collisions()


def test_target_probabilities_by_arithmetic() -> None:
    probs = torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]])  # one prompt, two layers
    prompt = Prompt("a", {"x": [0, 2], "y": [1], "z": []})
    found = prompt.get_target_probs(probs)
    torch.testing.assert_close(found["x"], torch.tensor([[0.8, 0.75]]))
    torch.testing.assert_close(found["y"], torch.tensor([[0.2, 0.25]]))
    torch.testing.assert_close(found["z"], torch.zeros(1, 2))
    torch.testing.assert_close(prompt.get_target_probs(probs, layer=1)["x"], torch.tensor([0.75]))
    ran = prompt.run("the model", lambda model, text: probs if (model, text) == ("the model", "a") else probs[:0])
    torch.testing.assert_close(ran["x"], torch.tensor([[0.8, 0.75]]))


def test_sums_of_half_precision_are_made_in_float32() -> None:
    small = torch.full((1, 1, 4096), 2.0**-14, dtype=torch.float16)
    small[0, 0, 0] = 0.75
    prompt = Prompt("a", {"x": list(range(4096))})
    exact = small.double().sum().item()
    assert prompt.get_target_probs(small)["x"].dtype == torch.float32
    assert prompt.get_target_probs(small)["x"].item() == pytest.approx(exact, abs=1e-6)
    found = run_prompts(None, [prompt], get_probs_func=lambda model, texts, remote: small, tqdm=None)
    assert found["x"].dtype == torch.float32 and found["x"].item() == pytest.approx(exact, abs=1e-6)


def prompts() -> list[Prompt]:
    words = [{"x": "book", "y": ["libro", "livre"]}, {"x": "hello", "y": "?"}, {"x": ["king"], "y": "dog"}]
    return [Prompt.from_strings(text, each, tiny_tokenizer()) for text, each in zip(PROMPTS, words, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_run_prompts_gives_the_next_tokens_probabilities(batch_size: int) -> None:
    found = run_prompts(standardized("gpt2"), prompts(), batch_size, tqdm=None)
    for target in ("x", "y"):
        by_hand = torch.stack(
            [next_probs("gpt2", prompt.prompt)[prompt.target_tokens[target]].sum() for prompt in prompts()]
        )
        assert found[target].shape == (3, 1) and found[target].device.type == "cpu"
        torch.testing.assert_close(found[target][:, 0], by_hand, **CLOSE)


def test_run_prompts_with_a_lens() -> None:
    found = run_prompts(standardized("gpt2"), prompts(), 2, get_probs_func=logit_lens, tqdm=None)
    lens = lens_by_hand("gpt2")
    for target in ("x", "y"):
        by_hand = torch.stack(
            [lens[row][:, prompt.target_tokens[target]].sum(-1) for row, prompt in enumerate(prompts())]
        )
        torch.testing.assert_close(found[target], by_hand, **CLOSE)


def test_run_prompts_hands_its_arguments_on_and_shows_progress() -> None:
    seen: list[Any] = []

    def get_probs(model: Any, texts: list[str], remote: bool, scale: float) -> Tensor:
        seen.append((model, texts, remote, scale))
        return torch.full((len(texts), 2, 400), scale)

    def progress(batches: Any, desc: str) -> Any:
        seen.append(desc)
        return batches

    found = run_prompts("model", prompts(), 2, get_probs, {"scale": 0.5}, remote=True, tqdm=progress)
    assert seen == ["Running prompts", ("model", PROMPTS[:2], True, 0.5), ("model", PROMPTS[2:], True, 0.5)]
    assert found["x"].tolist() == [[len(prompt.target_tokens["x"]) * 0.5] * 2 for prompt in prompts()]


def test_run_prompts_without_prompts_and_with_different_targets() -> None:
    assert run_prompts(None, []) == {}
    with pytest.raises(InterpError, match="expected targets"):
        run_prompts(None, [Prompt("a", {"x": [1]}), Prompt("b", {"y": [1]})])


def test_next_token_probs_have_a_layer_axis() -> None:
    probs = next_token_probs_unsqueeze(standardized("gpt2"), PROMPTS, anything="else")
    by_hand = torch.stack([next_probs("gpt2", prompt) for prompt in PROMPTS])
    torch.testing.assert_close(probs, by_hand[:, None], **CLOSE)
