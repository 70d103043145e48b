"""What a bridge gives is what TransformerLens 4.3 gave on the same weights (`record.py`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interp import InterpError
from tests.interp.compat.transformer_lens.bridges import IDS, OTHER_IDS, bridge_of, new_bridge
from tests.interp.compat.transformer_lens.recorded_models import FAMILIES, PROMPT, group, recorded

# Names of TransformerLens's that are none here: rotations, which hold for all layers; the router's; names of what has
# another name; and in Mixtral `hook_pre` and `hook_post`, which there are the MLP's input and output.
_LEFT_OUT = ("hook_cos", "hook_sin", "hook_hidden_states", "hook_expert_weights", "hook_expert_indices")
_MIXTRAL = ("mlp.gate.hook_in", "mlp.gate.hook_out", "mlp.hook_pre", "mlp.hook_post", "mlp.hook_router_scores")


def left_out(family: str, name: str) -> bool:
    return name.startswith("rotary_emb") or name.endswith(_LEFT_OUT + (_MIXTRAL if family == "mixtral" else ()))


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Equal up to rounding; what is masked may be any large negative number."""
    if found.shape != expected.shape:
        return False
    found, expected = found.detach().double().clamp(min=-1e4), expected.double().clamp(min=-1e4)
    return bool((found - expected).abs().max() <= tolerance * (1 + expected.clamp(min=-1e3).abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_tensor_and_every_name(family: str) -> None:
    bridge, (tensors, facts) = bridge_of(family), recorded(family)
    logits, cache = bridge.run_with_cache(IDS)
    assert same(logits, tensors["cache/logits"])
    values = {name: value for name, value in group(family, "cache").items() if name != "logits"}
    values |= {name: values[first] for name, first in facts["aliases"].items() if first in values}
    missing = [name for name in values if name not in cache.keys() and not left_out(family, name)]  # noqa: SIM118
    assert not missing
    wrong = [name for name, value in values.items() if not left_out(family, name) and not same(cache[name], value)]
    assert not wrong
    assert same(bridge(IDS, return_type="loss"), tensors["loss"])
    assert same(bridge(IDS, return_type="loss", loss_per_token=True), tensors["loss_per_token"])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_heads_results_slices_padding_and_generation(family: str) -> None:
    bridge, tensors = bridge_of(family), recorded(family)[0]
    with pytest.raises(InterpError, match="set_use_attn_result"):
        bridge.run_with_cache(IDS, names_filter="blocks.1.attn.hook_result")
    switches = ("attn_result", "split_qkv_input", "attn_in", "hook_mlp_in")
    try:
        for switch in switches:
            getattr(bridge, f"set_use_{switch}")(True)
        gated = group(family, "gated")
        _, cache = bridge.run_with_cache(IDS, names_filter=list(gated))
        assert not [name for name, value in gated.items() if not same(cache[name], value)]
    finally:
        for switch in switches:
            getattr(bridge, f"set_use_{switch}")(False)
    slices: dict[str, Any] = {"-1": -1, "(1, 4)": (1, 4), "[0, 3]": [0, 3], "(0, 5, 2)": (0, 5, 2)}
    for label, places in slices.items():
        for name in ("hook_embed", "blocks.0.attn.hook_z", "blocks.0.attn.hook_pattern"):
            value = bridge.run_with_cache(IDS, names_filter=name, pos_slice=places)[1][name]
            assert same(value, tensors[f"slice/{label} {name}"])
    padded = torch.cat([torch.tensor([[0, 0, *PROMPT[0][:3]]]), OTHER_IDS])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    own = mask.bool()
    assert same(bridge(padded, attention_mask=mask)[own], tensors["padded/logits"][own])
    generated = bridge.generate(IDS, max_new_tokens=4, do_sample=False, return_type="tokens")
    assert torch.equal(generated, tensors["generated"])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradients(family: str) -> None:
    bridge, gradients = bridge_of(family), group(family, "gradient")
    names = [name.removesuffix("_grad") for name in gradients]
    _, cache = bridge.run_with_cache(IDS, names_filter=names, incl_bwd=True, return_type="loss")
    assert all(same(cache[name], value) for name, value in gradients.items())
    bridge.zero_grad()


def test_tokens() -> None:
    bridge, told = bridge_of("gpt2"), recorded("gpt2")[1]["tokens"]
    assert bridge.to_tokens("a b no").tolist() == told["to_tokens"]
    assert bridge.to_tokens("a b no", prepend_bos=False).tolist() == told["to_tokens no bos"]
    assert bridge.to_tokens(["a b no", "c d"], padding_side="right").tolist() == told["to_tokens two"]
    assert bridge.to_string(IDS[0]) == told["to_string"]
    assert bridge.to_str_tokens("a b no") == told["to_str_tokens"]
    assert bridge.to_str_tokens(IDS[0]) == told["to_str_tokens ids"]
    assert bridge.to_single_token("no") == told["to_single_token"]
    assert bridge.to_single_str_token(7) == told["to_single_str_token"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_the_residual_stream_taken_apart(family: str) -> None:
    bridge = bridge_of(family)
    analysis(bridge, family, "analysis")


def analysis(bridge: Any, family: str, name: str) -> None:
    """Every method of the cache gives what TransformerLens's gave."""
    expected, facts = group(family, name), recorded(family)[1]
    _, cache = bridge.run_with_cache(IDS)
    stack, labels = cache.decompose_resid(layer=-1, return_labels=True)
    assert labels == facts[f"{name} decomposed labels"]
    accumulated, labels = cache.accumulated_resid(layer=-1, incl_mid=True, return_labels=True)
    assert labels == facts[f"{name} accumulated labels"]
    heads, labels = cache.stack_head_results(return_labels=True, incl_remainder=True, pos_slice=(3, 5))
    assert labels == facts[f"{name} head labels"]
    neurons, labels = cache.stack_neuron_results(
        -1, pos_slice=-1, neuron_slice=[0, 5], return_labels=True, incl_remainder=True
    )
    assert labels == facts[f"{name} neuron labels"]
    full, labels = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=-1, return_labels=True)
    assert labels == facts[f"{name} full labels"]
    found = {
        "accumulated_resid": accumulated,
        "accumulated_resid ln": cache.accumulated_resid(layer=None, apply_ln=True, pos_slice=-1),
        "accumulated_resid 1 -1": cache.accumulated_resid(layer=1, pos_slice=-1),
        "accumulated_resid mlp_input": cache.accumulated_resid(layer=1, mlp_input=True),
        "decompose_resid": stack,
        "stack_head_results": heads,
        "stack_head_results 1 ln": cache.stack_head_results(layer=1, apply_ln=True, pos_slice=-1),
        "stack_activation": cache.stack_activation("pattern"),
        "logit_attrs": cache.logit_attrs(stack, 22),
        "logit_attrs difference": cache.logit_attrs(
            cache.decompose_resid(layer=-1, pos_slice=-1),
            torch.tensor([22]),
            incorrect_tokens=torch.tensor([17]),
            pos_slice=-1,
        ),
        "get_neuron_results": cache.get_neuron_results(0, neuron_slice=(0, 3), pos_slice=-1),
        "stack_neuron_results": neurons,
        "get_full_resid_decomposition": full,
        "apply_ln_to_stack": cache.apply_ln_to_stack(stack[:, :, 2:4], layer=1, pos_slice=(2, 4)),
        "remove_batch_dim": bridge.run_with_cache(IDS)[1].remove_batch_dim()["pattern", 0],
    }
    for mode in ("mlp", "attn"):
        found[f"decompose_resid {mode}"] = cache.decompose_resid(
            mode=mode, apply_ln=True, incl_embeds=False, pos_slice=-1
        )
    assert expected.keys() <= found.keys()
    wrong = [key for key, value in expected.items() if not same(found[key], value)]
    assert not wrong


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_compatibility_mode(family: str) -> None:
    plain, bridge, expected = bridge_of(family), new_bridge(family), group(family, "folded")
    bridge.enable_compatibility_mode()
    logits, cache = bridge.run_with_cache(IDS)
    assert same(logits.log_softmax(-1), plain(IDS).log_softmax(-1))
    assert same(logits, expected.pop("logits"))
    wrong = [name for name, value in expected.items() if not left_out(family, name) and not same(cache[name], value)]
    assert not wrong
    analysis(bridge, family, "folded analysis")
    weights = group(family, "folded weights")
    assert not [name for name, value in weights.items() if not same(getattr(bridge, name), value)]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("gpt2", "llama", "mixtral")])
@torch.no_grad()
def test_compatibility_mode_leaves_log_probabilities(family: str) -> None:
    plain, bridge = bridge_of(family), new_bridge(family)
    before = plain(IDS).log_softmax(-1)
    bridge.enable_compatibility_mode()
    assert same(bridge(IDS).log_softmax(-1), before)
    assert same(plain(IDS).log_softmax(-1), before, 0.0)


def test_compatibility_mode_refuses_experts() -> None:
    with pytest.raises(InterpError, match="mixture of experts"):
        bridge_of("mixtral").enable_compatibility_mode()
