"""Families with a mixture of experts in place of some or all MLPs.

A mixture has no layer of neurons of its own, so the projection is there only in the layers that keep a plain MLP.
"""

from __future__ import annotations

from dataclasses import replace

from interp.architectures.record import Architecture, Sublayer
from interp.architectures.table.llama_like import LLAMA_LAYOUT

__all__ = ["EXPERTS", "GRANITE_ATTENTION"]

GRANITE_ATTENTION = Sublayer("self_attn", projection="self_attn.o_proj", scale="residual_multiplier")

EXPERTS: tuple[Architecture, ...] = (
    replace(
        LLAMA_LAYOUT,
        family="mixtral",
        model_types=(
            "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "minimax_m2", "minimax_m3_vl_text", "glm4_moe",
            "glm4_moe_lite", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "dots3_note_text", "axk1", "axk2",
            "exaone_moe", "ernie4_5_moe", "hunyuan_v1_moe", "solar_open", "mimo_v2_flash", "mellum", "flint", "laguna",
            "hy_v3", "aria_text", "gpt_oss",
        ),
    ),
    # A layer also gives the tokens that its indexer chose, for the next layer to attend to.
    replace(LLAMA_LAYOUT, family="glm_moe_dsa", model_types=("glm_moe_dsa",), layer_returns_tuple=True),
    replace(
        LLAMA_LAYOUT,
        family="llama4",
        model_types=("llama4_text",),
        mlp=Sublayer("feed_forward", projection="feed_forward.down_proj"),
    ),
    replace(
        LLAMA_LAYOUT,
        family="granitemoe",
        model_types=("granitemoe", "granitemoeshared", "granitemoe_swa"),
        attention=GRANITE_ATTENTION,
        mlp=Sublayer("block_sparse_moe", added=("block_sparse_moe", "shared_mlp"), scale="residual_multiplier"),
        logit_divisor="logits_scaling",
    ),
    # A convolution over positions stands behind each sublayer, so no projection leads to the residual stream.
    replace(
        LLAMA_LAYOUT,
        family="inkling",
        model_types=("inkling_text",),
        attention=Sublayer("self_attn", added=("attn_sconv",)),
        mlp=Sublayer("mlp", added=("mlp_sconv",)),
        logit_divisor="logits_mup_width_multiplier",
    ),
    # The heads of an expert are mixed by the experts' own output maps.
    replace(
        LLAMA_LAYOUT,
        family="jetmoe",
        model_types=("jetmoe",),
        attention=Sublayer("self_attention"),
        mlp=Sublayer("mlp"),
    ),
    Architecture(
        family="dbrx",
        model_types=("dbrx",),
        layers="transformer.blocks",
        embedding="transformer.wte",
        final_norm="transformer.norm_f",
        attention=Sublayer("norm_attn_norm.attn", projection="norm_attn_norm.attn.out_proj"),
        mlp=Sublayer("ffn"),
        middle="norm_attn_norm.norm_2",
    ),
)  # fmt: skip
