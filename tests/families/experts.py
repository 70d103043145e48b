"""Families with a mixture of experts in place of some MLPs."""

from __future__ import annotations

from tests.families.sizes import LATENT_ATTENTION, LLAMA, SLIDING, YARN_ROPE

_LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
_NAMED = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
_ROUTED = dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=16)
_GROUPED = dict(_ROUTED, n_group=2, topk_group=1)
_FIRST_DENSE = ["dense", "sparse", "sparse", "sparse"]
_GRANITE = dict(
    LLAMA, embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.7, logits_scaling=4.0, **_LOCAL
)

EXPERTS: dict[str, tuple[str, dict[str, object]]] = {
    "mixtral": ("mixtral", dict(LLAMA, **_LOCAL, sliding_window=4)),
    "qwen2_moe": ("qwen2_moe", dict(LLAMA, **_NAMED, shared_expert_intermediate_size=24, mlp_only_layers=[0])),
    "qwen3_moe": ("qwen3_moe", dict(LLAMA, **_NAMED, head_dim=8, mlp_only_layers=[0])),
    "olmoe": ("olmoe", dict(LLAMA, num_experts=4, num_experts_per_tok=2)),
    "flex_olmo": ("flex_olmo", dict(LLAMA, num_experts=4, num_experts_per_tok=2)),
    "phimoe": ("phimoe", dict(LLAMA, **_LOCAL, lm_head_bias=True, attention_bias=True)),
    "minimax_m2": ("minimax_m2", dict(LLAMA, **_LOCAL, head_dim=8)),
    "granitemoe": ("granitemoe", dict(_GRANITE)),
    "granitemoeshared": ("granitemoeshared", dict(_GRANITE, shared_intermediate_size=24)),
    "granitemoeshared_no_shared": ("granitemoeshared", dict(_GRANITE, shared_intermediate_size=0)),
    "granitemoe_swa": (
        "granitemoe_swa",
        dict(
            _GRANITE, shared_intermediate_size=24, sliding_window=4, layer_types=SLIDING,
            layer_rope_theta=[100.0, 1000.0, 100.0, 1000.0],
        ),
    ),
    "glm4_moe": ("glm4_moe", dict(LLAMA, **_GROUPED, head_dim=8, first_k_dense_replace=1, use_qk_norm=True)),
    "glm4_moe_lite": ("glm4_moe_lite", dict(LLAMA, **_GROUPED, **LATENT_ATTENTION, mlp_layer_types=_FIRST_DENSE)),
    "deepseek_v2": (
        "deepseek_v2",
        dict(
            LLAMA, **_GROUPED, **LATENT_ATTENTION, first_k_dense_replace=1, topk_method="group_limited_greedy",
            routed_scaling_factor=1.5,
        ),
    ),
    "deepseek_v3": ("deepseek_v3", dict(LLAMA, **_GROUPED, **LATENT_ATTENTION, first_k_dense_replace=1)),
    "deepseek_v32": (
        "deepseek_v32",
        dict(
            LLAMA, **_GROUPED, **LATENT_ATTENTION, mlp_layer_types=_FIRST_DENSE, index_topk=4, index_head_dim=8,
            index_n_heads=8,
        ),
    ),
    "glm_moe_dsa": (
        "glm_moe_dsa",
        dict(
            LLAMA, **_GROUPED, **LATENT_ATTENTION, mlp_layer_types=_FIRST_DENSE, index_topk=4, index_head_dim=8,
            index_n_heads=8, indexer_types=["full", "shared", "full", "shared"],
        ),
    ),
    "dots1": (
        "dots1",
        dict(LLAMA, **_GROUPED, first_k_dense_replace=1, sliding_window=4, layer_types=SLIDING, head_dim=8),
    ),
    "dots3_note_text": (
        "dots3_note_text",
        dict(
            LLAMA, **_GROUPED, **LATENT_ATTENTION, head_dim=8, mlp_layer_types=_FIRST_DENSE, index_topk=4,
            index_head_dim=8, index_n_heads=8, sliding_window=4, shared_experts_intermediate_size=16,
            layer_types=["indexed_attention", "sliding_attention"] * 2, swa_num_attention_heads=2,
            swa_num_key_value_heads=2, swa_q_lora_rank=12, swa_kv_lora_rank=10, swa_head_dim=12,
            swa_qk_nope_head_dim=8, swa_v_head_dim=6,
        ),
    ),
    "axk1": ("axk1", dict(LLAMA, **_GROUPED, **LATENT_ATTENTION, mlp_layer_types=_FIRST_DENSE)),
    "axk2": (
        "axk2",
        dict(
            LLAMA, **_ROUTED, **LATENT_ATTENTION, mlp_layer_types=_FIRST_DENSE, index_topk=4, index_head_dim=8,
            index_n_heads=8, gated_norm_rank=4,
        ),
    ),
    "exaone_moe": (
        "exaone_moe",
        dict(LLAMA, **_NAMED, num_shared_experts=1, sliding_window=4, layer_types=SLIDING, first_k_dense_replace=1,
             mlp_layer_types=_FIRST_DENSE),
    ),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        dict(LLAMA, moe_intermediate_size=16, moe_k=2, moe_num_experts=4, moe_num_shared_experts=1,
             moe_layer_start_index=1, moe_layer_end_index=3),
    ),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", dict(LLAMA, num_experts=4, moe_topk=2, head_dim=8)),
    "solar_open": ("solar_open", dict(LLAMA, **_ROUTED, head_dim=8)),
    "afmoe": (
        "afmoe",
        dict(LLAMA, **_NAMED, head_dim=8, num_dense_layers=1, num_shared_experts=1, sliding_window=4,
             layer_types=SLIDING, mup_enabled=True),
    ),
    "mimo_v2_flash": (
        "mimo_v2_flash",
        dict(LLAMA, **_ROUTED, head_dim=8, v_head_dim=6, sliding_window=4, layer_types=SLIDING,
             mlp_layer_types=_FIRST_DENSE),
    ),
    "mellum": (
        "mellum",
        dict(LLAMA, **_LOCAL, moe_intermediate_size=16, head_dim=8, sliding_window=4, layer_types=SLIDING,
             mlp_layer_types=_FIRST_DENSE),
    ),
    "flint": (
        "flint",
        dict(LLAMA, **_NAMED, head_dim=8, shared_expert_intermediate_size=16, sliding_window=4, layer_types=SLIDING,
             mlp_only_layers=[0]),
    ),
    "laguna": (
        "laguna",
        dict(LLAMA, **_NAMED, head_dim=8, shared_expert_intermediate_size=16, sliding_window=4, layer_types=SLIDING,
             mlp_layer_types=_FIRST_DENSE, num_attention_heads_per_layer=[4, 2, 4, 2]),
    ),
    "hy_v3": ("hy_v3", dict(LLAMA, **_NAMED, head_dim=8, num_shared_experts=1, mlp_layer_types=_FIRST_DENSE)),
    "kolibri1": (
        "kolibri1",
        dict(LLAMA, **_LOCAL, head_dim=8, moe_intermediate_size=16, shared_expert_intermediate_size=16,
             sliding_window=4, layer_types=SLIDING),
    ),
    "aria_text": ("aria_text", dict(LLAMA, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)),
    "minimax_m3_vl_text": (
        "minimax_m3_vl_text",
        dict(LLAMA, **_LOCAL, head_dim=8, dense_intermediate_size=48, shared_intermediate_size=16, rotary_dim=4,
             mlp_layer_types=_FIRST_DENSE),
    ),
    "gpt_oss": (
        "gpt_oss",
        dict(LLAMA, **_LOCAL, head_dim=8, sliding_window=4, layer_types=SLIDING, rope_parameters=YARN_ROPE),
    ),
    "llama4_text": (
        "llama4_text",
        dict(LLAMA, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=40, head_dim=8,
             moe_layers=[1, 3], no_rope_layers=[1, 1, 0, 1], attention_chunk_size=4),
    ),
    "gemma4_moe": (
        "gemma4_text",
        dict(LLAMA, head_dim=8, global_head_dim=16, sliding_window=4, layer_types=SLIDING,
             hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=4, top_k_experts=2,
             moe_intermediate_size=16),
    ),
    "cohere2_moe": (
        "cohere2_moe",
        dict(LLAMA, head_dim=8, num_experts=4, num_experts_per_tok=2, num_shared_experts=1, logit_scale=0.25,
             sliding_window=4, layer_types=SLIDING, mlp_layer_types=_FIRST_DENSE, prefix_dense_intermediate_size=24),
    ),
    "inkling_text": (
        "inkling_text",
        dict(LLAMA, **_ROUTED, head_dim=8, swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8,
             sliding_window_size=4, layer_types=["hybrid_sliding", "hybrid"] * 2, d_rel=4, rel_extent=8,
             conv_kernel_size=3, mlp_layer_types=_FIRST_DENSE, logits_mup_width_multiplier=2.0, route_scale=1.5),
    ),
    "jetmoe": ("jetmoe", {**LLAMA, "num_attention_heads": 4, "kv_channels": 8, **_LOCAL}),
    "dbrx": (
        "dbrx",
        dict(vocab_size=400, bos_token_id=1, eos_token_id=2, pad_token_id=0, d_model=32, n_heads=4, n_layers=4,
             max_seq_len=256, attn_config=dict(kv_n_heads=2, clip_qkv=0.5, rope_theta=1000.0),
             ffn_config=dict(ffn_hidden_size=24, hidden_size=32, moe_num_experts=4, moe_top_k=2)),
    ),
}  # fmt: skip
