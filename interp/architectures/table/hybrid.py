"""Families with another token mixer in place of attention, or beside it: Mamba, linear attention, convolutions."""

from __future__ import annotations

from dataclasses import replace

from interp.architectures.record import Architecture, Sublayer
from interp.architectures.table.experts import GRANITE_ATTENTION
from interp.architectures.table.llama_like import LLAMA_LAYOUT

__all__ = ["HYBRID"]

_LINEAR = Sublayer("linear_attn", projection="linear_attn.out_proj")
_MAMBA = Sublayer("mamba", projection="mamba.out_proj")

_JAMBA = replace(
    LLAMA_LAYOUT,
    family="jamba",
    model_types=("jamba",),
    final_norm="model.final_layernorm",
    mixer=_MAMBA,
    mlp=Sublayer("feed_forward", projection="feed_forward.down_proj"),
    middle="pre_ff_layernorm",
)
_GRANITE = replace(
    LLAMA_LAYOUT,
    family="granitemoehybrid",
    model_types=("granitemoehybrid",),
    attention=GRANITE_ATTENTION,
    mixer=replace(_MAMBA, scale="residual_multiplier"),
    mlp=Sublayer("shared_mlp", projection="shared_mlp.output_linear", scale="residual_multiplier"),
    logit_divisor="logits_scaling",
)
_OLMO_HYBRID = replace(LLAMA_LAYOUT, family="olmo_hybrid", model_types=("olmo_hybrid",))
# In some layers Mamba also reads what an attention block, which all of them share, makes of the stream. That block's
# output is not added to the stream, so the layers have no attention in our sense.
_ZAMBA = Architecture(
    family="zamba",
    model_types=("zamba", "zamba2"),
    final_norm="model.final_layernorm",
    attention=None,
    mixer=_MAMBA,
    mlp=None,
    middle=None,
)
_STATE_SPACE = Architecture(
    family="mamba",
    model_types=("mamba", "mamba2", "falcon_mamba"),
    layers="backbone.layers",
    embedding="backbone.embeddings",
    final_norm="backbone.norm_f",
    attention=None,
    mixer=Sublayer("mixer", projection="mixer.out_proj"),
    mlp=None,
    middle=None,
)

HYBRID: tuple[Architecture, ...] = (
    replace(
        LLAMA_LAYOUT,
        family="qwen3_next",
        model_types=("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        mixer=_LINEAR,
    ),
    # Layers with linear attention are laid out like Llama's, layers with attention like OLMo 2's.
    replace(
        _OLMO_HYBRID,
        attention=None,
        mixer=Sublayer("linear_attn", projection="linear_attn.o_proj"),
        variants=(
            (
                "OlmoHybridAttention",
                replace(
                    _OLMO_HYBRID,
                    attention=Sublayer(
                        "self_attn", added=("post_attention_layernorm",), projection="self_attn.o_proj"
                    ),
                    mlp=Sublayer("mlp", added=("post_feedforward_layernorm",), projection="mlp.down_proj"),
                    middle="mlp",
                ),
            ),
        ),
    ),
    replace(
        LLAMA_LAYOUT,
        family="kimi_linear",
        model_types=("kimi_linear", "bailing_hybrid"),
        attention=Sublayer("self_attn", projection="self_attn.o_proj", only=("LinearAttention", "HybridAttention")),
        mixer=Sublayer("self_attn", projection="self_attn.o_proj", only=("DeltaAttention",)),
    ),
    # The residual stream is normed before each sum; what is added is weighted, and so is the stream.
    replace(
        LLAMA_LAYOUT,
        family="minimax",
        model_types=("minimax",),
        attention=Sublayer(
            "self_attn", projection="self_attn.o_proj", only=("MiniMaxAttention",), scale="attn_beta_factor",
            residual_scale="attn_alpha_factor", residual_norm="input_layernorm",
        ),
        mixer=Sublayer(
            "self_attn", projection="self_attn.out_proj", only=("LightningAttention",), scale="attn_beta_factor",
            residual_scale="attn_alpha_factor", residual_norm="input_layernorm",
        ),
        mlp=Sublayer(
            "mlp", scale="mlp_beta_factor", residual_scale="mlp_alpha_factor",
            residual_norm="post_attention_layernorm",
        ),
    ),
    replace(
        LLAMA_LAYOUT,
        family="lfm2",
        model_types=("lfm2", "lfm2_moe"),
        final_norm="model.embedding_norm",
        attention=Sublayer("self_attn", projection="self_attn.out_proj"),
        mixer=Sublayer("conv", projection="conv.out_proj"),
        mlp=Sublayer("feed_forward", projection="feed_forward.w2"),
        middle="ffn_norm",
    ),
    replace(
        LLAMA_LAYOUT,
        family="lfm3",
        model_types=("lfm3",),
        final_norm="model.embedding_norm",
        attention=Sublayer("self_attn", added=("post_operator_norm",), projection="self_attn.o_proj"),
        mixer=Sublayer("conv", added=("post_operator_norm",), projection="conv.out_proj"),
        mlp=Sublayer("feed_forward", added=("post_ffn_norm",), projection="feed_forward.w2"),
        middle="ffn_norm",
    ),
    _JAMBA,
    replace(_JAMBA, family="bamba", model_types=("bamba",), layer_returns_tuple=True),
    # Attention and Mamba side by side.
    replace(
        _JAMBA,
        family="falcon_h1",
        model_types=("falcon_h1",),
        attention=Sublayer("self_attn", projection="self_attn.o_proj", scale="attn_out_multiplier"),
        mixer=replace(_MAMBA, scale="ssm_out_multiplier"),
        mixer_first=True,
        layer_returns_tuple=True,
        logit_scale="lm_head_multiplier",
    ),
    replace(_GRANITE, when=(("num_local_experts", 0),)),
    replace(
        _GRANITE,
        mlp=Sublayer("block_sparse_moe", added=("block_sparse_moe", "shared_mlp"), scale="residual_multiplier"),
    ),
    # One sublayer a layer.
    Architecture(
        family="nemotron_h",
        model_types=("nemotron_h",),
        embedding="model.embeddings",
        final_norm="model.norm_f",
        attention=Sublayer("mixer", projection="mixer.o_proj", only=("Attention",)),
        mixer=Sublayer("mixer", projection="mixer.out_proj", only=("Mamba",)),
        mlp=Sublayer("mixer", projection="mixer.down_proj", only=("MLP", "MoE")),
        middle=None,
    ),
    Architecture(
        family="recurrent_gemma",
        model_types=("recurrent_gemma",),
        final_norm="model.final_norm",
        attention=Sublayer("temporal_block", projection="temporal_block.o_proj", only=("Attention",)),
        mixer=Sublayer("temporal_block", projection="temporal_block.linear_out", only=("RecurrentBlock",)),
        mlp=Sublayer("mlp_block", projection="mlp_block.down_proj"),
        middle="channel_pre_norm",
        softcap="logits_soft_cap",
        unpadded=("temporal_block.linear_x",),
    ),
    _STATE_SPACE,
    replace(
        _ZAMBA,
        variants=(
            (
                "HybridLayer",
                replace(_ZAMBA, mixer=Sublayer("mamba_decoder.mamba", projection="mamba_decoder.mamba.out_proj")),
            ),
        ),
    ),
)  # fmt: skip
