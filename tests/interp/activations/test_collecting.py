"""Collected activations against plain transformers forward passes with torch hooks, one prompt at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.activations import collect
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.sites import Site, parse_sites
from tests.interp.activations.hooked import LENGTHS, PLACES, plain_values, prompts, sites_of, standardized
from tests.made import watching
from tests.tiny import NUM_LAYERS, tiny_model, tiny_tokenizer


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


def test_sites_are_given_in_any_spelling() -> None:
    model = standardized("gpt2")
    written = collect(model, prompts([4, 3]), "resid_post.0-1 blocks.2.attn.hook_z", [[1], [2]])
    sites = [Site("resid_post", 0), Site("resid_post", 1), Site("z", 2)]
    for kind, values in collect(model, prompts([4, 3]), sites, [[1], [2]]).items():
        assert torch.equal(values, written[kind])


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
