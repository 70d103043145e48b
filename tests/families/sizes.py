"""What the tiny models share."""

from __future__ import annotations

NUM_LAYERS = 4
_TOKENS = dict(vocab_size=400, bos_token_id=1, eos_token_id=2, pad_token_id=0)

LLAMA: dict[str, object] = dict(
    _TOKENS,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=NUM_LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
# GPT-2's words for the same.
GPT: dict[str, object] = dict(_TOKENS, n_embd=32, n_layer=NUM_LAYERS, n_head=4, n_positions=256)
# Both kinds of attention, the window smaller than the prompts.
SLIDING = ["sliding_attention", "full_attention"] * (NUM_LAYERS // 2)
# Keys and values from a low-rank latent vector (DeepSeek); queries and values of a head differ in width.
LATENT_ATTENTION: dict[str, object] = dict(
    num_key_value_heads=4, q_lora_rank=12, kv_lora_rank=10, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6
)
# Rotary positions stretched by two of the usual methods; the prompts are longer than what they were "trained" on.
LLAMA3_ROPE: dict[str, object] = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=4,
)  # fmt: skip
YARN_ROPE: dict[str, object] = dict(
    rope_type="yarn", rope_theta=1000.0, factor=64.0, original_max_position_embeddings=4, beta_fast=32.0, beta_slow=1.0,
    mscale=1.0, mscale_all_dim=1.0,
)  # fmt: skip
