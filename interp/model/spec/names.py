"""What TransformerLens calls the same things."""

from __future__ import annotations

__all__ = ["TRANSFORMER_LENS_NAMES"]

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
