"""What the points of a dozen families hold: identities between them, and what writing one does to the next."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.compat.transformer_lens import TransformerBridge
from tests.families import build
from tests.interp.compat.transformer_lens.bridges import IDS as PROMPT_IDS
from tests.interp.compat.transformer_lens.recorded_models import made, words
from tests.interp.compat.transformer_lens.test_bridge_recorded import same
from tests.tiny import tiny_tokenizer

IDS = torch.tensor([[1, 50, 60, 70, 80, 90], [1, 41, 66, 23, 80, 12]])
FAMILIES = (
    "codegen", "phi3", "gemma2", "granite", "mpt", "opt", "falcon_new", "bloom_post_norm", "gpt_bigcode", "qwen3_moe",
)  # fmt: skip


@cache
def bridge_of(family: str) -> TransformerBridge:
    return TransformerBridge.boot_transformers(build(family), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_identities(family: str) -> None:
    bridge = bridge_of(family)
    bridge.set_use_attn_result(True)
    plain = bridge.original_model(IDS).logits
    logits, cache = bridge.run_with_cache(IDS)
    assert same(logits, plain)
    own = "hook_resid_mid" not in {name.rpartition(".")[2] for name in cache}
    for layer in range(bridge.cfg.n_layers):
        before, after = cache["resid_pre", layer], cache["resid_post", layer]
        attention, mlp = cache["attn_out", layer], cache["mlp_out", layer]
        if family != "bloom_post_norm":  # there the stream itself goes through a norm
            assert same(before + attention + mlp, after)
            assert own or same(before + attention, cache["resid_mid", layer])
        for norm in ("ln1", "ln2", "ln1_post", "ln2_post"):
            if f"blocks.{layer}.{norm}.hook_scale" in cache:
                is_normed(bridge, cache, f"blocks.{layer}.{norm}")
        heads = bridge.cfg.n_heads
        value = cache["v", layer]
        value = value.repeat_interleave(heads // value.shape[2], dim=2)
        limit = getattr(bridge.original_model.config, "attn_config", None)
        clip = None if limit is None else limit.clip_qkv
        value = value if clip is None else value.clamp(-clip, clip)
        assert same(torch.einsum("bhqk,bkhd->bqhd", cache["pattern", layer], value), cache["z", layer])
        assert same(cache["attn_scores", layer].softmax(-1), cache["pattern", layer], 1e-4)
        out = cache["result", layer].sum(2)
        if family == "granite":  # what is added is scaled, what the projection gives is not
            out = out / bridge.standardized.layer(layer)._module.residual_multiplier
        assert same(out + bridge.blocks[layer].attn.b_O, cache[f"blocks.{layer}.attn.o.hook_out"])
        if f"blocks.{layer}.mlp.hook_post" in cache:
            assert same(cache["post", layer] @ bridge.blocks[layer].mlp.W_out + bridge.blocks[layer].mlp.b_out,
                        cache[f"blocks.{layer}.mlp.out.hook_out"])  # fmt: skip
            into = (
                cache[f"blocks.{layer}.mlp.in.hook_in"] @ bridge.blocks[layer].mlp.W_in + bridge.blocks[layer].mlp.b_in
            )
            assert same(into, cache[f"blocks.{layer}.mlp.in.hook_out"])
        for kind in "QKV":
            weight, bias = (bridge.weight_of(f"{side}_{kind}", f"blocks.{layer}.attn") for side in "Wb")
            given = cache[f"blocks.{layer}.attn.{kind.lower()}.hook_in"]
            assert same(torch.einsum("bpm,hmd->bphd", given, weight) + bias, cache[kind.lower(), layer])
    bridge.set_use_attn_result(False)


def is_normed(bridge: TransformerBridge, cache: Any, name: str) -> None:
    given, scale = cache[f"{name}.hook_in"], cache[f"{name}.hook_scale"]
    plain = cache[f"{name}.hook_normalized"]
    centred = given - given.mean(-1, keepdim=True)
    assert same(plain, given / scale) or same(plain, centred / scale)
    module: Any = bridge.mod_dict[name]
    out = cache[f"{name}.hook_out"]
    weight = getattr(module, "weight", None)
    if weight is None:
        assert same(plain, out)
        return
    bias = getattr(module, "bias", None)
    shift = 0.0 if bias is None else bias
    assert same(plain * weight + shift, out, 1e-4) or same(plain * (1 + weight) + shift, out, 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_written_is_what_comes_after(family: str) -> None:
    """Values of other prompts, written whole, give what these prompts have next."""
    bridge = bridge_of(family)
    other = IDS.flip(0)
    bridge.set_use_split_qkv_input(True)
    _, source = bridge.run_with_cache(other)
    layer = 1

    def after(names: list[str], outcome: str) -> bool:
        """Whether a value is the other prompts', once others have been written."""
        full = [f"blocks.{layer}.{name}" for name in names]
        if not all(name in bridge.hook_dict for name in [*full, f"blocks.{layer}.{outcome}"]):
            return True
        hooks = [(name, lambda value, hook: source[hook.name]) for name in full]
        with bridge.hooks(hooks):
            _, found = bridge.run_with_cache(IDS, names_filter=f"blocks.{layer}.{outcome}")
        return same(found[f"blocks.{layer}.{outcome}"], source[f"blocks.{layer}.{outcome}"], 1e-4)

    qkv = ["attn.hook_q", "attn.hook_k", "attn.hook_v"]
    assert after(qkv, "attn.hook_z") and after(["attn.hook_q"], "attn.q.hook_out")
    assert after(["attn.hook_rot_q", "attn.hook_rot_k"], "attn.hook_pattern")
    assert after(["attn.hook_attn_scores", "attn.hook_v"], "attn.hook_z")
    assert after(["attn.hook_pattern", "attn.hook_v"], "attn.hook_z")
    assert after([f"attn.{kind}.hook_in" for kind in "qkv"], "attn.hook_z")
    assert after(["attn.hook_q_input"], "attn.hook_q") and after(["attn.hook_v_input"], "attn.hook_v")
    assert after(["attn.hook_z"], "attn.o.hook_out")
    gate = ["mlp.hook_pre_linear"] if f"blocks.{layer}.mlp.hook_pre_linear" in bridge.hook_dict else []
    assert after(["mlp.hook_pre", *gate], "mlp.hook_post") and after(["mlp.hook_post"], "mlp.out.hook_out")
    for norm in ("ln1", "ln2", "ln1_post", "ln2_post", "attn.q_norm"):
        assert after([f"{norm}.hook_normalized"], f"{norm}.hook_out")
    bridge.set_use_split_qkv_input(False)


