"""Sizes that a config states, whatever its family calls them, and TransformerLens's names for them."""

from __future__ import annotations

from typing import Any

import torch

from interp.architectures import Architecture, find_architecture
from interp.model.model_spec.attention_spec import read_positions
from interp.model.model_spec.lookups import value_of

__all__ = ["TRANSFORMER_LENS_NAMES", "read_config"]


# Our field -> what families call it; the first that is set counts. A dot goes into a config inside a config.
_NAMES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "attention_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads", "attn_config.kv_n_heads"),
    "vocab_size": ("vocab_size",),
    "max_positions": ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "n_ctx"),
    "norm_eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"),
    "attention_softcap": ("attn_logit_softcapping",),
    "activation": (
        "hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act", "activation", "afn",
        "ffn_config.ffn_act_fn",
    ),
    "num_experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts",
                    "ffn_config.moe_num_experts"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts",
                          "ffn_config.moe_top_k"),
    "num_shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "embedding_scale": ("embedding_multiplier", "scale_emb"),
    "residual_scale": ("residual_multiplier",),
    "bos_token_id": ("bos_token_id",),
    "eos_token_id": ("eos_token_id",),
    "pad_token_id": ("pad_token_id",),
    "initializer_range": ("initializer_range", "init_std"),
}  # fmt: skip
_VISION_NAMES: dict[str, tuple[str, ...]] = {
    "vision_hidden_size": ("hidden_size", "embed_dim"),
    "vision_num_layers": ("num_hidden_layers", "depth", "num_layers"),
    "vision_num_heads": ("num_attention_heads", "num_heads"),
}
# What families leave unread of their config, or reckon with before they use it; only modules can say it then.
_UNREAD: dict[str, tuple[str, ...]] = {
    "biogpt": ("norm_eps",),
    "inkling_text": ("embedding_scale",),
    "modernbert-decoder": ("num_kv_heads",),
    "moshi": ("mlp_size",),
    "openai-gpt": ("activation",),
    "persimmon": ("num_kv_heads",),
    "recurrent_gemma": ("mlp_size",),
}
# Families that multiply embeddings by the root of the hidden size, and have no field for it.
_ROOT_SCALED = ("afmoe", "ctrl", "recurrent_gemma")
_TOKEN_MIXERS = {
    "full_attention": "attention",
    "sliding_attention": "attention",
    "chunked_attention": "attention",
    "indexed_attention": "attention",
    "minimax_m3_sparse": "attention",
    "attention": "attention",
    "conv": "convolution",
    "moe": "none",
    "mlp": "none",
    "mamba": "mamba",
    "recurrent": "recurrent",
}


def read_config(whole: Any, architecture: Architecture | None = None) -> dict[str, Any]:
    """The fields of a `ModelSpec` that a config determines.

    Arguments:
        whole: a model's config; of a model with a vision or audio tower the whole one.
        architecture: the family's record; None: by the table.
    """
    config = whole.get_text_config()
    record = architecture or find_architecture(whole.model_type, config)
    facts: dict[str, Any] = {name: value_of(config, *names) for name, names in _NAMES.items()}
    for name in _UNREAD.get(config.model_type, ()):
        facts[name] = None
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if facts[token] is None:
            facts[token] = value_of(whole, token)
        if isinstance(facts[token], list):
            facts[token] = tuple(facts[token])
    facts["model_type"] = config.model_type
    facts["architecture"] = next(iter(value_of(whole, "architectures") or ()), None)
    facts["tied_embeddings"] = value_of(whole, "tie_word_embeddings")
    facts["attention_scale_by_inverse_layer"] = value_of(config, "scale_attn_by_inverse_layer_idx")
    dtype = value_of(config, "dtype")
    facts["dtype"] = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    quantization = value_of(whole, "quantization_config")
    if quantization is not None:
        facts["quantization"] = _named(quantization, "quant_method")
    if config.model_type in _ROOT_SCALED and value_of(config, "mup_enabled") is not False:
        root = torch.tensor(config.hidden_size**0.5, dtype=torch.float32, device="cpu")  # of RecurrentGemma, rounded
        facts["embedding_scale"] = float(root.bfloat16() if config.model_type == "recurrent_gemma" else root)
    facts.update(_tower(whole, config))
    facts.update(_heads(config, facts))
    facts.update(_layers(config, facts, known=record is not None))
    facts.update(_mlps(config, facts))
    facts.update(read_positions(config, facts))
    facts.update(_readout(config, record))
    return facts


