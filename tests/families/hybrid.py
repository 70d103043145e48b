"""Families with a token mixer other than attention: Mamba, linear attention, convolutions, recurrent units."""

from __future__ import annotations

from tests.families.sizes import LATENT_ATTENTION, LLAMA

_MIXED = ["linear_attention", "full_attention"] * 2
_CONVOLVED = ["conv", "full_attention"] * 2
_DELTA = dict(
    head_dim=8, layer_types=_MIXED, linear_conv_kernel_dim=3, linear_key_head_dim=4, linear_value_head_dim=8,
    linear_num_key_heads=2, linear_num_value_heads=4,
)  # fmt: skip
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
_MAMBA2 = dict(
    mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=4, mamba_d_conv=3, mamba_expand=2,
    mamba_chunk_size=4,
)  # fmt: skip
_STATE = dict(
    vocab_size=400, bos_token_id=1, eos_token_id=2, pad_token_id=0, hidden_size=32, num_hidden_layers=4, state_size=4,
    expand=2, conv_kernel=3,
)  # fmt: skip
_KIMI = dict(
    {k: v for k, v in LATENT_ATTENTION.items() if k != "q_lora_rank"}, num_experts=4, num_experts_per_token=2,
    num_shared_experts=1, moe_intermediate_size=16, layer_types=_MIXED, linear_head_dim=8, linear_num_heads=4,
    linear_conv_kernel_dim=3, mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
)  # fmt: skip

HYBRID: dict[str, tuple[str, dict[str, object]]] = {
    "qwen3_next": ("qwen3_next", dict(LLAMA, **_DELTA, **_EXPERTS, mlp_only_layers=[0])),
    "qwen3_5_text": ("qwen3_5_text", dict(LLAMA, **_DELTA)),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", dict(LLAMA, **_DELTA, **_EXPERTS)),
    "olmo_hybrid": ("olmo_hybrid", {**LLAMA, **_DELTA, "linear_num_key_heads": 4}),
    "kimi_linear": ("kimi_linear", dict(LLAMA, **_KIMI)),
    "bailing_hybrid": (
        "bailing_hybrid", dict(LLAMA, **_KIMI, num_expert_group=2, topk_group=1, first_k_dense_replace=1)
    ),
    "minimax": (
        "minimax",
        dict(
            LLAMA, num_local_experts=4, num_experts_per_tok=2, layer_types=_MIXED, block_size=4, head_dim=8,
            full_attn_alpha_factor=1.5, full_attn_beta_factor=0.7, linear_attn_alpha_factor=1.3,
            linear_attn_beta_factor=0.6, mlp_alpha_factor=1.2, mlp_beta_factor=0.8,
        ),
    ),
    "lfm2": ("lfm2", dict(LLAMA, layer_types=_CONVOLVED, conv_L_cache=3, block_multiple_of=16)),
    "lfm2_moe": (
        "lfm2_moe",
        dict(
            LLAMA, layer_types=_CONVOLVED, conv_L_cache=3, num_dense_layers=1, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=16,
        ),
    ),
    "lfm3": (
        "lfm3",
        dict(
            LLAMA, layer_types=["conv", "full_attention", "conv", "sliding_attention"], conv_L_cache=3, head_dim=8,
            sliding_window=4,
        ),
    ),
    "jamba": (
        "jamba",
        dict(
            LLAMA, num_experts=4, num_experts_per_tok=2, attn_layer_period=2, attn_layer_offset=1,
            expert_layer_period=3, expert_layer_offset=1, mamba_d_state=4, mamba_d_conv=3, mamba_dt_rank=6,
        ),
    ),
    "bamba": ("bamba", dict(LLAMA, **_MAMBA2, attn_layer_indices=[1, 3])),
    "falcon_h1": (
        "falcon_h1",
        dict(
            LLAMA, **_MAMBA2, mamba_d_ssm=64, head_dim=8, lm_head_multiplier=0.3, embedding_multiplier=3.0,
            mlp_multipliers=[0.7, 1.3], key_multiplier=0.8, attention_out_multiplier=0.6, attention_in_multiplier=1.4,
            ssm_multipliers=[0.7, 0.8, 1.2, 1.1, 0.9], ssm_in_multiplier=1.3, ssm_out_multiplier=0.5,
        ),
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        dict(
            LLAMA, **_MAMBA2, layer_types=_MIXED, embedding_multiplier=3.0, attention_multiplier=0.5,
            residual_multiplier=0.7, logits_scaling=4.0, num_local_experts=4, num_experts_per_tok=2,
            shared_intermediate_size=24, position_embedding_type="rope",
        ),
    ),
    "granitemoehybrid_dense": (
        "granitemoehybrid",
        dict(
            LLAMA, **_MAMBA2, layer_types=_MIXED, residual_multiplier=0.7, logits_scaling=4.0, num_local_experts=0,
            num_experts_per_tok=0, shared_intermediate_size=24,
        ),
    ),
    "nemotron_h": (
        "nemotron_h",
        dict(
            LLAMA, layers_block_type=["linear_attention", "moe", "full_attention", "mlp"], head_dim=8,
            ssm_state_size=4, mamba_num_heads=8, mamba_head_dim=8, n_groups=2, conv_kernel=3, expand=2, chunk_size=4,
            n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
            moe_shared_expert_intermediate_size=16,
        ),
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        dict(
            LLAMA, head_dim=8, lru_width=32, attention_window_size=4, conv1d_width=3, logits_soft_cap=2.0,
            block_types=["recurrent", "attention"],
        ),
    ),
    "mamba": ("mamba", dict(_STATE, time_step_rank=6)),
    "mamba2": ("mamba2", dict(_STATE, num_heads=8, head_dim=8, n_groups=2, chunk_size=4)),
    "falcon_mamba": ("falcon_mamba", dict(_STATE, time_step_rank=6)),
    "zamba": (
        "zamba",
        dict(
            LLAMA, attention_hidden_size=64, attention_head_dim=16, num_key_value_heads=4, n_mamba_heads=2,
            mamba_d_state=4, mamba_d_conv=3, mamba_dt_rank=6,
            layers_block_type=["linear_attention", "hybrid"] * 2,
        ),
    ),
    "zamba2": (
        "zamba2",
        dict(
            {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}, n_mamba_heads=8, mamba_ngroups=2,
            mamba_d_state=4, mamba_d_conv=3, chunk_size=4, num_mem_blocks=2,
            adapter_rank=4, use_shared_attention_adapter=True, use_mem_rope=True,
            layers_block_type=["linear_attention", "hybrid", "hybrid", "linear_attention"],
        ),
    ),
}  # fmt: skip
