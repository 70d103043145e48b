"""The logit lens on prompts against its twin: the site's value, written over the last residual stream of the model."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.compat import nnterp
from interp.errors import InterpError
from interp.lenses import logit_lens
from interp.model import StandardizedTransformer
from interp.prompts import Prompt
from interp.results import LensResult
from tests.families import build
from tests.interp.lenses.plain import TOLD, PlainModel, plain
from tests.interp.lenses.twins import assert_equal, expected
from tests.tiny import tiny_tokenizer

PROMPTS = [[1, 17, 33, 250, 9, 8, 31], [1, 8], [1, 99, 98, 97, 96]]
TARGETS = [{"a": [3 * n, 3 * n + 1], "b": [100 + n]} for n in range(len(PROMPTS))]
GROUPS = [list(targets.values()) for targets in TARGETS]
SITES = ["embed", "resid_pre.2", "resid_post.1", "resid_post.3", "attn_out.2", "mlp_out.0", "final_norm"]


@cache
def standardized(family: str, dtype: torch.dtype = torch.float32) -> StandardizedTransformer:
    return StandardizedTransformer(build(family).to(dtype), tokenizer=tiny_tokenizer(), verify=False)


def twin_examples(twin: PlainModel, sites: list[str], inverted: bool) -> list[dict[str, Any]]:
    """At the last token; the last residual stream is put behind the sites, for the divergence, and taken away."""
    wanted = []
    for ids, groups in zip(PROMPTS, GROUPS, strict=True):
        values, logits = twin.run(ids)
        read = [twin.read(values[site][-1], ids, len(ids) - 1, inverted) for site in [*sites, "last"]]
        one = expected(read, groups, 3, logits[-1].double().numpy())
        single = ("model_top_id",)
        wanted.append({name: value if name in single else value[:-1] for name, value in one.items()})
    return wanted


@pytest.mark.parametrize("inverted", [False, True], ids=["normal", "inverted"])
@pytest.mark.parametrize("family", TOLD)
def test_equals_the_twin(family: str, inverted: bool) -> None:
    model, twin = standardized(family), plain(family)
    result = logit_lens(model, PROMPTS, sites=SITES, targets=TARGETS, top_k=3, batch_tokens=20, inverted=inverted)
    assert result.axes == ("example", "site") and set(result.along("site")) == set(SITES)
    wanted = twin_examples(twin, [str(site) for site in result.along("site")], inverted)
    assert_equal(result.arrays(), wanted, atol=1e-5)
    assert result.group_names == ("a", "b") and result.baseline is None
    if not inverted:
        last = result.select(site="final_norm")
        np.testing.assert_array_equal(last.top_ids[:, 0], last.model_top_id)
        np.testing.assert_allclose(last.kl, 0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi", "granite"])
def test_heads(family: str) -> None:
    """Each head alone: what attention adds when the others give zero, without the bias."""
    model, twin = standardized(family), plain(family)
    result = logit_lens(model, PROMPTS, sites="head_out.1", targets=TARGETS, top_k=3)
    assert result.along("site") == tuple(f"head_out.1.h{head}" for head in range(4))
    layer = twin.layers[1]
    projection = layer.get_submodule(twin.told.projection)
    for example, (ids, groups) in enumerate(zip(PROMPTS, GROUPS, strict=True)):
        z = twin.run(ids)[0]["z.1"][-1]
        by_head = []
        for head in range(4):
            alone = torch.zeros_like(z)
            width = len(z) // 4
            alone[head * width : (head + 1) * width] = z[head * width : (head + 1) * width]
            with torch.no_grad():
                part = projection(alone) - projection(torch.zeros_like(z))
                if family == "gemma2":  # the norm behind attention, with its scale at the whole
                    whole = projection(z)
                    norm = layer.post_attention_layernorm
                    part = part * (1 + norm.weight) / (whole.pow(2).mean() + norm.eps).sqrt()
            by_head.append(twin.read(part * twin.told.added, ids, len(ids) - 1))
        wanted = expected(by_head, groups, 3, None)
        np.testing.assert_allclose(np.exp(result.log_prob[example]), np.exp(wanted["log_prob"]), atol=1e-5)
        np.testing.assert_array_equal(result.top_ids[example], wanted["top_ids"])


@pytest.mark.parametrize("family", ["mistral", "phi", "gpt2", "olmo2"])
def test_every_position(family: str) -> None:
    """All positions of ragged prompts, each with the twin; nothing where a prompt is shorter."""
    model, twin = standardized(family), plain(family)
    result = logit_lens(model, PROMPTS, sites="resid_post.*", positions="all", targets=TARGETS, top_k=3)
    assert result.axes == ("example", "position", "layer") and result.layers == (0, 1, 2, 3)
    assert result.along("position") == tuple(f"all[{index}]" for index in range(7))
    assert result.model_top_id.shape == (3, 7)
    for example, (ids, groups) in enumerate(zip(PROMPTS, GROUPS, strict=True)):
        values, logits = twin.run(ids)
        for position in range(len(ids)):
            read = [twin.read(values[f"resid_post.{layer}"][position], ids, position) for layer in range(4)]
            one = expected(read, groups, 3, logits[position].double().numpy())
            found = {name: array[example, position][None] for name, array in result.arrays().items()}
            assert_equal(found, [one], atol=1e-5)
        for name, array in result.arrays().items():
            rest = array[example, len(ids) :]
            assert (np.isnan(rest) if array.dtype.kind == "f" else rest == -1).all(), name
    assert len(result.to_frame("distribution")) == 4 * sum(map(len, PROMPTS))


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bloom", "mixtral"])
def test_padding_and_batches_change_nothing(family: str) -> None:
    model = standardized(family)
    results = []
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        results += [
            logit_lens(model, PROMPTS, targets=TARGETS, positions=["first", "last"], batch_tokens=size)
            for size in (1, 20, 100)
        ]
    model.tokenizer.padding_side = "left"
    for name, whole in results[0].arrays().items():
        for result in results[1:]:
            np.testing.assert_allclose(result.arrays()[name], whole, atol=2e-5, rtol=1e-5, err_msg=name)


MANY_SITES = [f"{kind}.{layer}" for kind in ("resid_pre", "resid_post", "mlp_out") for layer in range(4)]


@cache
def everything() -> LensResult:
    return logit_lens(standardized("qwen2"), PROMPTS, sites=MANY_SITES, positions="all", targets=TARGETS)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sites=st.lists(st.sampled_from(MANY_SITES), min_size=1, unique=True),
    position=st.integers(-2, 1),
    batch_tokens=st.integers(1, 60),
    rows=st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_a_part_is_that_part_of_the_whole(sites: list[str], position: int, batch_tokens: int, rows: list[int]) -> None:
    """Any sites, any position, any prompts in any order, some twice: as when everything is read at once."""
    part = logit_lens(
        standardized("qwen2"),
        [PROMPTS[row] for row in rows],
        sites=sites,
        positions=position,
        targets=[TARGETS[row] for row in rows],
        batch_tokens=batch_tokens,
    )
    kinds = {site.partition(".")[0] for site in sites}
    axis = "layer" if len(kinds) == 1 else "site"
    assert part.axes == ("example", axis)
    for index, row in enumerate(rows):
        place = position % len(PROMPTS[row])
        for at, coordinate in enumerate(part.along(axis)):
            name = coordinate if axis == "site" else f"{min(kinds)}.{coordinate}"
            whole = everything().select(site=name, position=f"all[{place}]", example=row)
            for array in ("log_prob", "entropy", "kl", "surprisal", "top_log_prob"):
                np.testing.assert_allclose(
                    part.arrays()[array][index, at], whole.arrays()[array][0], atol=2e-5, rtol=1e-5, err_msg=array
                )


def test_bfloat16_is_near_float32() -> None:
    """Stated tolerance: 0.03 in probability; bfloat16 has 8 bits of mantissa."""
    for family in ("llama", "gemma2", "gpt2"):
        half = logit_lens(standardized(family, torch.bfloat16), PROMPTS, targets=TARGETS, sites=SITES)
        full = logit_lens(standardized(family), PROMPTS, targets=TARGETS, sites=SITES)
        assert half.log_prob.dtype == np.float32
        np.testing.assert_allclose(np.exp(half.log_prob), np.exp(full.log_prob), atol=0.03)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "opt_no_final_norm"])
def test_nnterp_says_the_same_over_the_whole_vocabulary(family: str) -> None:
    model = standardized(family)
    texts = ["hello hello king", "The quick brown fox"]
    for inverted, probabilities in enumerate(nnterp.logit_lens(model, texts, return_inv_logits=True)):
        result = logit_lens(model, texts, top_k=model.vocab_size, inverted=bool(inverted))
        ours = torch.zeros_like(probabilities).scatter(
            2, torch.tensor(result.top_ids).long(), torch.tensor(result.top_log_prob).exp()
        )
        torch.testing.assert_close(ours, probabilities, atol=1e-6, rtol=1e-5)


def test_texts_prompts_and_words() -> None:
    model = standardized("llama")
    tokenizer = model.tokenizer
    text = 'Deutsch: "Buch" - Italiano: "'
    prompt = Prompt.from_strings(text, {"it": "libro", "de": "Buch"}, tokenizer)
    marked = Prompt(text, prompt.targets, {"query": (10, 14)})
    by_text = logit_lens(model, text, targets={"it": "libro", "de": "Buch"})
    by_prompt = logit_lens(model, prompt)
    by_ids = logit_lens(model, [tokenizer(text)["input_ids"]], targets=prompt.target_tokens)
    for other in (by_prompt, by_ids):
        assert other.group_names == ("it", "de")
        np.testing.assert_array_equal(by_text.log_prob, other.log_prob)
    start, stop = marked.encode(tokenizer).spans["query"]
    spans = logit_lens(model, marked, positions=["query.all", "last"])
    assert spans.along("position") == (*(f"query.all[{index}]" for index in range(stop - start)), "last")
    np.testing.assert_allclose(spans.select(position="last").log_prob, by_text.log_prob, atol=1e-6)
    both = logit_lens(model, [prompt, text])
    assert np.isnan(both.log_prob[1]).all() and not np.isnan(both.log_prob[0]).any()
    assert (both.rank[1] == -1).all()
    none = logit_lens(model, text, surprisal=False)
    assert none.log_prob.shape == (1, 4, 0) and np.isnan(none.surprisal).all() and none.model_top_id.tolist() == [-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": "q.1"}, r"'q.1' cannot be read out here. Expected embed, resid_pre"),
        ({"sites": "attn_in.*"}, "cannot be read out here"),
        ({"sites": "resid_post.4"}, "4"),
        ({"positions": 5}, "position '5' is out of range"),
        ({"positions": "query.last"}, "no span 'query'"),
        ({"prompts": []}, "source: expected texts"),
        ({"prompts": [1, 2, 3]}, r"e\.g\. \[\[1, 17, 33\]\]"),
        ({"prompts": [[1, 400]]}, "expected token ids from 0 to 399"),
        ({"targets": [{"a": [1]}]}, "targets: expected names with words for all prompts"),
        ({"targets": "dog"}, "expected names with words for all prompts.* got 'dog'"),  # as many letters as prompts
        ({"targets": ["dog", "fox", "dog"]}, "expected names with words for all prompts"),
        ({"policy": "exact"}, r"policy: 'exact' .* none are given.*Prompt\.from_strings\(\.\.\., policy='exact'\)"),
        ({"prompts": np.array([1, 2, 3])}, r"e\.g\. \[\[1, 17, 33\]\]"),
        ({"prompts": 5}, "source: expected texts, Prompts or lists of token ids, got 5"),
        ({"prompts": [None]}, "source: expected texts, Prompts or lists of token ids, got None among them"),
        ({"prompts": [[1.5]]}, r"got \[1\.5\] among them"),
        ({"targets": {"a": [400]}}, "token id 400 is outside the vocabulary"),
        ({"batch_tokens": 0}, "batch_tokens: expected at least 1"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    arguments = {"prompts": PROMPTS, **changes}
    with pytest.raises(InterpError, match=message):
        logit_lens(standardized("llama"), arguments.pop("prompts"), **arguments)


def test_prompts_as_arrays_tensors_and_iterators() -> None:
    model, wanted = standardized("llama"), logit_lens(standardized("llama"), PROMPTS).arrays()
    for given_prompts in (
        [np.array(ids) for ids in PROMPTS],
        [torch.tensor(ids) for ids in PROMPTS],
        iter(PROMPTS),
        (tuple(ids) for ids in PROMPTS),
    ):
        found = logit_lens(model, given_prompts)  # type: ignore[arg-type]
        for name, values in wanted.items():
            np.testing.assert_array_equal(found.arrays()[name], values, err_msg=name)
    square = logit_lens(model, torch.tensor([PROMPTS[0], PROMPTS[0]]))  # type: ignore[arg-type]
    np.testing.assert_allclose(square.entropy[1], wanted["entropy"][0], atol=1e-5)


def test_the_model_is_as_it_was_after_an_error() -> None:
    model = standardized("llama")
    with pytest.raises(InterpError, match="does not exist"):
        logit_lens(standardized("phi"), PROMPTS, sites="resid_mid.1")
    with pytest.raises(InterpError):
        logit_lens(model, PROMPTS, top_k=0)
    with torch.no_grad():
        logits = model._module(torch.tensor([PROMPTS[0]])).logits[0]
    torch.testing.assert_close(logits, plain("llama").run(PROMPTS[0])[1], atol=1e-6, rtol=0)
