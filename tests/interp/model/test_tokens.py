"""The nearest tokens of a hidden state, and a tokenizer that puts no space before a text."""

from __future__ import annotations

import nnsight
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.prompts.encoding import bare_tokenizer
from interp.text import token_text
from tests.interp.reference import plain, wrapped
from tests.tiny import tiny_model, tiny_tokenizer

HIDDEN = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_closest_tokens_are_read_out_through_the_model_s_own_tail() -> None:
    model, tokenizer = wrapped("gemma2"), tiny_tokenizer()
    reference = plain("gemma2")
    logits = 2.0 * torch.tanh(reference.lm_head(reference.get_submodule("model.norm")(HIDDEN)) / 2.0)
    expected = logits.softmax(-1)
    rows = model.get_topk_closest_tokens(HIDDEN, k=7)
    assert isinstance(rows, list)
    for row, named in enumerate(rows):
        best = sorted(range(400), key=lambda token: -float(expected[row, token]))[:7]
        assert [name.split("#")[0] or f"#{token}" for name, token in zip(named, best, strict=True)] == [
            tokenizer.decode([token]) or f"#{token}" for token in best
        ]
        torch.testing.assert_close(torch.tensor(list(named.values())), expected[row, best], atol=1e-6, rtol=1e-5)
    assert model.get_topk_closest_tokens(HIDDEN[1], k=7) == pytest.approx(rows[1], rel=1e-5)
    with model.trace(torch.tensor([[1, 2]])):
        inside = model.get_topk_closest_tokens(HIDDEN[1], k=7)
        inside_saved = nnsight.save(dict(inside))
    assert inside_saved == pytest.approx(rows[1], rel=1e-5)


def test_tokens_that_share_a_text_or_have_none_keep_their_ids() -> None:
    model = StandardizedTransformer(tiny_model("gpt2", vocab_size=410), tokenizer=tiny_tokenizer())
    named = model.get_topk_closest_tokens(HIDDEN[0], k=410)
    assert isinstance(named, dict)
    assert len(named) == 410
    assert {f"#{token}" for token in range(400, 410)} <= set(named)
    assert sum(named.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "k", "message"),
    [
        ((1, 3, 32), 5, r"expected hidden \(hidden,\) or \(row, hidden\), got shape \(1, 3, 32\)"),
        ((31,), 5, r"expected hidden \(\.\.\., 32\)"),
        ((32,), 0, "k: expected 1 to 400"),
        ((32,), 401, "k: expected 1 to 400"),
    ],
)
def test_what_has_no_closest_tokens(shape: tuple[int, ...], k: int, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        wrapped("llama").get_topk_closest_tokens(torch.zeros(shape), k)


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    pieces = {"<unk>": 0, "▁": 1, "king": 2, "▁king": 3, "▁the": 4, "the": 5}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)  # type: ignore[assignment]
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def prepending() -> PreTrainedTokenizerFast:
    """As Llama 2's tokenizer.json: a normalizer prepends the space, a decoder strips it."""
    pieces = {"<unk>": 0, "▁king": 1, "king": 2, "▁the": 3, "the": 4}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize(
    ("tokenizer", "spaced", "bare"),
    [(metaspace("always"), [4, 3], [5, 3]), (metaspace("first"), [4, 3], [5, 3]), (prepending(), [3, 1], [4, 1])],
)
def test_no_space_before_a_text(tokenizer: PreTrainedTokenizerFast, spaced: list[int], bare: list[int]) -> None:
    assert tokenizer.encode("the king", add_special_tokens=False) == spaced
    copy = bare_tokenizer(tokenizer)
    assert copy.encode("the king", add_special_tokens=False) == bare
    assert copy.decode(bare) == "the king"
    assert copy.decode(bare[1:]) == " king"
    assert tokenizer.encode("the king", add_special_tokens=False) == spaced, "the tokenizer itself is left alone"


def test_of_a_model() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    bare = model.add_prefix_false_tokenizer
    assert bare.padding_side == "left"
    assert bare("hello").input_ids == tiny_tokenizer()("hello").input_ids


def test_tokens_have_a_text() -> None:
    tokenizer = tiny_tokenizer()
    for word in ("king", " fox"):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert "".join(token_text(tokenizer, token) for token in ids) == word
    part = tokenizer("好", add_special_tokens=False)["input_ids"][0]
    assert "\ufffd" not in token_text(tokenizer, part)
    assert token_text(tokenizer, 100_000) == "<unused 100000>" and token_text(tokenizer, 1) == "<s>"
