"""Llama's layout: a norm before attention, a norm before the MLP, what they give is added to the residual stream."""

from __future__ import annotations

from dataclasses import replace

from interp.architectures.record import Architecture, Sublayer

__all__ = ["LLAMA_LAYOUT", "LLAMA_LIKE", "PERSIMMON"]

LLAMA_LAYOUT = Architecture(
    family="llama",
    model_types=(
        "llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "gemma", "phi3", "olmo", "glm", "smollm3",
        "nemotron", "helium", "seed_oss", "arcee", "ernie4_5", "hunyuan_v1_dense", "bitnet", "cwm", "diffllama",
        "youtu", "internlm3", "iquestcoder", "jais2", "emu3_text_model", "phi4_multimodal",
    ),
)  # fmt: skip

PERSIMMON = replace(
    LLAMA_LAYOUT,
    family="persimmon",
    model_types=("persimmon",),
    final_norm="model.final_layernorm",
    attention=Sublayer("self_attn", projection="self_attn.dense"),
    mlp=Sublayer("mlp", projection="mlp.dense_4h_to_h"),
)

LLAMA_LIKE: tuple[Architecture, ...] = (
    LLAMA_LAYOUT,
    replace(
        LLAMA_LAYOUT,
        family="starcoder2",
        model_types=("starcoder2",),
        mlp=Sublayer("mlp", projection="mlp.c_proj"),
    ),
    PERSIMMON,
    replace(LLAMA_LAYOUT, family="moshi", model_types=("moshi",), mlp=Sublayer("mlp", projection="mlp.fc2")),
    replace(
        LLAMA_LAYOUT,
        family="nanochat",
        model_types=("nanochat",),
        final_norm_runs_early=True,
        mlp=Sublayer("mlp", projection="mlp.fc2"),
        softcap="final_logit_softcapping",
    ),
    replace(LLAMA_LAYOUT, family="apertus", model_types=("apertus",), middle="feedforward_layernorm"),
    replace(
        LLAMA_LAYOUT,
        family="vaultgemma",
        model_types=("vaultgemma",),
        middle="pre_feedforward_layernorm",
        softcap="final_logit_softcapping",
    ),
    replace(
        LLAMA_LAYOUT,
        family="granite",
        model_types=("granite", "granite_swa"),
        attention=Sublayer("self_attn", projection="self_attn.o_proj", scale="residual_multiplier"),
        mlp=Sublayer("mlp", projection="mlp.down_proj", scale="residual_multiplier"),
        logit_divisor="logits_scaling",
    ),
    replace(
        LLAMA_LAYOUT,
        family="minicpm3",
        model_types=("minicpm3",),
        attention=Sublayer("self_attn", projection="self_attn.o_proj", scale="residual_scale"),
        mlp=Sublayer("mlp", projection="mlp.down_proj", scale="residual_scale"),
        logit_divisor="logits_scaling",  # before the head, which has no bias
    ),
    replace(
        LLAMA_LAYOUT,
        family="doge",
        model_types=("doge",),
        attention=Sublayer("self_attn", projection="self_attn.o_proj", residual_scale="input_residual"),
        mlp=Sublayer("mlp", projection="mlp.down_proj", residual_scale="post_attention_residual"),
    ),
)
