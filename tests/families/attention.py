"""Families whose layers are attention and a dense MLP."""

from __future__ import annotations

from tests.families.sizes import LATENT_ATTENTION, LLAMA, LLAMA3_ROPE, SLIDING, YARN_ROPE

_FULL = "full_attention"
_SANDWICHED = dict(LLAMA, head_dim=8, sliding_window=4, query_pre_attn_scalar=8, layer_types=SLIDING)

# name of the case -> (model type, what its config says)
ATTENTION: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", dict(LLAMA)),
    "llama3_rope": ("llama", dict(LLAMA, rope_parameters=LLAMA3_ROPE)),
    "mistral": ("mistral", dict(LLAMA, sliding_window=4)),
    "ministral": ("ministral", dict(LLAMA, head_dim=8, sliding_window=4, layer_types=SLIDING)),
    "ministral3": (
        "ministral3",
        dict(LLAMA, head_dim=8, rope_parameters=dict(YARN_ROPE, llama_4_scaling_beta=0.5)),
    ),
    "qwen2": (
        "qwen2",
        dict(LLAMA, use_sliding_window=True, sliding_window=4, max_window_layers=2, layer_types=[_FULL, *SLIDING[:3]]),
    ),
    "qwen3": ("qwen3", dict(LLAMA, head_dim=8, tie_word_embeddings=True)),
    "gemma": ("gemma", dict(LLAMA, head_dim=8)),
    "gemma2": ("gemma2", dict(_SANDWICHED, final_logit_softcapping=2.0, attn_logit_softcapping=1.0)),
    "gemma3_text": ("gemma3_text", dict(_SANDWICHED, final_logit_softcapping=2.0)),
    "gemma4_text": (
        "gemma4_text",
        dict(
            LLAMA, head_dim=8, global_head_dim=16, sliding_window=4, layer_types=SLIDING, final_logit_softcapping=2.0,
            hidden_size_per_layer_input=8, vocab_size_per_layer_input=400, num_kv_shared_layers=1,
        ),
    ),
    "gemma4_unified_text": (
        "gemma4_unified_text",
        dict(
            LLAMA, head_dim=8, global_head_dim=16, sliding_window=4, layer_types=SLIDING, final_logit_softcapping=2.0,
            use_bidirectional_attention=None,
        ),
    ),
    "vaultgemma": ("vaultgemma", dict(_SANDWICHED, final_logit_softcapping=2.0, attn_logit_softcapping=1.0)),
    "phi3": ("phi3", dict(LLAMA, sliding_window=4)),
    "olmo": ("olmo", dict(LLAMA, clip_qkv=0.5)),
    "olmo2": ("olmo2", dict(LLAMA)),
    "olmo3": ("olmo3", dict(LLAMA, sliding_window=4, layer_types=SLIDING)),
    "starcoder2": ("starcoder2", dict(LLAMA, sliding_window=4)),
    "granite": (
        "granite",
        dict(
            LLAMA, embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.7, logits_scaling=4.0
        ),
    ),
    "granite_swa": (
        "granite_swa",
        dict(
            LLAMA, embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.7, logits_scaling=4.0,
            sliding_window=4, layer_types=SLIDING, layer_rope_theta=[100.0, 1000.0, 100.0, 1000.0],
        ),
    ),
    "hyperclovax": (
        "hyperclovax",
        dict(
            LLAMA, head_dim=8, embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.7,
            logits_scaling=4.0, use_post_norm=True,
        ),
    ),
    "minicpm3": ("minicpm3", dict(LLAMA, **LATENT_ATTENTION, dim_model_base=8, scale_emb=3, scale_depth=1.4)),
    "glm": ("glm", dict(LLAMA, head_dim=8)),
    "glm4": ("glm4", dict(LLAMA, head_dim=8)),
    "smollm3": ("smollm3", dict(LLAMA, no_rope_layers=[1, 1, 0, 1])),
    "nemotron": ("nemotron", dict(LLAMA, head_dim=8)),
    "helium": ("helium", dict(LLAMA, head_dim=8)),
    "seed_oss": ("seed_oss", dict(LLAMA, head_dim=8)),
    "arcee": ("arcee", dict(LLAMA)),
    "apertus": ("apertus", dict(LLAMA, rope_parameters=LLAMA3_ROPE)),
    "exaone4": ("exaone4", dict(LLAMA, sliding_window=4, layer_types=SLIDING)),
    "ernie4_5": ("ernie4_5", dict(LLAMA, head_dim=8, use_bias=True)),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", dict(LLAMA, head_dim=8)),
    "bitnet": ("bitnet", dict(LLAMA)),
    "cwm": ("cwm", dict(LLAMA, head_dim=8, sliding_window=4, layer_types=SLIDING)),
    "nanochat": ("nanochat", dict(LLAMA, final_logit_softcapping=2.0)),
    "doge": ("doge", dict(LLAMA, keep_window_size=4)),
    "diffllama": ("diffllama", dict(LLAMA, head_dim=8)),
    "youtu": ("youtu", dict(LLAMA, **LATENT_ATTENTION)),
    "internlm3": ("internlm3", dict(LLAMA, head_dim=8)),
    "iquestcoder": ("iquestcoder", dict(LLAMA, head_dim=8)),
    "jais2": ("jais2", dict(LLAMA, head_dim=8)),
    "persimmon": ("persimmon", dict(LLAMA)),
    "stablelm": ("stablelm", dict(LLAMA, use_qkv_bias=True)),
    "stablelm_parallel": ("stablelm", dict(LLAMA, qk_layernorm=True, use_parallel_residual=True)),
    "cohere": ("cohere", dict(LLAMA, logit_scale=0.25, use_qk_norm=True)),
    "cohere2": ("cohere2", dict(LLAMA, head_dim=8, logit_scale=0.25, sliding_window=4, layer_types=SLIDING)),
    "cohere_compass_text": (
        "cohere_compass_text",
        dict(
            LLAMA, head_dim=8, logit_scale=0.25, sliding_window=4, layer_types=SLIDING,
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=100.0),
                full_attention=dict(rope_type="default", rope_theta=1000.0),
            ),
        ),
    ),
    "cohere_compass_text_unscaled": (
        "cohere_compass_text",
        dict(
            LLAMA, head_dim=8, logit_scale=None,
            rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=1000.0)),
        ),
    ),
    "moshi": ("moshi", dict(LLAMA, head_dim=8, ffn_dim=48, sliding_window=4)),
    "phi": ("phi", dict(LLAMA, qk_layernorm=True)),
    "modernbert-decoder": (
        "modernbert-decoder",
        dict(LLAMA, local_attention=8, layer_types=SLIDING, cls_token_id=1, sep_token_id=2),
    ),
}  # fmt: skip
