"""Prompts that begin alike, found against all other ways to group them, and run from a beginning in every family."""

from __future__ import annotations

import logging
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.activations import collect
from interp.forward import SharedPrefix, plan_prefixes, prefixes_fit
from interp.model.verdicts import verdicts_of
from interp.sites import Site
from tests.families import build
from tests.interp.forward.alone import BUDGET, off_by, plain_values, prompts, random_ids
from tests.made import watching
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("name", ["gemma2", "mistral", "gpt2", "bloom", "qwen3_moe"])
def test_in_bfloat16_sharing_adds_no_error_to_that_of_the_dtype(name: str) -> None:
    model = StandardizedTransformer(build(name).bfloat16(), tokenizer=tiny_tokenizer(), verify=False)
    given = (model, prompts(), [Site("resid_post", model.num_layers - 1)], [[len(ids) - 1] for ids in prompts()])
    shared = collect(*given, batch_tokens=BUDGET)["resid_post"]
    alone = collect(*given, batch_tokens=1, share_prefixes=False)["resid_post"]
    assert shared.dtype == torch.bfloat16
    assert verdicts_of(model)["prefixes"]
    for row, expected in enumerate(plain_values(name)):  # in float32
        error = off_by(alone[:, row].float(), expected[-1:, -1:])
        assert off_by(shared[:, row].float(), expected[-1:, -1:]) < 1.25 * error + 2e-3


@settings(deadline=None)
@given(
    input_ids=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=8),
    cost=st.sampled_from([0.0, 0.5, 2.0, 5.0, 100.0]),
)
def test_each_prompt_is_in_one_group_that_begins_as_it_does(input_ids: list[list[int]], cost: float) -> None:
    groups = plan_prefixes(input_ids, cost)
    assert sorted(row for group in groups for row in group.rows) == list(range(len(input_ids)))
    assert all(group.rows == sorted(group.rows) for group in groups)
    assert [group.length for group in groups[1:]].count(0) == 0
    for length, rows in groups:
        assert len({tuple(input_ids[row][:length]) for row in rows}) == 1
        assert all(len(input_ids[row]) > length for row in rows)
        assert not length or (len(rows) - 1) * length > cost
    beginnings = [ids[:length] for ids in input_ids for length in range(1, len(ids))]
    sharing = [(b, [ids for ids in input_ids if len(ids) > len(b) and ids[: len(b)] == b]) for b in beginnings]
    best_alone = max([(len(prompts) - 1) * len(b) - cost for b, prompts in sharing], default=0.0)
    assert saved(groups, cost) >= best_alone


def test_hardly_any_other_way_to_share_saves_more() -> None:
    random = Random(0)
    ours, best = 0.0, 0.0
    for _ in range(300):
        lengths = [random.randint(1, 9) for _ in range(random.randint(1, 6))]
        input_ids = [[int(random.random() < 0.15) for _ in range(length)] for length in lengths]
        cost = random.choice([0.0, 0.5, 2.0, 5.0])
        ours += saved(plan_prefixes(input_ids, cost), cost)
        best += max(savings(input_ids, cost))
    assert 0.995 * best < ours <= best


def saved(groups: list[SharedPrefix], cost: float) -> float:
    return sum((len(rows) - 1) * length - cost for length, rows in groups if length)


def savings(input_ids: list[list[int]], cost: float) -> list[float]:
    """What every partition of the prompts saves."""
    found = []
    for partition in partitions(list(range(len(input_ids)))):
        total = 0.0
        for rows in partition:
            length = min(len(input_ids[row]) for row in rows) - 1
            while len({tuple(input_ids[row][:length]) for row in rows}) > 1:
                length -= 1
            total += max(0.0, (len(rows) - 1) * length - cost)
        found.append(total)
    return found


def partitions(rows: list[int]) -> list[list[list[int]]]:
    if not rows:
        return [[]]
    found = []
    for rest in partitions(rows[1:]):
        found.append([[rows[0]], *rest])
        found += [[*rest[:at], [rows[0], *rest[at]], *rest[at + 1 :]] for at in range(len(rest))]
    return found


def test_groups_of_a_few_prompts() -> None:
    header, template = random_ids(50, 20)
    chats = [template + end for end in random_ids(9, 8, 7)]
    shots = [header + end for end in random_ids(3, 4, 5)]
    mixed = [shots[0], chats[0], [1, 2], shots[1], chats[1], shots[2], chats[2]]
    assert plan_prefixes(mixed, cost=30) == [(0, [2]), (50, [0, 3, 5]), (20, [1, 4, 6])]
    assert plan_prefixes(mixed, cost=50) == [(0, [1, 2, 4, 6]), (50, [0, 3, 5])]
    assert plan_prefixes(mixed, cost=1000) == [(0, list(range(7)))]
    assert plan_prefixes([header] * 3) == [(49, [0, 1, 2])]  # one token each is left to go on with
    nested = [header[:count] for count in range(1, 51)]
    assert plan_prefixes(nested, cost=0)[-1].rows[-1] == 49
    assert plan_prefixes([]) == []


@torch.no_grad()
def test_a_family_whose_continuations_give_other_numbers_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    """A layer that looks at the number of its tokens stands for any state that a prefix would lack."""
    module = tiny_model("llama")

    def state(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * (1 + torch.arange(output.shape[1])[:, None] / 8)

    module.get_submodule("model.layers.2.mlp").register_forward_hook(watching(state))
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    sites = [Site("resid_post", 1)]  # below the layer that carries a state
    last = [[len(ids) - 1] for ids in prompts()]
    with caplog.at_level(logging.WARNING, logger="interp"):
        collect(model, prompts(), sites, last, batch_tokens=BUDGET)
    assert verdicts_of(model)["prefixes"] is False
    assert "a shared beginning gives other numbers in this family" in caplog.text


def test_the_verdict_is_of_the_first_prompts_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = StandardizedTransformer(tiny_model("qwen3"), tokenizer=tiny_tokenizer(), verify=False)
    assert prefixes_fit(model, prompts()[:3], 10)
    monkeypatch.setattr("interp.forward.batch._prefix_trial", lambda *_: pytest.fail("asked again"))
    assert prefixes_fit(model, prompts()[:3], 10)

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    fresh = StandardizedTransformer(tiny_model("qwen3"), tokenizer=tiny_tokenizer(), verify=False)
    monkeypatch.undo()
    handle = fresh._module.register_forward_pre_hook(watching(exhausted))
    with pytest.raises(torch.OutOfMemoryError):  # says nothing about the family
        prefixes_fit(fresh, prompts()[:3], 10)
    handle.remove()
    assert "prefixes" not in verdicts_of(fresh)
