"""How prompts are run when they are collected: cut, shared, in sessions, whole, in less memory; the values stay."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp.activations import collect, collect_blocks
from interp.activations.offload import Copies
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.model.verdicts import verdicts_of
from interp.sites import Site, parse_sites
from tests.interp.activations.hooked import LENGTHS, plain_values, prompts, sites_of, standardized
from tests.made import watching
from tests.tiny import NUM_LAYERS, tiny_model, tiny_tokenizer


def fed_tokens(model: StandardizedTransformer, run: Callable[[], Any]) -> list[tuple[int, int]]:
    """(prompts, tokens) of each forward pass that `run` makes."""
    shapes: list[tuple[int, int]] = []

    def note(_: torch.nn.Module, args: Any, kwargs: Any) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = model._module.register_forward_pre_hook(watching(note), with_kwargs=True)
    run()
    handle.remove()
    return shapes


def test_tokens_after_the_last_one_that_is_read_are_not_run() -> None:
    model, input_ids = standardized("llama"), prompts([9, 4, 12])
    sites = [Site("resid_post", 3)]
    whole = collect(model, input_ids, sites, [range(9), range(4), range(12)])["resid_post"]
    given: dict[str, torch.Tensor] = {}
    positions = [[2], [], [5, -1, 0]]
    shapes = fed_tokens(model, lambda: given.update(collect(model, input_ids, sites, positions, batch_tokens=6)))
    assert shapes == [(1, 6), (1, 3)]
    torch.testing.assert_close(given["resid_post"][0, 0, 0], whole[0, 0, 2])
    torch.testing.assert_close(given["resid_post"][0, 2, [0, 2]], whole[0, 2, [5, 0]])
    assert given["resid_post"][0, 1].isnan().all()


def test_a_beginning_that_prompts_share_is_run_once_and_read_from_its_own_run() -> None:
    model = standardized("mistral")  # with windows of 6 tokens
    header, ends = prompts([20])[0], prompts([3, 5, 1, 4], seed=2)
    input_ids = [header + end for end in ends]
    positions = [[len(ids) - 1, 4, 19] for ids in input_ids]
    sites = sites_of("mistral")
    apart = collect(model, input_ids, sites, positions, batch_tokens=64, share_prefixes=False)
    given = collect(model, input_ids, sites, positions, batch_tokens=64)  # finds out once what fits
    other = [[ids[0] + 1, *ids[1:]] for ids in input_ids]
    shapes = fed_tokens(model, lambda: collect(model, other, sites, positions, batch_tokens=64))
    assert shapes == [(1, 20), (1, 20), (1, 13)]  # read, kept, and gone on from
    for kind, values in apart.items():
        torch.testing.assert_close(given[kind], values, rtol=1e-5, atol=1e-5, msg=kind)
    last = [[len(ids) - 1] for ids in input_ids]
    shapes = fed_tokens(model, lambda: list(collect_blocks(model, [(input_ids, last)] * 2, sites, batch_tokens=64)))
    assert shapes == [(1, 20), (1, 13), (1, 13)]  # the next block goes on from it too


def test_blocks_give_what_single_calls_give_and_are_taken_as_they_are_needed() -> None:
    model = standardized("gpt2")
    blocks = [(ids, [[len(one) - 1] for one in ids]) for ids in (prompts([4, 6]), prompts([9, 3, 2]), prompts([5]))]
    sites = parse_sites("resid_post.* embed", NUM_LAYERS)
    taken: list[int] = []

    def lazily() -> Any:
        for number, block in enumerate(blocks):
            taken.append(number)
            yield block

    for number, found in enumerate(collect_blocks(model, lazily(), sites)):
        assert taken == list(range(number + 1))
        assert torch.is_grad_enabled()
        alone = collect(model, *_reordered(blocks[number], sites))
        for kind, values in alone.items():
            torch.testing.assert_close(found[kind], values, rtol=0, atol=0)
    assert taken == [0, 1, 2]
    assert list(collect_blocks(model, [], sites)) == []


def _reordered(block: tuple[Any, Any], sites: list[Site]) -> tuple[Any, list[Site], Any]:
    return block[0], sites, block[1]


@pytest.mark.parametrize("remote", [False, "local"])
def test_the_batches_of_a_block_run_in_one_session(remote: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = standardized("llama"), prompts()
    positions = [[len(own) - 1] for own in ids]
    blocks = [(ids[:4], positions[:4]), (ids[4:], positions[4:])]
    sites = parse_sites("resid_post.* attn_out.2", NUM_LAYERS)
    options: dict[str, Any] = dict(batch_tokens=12, share_prefixes=False)
    expected = list(collect_blocks(model, blocks, sites, **options))  # what is found out once about the family, is
    opened: list[str] = []
    for name in ("session", "trace"):
        monkeypatch.setattr(StandardizedTransformer, name, noted(opened, name, getattr(StandardizedTransformer, name)))
    batches: list[int] = []
    found = list(collect_blocks(model, blocks, sites, **options, remote=remote, progress=batches.append))
    first, second = (opened.index("session"), len(opened) - opened[::-1].index("session") - 1)
    assert (opened.count("session"), first) == (2, 0)
    traces = (opened[first:second].count("trace"), opened[second:].count("trace"))
    assert min(traces) > 1, "several batches in each"
    if not remote:
        assert sum(traces) == len(batches)
    for values, wanted in zip(found, expected, strict=True):
        for kind, value in values.items():
            torch.testing.assert_close(value, wanted[kind], atol=1e-5, rtol=1e-4)
            for prompt, own in enumerate(ids[:4]) if values is found[0] else enumerate(ids[4:]):
                kinds = [site for site in sites if site.kind == kind]
                alone = plain_values("llama", own, kinds)
                for row, site in enumerate(kinds):
                    torch.testing.assert_close(value[row, prompt, 0], alone[site][-1], atol=1e-5, rtol=1e-4)


def noted(opened: list[str], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that writes its name down before it does what it does."""

    def opens(self: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(name)
        return method(self, *args, **kwargs)

    return opens


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_copies_that_arrive_late_are_those_of_their_batch(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator: what a batch gives is taken while the next one runs, across blocks too."""
    family = "qwen2"
    blocks = [
        (ids, [[len(one) - 1, 0] for one in ids]) for ids in (prompts([4, 6, 9, 2]), prompts([9, 3]), prompts([5]))
    ]
    sites = parse_sites("resid_post.* mlp_post.1 logits", NUM_LAYERS)
    expected = [collect(standardized(family), ids, sites, where) for ids, where in blocks]
    model = StandardizedTransformer(tiny_model(family).to(device), tokenizer=tiny_tokenizer())

    class Late(Copies):
        def __init__(self, where: torch.device) -> None:
            super().__init__(where)
            self._at_once = False

    monkeypatch.setattr("interp.activations.collecting.Copies", Late)
    found = list(collect_blocks(model, blocks, sites, batch_tokens=9))
    assert len(found) == len(expected)
    for here, there in zip(found, expected, strict=True):
        for kind, values in there.items():
            torch.testing.assert_close(here[kind], values, rtol=1e-5, atol=1e-5)


def test_a_model_that_looks_ahead_is_given_whole_prompts_under_a_mask(caplog: pytest.LogCaptureFixture) -> None:
    module = tiny_model("gemma3_text", use_bidirectional_attention=True, sliding_window=64)
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    header = prompts([20])[0]
    input_ids = [header + end for end in prompts([3, 5, 1, 4], seed=2)]
    positions = [[2, 0], [21], [-1, 20], [7]]
    sites = parse_sites("resid_post.*", NUM_LAYERS)
    with caplog.at_level(logging.WARNING, "interp"):
        given = collect(model, input_ids, sites, positions, batch_tokens=64)["resid_post"]
    assert "looks ahead" in caplog.text
    assert verdicts_of(model)["causal"] is False
    for row, ids in enumerate(input_ids):
        alone = collect(model, [ids], sites, [range(len(ids))])["resid_post"][:, 0]
        for place, position in enumerate(positions[row]):
            if position >= 0:
                torch.testing.assert_close(given[:, row, place], alone[:, position], rtol=1e-5, atol=1e-5)
    ahead = collect(model, [input_ids[0][:3]], sites, [[2]])["resid_post"][:, 0, 0]
    assert not torch.allclose(ahead, given[:, 0, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scaling", ["longrope", "dynamic"])
def test_a_prompt_that_changes_the_rotation_of_its_batch_runs_alone(scaling: str) -> None:
    factors = dict(short_factor=[1.0] * 4, long_factor=[4.0, 5.0, 6.0, 7.0]) if scaling == "longrope" else {}
    rope = dict(rope_type=scaling, rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16, **factors)
    changes = dict(rope_parameters=rope, max_position_embeddings=64 if scaling == "longrope" else 16)
    header = prompts([12])[0]
    input_ids = [header + end for end in prompts([3, 9, 2, 4, 7], seed=4)]  # three within the limit, two beyond it
    positions = [[2, len(ids) - 1] for ids in input_ids[:-1]] + [[2, 5]]
    sites = parse_sites("resid_post.*", NUM_LAYERS)

    def fresh() -> StandardizedTransformer:  # `dynamic` remembers the longest prompt that it has seen
        return StandardizedTransformer(tiny_model("llama", **changes), tokenizer=tiny_tokenizer(), verify=False)

    given = collect(fresh(), input_ids, sites, positions, batch_tokens=80)["resid_post"]
    for row, ids in enumerate(input_ids):
        module, seen = fresh()._module, []
        for layer in module.get_submodule("model.layers"):  # type: ignore[union-attr]
            layer.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output[0].clone()))
        with torch.no_grad():
            module(input_ids=torch.tensor([ids]), use_cache=False)
        torch.testing.assert_close(given[:, row], torch.stack(seen)[:, positions[row]], rtol=1e-5, atol=1e-5)


class _Exhausted:
    """A device that takes so many tokens in a forward pass, and says that it has no memory for more."""

    def __init__(self, tokens: int, error: Callable[[], None]) -> None:
        self.tokens, self.error = tokens, error

    def __call__(self, _: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > self.tokens:
            self.error()


def _allocate() -> None:
    torch.empty(1 << 50)


def _cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("error", [_allocate, _cuda])
@pytest.mark.parametrize("header", [0, 20])
def test_memory_that_runs_out_halves_the_budget_and_the_rest_goes_on(
    error: Callable[[], None], header: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = standardized("llama")
    input_ids = [prompts([max(header, 1)])[0][:header] + end for end in prompts([9, 8, 10, 9, 4, 3, 10, 8], seed=3)]
    positions = [[len(ids) - 1, 1] for ids in input_ids]
    sites = parse_sites("resid_post.*", NUM_LAYERS)
    expected = collect(model, input_ids, sites, positions, batch_tokens=80)["resid_post"]
    handle = model._module.register_forward_pre_hook(watching(_Exhausted(25, error)), with_kwargs=True)
    done: list[int] = []
    with caplog.at_level(logging.WARNING, "interp"):
        given = collect(model, input_ids, sites, positions, batch_tokens=80, progress=done.append)["resid_post"]
    handle.remove()
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    assert done[-1] == len(input_ids) and done == sorted(set(done))
    said = [record.getMessage() for record in caplog.records]
    assert said and all(line.startswith("out of memory with ") and "going on with at most" in line for line in said)


def test_a_prompt_that_does_not_fit_alone_and_other_faults_are_raised() -> None:
    model, input_ids = standardized("llama"), prompts([9, 8, 3])
    given = (model, input_ids, [Site("resid_post", 1)], [[len(ids) - 1] for ids in input_ids])
    handle = model._module.register_forward_pre_hook(watching(_Exhausted(5, _cuda)), with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        collect(*given)
    handle.remove()

    def fault() -> None:
        raise RuntimeError("another fault")

    handle = model._module.register_forward_pre_hook(watching(_Exhausted(0, fault)), with_kwargs=True)
    with pytest.raises(RuntimeError, match="another fault"):
        collect(*given)
    handle.remove()
    assert not any(module._forward_hooks for module in model._module.modules())
    with pytest.raises(InterpError, match="batch_tokens: expected at least 1, got 0"):
        collect(*given, batch_tokens=0)


def test_a_hook_put_on_while_batches_are_run_is_refused_and_one_taken_off_is_not() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    prompts = [list(range(3, 3 + length)) for length in LENGTHS]
    last = [[length - 1] for length in LENGTHS]
    sites = [Site("resid_post", 1)]
    plain = collect(model, prompts, sites, last)["resid_post"]
    handles: list[Any] = []

    def put_on(_: int) -> None:
        if not handles:
            hook = lambda _, __, output: output + 1  # noqa: E731
            handles.append(model._module.get_submodule("model.layers.1").register_forward_hook(hook))

    with pytest.raises(InterpError, match="was put on the model while it was collected from"):
        collect(model, prompts, sites, last, batch_tokens=12, progress=put_on)
    found = collect(model, prompts, sites, last, batch_tokens=12, progress=lambda _: handles[0].remove())["resid_post"]
    moved = [bool((found[:, row] - plain[:, row]).mean() > 0.5) for row in range(len(prompts))]
    assert any(moved) and not all(moved)  # each as the model was when its batch ran
    expected = plain + torch.tensor(moved)[None, :, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
