"""Families whose attention and MLP both read the residual stream at the layer's start; for some the config decides."""

from __future__ import annotations

from dataclasses import replace

from interp.architectures.record import Architecture, Sublayer
from interp.architectures.table.llama_like import LLAMA_LAYOUT

__all__ = ["PARALLEL"]

_PARALLEL_LLAMA = replace(LLAMA_LAYOUT, parallel=True, middle=None)
_STABLELM = replace(LLAMA_LAYOUT, family="stablelm", model_types=("stablelm",))
_NEOX = Architecture(
    family="gpt_neox",
    model_types=("gpt_neox",),
    layers="gpt_neox.layers",
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    attention=Sublayer("attention", projection="attention.dense"),
    mlp=Sublayer("mlp", projection="mlp.dense_4h_to_h"),
)
# The layer adds attention's output to the MLP's in place: what the MLP gave has to be cloned where it is read.
_FALCON = Architecture(
    family="falcon",
    model_types=("falcon",),
    layers="transformer.h",
    embedding="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    attention=Sublayer("self_attention", projection="self_attention.dense"),
    mlp=Sublayer("mlp", projection="mlp.dense_4h_to_h"),
    layer_returns_tuple=True,
)

PARALLEL: tuple[Architecture, ...] = (
    replace(
        _PARALLEL_LLAMA,
        family="cohere",
        model_types=("cohere", "cohere2", "cohere2_moe", "cohere_compass_text"),
        logit_scale="logit_scale",
    ),
    replace(_STABLELM, when=(("use_parallel_residual", True),), parallel=True, middle=None),
    _STABLELM,
    replace(
        _PARALLEL_LLAMA,
        family="phi",
        model_types=("phi",),
        final_norm="model.final_layernorm",
        attention=Sublayer("self_attn", projection="self_attn.dense"),
        mlp=Sublayer("mlp", projection="mlp.fc2"),
    ),
    replace(_NEOX, when=(("use_parallel_residual", True),), parallel=True, middle=None),
    _NEOX,
    Architecture(
        family="gptj",
        model_types=("gptj", "codegen"),
        layers="transformer.h",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        attention=Sublayer("attn", projection="attn.out_proj"),
        mlp=Sublayer("mlp", projection="mlp.fc_out"),
        parallel=True,
        middle=None,
        layer_returns_tuple=True,
    ),
    replace(_FALCON, when=(("new_decoder_architecture", True),), parallel=True, middle=None),
    replace(_FALCON, when=(("parallel_attn", True),), parallel=True, middle=None),
    _FALCON,
)
