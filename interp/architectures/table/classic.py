"""GPT-2 and its time: each family with names of its own."""

from __future__ import annotations

from dataclasses import replace

from interp.architectures.record import Architecture, Sublayer

__all__ = ["CLASSIC"]

_GPT2 = Architecture(
    family="gpt2",
    model_types=("gpt2", "gpt_bigcode"),
    layers="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    attention=Sublayer("attn", projection="attn.c_proj"),
    mlp=Sublayer("mlp", projection="mlp.c_proj"),
    middle="ln_2",
)
# The modules add the residual stream themselves; their last maps give what is added.
_BLOOM_ATTENTION = Sublayer("self_attention", added=("self_attention.dense",), projection="self_attention.dense")
_BLOOM_MLP = Sublayer("mlp", added=("mlp.dense_4h_to_h",), projection="mlp.dense_4h_to_h")
_BLOOM = Architecture(
    family="bloom",
    model_types=("bloom",),
    layers="transformer.h",
    embedding="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    attention=_BLOOM_ATTENTION,
    mlp=_BLOOM_MLP,
    layer_returns_tuple=True,
)
_OPT_ATTENTION = Sublayer("self_attn", projection="self_attn.out_proj")
# The MLP is two maps on the layer itself.
_FEED_FORWARD = Sublayer("fc1", added=("fc2",), projection="fc2")
_OPT = Architecture(
    family="opt",
    model_types=("opt",),
    layers="model.decoder.layers",
    embedding="model.decoder.embed_tokens",
    final_norm="model.decoder.final_layer_norm",
    before_head=("model.decoder.project_out",),
    attention=_OPT_ATTENTION,
    mlp=_FEED_FORWARD,
    middle="final_layer_norm",
)

CLASSIC: tuple[Architecture, ...] = (
    _GPT2,
    replace(
        _GPT2,
        family="gpt_neo",
        model_types=("gpt_neo",),
        attention=Sublayer("attn", projection="attn.attention.out_proj"),
        layer_returns_tuple=True,
    ),
    # The first GPT: a norm behind each sum, and none at the end.
    replace(
        _GPT2,
        family="openai-gpt",
        model_types=("openai-gpt",),
        embedding="transformer.tokens_embed",
        final_norm=None,
        attention=Sublayer("attn", projection="attn.c_proj", norm_after="ln_1"),
        mlp=Sublayer("mlp", projection="mlp.c_proj", norm_after="ln_2"),
        middle="mlp",
        layer_returns_tuple=True,
    ),
    replace(
        _BLOOM,
        when=(("apply_residual_connection_post_layernorm", True),),
        attention=replace(_BLOOM_ATTENTION, residual_norm="input_layernorm"),
        mlp=replace(_BLOOM_MLP, residual_norm="post_attention_layernorm"),
    ),
    _BLOOM,
    Architecture(
        family="mpt",
        model_types=("mpt",),
        layers="transformer.blocks",
        embedding="transformer.wte",
        final_norm="transformer.norm_f",
        attention=Sublayer("attn", projection="attn.out_proj"),
        mlp=Sublayer("ffn", added=("ffn.down_proj",), projection="ffn.down_proj"),
        middle="norm_2",
        layer_returns_tuple=True,
    ),
    # OPT 350m: a norm behind each sum, and none at the end.
    replace(
        _OPT,
        when=(("do_layer_norm_before", False),),
        final_norm=None,
        attention=replace(_OPT_ATTENTION, norm_after="self_attn_layer_norm"),
        mlp=replace(_FEED_FORWARD, norm_after="final_layer_norm"),
        middle="fc1",
    ),
    replace(_OPT, when=(("_remove_final_layer_norm", True),), final_norm=None),
    _OPT,
    replace(
        _OPT,
        family="xglm",
        model_types=("xglm",),
        layers="model.layers",
        embedding="model.embed_tokens",
        final_norm="model.layer_norm",
        before_head=(),
    ),
    replace(
        _OPT,
        family="biogpt",
        model_types=("biogpt",),
        layers="biogpt.layers",
        embedding="biogpt.embed_tokens",
        final_norm="biogpt.layer_norm",
        before_head=(),
        head="output_projection",
    ),
    Architecture(
        family="ctrl",
        model_types=("ctrl",),
        layers="transformer.h",
        embedding="transformer.w",
        final_norm="transformer.layernorm",
        attention=Sublayer("multi_head_attention", projection="multi_head_attention.dense"),
        mlp=Sublayer("ffn", projection="ffn.2"),
        middle="layernorm2",
    ),
    Architecture(
        family="modernbert-decoder",
        model_types=("modernbert-decoder",),
        embedding="model.embeddings.tok_embeddings",
        final_norm="model.final_norm",
        before_head=("lm_head",),
        head="decoder",
        attention=Sublayer("attn", projection="attn.Wo"),
        mlp=Sublayer("mlp", projection="mlp.Wo"),
        middle="mlp_norm",
    ),
)
