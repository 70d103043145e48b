"""Families with words of their own: GPT-2 and its time, and decoders made of BERT."""

from __future__ import annotations

from tests.families.sizes import GPT, LLAMA

_TOKENS = dict(vocab_size=400, bos_token_id=1, eos_token_id=2, pad_token_id=0)
_NEOX = dict(
    _TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    max_position_embeddings=256,
)  # fmt: skip
_FALCON = dict(_NEOX, ffn_hidden_size=48, bias=True)
_OPT = dict(
    _TOKENS, hidden_size=32, num_hidden_layers=4, ffn_dim=48, num_attention_heads=4, max_position_embeddings=256
)  # fmt: skip

CLASSIC: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": ("gpt2", dict(GPT, scale_attn_by_inverse_layer_idx=True)),
    "gpt_bigcode": ("gpt_bigcode", dict(GPT)),
    "gpt_neox": ("gpt_neox", dict(_NEOX)),
    "gpt_neox_sequential": ("gpt_neox", dict(_NEOX, use_parallel_residual=False)),
    "gpt_neo": (
        "gpt_neo",
        dict(
            _TOKENS, hidden_size=32, num_layers=4, num_heads=4, intermediate_size=48, max_position_embeddings=256,
            attention_types=[[["global", "local"], 2]], window_size=4,
        ),
    ),
    "gptj": ("gptj", dict(GPT, rotary_dim=4)),
    "codegen": ("codegen", dict(GPT, rotary_dim=4)),
    "bloom": ("bloom", dict(_TOKENS, hidden_size=32, n_layer=4, n_head=4)),
    "bloom_post_norm": (
        "bloom",
        dict(_TOKENS, hidden_size=32, n_layer=4, n_head=4, apply_residual_connection_post_layernorm=True),
    ),
    "falcon": ("falcon", dict(_FALCON)),
    "falcon_alibi": ("falcon", dict(_FALCON, alibi=True, parallel_attn=False, multi_query=False)),
    "falcon_sequential": ("falcon", dict(_FALCON, parallel_attn=False)),
    "falcon_new": ("falcon", dict(_FALCON, new_decoder_architecture=True, num_kv_heads=2)),
    "falcon_new_one_norm": (
        "falcon", dict(_FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)
    ),
    "mpt": (
        "mpt",
        dict(_TOKENS, d_model=32, n_heads=4, n_layers=4, expansion_ratio=2, max_seq_len=256,
             attn_config=dict(clip_qkv=0.5)),
    ),
    "opt": ("opt", dict(_OPT, word_embed_proj_dim=32)),
    "opt_350m": ("opt", dict(_OPT, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "opt_no_final_norm": ("opt", dict(_OPT, word_embed_proj_dim=32, _remove_final_layer_norm=True)),
    "xglm": (
        "xglm",
        dict(_TOKENS, d_model=32, ffn_dim=48, num_layers=4, attention_heads=4, max_position_embeddings=256),
    ),
    "biogpt": ("biogpt", {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}),
    "ctrl": ("ctrl", dict(GPT, dff=48)),
    "openai-gpt": ("openai-gpt", dict(GPT)),
}  # fmt: skip
