"""Families with a norm behind each sublayer: what is added to the residual stream is that norm's output."""

from __future__ import annotations

from dataclasses import replace

from interp.architectures.record import Architecture, Sublayer
from interp.architectures.table.llama_like import LLAMA_LAYOUT

__all__ = ["NORMED", "SANDWICH", "gemma4"]


def _normed(family: str, model_types: tuple[str, ...], attention: str, mlp: str, middle: str) -> Architecture:
    """Llama's layout with the two norms behind attention and the MLP, and the module that receives `resid_mid`."""
    return replace(
        LLAMA_LAYOUT,
        family=family,
        model_types=model_types,
        attention=Sublayer("self_attn", added=(attention,), projection="self_attn.o_proj"),
        mlp=Sublayer("mlp", added=(mlp,), projection="mlp.down_proj"),
        middle=middle,
    )


SANDWICH = replace(
    _normed(
        "gemma2",
        ("gemma2", "gemma3_text"),
        attention="post_attention_layernorm",
        mlp="post_feedforward_layernorm",
        middle="pre_feedforward_layernorm",
    ),
    softcap="final_logit_softcapping",
)


def gemma4(projection: str | None) -> Architecture:
    """After the MLP, an input of the layer's own is added, and then all is scaled.

    Arguments:
        projection: the MLP's; None where experts are added to what the MLP gives.
    """
    return replace(
        SANDWICH,
        family="gemma4",
        model_types=("gemma4_text", "gemma4_unified_text"),
        mlp=Sublayer(
            "mlp",
            added=("post_feedforward_layernorm", "post_per_layer_input_norm"),
            projection=projection,
            scale="layer_scalar",
            residual_scale="layer_scalar",
        ),
    )


NORMED: tuple[Architecture, ...] = (
    SANDWICH,
    replace(gemma4(None), when=(("enable_moe_block", True),)),
    gemma4("mlp.down_proj"),
    # No norm before a sublayer: the MLP receives the residual stream itself.
    _normed(
        "olmo2",
        ("olmo2", "olmo3", "flex_olmo", "exaone4"),
        attention="post_attention_layernorm",
        mlp="post_feedforward_layernorm",
        middle="mlp",
    ),
    _normed(
        "glm4",
        ("glm4", "kolibri1"),
        attention="post_self_attn_layernorm",
        mlp="post_mlp_layernorm",
        middle="post_attention_layernorm",
    ),
    _normed(
        "afmoe",
        ("afmoe",),
        attention="post_attention_layernorm",
        mlp="post_mlp_layernorm",
        middle="pre_mlp_layernorm",
    ),
    replace(
        LLAMA_LAYOUT,
        family="hyperclovax",
        model_types=("hyperclovax",),
        attention=Sublayer(
            "self_attn", added=("post_norm1",), projection="self_attn.o_proj", scale="residual_multiplier"
        ),
        mlp=Sublayer("mlp", added=("post_norm2",), projection="mlp.down_proj", scale="residual_multiplier"),
        logit_scale="logits_scaling",
    ),
)