@pytest.mark.parametrize("family", ["gpt_bigcode", "gemma2"])
@torch.no_grad()
def test_a_scale_that_is_written_divides(family: str) -> None:
    bridge = bridge_of(family)
    _, plain = bridge.run_with_cache(IDS)
    for norm in ("blocks.1.ln1", "ln_final"):
        with bridge.hooks([(f"{norm}.hook_scale", lambda value, hook: 2 * value)]):
            _, found = bridge.run_with_cache(IDS, names_filter=lambda name, norm=norm: name.startswith(norm))
        assert same(found[f"{norm}.hook_normalized"], plain[f"{norm}.hook_normalized"] / 2)
        bias = getattr(bridge.mod_dict[norm], "bias", None)
        shift = 0.0 if bias is None else bias
        assert same(found[f"{norm}.hook_out"] - shift, (plain[f"{norm}.hook_out"] - shift) / 2)
        tripled = [
            (f"{norm}.hook_scale", lambda value, hook: 2 * value),
            (f"{norm}.hook_normalized", lambda value, hook: 6 * value),
        ]
        with bridge.hooks(tripled):
            _, found = bridge.run_with_cache(IDS, names_filter=f"{norm}.hook_out")
        assert same(found[f"{norm}.hook_out"] - shift, 3 * (plain[f"{norm}.hook_out"] - shift))


