"""Target tokens over real tokenizer algorithms, probabilities summed by hand, and every way to write targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.compat.nnterp.interventions import (
    TargetPrompt,
    TargetPromptBatch,
    it_repeat_prompt,
    logit_lens,
    repeat_prompt,
)
from interp.compat.nnterp.prompt_utils import (
    Prompt,
    TokenizationError,
    get_first_tokens,
    next_token_probs_unsqueeze,
    run_prompts,
)
from interp.errors import InterpError
from tests.interp.compat.nnterp.models import CLOSE, PROMPTS, next_probs, raw, standardized
from tests.interp.compat.nnterp.test_interventions import lens_by_hand
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


REPEATED = "king king\n1135 1135\nhello hello\n?"
TEMPLATE = (
    "<s>{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_repeat_prompt() -> None:
    assert repeat_prompt() == TargetPrompt(REPEATED, -1)
    prompt = repeat_prompt(["car", "cross"], rel=":", sep="\n\n", placeholder="*", index_to_patch=3)
    assert prompt == TargetPrompt("car:car\n\ncross:cross\n\n*", 3)


def test_batches() -> None:
    prompts = [TargetPrompt("a", -1), TargetPrompt("b", 2)]
    batch = TargetPromptBatch.from_target_prompts(prompts)
    assert batch.prompts == ["a", "b"] and batch.index_to_patch.tolist() == [-1, 2]
    assert len(batch) == 2 and list(batch) == prompts and batch[1] == prompts[1]
    assert isinstance(batch[1].index_to_patch, torch.Tensor)
    assert TargetPromptBatch.from_target_prompt(prompts[1], 3).index_to_patch.tolist() == [2, 2, 2]
    assert TargetPromptBatch.from_prompts("a", 4).index_to_patch.tolist() == [4]
    assert TargetPromptBatch.from_prompts(["a", "b"], -2).index_to_patch.tolist() == [-2, -2]
    assert TargetPromptBatch.from_prompts(["a", "b"], [1, 2]).index_to_patch.tolist() == [1, 2]
    assert TargetPromptBatch.from_prompts(["a", "b"], torch.tensor([1, 2])).index_to_patch.tolist() == [1, 2]


def test_auto_takes_a_text_too() -> None:
    one = TargetPrompt("a", 1)
    assert list(TargetPromptBatch.auto("a", 2)) == [TargetPrompt("a", -1)] * 2
    assert list(TargetPromptBatch.auto(one, 2)) == [one] * 2
    assert list(TargetPromptBatch.auto([one, "b"], 2)) == [one, TargetPrompt("b", -1)]
    batch = TargetPromptBatch.from_target_prompt(one, 2)
    assert TargetPromptBatch.auto(batch, 2) is batch


def test_errors() -> None:
    with pytest.raises(InterpError, match="for each of 3 sources, got 2"):
        TargetPromptBatch.auto(["a", "b"], 3)
    with pytest.raises(InterpError, match="expected a text"):
        TargetPromptBatch.auto(3, 3)  # type: ignore[arg-type]
    with pytest.raises(InterpError, match="expected an int"):
        TargetPromptBatch.from_prompts("a", "b")
    with pytest.raises(InterpError, match="one for each of 2 prompts, got 1"):
        TargetPromptBatch.from_prompts(["a", "b"], [1])


def chat(*turns: tuple[str, str]) -> str:
    """What the template makes of turns, written by hand, with the last one open and without the start token."""
    return "".join(f"[{role}]{text}</s>" for role, text in turns).removesuffix("</s>")


TASK = "Your task is to guess the next word in the sentence. You must answer with the next word only."


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("instructed", [True, False])
def test_chats_begin_with_one_start_token(instructed: bool, system: bool, complete: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    prompt = it_repeat_prompt(tokenizer, complete_prompt=complete, add_user_instr=instructed, use_system_prompt=system)
    turns = []
    if instructed:
        if system:
            turns.append(("system", "You are a helpful assistant."))
        turns.append(("user", f"I will provide you with a series of sentences. {TASK}"))
        turns += [("assistant", "Ok."), ("user", REPEATED)]
    elif system:
        turns += [("system", f"The user will provide you with a sentence. {TASK}"), ("user", REPEATED)]
    else:
        request = "Guess the next word in the following sentence (answer only the next word): "
        turns.append(("user", request + REPEATED))
    turns.append(("assistant", REPEATED if complete else ""))
    assert prompt == TargetPrompt(chat(*turns), -1)
    ids = tokenizer(prompt.prompt).input_ids
    whole = tokenizer(TEMPLATE[:3] + chat(*turns), add_special_tokens=False).input_ids
    assert ids == whole and ids.count(1) == 1


def test_a_start_token_that_the_tokenizer_leaves_to_the_template_stays() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.backend_tokenizer.post_processor = None
    prompt = it_repeat_prompt(tokenizer, ["cat"], " -> ", "\n", "?")
    assert prompt.prompt.startswith("<s>[system]") and prompt.prompt.endswith("[assistant]cat -> cat\n?")
    assert tokenizer(prompt.prompt).input_ids.count(1) == 1
