"""Collected activations against plain transformers forward passes with torch hooks, one prompt at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.activations import collect, collect_blocks
from interp.activations.offload import Copies
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.model.verdicts import verdicts_of
from interp.sites import Site, parse_sites
from tests.made import watching
from tests.tiny import NUM_LAYERS, VOCABULARY_SIZE, tiny_model, tiny_tokenizer

LENGTHS = [5, 9, 3, 12, 7, 5, 1]

# Where plain PyTorch finds each site: the module's path in the model (with the layer's number) and its side.
_LLAMA = {
    "embed": ("model.layers.0", "input"),
    "resid_pre": ("model.layers.{}", "input"),
    "attn_in": ("model.layers.{}.input_layernorm", "output"),
    "attn_out": ("model.layers.{}.self_attn", "output"),
    "resid_mid": ("model.layers.{}.post_attention_layernorm", "input"),
    "mlp_in": ("model.layers.{}.mlp", "input"),
    "mlp_post": ("model.layers.{}.mlp.down_proj", "input"),
    "mlp_out": ("model.layers.{}.mlp", "output"),
    "resid_post": ("model.layers.{}", "output"),
    "final_norm": ("model.norm", "output"),
    "logits": ("lm_head", "output"),
}
PLACES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gemma2": {  # norms stand behind attention and MLP too, and the logits are capped after the head
        **_LLAMA,
        "attn_out": ("model.layers.{}.post_attention_layernorm", "output"),
        "resid_mid": ("model.layers.{}.pre_feedforward_layernorm", "input"),
        "mlp_out": ("model.layers.{}.post_feedforward_layernorm", "output"),
        "logits": ("", "logits"),
    },
    "gpt2": {
        "embed": ("transformer.h.0", "input"),
        "resid_pre": ("transformer.h.{}", "input"),
        "attn_in": ("transformer.h.{}.ln_1", "output"),
        "attn_out": ("transformer.h.{}.attn", "output"),
        "resid_mid": ("transformer.h.{}.ln_2", "input"),
        "mlp_in": ("transformer.h.{}.ln_2", "output"),
        "mlp_post": ("transformer.h.{}.mlp.c_proj", "input"),
        "mlp_out": ("transformer.h.{}.mlp", "output"),
        "resid_post": ("transformer.h.{}", "output"),
        "final_norm": ("transformer.ln_f", "output"),
        "logits": ("lm_head", "output"),
    },
    "gpt_neox": {  # attention and MLP in parallel: no resid_mid
        "embed": ("gpt_neox.layers.0", "input"),
        "resid_pre": ("gpt_neox.layers.{}", "input"),
        "attn_in": ("gpt_neox.layers.{}.input_layernorm", "output"),
        "attn_out": ("gpt_neox.layers.{}.attention", "output"),
        "mlp_in": ("gpt_neox.layers.{}.post_attention_layernorm", "output"),
        "mlp_post": ("gpt_neox.layers.{}.mlp.dense_4h_to_h", "input"),
        "mlp_out": ("gpt_neox.layers.{}.mlp", "output"),
        "resid_post": ("gpt_neox.layers.{}", "output"),
        "final_norm": ("gpt_neox.final_layer_norm", "output"),
        "logits": ("lm_head", "output"),
    },
}


@cache
def standardized(family: str) -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer())


def prompts(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY_SIZE, (n,), generator=generator).tolist() for n in lengths]


def sites_of(family: str) -> list[Site]:
    return [
        Site(kind, layer)
        for kind, (path, _) in PLACES[family].items()
        for layer in (range(NUM_LAYERS) if "{}" in path else [None])
    ]


def plain_values(family: str, input_ids: list[int], sites: list[Site]) -> dict[Site, torch.Tensor]:
    """(position, hidden) of each site: one prompt, no padding, torch hooks on a model that nnsight has not touched."""
    model = _untouched(family)
    seen: dict[Site, torch.Tensor] = {}

    def first(value: Any) -> torch.Tensor:
        return value if isinstance(value, torch.Tensor) else value[0]

    def hook(site: Site, side: str) -> Callable[..., None]:
        def keep(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if side == "logits":
                seen[site] = output.logits[0].clone()
            elif side == "output":
                seen[site] = first(output)[0].clone()
            else:
                seen[site] = (args[0] if args else kwargs["hidden_states"])[0].clone()

        return keep

    handles = []
    for site in sites:
        path, side = PLACES[family][site.kind]
        module = model.get_submodule(path.format(site.layer))
        handles.append(module.register_forward_hook(hook(site, side), with_kwargs=True))
    with torch.no_grad():
        model(input_ids=torch.tensor([input_ids]))
    for handle in handles:
        handle.remove()
    return seen


@cache
def _untouched(family: str) -> torch.nn.Module:
    return tiny_model(family)


@pytest.mark.parametrize("family", PLACES)
def test_every_site_equals_a_plain_forward_pass_of_one_prompt(family: str) -> None:
    input_ids, sites = prompts(), sites_of(family)
    positions = [[0, len(ids) - 1, len(ids) // 2] for ids in input_ids]
    got = collect(standardized(family), input_ids, sites, positions, batch_tokens=24)
    assert list(got) == list(PLACES[family])
    for row, ids in enumerate(input_ids):
        expected = plain_values(family, ids, sites)
        for site, values in expected.items():
            kept = got[site.kind][site.layer or 0, row]
            assert kept.dtype == torch.float32
            torch.testing.assert_close(kept, values[positions[row]], rtol=1e-5, atol=1e-5, msg=str(site))


HEADED = {  # path of the attention module, of its output projection, and whether that keeps (in, out)
    "llama": ("model.layers.{}.self_attn", "o_proj"),
    "mistral": ("model.layers.{}.self_attn", "o_proj"),
    "gpt2": ("transformer.h.{}.attn", "c_proj"),
    "gpt_neox": ("gpt_neox.layers.{}.attention", "dense"),
}


@torch.no_grad()
def plain_heads(family: str, ids: list[int], layer: int) -> dict[str, torch.Tensor]:
    """What a layer's heads hold in transformers' eager attention, one prompt alone, head axis second."""
    model = tiny_model(family)
    model.set_attn_implementation("eager")  # type: ignore[operator]
    path, name = HEADED[family]
    projection = model.get_submodule(f"{path.format(layer)}.{name}")
    seen: dict[str, torch.Tensor] = {}
    projection.register_forward_pre_hook(lambda _, args: seen.update(z=args[0][0].unflatten(-1, (4, 8))))
    output = model(torch.tensor([ids]), output_attentions=True, use_cache=True)
    cached = output.past_key_values.layers[layer]
    weight = projection.weight if family == "gpt2" else projection.weight.T  # (heads x head_dim, hidden)
    seen["head_out"] = torch.einsum("phd,hde->phe", seen["z"], weight.unflatten(0, (4, 8)))
    if cached.keys.shape[2] == len(ids):  # a window keeps its own keys alone
        seen["k"], seen["v"] = cached.keys[0].transpose(0, 1), cached.values[0].transpose(0, 1)
    seen["pattern"] = output.attentions[layer][0].transpose(0, 1)  # (query, head, key)
    return seen


@pytest.mark.parametrize("family", HEADED)
def test_sites_with_heads_are_those_of_each_prompt_alone(family: str) -> None:
    model, ids = standardized(family), prompts()
    positions = [[len(own) - 1, *range(min(len(own), 3))] for own in ids]
    sites = [Site(kind, layer) for layer in (1, 3) for kind in ("k", "v", "q", "scores", "pattern", "z", "head_out")]
    got = collect(model, ids, [*sites, Site("resid_post", 1)], positions, batch_tokens=30)
    alone = {layer: [plain_heads(family, own, layer) for own in ids] for layer in (1, 3)}
    for row, layer in enumerate((1, 3)):
        for prompt, own in enumerate(ids):
            place = (row, prompt, slice(len(positions[prompt])))
            for kind, values in alone[layer][prompt].items():
                expected = values[positions[prompt]]
                if kind == "pattern":  # keys of the prompt, and nothing behind them
                    assert got[kind][place][..., len(own) :].isnan().all()
                    torch.testing.assert_close(got[kind][place][..., : len(own)], expected, atol=1e-5, rtol=1e-4)
                    scores = got["scores"][place][..., : len(own)]
                    torch.testing.assert_close(scores.softmax(-1), expected, atol=1e-5, rtol=1e-4)
                else:
                    torch.testing.assert_close(got[kind][place], expected, atol=1e-5, rtol=1e-4)
            for kind, values in got.items():
                assert values[:, prompt, len(positions[prompt]) :].isnan().all(), kind
    if family != "mistral":  # without a window: scores are scaled products of queries and keys
        query, keys = got["q"][1, 3, 0], alone[3][3]["k"]  # the last token of the longest prompt
        keys = keys.repeat_interleave(4 // keys.shape[1], dim=1)
        torch.testing.assert_close(
            torch.einsum("hd,khd->hk", query, keys) / 8**0.5, got["scores"][1, 3, 0], atol=1e-4, rtol=1e-4
        )
    residual = collect(model, ids, [Site("resid_post", 1)], positions)["resid_post"]
    torch.testing.assert_close(got["resid_post"], residual, atol=1e-5, rtol=1e-4, equal_nan=True)
    some = [Site(kind, 3, head) for kind in ("z", "pattern", "head_out") for head in (2, 0)]
    for kind, values in collect(model, ids, some, positions).items():
        torch.testing.assert_close(values, got[kind][1][:, :, [2, 0]].movedim(2, 0), equal_nan=True)


def test_what_comes_back_is_detached_on_the_cpu_and_its_own() -> None:
    model, input_ids = standardized("llama"), prompts()
    positions = [[len(ids) - 1] for ids in input_ids]
    sites = parse_sites("resid_pre.1 resid_post.0", NUM_LAYERS)  # the same tensor in the model
    got = collect(model, input_ids, sites, positions)
    assert all(t.device.type == "cpu" and not t.requires_grad and t.is_contiguous() for t in got.values())
    torch.testing.assert_close(got["resid_pre"], got["resid_post"], rtol=0, atol=0)
    got["resid_pre"].zero_()
    assert got["resid_post"].abs().sum() > 0
    assert torch.is_grad_enabled()


def test_it_stops_after_the_last_layer_that_is_asked_for() -> None:
    model, ran = standardized("llama"), []
    handles = [
        model._module.get_submodule(path).register_forward_pre_hook(watching(lambda *_, path=path: ran.append(path)))
        for path in ("model.layers.1", "model.layers.2", "model.norm", "lm_head")
    ]
    ids = prompts([4])
    collect(model, ids, [Site("resid_post", 1), Site("attn_out", 0)], [[3]])
    assert ran == ["model.layers.1"]
    ran.clear()
    collect(model, ids, [Site("final_norm")], [[3]])
    assert ran[-1] == "model.norm"
    for handle in handles:
        handle.remove()


def test_ragged_positions_are_padded_with_nan_and_none_may_stand_anywhere() -> None:
    model, input_ids = standardized("gpt2"), prompts([4, 6, 5])
    sites = [Site("resid_post", 3), Site("resid_post", 0)]  # the order asked for is the order given back
    got = collect(model, input_ids, sites, [[1, 3], [5, -1, 0], []])["resid_post"]
    assert got.shape == (2, 3, 3, 32)
    whole = [collect(model, [ids], sites, [range(len(ids))])["resid_post"][:, 0] for ids in input_ids]
    for row, column, position in [(0, 0, 1), (0, 1, 3), (1, 0, 5), (1, 2, 0)]:
        torch.testing.assert_close(got[:, row, column], whole[row][:, position], rtol=1e-5, atol=1e-5)
    for row, column in [(0, 2), (1, 1), (2, 0), (2, 1), (2, 2)]:
        assert got[:, row, column].isnan().all()
    torch.testing.assert_close(got[1, 0, 0], plain_values("gpt2", input_ids[0], sites)[sites[1]][1])


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_neither_the_order_nor_the_batches_of_prompts_change_a_value(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(["llama", "gpt2", "mistral"]))
    input_ids = prompts(data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=7)), seed=1)
    order = data.draw(st.permutations(range(len(input_ids))))
    sites = parse_sites("embed resid_post.* mlp_out.2", NUM_LAYERS)
    positions = [[len(ids) - 1, 0] for ids in input_ids]
    model = standardized(family)
    alone = collect(model, input_ids, sites, positions, batch_tokens=1)
    shuffled = collect(
        model, [input_ids[i] for i in order], sites, [positions[i] for i in order],
        batch_tokens=data.draw(st.integers(1, 60)),
    )  # fmt: skip
    for kind, values in alone.items():
        torch.testing.assert_close(shuffled[kind], values[:, list(order)], rtol=1e-5, atol=1e-5)


def test_the_same_prompts_give_the_same_bits() -> None:
    model, input_ids = standardized("gemma2"), prompts()
    positions = [[len(ids) - 1] for ids in input_ids]
    sites = parse_sites("resid_post.*", NUM_LAYERS)
    first, second = (collect(model, input_ids, sites, positions, batch_tokens=24)["resid_post"] for _ in range(2))
    assert torch.equal(first, second)


def test_layers_of_two_widths_are_not_one_tensor() -> None:
    narrow, wide = tiny_model("llama"), tiny_model("llama", intermediate_size=80)
    narrow.model.layers[2].mlp = wide.model.layers[2].mlp
    model = StandardizedTransformer(narrow, tokenizer=tiny_tokenizer())
    with pytest.raises(InterpError, match=r"mlp_post.2 has 80 numbers at a position, other layers have 64"):
        collect(model, prompts([4]), parse_sites("mlp_post.*", NUM_LAYERS), [[0]])
    assert collect(model, prompts([4]), [Site("mlp_post", 2)], [[0]])["mlp_post"].shape == (1, 1, 1, 80)


def test_progress_counts_prompts() -> None:
    done: list[int] = []
    ids, last = prompts(), [[n - 1] for n in LENGTHS]
    collect(standardized("gpt2"), ids, [Site("embed")], last, batch_tokens=14, progress=done.append)
    assert done == [1, 2, 4, 7]  # of 12, 9, 7 and 5, 5 and 3 and 1 tokens
    done.clear()
    collect(standardized("gpt2"), ids, [Site("embed")], [[], *last[1:]], batch_tokens=100, progress=done.append)
    assert done[-1] == 7


@pytest.mark.parametrize(
    ("sites", "positions", "message"),
    [
        ([Site("embed")], [[4], [0]], r"prompt 0 has 4 tokens, position 4 .* Expected 0\.\.3, or -1"),
        ([Site("embed")], [[-2], [0]], "position -2"),
        ([Site("embed")], [[0]], "positions for 2 prompts, got 1"),
        ([Site("embed")], [[], []], "at least one position"),
        ([Site("embed"), Site("embed")], [[0], [0]], "embed is asked for twice"),
        ([], [[0], [0]], "got 2 prompts and 0 sites"),
        ([Site("resid_post", 9)], [[0], [0]], "layer 9 is out of range"),
        ([Site("resid_mid", 0)], [[0], [0]], "resid_mid.0' does not exist in GPTNeoX"),
        ([Site("z", 0, 9)], [[0], [0]], r"z.0.h9: head 9 is out of range"),
        ([Site("z", 0), Site("z", 1, 2)], [[0], [0]], r"z: expected sites with all heads, or of one each; got z.0 and"),
    ],
)
def test_what_cannot_be_read_is_said(sites: list[Site], positions: list[list[int]], message: str) -> None:
    with pytest.raises(InterpError, match=message):
        collect(standardized("gpt_neox"), prompts([4, 3]), sites, positions)
    with pytest.raises(InterpError, match="prompt 1 has no tokens"):
        collect(standardized("gpt_neox"), [[1], []], [Site("embed")], [[0], []])


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