def test_gradients_through_a_written_norm() -> None:
    """A norm that is written back as it was leaves gradients, and its own value has one."""
    bridge = bridge_of("gemma2")
    names = ["blocks.1.ln2.hook_normalized", "blocks.1.ln2.hook_scale"]
    kept: dict[str, Tensor] = {}

    def grad(hooks: list[Any]) -> Tensor:
        bridge.zero_grad()
        with bridge.hooks(hooks):
            bridge(IDS, return_type="loss").backward()
        found = bridge.original_model.model.embed_tokens.weight.grad
        assert found is not None
        return found.clone()

    def keep(value: Tensor, hook: Any) -> None:
        value.retain_grad()
        kept[hook.name] = value

    plain = grad([])
    assert same(grad([(name, keep) for name in names]), plain, 1e-4)
    gradients = {name: value.grad for name, value in kept.items()}
    assert all(gradient is not None and bool(gradient.abs().max() > 0) for gradient in gradients.values())
    normalized, scale = (kept[name].detach() for name in names)
    first, second = (gradients[name] for name in names)
    assert first is not None and second is not None
    assert same(second, -(first * normalized / scale).sum(-1, keepdim=True), 1e-4)
    bridge.zero_grad()


def test_the_gradient_at_every_point() -> None:
    """What a gradient says of a small edit at its point is what the edit does (float64)."""
    bridge = TransformerBridge.boot_transformers(made("gpt2").double(), tokenizer=words())
    bridge.set_use_attn_result(True)
    bridge.set_use_split_qkv_input(True)
    names = [name for name, point in bridge.hook_dict.items() if point.name == name and "embed.hook_in" not in name]
    names = [name for name in names if not name.startswith("blocks.1") and "hook_attn_in" not in name]
    names.remove("blocks.0.hook_mlp_in")
    _, cache = bridge.run_with_cache(PROMPT_IDS, names_filter=names, incl_bwd=True, return_type="loss")
    for name in names:
        direction = torch.randn(cache[name].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        direction = direction.tril() if "scores" in name else direction

        def moved(step: float, name: str = name, direction: Tensor = direction) -> float:
            hooks = [(name, lambda value, hook: value + step * direction)]
            return float(bridge.run_with_hooks(PROMPT_IDS, return_type="loss", fwd_hooks=hooks))

        with torch.no_grad():
            slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert slope == pytest.approx(float((cache[f"{name}_grad"] * direction).sum()), rel=1e-4, abs=1e-7), name


@torch.no_grad()
def test_generation_over_every_point() -> None:
    """Hooks that change nothing, at every point and step, change nothing."""
    bridge = bridge_of("gemma2")
    plain = bridge.generate(IDS, max_new_tokens=3, do_sample=False)
    with bridge.hooks([(lambda name: "embed.hook_in" not in name, lambda value, hook: value + 0)]):
        assert torch.equal(bridge.generate(IDS, max_new_tokens=3, do_sample=False), plain)
    steps: list[int] = []
    with bridge.hooks([("blocks.1.attn.hook_rot_k", lambda value, hook: steps.append(value.shape[1]))]):
        bridge.generate(IDS, max_new_tokens=3, do_sample=False)
    assert steps == [6, 1, 1]
    zeroed = [("blocks.0.hook_mlp_out", lambda value, hook: value * 0)]
    with bridge.hooks(zeroed):
        cached = bridge.generate(IDS, max_new_tokens=3, do_sample=False)
        assert torch.equal(bridge.generate(IDS, max_new_tokens=3, do_sample=False, use_past_kv_cache=False), cached)


@pytest.mark.parametrize(("family", "one"), [("gemma2", True), ("mpt", False)])
@torch.no_grad()
def test_one_worker_keeps_what_many_would(family: str, one: bool) -> None:
    """MPT's scores have to be asked for before attention begins, so that each point has a worker of its own."""
    bridge = bridge_of(family)
    _, found = bridge.run_with_cache(IDS)
    assert bool(bridge._found_order) == one
    for name in ("blocks.0.hook_in", "blocks.2.attn.hook_pattern", "blocks.3.mlp.hook_post", "ln_final.hook_scale"):
        _, alone = bridge.run_with_cache(IDS, names_filter=name)
        assert same(found[name], alone[name])
    edited = [("blocks.1.hook_resid_pre", lambda value, hook: value * 2)]
    with bridge.hooks(edited):
        _, found = bridge.run_with_cache(IDS)
        _, alone = bridge.run_with_cache(IDS, names_filter="blocks.1.hook_in")
    assert same(found["resid_pre", 1], 2 * found["resid_post", 0]) and same(
        found["resid_pre", 1], alone["resid_pre", 1]
    )
