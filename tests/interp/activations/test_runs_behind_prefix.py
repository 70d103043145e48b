"""`model.run` behind a frozen prefix gives what it gives of whole prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.activations import generating
from interp.errors import InterpError
from interp.interventions import Intervention
from interp.sites import Site
from tests.interp.reference import wrapped

PREFIX = [1, 17, 250, 33, 94, 301, 5, 6, 77]  # longer than the windows of Gemma 2 and Mistral here
RESTS = [[9, 10, 11, 12], [40, 50], [60, 61, 62]]
WHOLE = [PREFIX + rest for rest in RESTS]
START = len(PREFIX)
FAMILIES = ["gpt2", "llama", "gemma2", "mistral"]
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
OTHER = [1, 3, 3, 100, 7]
READ = "resid_post.* z.2 q.1 k.1 v.2 scores.2 pattern.3 pattern.1.h1"


def interventions(start: int, rests: Sequence[Sequence[int]] = RESTS, **given: Any) -> list[Intervention]:
    """Of what follows a prefix, or of whole prompts in which as many tokens come before it."""
    all_ = [list(range(start, start + len(rest))) for rest in rests]
    return [
        Intervention("resid_post.1", "last", "add", VECTOR, factor=2, **given),
        Intervention("resid_post.0", start, "set", {"prompt": OTHER, "position": "last"}),
        Intervention("z.2.h1", start, "zero"),
        Intervention("k.1", start, "scale", 2.0, **given),
        Intervention("v.2", all_, "noise", std=2.0, seed=3, **given),
        Intervention("q.3", "last", "scale", -1.5, **given),
        Intervention("scores.0", "last", "knockout", from_positions=start, **given),
        Intervention("scores.1", "last", "scale", 0.5),  # of all keys, those of the prefix too
        Intervention("pattern.2.h1", "last", "zero"),
        Intervention("mlp_out.2", "last", "resample", seed=1),
        Intervention("resid_post.3", start, "skip"),
    ]


def close(found: Tensor | None, expected: Tensor | None) -> None:
    assert found is not None and expected is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5, equal_nan=True)


def halves(logits: Tensor, examples: list[int]) -> Tensor:
    """A number of each example that depends on the last two positions; NaN counts for nothing."""
    return logits[:, -2:, 7].nan_to_num().sum(1) + logits[:, 0, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_is_what_whole_prompts_give(family: str) -> None:
    model = wrapped(family)
    prefix = model.freeze_prefix([PREFIX])
    own = [str(START + token) for token in range(2)]  # each of them has two
    given: dict[str, Any] = dict(read=READ, gradients_of=halves)
    for _ in range(2):  # the prefix is read, and never written
        found = model.run(RESTS, interventions(0), prefix=prefix, positions="0 1 last", **given)
    expected = model.run(WHOLE, interventions(START), positions=[*own, "last"], **given)
    plain = model.run(WHOLE, positions=[*own, "last"])
    assert expected.logits is not None and plain.logits is not None
    assert not torch.allclose(expected.logits, plain.logits, atol=1e-2)
    assert found.tokens == [[token - START for token in row] for row in expected.tokens]
    close(found.logits, expected.logits)
    close(found.metric, expected.metric)
    assert found.gradients is not None and expected.gradients is not None
    for site in expected.activations:
        close(found[site], expected[site])
        close(found.gradients[site], expected.gradients[site])
    shared = model.run(RESTS, Intervention("resid_post.1", "last", "add", VECTOR), prefix=prefix, read="resid_post.3")
    alone = [
        model.run([ids], Intervention("resid_post.1", "last", "add", VECTOR), read="resid_post.3") for ids in WHOLE
    ]
    close(shared.logits, torch.cat([one.logits for one in alone if one.logits is not None]))
    close(shared["resid_post.3"], torch.cat([one["resid_post.3"] for one in alone]))
    cached, cache = model.run_with_cache(RESTS, prefix=prefix, interventions=interventions(0), sites=READ)
    assert found.logits is not None
    close(cached[:, :2], found.logits[:, :2])
    close(cache["pattern.3"][:, :, :2], found["pattern.3"][:, :, :2])


@pytest.mark.parametrize("family", FAMILIES)
def test_new_tokens_are_those_of_whole_prompts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(family)
    prefix = model.freeze_prefix([PREFIX])
    given: dict[str, Any] = dict(max_new_tokens=4, stop_ids=[], temperature=0.8, seed=2, read="resid_post.1")
    changes, whole = interventions(0, steps="every"), interventions(START, steps="every")
    expected = model.run(WHOLE, whole, **given)
    widths: list[int] = []
    run = model.interleave

    def counted(self: Any, *args: Any, **inputs: Any) -> Any:
        widths.append(inputs["input_ids"].shape[1])
        return run(*args, **inputs)

    model.run(RESTS, changes, prefix=prefix, **given)  # tried out, and measured
    monkeypatch.setattr(type(model), "interleave", counted)
    found = model.run(RESTS, changes, prefix=prefix, **given)
    assert sorted(widths[-12:]) == [1] * 9 + [2, 3, 4]  # one length at a time, each over the cache
    monkeypatch.setattr(generating, "verdict", lambda *_, **__: False)
    again = model.run(RESTS, changes, prefix=prefix, **given)
    for one in (found, again):
        assert one.new_ids == expected.new_ids
        close(one.new_logits, expected.new_logits)
        close(one["resid_post.1"], expected["resid_post.1"])


def test_many_rows_of_several_prefixes_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("llama")
    other = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    prefix = model.freeze_prefix([PREFIX, other])
    rests = [[9, 10, 11], [40, 50, 3], [60], [61], [7, 7], [8, 8]]
    whole = [[PREFIX, other][row % 2] + rest for row, rest in enumerate(rests)]
    given: dict[str, Any] = dict(read="pattern.1 v.1", batch_size=2)
    changes = [interventions(start, rests) for start in (0, START)]
    found = model.run(rests, changes[0], prefix=prefix, **given)
    expected = model.run(whole, changes[1], **given)
    close(found.logits, expected.logits)
    close(found["pattern.1"], expected["pattern.1"])
    close(found["v.1"], expected["v.1"])
    ids = model.run(whole, changes[1], max_new_tokens=4, stop_ids=[]).new_ids
    assert ids is not None
    stop = ids[2][1]  # that row ends there, and others of its length go on
    ids = [row[: row.index(stop) + 1] if stop in row else row for row in ids]
    assert len({len(row) for row in ids[2:4]}) == 2
    for _ in ("over the cache", "by whole passes"):
        found = model.run(rests, changes[0], prefix=prefix, max_new_tokens=4, stop_ids=[stop], batch_size=4)
        assert found.new_ids == ids
        monkeypatch.setattr(generating, "verdict", lambda *_, **__: False)


def test_hooks_act_on_what_follows_in_every_step() -> None:
    model = wrapped("llama")
    prefix = model.freeze_prefix([PREFIX])

    def half(value: Tensor, site: Site) -> Tensor:
        return value / 2

    change = Intervention("resid_post.2", "last", "add", VECTOR)
    steered = Intervention("resid_post.1", [list(range(len(rest))) for rest in RESTS], "scale", 0.5, steps="every")
    with model.hooks([("resid_post.1", half)]):
        found = model.run(RESTS, change, prefix=prefix, max_new_tokens=3, stop_ids=[])
    expected = model.run(RESTS, [change, steered], prefix=prefix, max_new_tokens=3, stop_ids=[])
    assert found.new_ids == expected.new_ids
    close(found.new_logits, expected.new_logits)


def test_a_trained_value_has_its_gradient() -> None:
    model = wrapped("llama")
    prefix = model.freeze_prefix([PREFIX])
    gradients = []
    for prompts, given in ((RESTS, {"prefix": prefix}), (WHOLE, {})):
        value = VECTOR.clone().requires_grad_()
        run = model.run(prompts, Intervention("resid_post.1", "last", "add", value), keep_graph=True, **given)
        assert run.logits is not None
        run.logits[..., 7].sum().backward()
        gradients.append(value.grad)
    close(gradients[0], gradients[1])


def test_keys_of_maps_count_from_the_first_token_of_the_prefix() -> None:
    model = wrapped("gpt2")
    prefix = model.freeze_prefix([PREFIX])
    rest = RESTS[0]
    keys = torch.linspace(0.1, 1, START + len(rest))
    patterns = model.run([PREFIX + OTHER[1:]], read="pattern.2", positions="last")["pattern.2"]
    changes = [
        Intervention("pattern.1", "last", "scale", keys),
        Intervention("pattern.2", "last", "set", {"prompt": PREFIX + OTHER[1:]}),
    ]
    found = model.run([rest], changes, prefix=prefix, read="pattern.2")
    close(found.logits, model.run([PREFIX + rest], changes).logits)
    close(found["pattern.2"], patterns)
    with pytest.raises(InterpError, match=rf"key {START + len(rest)}\)"):
        model.run([rest], Intervention("pattern.1", "last", "scale", keys[: len(rest)]), prefix=prefix)


def test_what_does_not_fit_is_refused() -> None:
    model = wrapped("llama")
    prefix = model.freeze_prefix([PREFIX])
    gpt2 = wrapped("gpt2")
    in_prefix = Intervention("scores.1", "last", "knockout", from_positions=-6)
    from_other = Intervention("resid_post.1", "first", "set", {"prompt": OTHER})
    refused: list[tuple[StandardizedTransformer, dict[str, Any], str]] = [
        (gpt2, {}, "another model"),
        (model, {"interventions": in_prefix}, "Positions count what follows the prefix"),
        (model, {"positions": "0 5"}, "position '5' is out of range"),
        (model, {"padding_side": "rigth"}, "padding_side: expected left or right"),
        (model, {"batch_size": 0}, "batch_size: expected at least 1"),
        (model, {"interventions": from_other}, "say where the prompts are read"),
        (gpt2, {"prefix": gpt2.freeze_prefix([PREFIX]), "max_new_tokens": 250}, "256 positions"),
        (model, {"interventions": Intervention("resid_post.1", "last", "add", VECTOR[:7])}, "does not fit"),
    ]
    for one, given, message in refused:
        with pytest.raises(InterpError, match=message):
            one.run(RESTS, **{"prefix": prefix, **given})