def _named(mapping: Any, key: str) -> str | None:
    value = mapping.get(key) if isinstance(mapping, dict) else getattr(mapping, key, None)
    return None if value is None else str(getattr(value, "value", value))


def _tower(whole: Any, config: Any) -> dict[str, Any]:
    vision = value_of(whole, "vision_config")
    facts: dict[str, Any] = {"is_multimodal": whole is not config or vision is not None}
    if vision is not None:
        facts |= {name: value_of(vision, *names) for name, names in _VISION_NAMES.items()}
    facts["tokens_per_image"] = value_of(whole, "mm_tokens_per_image")
    return facts


def _heads(config: Any, facts: dict[str, Any]) -> dict[str, Any]:
    num_heads = facts["num_heads"]
    if num_heads is None:  # without attention, `head_dim` is that of a state-space mixer
        return {"num_kv_heads": None, "head_dim": None}
    head_dim = value_of(config, "head_dim", "attention_head_dim", "kv_channels")
    if value_of(config, "qk_nope_head_dim") is not None:  # of latent attention, `head_dim` is the rotated part
        head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
    if head_dim is None and facts["hidden_size"] is not None:
        head_dim = facts["hidden_size"] // num_heads
    num_kv_heads = num_heads if facts["num_kv_heads"] is None else facts["num_kv_heads"]
    if value_of(config, "multi_query") and not value_of(config, "new_decoder_architecture"):
        num_kv_heads = 1
    if value_of(config, "swa_num_key_value_heads") is not None or config.model_type == "mimo_v2_flash":
        num_kv_heads = None  # layers with a window have another number
    scale = value_of(config, "attention_multiplier")
    if value_of(config, "query_pre_attn_scalar") is not None:
        scale = config.query_pre_attn_scalar**-0.5
    return {
        "head_dim": head_dim,
        "value_head_dim": value_of(config, "v_head_dim") or head_dim,
        "num_kv_heads": num_kv_heads,
        "attention_scale": scale,
    }


def _layers(config: Any, facts: dict[str, Any], *, known: bool) -> dict[str, Any]:
    """What mixes tokens in each layer, and how far attention sees."""
    kinds = value_of(config, "layers_block_type", "layer_types")
    window = value_of(config, "sliding_window", "attention_window_size", "window_size", "sliding_window_size")
    if value_of(config, "use_sliding_window") is False or config.model_type == "moshi":  # Moshi leaves it unread
        window = None
    types: tuple[str | None, ...] | None
    if kinds is None:
        mixers = None
        types = _uniform_types(config, facts, window) if known else None
    else:
        mixers = tuple(_mixer(config, kind) for kind in kinds)
        types = tuple(
            _reach(kind) if "attention" in mixer.split("+") else None for kind, mixer in zip(kinds, mixers, strict=True)
        )
    if types is not None and set(types) == {None}:
        types = None
    return {
        "layer_types": None if mixers is None or "" in mixers else mixers,
        "attention_types": types,
        "sliding_window": window if types is not None and "sliding" in types else None,
        "attention_chunk_size": value_of(config, "attention_chunk_size"),
    }


def _uniform_types(config: Any, facts: dict[str, Any], window: int | None) -> tuple[str, ...] | None:
    if value_of(config, "attention_layers") is not None:  # GPT-Neo
        return tuple({"global": "full", "local": "sliding"}[kind] for kind in config.attention_layers)
    if facts["num_heads"] is None or facts["num_layers"] is None:
        return None
    reach = "indexed" if value_of(config, "keep_window_size") is not None else "sliding" if window else "full"
    return (reach,) * facts["num_layers"]


