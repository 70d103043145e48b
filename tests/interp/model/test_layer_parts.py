"""What stands inside layers, of families whose code is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from interp.model import StandardizedTransformer
from interp.model.layer_parts import model_parts
from tests.families import build
from tests.tiny import tiny_tokenizer

Standardized = Callable[[str], StandardizedTransformer]
EXPECTED = {
    "gpt2": ({"ln1": "ln_1", "ln2": "ln_2"}, "attn.c_attn", {"in": "mlp.c_fc"}),
    "gpt_neox": (
        {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"},
        "attention.query_key_value",
        {"in": "mlp.dense_h_to_4h"},
    ),
    "gemma2": (
        {
            "ln1": "input_layernorm",
            "ln1_post": "post_attention_layernorm",
            "ln2": "pre_feedforward_layernorm",
            "ln2_post": "post_feedforward_layernorm",
        },
        "self_attn.q_proj",
        {"gate": "mlp.gate_proj", "in": "mlp.up_proj"},
    ),
    "qwen3": (
        {
            "ln1": "input_layernorm",
            "ln2": "post_attention_layernorm",
            "q_norm": "self_attn.q_norm",
            "k_norm": "self_attn.k_norm",
        },
        "self_attn.q_proj",
        {"gate": "mlp.gate_proj", "in": "mlp.up_proj"},
    ),
}


@pytest.mark.parametrize("family", EXPECTED)
def test_norms_and_maps(family: str, standardized: Standardized) -> None:
    parts = model_parts(standardized(family))
    norms, queries, maps = EXPECTED[family]
    for layer in parts.layers:
        assert layer.norms == norms and layer.heads["q"].path == queries
        assert {kind: one.path for kind, one in layer.mlp.items()} == maps
        assert layer.rotary == (family != "gpt2")
    assert parts.position_table == ("transformer.wpe" if family == "gpt2" else None)
    assert parts.embedding_norm is None and parts.embedding_scale == 1.0


def test_heads_in_fused_projections(standardized: Standardized) -> None:
    """GPT-2 has all queries first, GPT-NeoX a head's query, key and value side by side."""
    gpt2, neox = (model_parts(standardized(family)).layers[0].heads for family in ("gpt2", "gpt_neox"))
    assert gpt2["k"].columns is not None and neox["k"].columns is not None
    assert torch.equal(gpt2["k"].columns, torch.arange(32, 64))
    assert neox["k"].columns[:16].tolist() == [*range(8, 16), *range(32, 40)]


def test_what_is_not_there_is_said() -> None:
    model = StandardizedTransformer(build("deepseek_v2"), tokenizer=tiny_tokenizer())
    layer = model_parts(model).layers[-1]
    assert not layer.heads and "no projection of its own" in layer.no_heads
    assert not layer.mlp and "mixture of experts" in layer.no_mlp


@pytest.mark.parametrize(("family", "scale"), [("granite", 12.0), ("opt_350m", None), ("bloom", 1.0)])
def test_what_the_layers_begin_with(family: str, scale: float | None) -> None:
    module = build(family)
    expected = module.config.embedding_multiplier if family == "granite" else scale  # type: ignore[union-attr]
    parts = model_parts(StandardizedTransformer(module, tokenizer=tiny_tokenizer()))
    assert parts.embedding_scale == expected
    assert (parts.embedding_norm is not None) == (family == "bloom")
