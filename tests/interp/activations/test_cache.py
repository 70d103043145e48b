"""`run_with_cache` against plain torch hooks: sites, batches and padding, parts of the model, gradients, errors."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.activations.chosen_sites import COSTLY
from interp.activations.site_copies import SiteReader
from interp.errors import InterpError
from interp.prompts import Prompt
from interp.sites import Site
from tests.families import build as build_family
from tests.interp.activations.plain_sites import FAMILIES, plain_sites
from tests.interp.reference import IDS, build, place, plain, wrapped
from tests.made import LiveBytes, watching
from tests.tiny import tiny_model, tiny_tokenizer

RAGGED = [[1, 17, 250, 33, 94, 301, 7], [1, 88, 5], [1, 260, 71, 12, 9]]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("case", FAMILIES)
def test_every_site_is_what_torch_hooks_see(case: str) -> None:
    model = wrapped(case)
    logits, cache = model.run_with_cache(IDS, sites="all")
    expected = plain_sites(case, [str(site) for site in cache.sites if site.kind != "head_out"], IDS)
    assert {site.kind for site in cache.sites} >= {"embed", "q", "k", "v", "scores", "pattern", "z", "final_norm"}
    for site, value in expected.items():
        if site.startswith("scores"):
            hidden = value < -1e9
            assert torch.equal(cache[site] < -1e9, hidden)
            close(cache[site][~hidden], value[~hidden])
        else:
            close(cache[site], value)
        assert len(cache.axes(site)) == cache[site].dim() and cache.axes(site)[0] == "example"
    close(logits, expected["logits"])
    for layer in range(model.num_layers):
        heads, bias = cache[f"head_out.{layer}"].sum(2), 0.0
        if case in ("gpt2", "gpt_neox"):
            bias = (
                plain(case)
                .get_submodule(
                    f"transformer.h.{layer}.attn.c_proj"
                    if case == "gpt2"
                    else f"gpt_neox.layers.{layer}.attention.dense"
                )
                .bias.detach()
            )  # type: ignore[union-attr, operator]
        close(heads + bias, cache[f"attn_out.{layer}"])


def test_the_identities_of_the_sites_hold_where_a_layer_adds_in_place() -> None:
    model = StandardizedTransformer(build_family("falcon"), tokenizer=tiny_tokenizer())
    _, cache = model.run_with_cache(IDS, sites=None)
    assert not {site.kind for site in cache.sites} & set(COSTLY)
    for layer in range(model.num_layers):
        added = cache[f"attn_out.{layer}"] + cache[f"mlp_out.{layer}"]
        close(cache[f"resid_post.{layer}"], cache[f"resid_pre.{layer}"] + added)
    for layer in range(1, model.num_layers):
        assert cache[f"resid_pre.{layer}"] is cache[f"resid_post.{layer - 1}"]
    close(model.readout(cache["resid_post.-1"]), model.run_with_cache(IDS, sites="embed")[0])


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_what_its_prompts_give_alone(case: str, side: Any) -> None:
    model = wrapped(case)
    sites = "resid_post.* z.1 z.2.h1 q.1 k.2 pattern.1 pattern.2.h3 head_out.0 logits"
    logits, cache = model.run_with_cache(RAGGED, sites=sites, padding_side=side)
    in_passes = model.run_with_cache(RAGGED, sites=sites, batch_size=2)
    for row, ids in enumerate(RAGGED):
        length = len(ids)
        output, alone = model.run_with_cache([ids], sites=sites)
        close(logits[row, :length], output[0])
        assert logits[row, length:].isnan().all()
        for site in cache:
            found, expected, axes = cache[site][row], alone[site][0], cache.axes(site)[1:]
            close(in_passes[1][site][row], found)
            for axis, name in enumerate(axes):
                if name in ("position", "query", "key"):
                    assert found.narrow(axis, length, found.shape[axis] - length).isnan().all()
                    found = found.narrow(axis, 0, length)
            close(found, expected)
    close(in_passes[0], logits)
    assert cache.lengths == [7, 3, 5] and cache.input_ids == RAGGED


def test_an_encoding_padded_on_either_side_is_its_prompts() -> None:
    model = wrapped("llama")
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    ids = torch.tensor([[0, 0, 1, 88, 5], [1, 260, 71, 12, 0]])
    _, cache = model.run_with_cache({"input_ids": ids, "attention_mask": mask}, sites="resid_post.2")
    _, expected = model.run_with_cache([[1, 88, 5], [1, 260, 71, 12]], sites="resid_post.2")
    close(cache["resid_post.2"], expected["resid_post.2"])


def test_positions_are_those_of_each_prompt() -> None:
    model = wrapped("llama")
    _, whole = model.run_with_cache(RAGGED, sites="resid_post.1 q.1 pattern.1")
    _, cache = model.run_with_cache(RAGGED, sites="resid_post.1 q.1 pattern.1", positions=["last", "0:2"])
    assert cache.positions == [[6, 0, 1], [2, 0, 1], [4, 0, 1]] and cache.labels == ["last", "0:2[0]", "0:2[1]"]
    for row, places in enumerate(cache.positions):
        close(cache["resid_post.1"][row], whole["resid_post.1"][row, places])
        close(cache["q.1"][row], whole["q.1"][row][:, places])
        close(cache["pattern.1"][row], whole["pattern.1"][row][:, places])
    _, cache = model.run_with_cache(RAGGED, sites="resid_post.1", positions=[[1], [], [4, -2]])
    assert cache.positions == [[1, -1], [-1, -1], [4, 3]]
    close(cache["resid_post.1"][2], whole["resid_post.1"][2, [4, 3]])
    assert cache["resid_post.1"][1].isnan().all()
    text = "The quick brown fox"
    prompt = Prompt(text, spans={"animal": (text.index("fox"), len(text))})
    _, cache = model.run_with_cache(prompt, sites="resid_post.1", positions="animal.last")
    assert cache.positions[0][0] == len(model.tokenizer(text)["input_ids"]) - 1  # type: ignore[arg-type]


def test_spellings_heads_and_what_is_missing() -> None:
    model = wrapped("llama")
    _, cache = model.run_with_cache(IDS, sites=["blocks.1.hook_resid_post", "z.2", ("pattern", -1), "q.0.h1"])
    assert list(cache) == ["q.0.h1", "resid_post.1", "z.2", "pattern.3"]
    assert cache["resid_post", 1] is cache["layers_output[1]"] is cache["resid_post.1"]
    assert torch.equal(cache["z.2.h-1"], cache["z.2"][:, :, 3]) and cache.axes("z.2.h3") == (
        "example", "position", "head_dim",
    )  # fmt: skip
    assert "resid_post.1" in cache and "z.2.h1" in cache and "resid_post.0" not in cache
    assert cache.get("resid_post.0") is None
    with pytest.raises(InterpError, match=r"no 'resid_post\.2'.*resid_post\.1"):
        cache["resid_post.2"]
    with pytest.raises(InterpError, match=r"no 'pattern\.3'. Name it in `sites`. Here: embed, resid_pre"):
        model.run_with_cache(IDS)[1]["pattern.3"]
    with pytest.raises(InterpError, match="Did you mean 'resid_post'"):
        "resid_pots.1" in cache  # noqa: B015 - it raises
    for sites, said in (
        ("resid_posst.1", "Did you mean 'resid_post'"),
        (["resid_post.1", "blocks.1.hook_resid_pots"], "hook_resid_post"),
        ("resid_post.9", "out of range"),
        ([], "at least one"),
    ):
        with pytest.raises(InterpError, match=said):
            model.run_with_cache(IDS, sites=sites)
    with pytest.raises(InterpError, match="parallel residual"):
        wrapped("cohere").run_with_cache(IDS, sites="resid_mid.*")


def test_a_star_names_the_layers_that_have_the_site() -> None:
    model = StandardizedTransformer(build_family("jamba"), tokenizer=tiny_tokenizer())
    _, cache = model.run_with_cache(IDS, sites="attn_out.* mixer_out.*")
    assert 0 < len(cache.named("attn_out")) < model.num_layers
    assert len(cache) == model.num_layers
    absent = next(layer for layer in range(model.num_layers) if f"attn_out.{layer}" not in cache)
    with pytest.raises(InterpError, match="has no attention"):
        model.run_with_cache(IDS, sites=f"attn_out.{absent}")


# Parts of the model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2", "cohere"])
def test_from_one_layer_to_another(case: str) -> None:
    model = wrapped(case)
    logits, whole = model.run_with_cache(RAGGED, sites="resid_pre.* resid_post.*")
    ran: list[int] = []
    hooks = [
        model.mlps[layer]._module.register_forward_hook(watching(lambda *_, layer=layer: ran.append(layer)))
        for layer in range(model.num_layers)
    ]
    try:
        entering, cache = model.run_with_cache(RAGGED, stop_at_layer=2, sites="resid_post.0-1")
        assert set(ran) == {0, 1}
        close(entering, whole["resid_pre.2"])
        close(cache["resid_post.1"], whole["resid_post.1"])
        again, cache = model.run_with_cache(entering, start_at_layer=2, sites="resid_post.2-3")
        ran.clear()
        model.run_with_cache(entering, start_at_layer=2, sites="resid_post.2-3")
        assert set(ran) == {2, 3}
    finally:
        for hook in hooks:
            hook.remove()
    close(again, logits)
    close(cache["resid_post.3"], whole["resid_post.3"])
    part, cache = model.run_with_cache(entering[:1], start_at_layer=2, stop_at_layer=-1)
    close(part, whole["resid_pre.3"][:1])
    assert {site.layer for site in cache.sites} == {2, 3} and cache.input_ids is None
    final, _ = model.run_with_cache(RAGGED, stop_at_layer=4, sites="resid_post.3")
    close(final, whole["resid_post.3"])
    for given, said in (
        (dict(stop_at_layer=5), "0 to 4"),
        (dict(stop_at_layer=2, sites="attn_out.2"), "ends before layer 2"),
        (dict(stop_at_layer=2, sites="mlp_out.3"), "ends before layer 2"),
    ):
        with pytest.raises(InterpError, match=said):
            model.run_with_cache(RAGGED, **given)  # type: ignore[arg-type]
    with pytest.raises(InterpError, match="begins at layer 2"):
        model.run_with_cache(entering, start_at_layer=2, sites="resid_post.0")
    with pytest.raises(InterpError, match="expected residual streams"):
        model.run_with_cache(RAGGED, start_at_layer=2)


def test_a_start_is_refused_where_layers_take_more_than_the_residual_stream() -> None:
    model = StandardizedTransformer(build_family("zamba2"), tokenizer=tiny_tokenizer())
    entering, _ = model.run_with_cache(IDS, stop_at_layer=1)
    with pytest.raises(InterpError, match="more than the residual stream"):
        model.run_with_cache(entering, start_at_layer=1)


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2"])
def test_gradients_are_those_of_plain_torch(case: str) -> None:
    model = wrapped(case)
    kinds = ["resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post"]
    sites = [f"{kind}.{layer}" for kind in kinds for layer in (0, 2)]
    kept: dict[str, Tensor] = {}
    hooks = []
    for site in sites:
        module, side = place(case, site)

        def keep(value: Tensor, site: str) -> None:
            value.retain_grad()
            kept[site] = value

        if side == "input":

            def before(_: nn.Module, args: Any, kwargs: Any, site: str = site) -> None:
                keep(args[0] if args else kwargs["hidden_states"], site)

            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:

            def after(_: nn.Module, args: Any, output: Any, site: str = site) -> None:
                keep(output if isinstance(output, Tensor) else output[0], site)

            hooks.append(module.register_forward_hook(after))
    try:
        logits = plain(case)(input_ids=IDS).logits
        (logits[0, -1, 7] - logits[1, 2, 9]).backward()
    finally:
        for hook in hooks:
            hook.remove()
        plain(case).zero_grad()
    model.zero_grad()  # others share the model
    output, cache = model.run_with_cache(
        IDS, sites="embed", gradients=sites, gradients_of=lambda logits: logits[0, -1, 7] - logits[1, 2, 9]
    )
    assert not output.requires_grad and all(parameter.grad is None for parameter in model.parameters())
    for site in sites:
        close(cache.gradients[site], kept[site].grad)  # type: ignore[arg-type]
        assert not cache.gradients[site].requires_grad


def test_gradients_inside_attention_of_heads_and_over_batches() -> None:
    model = wrapped("llama")
    sites = "z.1 z.1.h2 pattern.1 head_out.1 attn_out.1 k.2 logits"

    def last(logits: Tensor) -> Tensor:
        return logits[0, 6, 7] + logits[1, 2, 7] + logits[2, 4, 7]

    _, cache = model.run_with_cache(RAGGED, sites="resid_post.3", gradients=sites, gradients_of=last)
    grads = cache.gradients
    close(grads["z.1"][:, :, 2], grads["z.1.h2"])
    close(grads["head_out.1"], grads["attn_out.1"][:, :, None].expand(-1, -1, 4, -1))
    _, split = model.run_with_cache(RAGGED, sites="resid_post.3", gradients=sites, gradients_of=last, batch_size=1)
    for row, ids in enumerate(RAGGED):
        _, alone = model.run_with_cache(
            [ids], sites="embed", gradients=sites, gradients_of=lambda logits: logits[0, -1, 7]
        )
        for site in grads:
            close(split.gradients[site][row], grads[site][row])
        close(grads["z.1"][row, : len(ids)], alone.gradients["z.1"][0])
        close(grads["pattern.1"][row, :, : len(ids), : len(ids)], alone.gradients["pattern.1"][0])
    assert float(grads["logits"].nansum()) == 3


def test_what_is_no_scalar_is_refused() -> None:
    model = wrapped("llama")
    for function, said in (
        (lambda logits: logits, "expected one number"),
        (lambda logits: 3.0, "expected one number"),
        (lambda logits: logits[:, -1].sum(), "NaN behind the last token"),
        (lambda logits: logits.detach().nansum(), "with its gradient"),
    ):
        with pytest.raises(InterpError, match=said):
            model.run_with_cache(RAGGED, sites="embed", gradients="resid_post.1", gradients_of=function)
    with pytest.raises(InterpError, match="expected both"):
        model.run_with_cache(RAGGED, gradients="resid_post.1")


# The tensors ----------------------------------------------------------------------------------------------------------


def test_copies_are_made_once_a_tensor_and_are_detached() -> None:
    model = wrapped("llama")
    _, cache = model.run_with_cache(IDS, sites="embed resid_pre.* resid_post.* resid_mid.*")
    storages = {value.untyped_storage().data_ptr() for value in cache.values()}
    assert len(cache) == 13 and len(storages) == 9  # what goes in, and after each stage of four layers
    assert all(not value.requires_grad and value.is_contiguous() for value in cache.values())
    _, cache = model.run_with_cache(RAGGED, sites="resid_pre.2 resid_post.1 resid_post.2", batch_size=1)
    assert cache["resid_pre.2"] is cache["resid_post.1"] is not cache["resid_post.2"]
    with model.hooks([("resid_pre.2", lambda value, site: value * 2)]):
        _, hooked = model.run_with_cache(IDS, sites="resid_pre.2 resid_post.1")
    close(hooked["resid_pre.2"], 2 * hooked["resid_post.1"])


def test_device_and_dtype() -> None:
    model = wrapped("llama")
    _, cache = model.run_with_cache(RAGGED, sites="resid_post.* z.1", dtype=torch.bfloat16, device="cpu")
    assert {value.dtype for value in cache.values()} == {torch.bfloat16}
    _, whole = model.run_with_cache(RAGGED, sites="resid_post.* z.1")
    moved = whole.to(dtype=torch.bfloat16)
    assert torch.equal(moved["z.1"].nan_to_num(), cache["z.1"].nan_to_num()) and whole["z.1"].dtype == torch.float32
    with pytest.raises(InterpError, match="floating-point"):
        model.run_with_cache(RAGGED, dtype=torch.int32)
    with pytest.raises(InterpError, match="device: expected one of torch"):
        model.run_with_cache(RAGGED, device="gpu")


def test_a_stack_and_a_table() -> None:
    model = wrapped("llama")
    _, cache = model.run_with_cache(RAGGED, sites="resid_post.* z.1 mlp_post.2", positions=["last", "first"])
    assert torch.equal(cache.stack("resid_post")[2], cache["resid_post.2"])
    assert cache.stack(["resid_post.3", "resid_post.0"]).shape == (2, 3, 2, 32)
    with pytest.raises(InterpError, match="of one shape"):
        cache.stack("resid_post.0 mlp_post.2")
    frame = cache.to_frame("z.1")
    assert list(frame.columns[:4]) == ["site", "example", "position", "head"] and len(frame) == 3 * 2 * 4
    row = frame[(frame["example"] == 2) & (frame["position"] == 4) & (frame["head"] == 3)]
    assert row[list(range(8))].to_numpy()[0].tolist() == cache["z.1"][2, 0, 3].tolist()
    with pytest.raises(InterpError, match="numbers along"):
        cache.to_frame()


def test_it_comes_back_from_a_file(tmp_path: Any) -> None:
    model = wrapped("llama")
    _, cache = model.run_with_cache(
        RAGGED, sites="resid_post.* resid_pre.* pattern.1 z.2.h1", gradients="z.1",
        gradients_of=lambda logits: logits[0, 0, 0],
    )  # fmt: skip
    cache.save(tmp_path / "cache.safetensors")
    assert (tmp_path / "cache.safetensors").stat().st_size < 1.3 * sum(
        {value.data_ptr(): value.nbytes for value in (*cache.values(), *cache.gradients.values())}.values()
    )
    loaded = type(cache).load(tmp_path / "cache.safetensors", model)
    assert loaded.sites == cache.sites and loaded.positions == cache.positions and loaded.input_ids == RAGGED
    assert loaded.model is model and loaded.model_digest == model.digest() and loaded.labels == cache.labels
    for site in cache:
        assert torch.equal(loaded[site].nan_to_num(), cache[site].nan_to_num())
    assert torch.equal(loaded.gradients["z.1"].nan_to_num(), cache.gradients["z.1"].nan_to_num())
    assert loaded["resid_pre.2"] is loaded["resid_post.1"]
    with pytest.raises(InterpError, match="other weights or another config"):
        type(cache).load(tmp_path / "cache.safetensors", wrapped("mistral"))
    (tmp_path / "other.safetensors").write_bytes(b"no")
    with pytest.raises(InterpError, match="no whole safetensors file"):
        type(cache).load(tmp_path / "other.safetensors")


def test_a_cache_does_not_keep_its_model() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    _, cache = model.run_with_cache(IDS, sites="embed resid_post.*")
    del model
    gc.collect()
    assert cache["resid_post.1"].shape == (2, 6, 32) and "LlamaForCausalLM" in repr(cache)
    with pytest.raises(InterpError, match=r"no longer in memory.*attached"):
        cache.accumulated_residual()
    again = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer())
    assert len(cache.attached(again).accumulated_residual()) == 5


def test_many_prompts_block_by_block() -> None:
    model = wrapped("gpt2")
    sites = "resid_post.* pattern.1"
    blocks = model.cache_blocks(RAGGED, sites=sites, block_size=2, positions=["last", "0:3"])
    _, whole = model.run_with_cache(RAGGED, sites=sites, positions=["last", "0:3"])
    assert len(blocks) == 2 and blocks.sites == whole.sites and blocks.positions == whole.positions
    for rows, cache in zip(blocks.ranges, blocks, strict=True):
        for site in whole:
            close(cache[site], whole[site][rows.start : rows.stop])
    assert blocks.about.digest == model.digest()


@pytest.mark.parametrize("prompts", [[[1, 5] * 20] * 16, [*[[1, 5] * 20] * 15, [1, 5, 7]]], ids=["even", "ragged"])
@pytest.mark.parametrize("sites", ["resid_pre.* resid_mid.* resid_post.*", None])
def test_memory_is_that_of_the_cached_tensors(prompts: list[list[int]], sites: str | None) -> None:
    model = wrapped("llama")
    model.run_with_cache(prompts, sites=sites)  # what is tried once
    with LiveBytes() as bare, torch.no_grad():
        plain("llama")(input_ids=torch.tensor([[1, 5] * 20] * 16), use_cache=False)
    with LiveBytes() as live:
        _, cache = model.run_with_cache(prompts, sites=sites)
    cached = sum({value.data_ptr(): value.nbytes for value in cache.values()}.values())
    assert cached < live.peak - bare.peak < 1.2 * cached


def test_of_heads_that_are_kept_no_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("llama")
    clones: list[Site] = []
    copied: Callable[..., Tensor] = SiteReader._copied

    def counted(self: Any, site: Site, *given: Any) -> Tensor:
        clones.append(site)
        return copied(self, site, *given)

    monkeypatch.setattr(SiteReader, "_copied", counted)
    _, cache = model.run_with_cache(RAGGED, sites="resid_pre.* resid_post.* z.1.h0 z.1.h3")
    assert len(clones) == 6  # what enters the first layer, what each of four gives, and z once
    assert cache["z.1.h3"].untyped_storage().nbytes() == cache["z.1.h3"].nbytes


def test_a_model_in_training_mode_is_refused() -> None:
    module = build("llama").train()
    model = StandardizedTransformer(module.eval(), tokenizer=tiny_tokenizer())
    module.train()
    with pytest.raises(InterpError, match="training mode"):
        model.run_with_cache(IDS)
