"""New tokens with interventions: over the cache, by whole passes, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.activations import generating
from interp.errors import InterpError
from interp.interventions import Intervention
from interp.interventions.perform import draws, noise
from interp.model import StandardizedTransformer
from interp.readout import Sampling
from tests.families import build
from tests.interp.activations.edited import Change, traced
from tests.tiny import tiny_tokenizer

IDS = [[1, 17, 250, 33, 94, 12, 7], [1, 88, 5, 260]]
GENERATOR = torch.Generator().manual_seed(1)
STREAM, HEAD = torch.randn(32, generator=GENERATOR), torch.randn(8, generator=GENERATOR)
Standardized = Callable[[str], StandardizedTransformer]


def of_family(model: StandardizedTransformer) -> list[Intervention]:
    """One intervention at each kind of site, of the prompt alone and of every step."""
    every = [
        Intervention("k.1", "0:2", "add", HEAD, factor=3),
        Intervention("v.2", "1:3", "noise", std=2.0, steps="every"),
        Intervention("q.2", "last", "scale", -2.0, steps="every"),
        Intervention("scores.0.h0", "last", "knockout", from_positions="1:3", steps="every"),
        Intervention("pattern.3.h1", "last", "knockout", from_positions="first", steps="every"),
        Intervention("pattern.1.h0,2", "last 1", "isolate", steps="every"),
        Intervention("pattern.2.h2", "last", "scale", 0.5, from_positions="1:3", steps="every"),
        Intervention("z.3.h2", "last", "add", HEAD, steps="every"),
        Intervention("resid_post.1", "last", "add", STREAM, steps="every"),
        Intervention("resid_post.2", "first", "scale", 2.0),
        Intervention("mlp_out.0", "all", "scale", 0.5, steps="every"),
    ]
    return [one for one in every if model.has(one.site.split(".h")[0])]


def changes_of(interventions: list[Intervention], ids: list[int], length: int) -> dict[str, Change]:
    """The same by hand, on a prompt of `ids` that has grown to `length` tokens."""
    prompt, new = len(ids), list(range(len(ids), length))
    last, all_ = [prompt - 1, *new], list(range(length))
    lowest = torch.finfo(torch.float32).min

    def adds(index: Any, what: Tensor) -> Change:
        def change(value: Tensor) -> None:
            value[index] += what

        return change

    def scales(index: Any, factor: float) -> Change:
        def change(value: Tensor) -> None:
            value[index] *= factor

        return change

    def cuts(head: int, keys: list[int], filled: float) -> Change:
        def change(value: Tensor) -> None:
            for query in last:
                value[0, head, query, keys] = filled

        return change

    def isolates(value: Tensor) -> None:
        for query in [1, *last]:
            for head in (0, 2):
                own = value[0, head, query, query].clone()
                value[0, head, query] = 0.0
                value[0, head, query, query] = own

    def halves(value: Tensor) -> None:
        value[0, 2, last, 1:3] *= 0.5

    def v_noise(value: Tensor) -> None:
        for token in [1, 2, *new]:
            value[0, :, token] += 2 * noise(0, "v.2", ids, token, (value.shape[1], value.shape[3]))

    known: dict[str, Change] = {
        "k.1": adds((0, slice(None), slice(0, 2)), 3 * HEAD),
        "v.2": v_noise,
        "q.2": scales((0, slice(None), last), -2.0),
        "scores.0": cuts(0, [1, 2], lowest),
        "pattern.1": isolates,
        "pattern.2": halves,
        "pattern.3": cuts(1, [0], 0.0),
        "z.3": adds((0, last, 2), HEAD),
        "resid_post.1": adds((0, last), STREAM),
        "resid_post.2": scales((0, 0), 2.0),
        "mlp_out.0": scales((0, all_), 0.5),
    }
    return {site: known[site] for site in (one.site.split(".h")[0] for one in interventions)}


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mistral", "gpt_neox", "bloom", "gptj", "jamba", "mamba"])
def test_is_generation_without_a_cache_by_hand(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StandardizedTransformer(build(family), tokenizer=tiny_tokenizer(), verify=False)
    interventions = of_family(model)
    run = model.run(IDS, interventions, max_new_tokens=4, stop_ids=[])
    plain = model.run(IDS, max_new_tokens=4, stop_ids=[])
    assert run.new_ids is not None and run.new_logits is not None and plain.new_logits is not None
    assert not torch.allclose(run.new_logits, plain.new_logits, atol=1e-2)
    for example, ids in enumerate(IDS):
        text = list(ids)
        for step in range(4):
            logits = traced(model, text, changes_of(interventions, ids, len(text)))["logits"][0, -1]
            torch.testing.assert_close(run.new_logits[example, step], logits, rtol=1e-4, atol=5e-5)
            text.append(int(logits.argmax()))
        assert run.new_ids[example] == text[len(ids) :]
    monkeypatch.setattr(generating, "verdict", lambda *_, **__: False)
    whole = model.run(IDS, interventions, max_new_tokens=4, stop_ids=[])
    assert whole.new_ids == run.new_ids and whole.new_logits is not None
    torch.testing.assert_close(whole.new_logits, run.new_logits, rtol=1e-4, atol=5e-5)


def test_goes_on_over_the_cache_where_the_family_has_one(
    standardized: Standardized, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = standardized("llama")
    model.run(IDS, of_family(model), max_new_tokens=4, stop_ids=[])  # tried out, and measured
    widths: list[int] = []
    run = model.interleave
    monkeypatch.setattr(
        type(model), "interleave",
        lambda self, *args, **given: (widths.append(given["input_ids"].shape[1]), run(*args, **given))[1],
    )  # fmt: skip
    model.run(IDS, of_family(model), max_new_tokens=4, stop_ids=[])
    assert widths == [7, 1, 1, 1]


def test_attention_of_later_tokens_is_not_written(standardized: Standardized, monkeypatch: pytest.MonkeyPatch) -> None:
    model, evenly = standardized("llama"), Intervention("pattern.*.h3", "all", "set", 0.25, steps="every")
    run = model.run(IDS, evenly, max_new_tokens=4, stop_ids=[])
    monkeypatch.setattr(generating, "verdict", lambda *_, **__: False)
    whole = model.run(IDS, evenly, max_new_tokens=4, stop_ids=[])
    assert whole.new_ids == run.new_ids and whole.new_logits is not None and run.new_logits is not None
    torch.testing.assert_close(whole.new_logits, run.new_logits, rtol=1e-4, atol=5e-5)


def test_without_interventions_is_what_transformers_generates(standardized: Standardized) -> None:
    model = standardized("llama")
    run = model.run(IDS, max_new_tokens=5, read="resid_post.1", positions="all")
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    ids = torch.tensor([IDS[0], [0, 0, 0, *IDS[1]]])
    expected = model._module.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    for example in range(2):
        assert run.new_ids is not None
        found = run.new_ids[example]
        assert found == expected[example, 7 : 7 + len(found)].tolist()
    assert run["resid_post.1"].shape == (2, 7, 32)  # of the prompts
    assert run.texts == model.tokenizer.batch_decode(run.new_ids, skip_special_tokens=True)


def test_draws_of_a_prompt_are_its_own(standardized: Standardized) -> None:
    model = standardized("gpt2")
    given: dict[str, Any] = dict(max_new_tokens=5, temperature=1.5, top_k=50, stop_ids=[])
    steer = Intervention("resid_post.2", "last", "add", STREAM, steps="every")
    together = model.run(IDS, steer, seed=3, **given)
    assert together.new_ids is not None and together.new_logits is not None
    for example, ids in enumerate(IDS):
        alone = model.run([ids], steer, seed=3, **given)
        assert alone.new_ids == [together.new_ids[example]]
        chosen = Sampling(1.5, 50).choose(together.new_logits[example], torch.tensor(draws(3, ids, 5)))
        assert chosen.tolist() == together.new_ids[example]
    assert model.run(IDS, steer, seed=4, **given).new_ids != together.new_ids


def test_a_text_ends_behind_its_stop(standardized: Standardized) -> None:
    model = standardized("llama")
    whole = model.run(IDS, max_new_tokens=6, stop_ids=[])
    assert whole.new_ids is not None and whole.new_logits is not None
    stop = whole.new_ids[0][1]
    at = whole.new_ids[0].index(stop) + 1
    assert stop not in whole.new_ids[1]
    run = model.run(IDS, max_new_tokens=6, stop_ids=[stop])
    assert run.new_ids == [whole.new_ids[0][:at], whole.new_ids[1]]
    assert run.new_logits is not None and bool(run.new_logits[0, at:].isnan().all())
    torch.testing.assert_close(run.new_logits[1], whole.new_logits[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(max_new_tokens=0), "max_new_tokens: expected at least 1"),
        (dict(max_new_tokens=2, gradients_of=lambda logits, _: logits[:, 0, 0]), "has no gradient"),
        (dict(max_new_tokens=2, padding_side="right"), "so it pads on the left"),
        (dict(max_new_tokens=2, temperature=-1), "temperature: expected 0"),
        (dict(max_new_tokens=1000), "positions"),
        (dict(temperature=1.0), "are of new tokens. Give max_new_tokens"),
        (dict(stop_ids=[2]), "are of new tokens. Give max_new_tokens"),
    ],
)
def test_refuses(standardized: Standardized, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InterpError, match=message):
        standardized("gpt2").run(IDS, **given)