def _mixer(config: Any, kind: str) -> str:
    """What mixes tokens in a layer, by what its config calls the layer; empty for a word that is not known."""
    if kind in _TOKEN_MIXERS:
        return _TOKEN_MIXERS[kind]
    has_states = value_of(config, "mamba_d_state", "ssm_state_size", "state_size") is not None
    if kind == "linear_attention":
        if value_of(config, "lru_width") is not None:
            return "recurrent"
        return "mamba" if has_states else "linear_attention"
    if kind.startswith("hybrid"):  # attention and the other mixer in one layer; Inkling's other one is a convolution
        return "attention+mamba" if has_states else "attention"
    return ""


def _reach(kind: str) -> str:
    if "sliding" in kind:
        return "sliding"
    if kind == "minimax_m3_sparse":
        return "indexed"
    return kind.removesuffix("_attention") if kind in ("chunked_attention", "indexed_attention") else "full"


def _mlps(config: Any, facts: dict[str, Any]) -> dict[str, Any]:
    num_experts = facts["num_experts"]
    if not isinstance(num_experts, int) or value_of(config, "is_moe", "enable_moe_block") is False:
        num_experts = None
    dense = value_of(
        config, "dense_intermediate_size", "intermediate_size_mlp", "prefix_dense_intermediate_size",
        "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "dff",
    )  # fmt: skip
    if dense is None and hasattr(config, "n_inner"):
        dense = 4 * facts["hidden_size"]
    if num_experts == 0:  # a family with experts in a size without (Granite 4)
        num_experts, dense = None, value_of(config, "shared_intermediate_size", "intermediate_size")
    of_mixer = facts["num_heads"] is None  # a state-space model's `intermediate_size` is that of its mixer
    reckoned = value_of(config, "block_auto_adjust_ff_dim") or "mlp_size" in _UNREAD.get(config.model_type, ())
    if of_mixer or reckoned or not isinstance(dense, int):
        dense = None
    found: dict[str, Any] = {"num_experts": num_experts, "mlp_size": dense}
    if value_of(config, "swiglu_alpha") is not None:  # x sigmoid(alpha x), whatever `hidden_act` says
        found["activation"] = "quick_gelu" if config.swiglu_alpha == 1.702 else None
    elif isinstance(facts["activation"], dict):
        found["activation"] = facts["activation"].get("name")
    elif not isinstance(facts["activation"], str) or of_mixer:
        found["activation"] = None
    if num_experts is None:
        return found | {"experts_per_token": None, "num_shared_experts": None}
    size = value_of(config, "moe_intermediate_size", "intermediate_size", "ffn_config.ffn_hidden_size")
    found["expert_size"] = size if isinstance(size, int) else None
    if not isinstance(facts["experts_per_token"], int):
        found["experts_per_token"] = None
    found["mlp_types"] = types = _mlp_types(config, facts["num_layers"])
    if types is not None and "dense" not in types:
        found["mlp_size"] = found["expert_size"]
    elif types is None and value_of(config, "moe_intermediate_size") is not None:
        found["mlp_size"] = None  # of dense layers, which there may not be
    if types is not None and "experts" in types:
        found["first_dense_layers"] = types.index("experts")
    return found


def _mlp_types(config: Any, num_layers: int) -> tuple[str, ...] | None:
    """Which layers of a model with experts have them, where a config says so."""
    named = value_of(config, "mlp_layer_types")
    if named is not None:
        return tuple("experts" if kind == "sparse" else "dense" for kind in named)
    layers = range(num_layers)
    if value_of(config, "layers_block_type") is not None and "moe" in config.layers_block_type:
        return tuple({"moe": "experts", "mlp": "dense"}.get(kind, "none") for kind in config.layers_block_type)
    if value_of(config, "moe_layers") is not None:
        with_experts = [i in config.moe_layers for i in layers]
    elif value_of(config, "first_k_dense_replace", "num_dense_layers") is not None:
        first = value_of(config, "first_k_dense_replace", "num_dense_layers")
        with_experts = [i >= first for i in layers]
    elif value_of(config, "decoder_sparse_step") is not None:
        dense = value_of(config, "mlp_only_layers") or ()
        with_experts = [i not in dense and (i + 1) % config.decoder_sparse_step == 0 for i in layers]
    elif value_of(config, "expert_layer_period") is not None:
        with_experts = [i % config.expert_layer_period == config.expert_layer_offset for i in layers]
    else:
        return None
    return tuple("experts" if has else "dense" for has in with_experts)


def _readout(config: Any, record: Architecture | None) -> dict[str, Any]:
    """What the table of architectures says of the family: how stages are summed, and what stands behind the head."""
    if record is None:
        return {"final_softcap": value_of(config, "final_logit_softcapping")}
    scale = None if record.logit_scale is None else value_of(config, record.logit_scale)
    divisor = None if record.logit_divisor is None else value_of(config, record.logit_divisor)
    return {
        "parallel_residual": record.parallel,
        "logit_scale": scale if divisor is None else 1 / divisor,
        "final_softcap": None if record.softcap is None else value_of(config, record.softcap),
    }


# A field of TransformerLens 4.3's TransformerBridgeConfig -> ours. Numbers and truth values are the same in both; where
# the value is a word, it is our word (`normalization` is "RMSNorm", theirs "RMS"). Their fields that are not here say
# how TransformerLens runs a model (hooks, devices, tokenizer), or how one is initialized, or something that no decoder
# has; `attn_scale` divides scores where our `attention_scale` multiplies them.
TRANSFORMER_LENS_NAMES: dict[str, str] = {
    "act_fn": "activation",
    "architecture": "architecture",
    "attn_only": "attention_only",
    "attn_scores_soft_cap": "attention_softcap",
    "attn_types": "attention_types",
    "d_head": "head_dim",
    "d_mlp": "mlp_size",
    "d_model": "hidden_size",
    "d_vocab": "vocab_size",
    "d_vocab_out": "vocab_size",
    "dtype": "dtype",
    "eps": "norm_eps",
    "experts_per_token": "experts_per_token",
    "final_rms": "uses_rms_norm",
    "gated_mlp": "gated_mlp",
    "initializer_range": "initializer_range",
    "is_multimodal": "is_multimodal",
    "is_stateful": "is_stateful",
    "mm_tokens_per_image": "tokens_per_image",
    "n_ctx": "max_positions",
    "n_heads": "num_heads",
    "n_key_value_heads": "num_kv_heads",
    "n_layers": "num_layers",
    "n_params": "num_parameters",
    "normalization_type": "normalization",
    "num_experts": "num_experts",
    "original_architecture": "architecture",
    "output_logits_soft_cap": "final_softcap",
    "parallel_attn_mlp": "parallel_residual",
    "per_layer_head_dim": "head_dim_by_layer",
    "per_layer_num_key_value_heads": "num_kv_heads_by_layer",
    "positional_embedding_type": "positional_embedding",
    "post_embedding_ln": "embedding_norm",
    "qk_norm_after_rope": "qk_norm_after_rotary",
    "rmsnorm_uses_offset": "norm_weight_offset",
    "rotary_adjacent_pairs": "rotary_adjacent_pairs",
    "rotary_base": "rotary_base",
    "rotary_dim": "rotary_dim",
    "scale_attn_by_inverse_layer_idx": "attention_scale_by_inverse_layer",
    "tie_word_embeddings": "tied_embeddings",
    "use_local_attn": "uses_local_attention",
    "use_normalization_before_and_after": "normalizes_before_and_after",
    "use_qk_norm": "qk_norm",
    "uses_rms_norm": "uses_rms_norm",
    "vision_hidden_size": "vision_hidden_size",
    "vision_num_heads": "vision_num_heads",
    "vision_num_layers": "vision_num_layers",
    "window_size": "sliding_window",
}
