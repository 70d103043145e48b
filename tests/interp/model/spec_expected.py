"""What each tiny family of `tests.families` is, by hand: from its case's config and from transformers' code.

A family's entry says how it differs from Llama, in every field but the number of parameters and what the weights were
drawn from.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["EXPECTED", "LLAMA"]

_FULL, _SLIDING = ("full",) * 4, ("sliding", "full") * 2
_OF_8, _OF_12, _ROOT = 8**-0.5, 12**-0.5, 32**0.5

# Every field that is not here is None.
LLAMA: dict[str, Any] = dict(
    model_type="llama", architecture="LlamaForCausalLM", hidden_size=32, num_layers=4, num_heads=4, num_kv_heads=2,
    head_dim=8, value_head_dim=8, mlp_size=48, vocab_size=400, max_positions=256, normalization="RMSNorm",
    norm_eps=1e-6, norm_weight_offset=False, norm_placement="before", embedding_norm=False,
    positional_embedding="rotary", rotary_base=10000.0, rotary_dim=8, rotary_adjacent_pairs=False,
    layer_types=("attention",) * 4, attention_types=_FULL, attention_scale=_OF_8, attention_bias=False,
    attention_output_bias=False, attention_sinks=False, qk_norm=False, activation="silu", gated_mlp=True,
    mlp_bias=False, mlp_types=("dense",) * 4, parallel_residual=False, head_bias=False, tied_embeddings=False,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype=torch.float32, is_multimodal=False,
)  # fmt: skip

_TIED: dict[str, Any] = dict(tied_embeddings=True)
_WINDOW: dict[str, Any] = dict(attention_types=("sliding",) * 4, sliding_window=4)
_WINDOWS: dict[str, Any] = dict(attention_types=_SLIDING, sliding_window=4)
_QK_NORM: dict[str, Any] = dict(qk_norm=True, qk_norm_after_rotary=False)
_LAYER_NORM: dict[str, Any] = dict(normalization="LayerNorm", norm_eps=1e-5)
_BIASES: dict[str, Any] = dict(attention_bias=True, attention_output_bias=True, mlp_bias=True)
_NO_ROTATION: dict[str, Any] = dict(rotary_base=None, rotary_dim=None, rotary_adjacent_pairs=None)
_ABSOLUTE: dict[str, Any] = dict(_NO_ROTATION, positional_embedding="absolute")
_ALIBI: dict[str, Any] = dict(_NO_ROTATION, positional_embedding="alibi")
_NO_POSITIONS: dict[str, Any] = dict(_NO_ROTATION, positional_embedding="none")
_HALF_ROTATED: dict[str, Any] = dict(rotary_dim=4)
_GEMMA: dict[str, Any] = dict(
    _TIED, norm_weight_offset=True, embedding_scale=_ROOT, activation="gelu_pytorch_tanh"
)  # fmt: skip
_GEMMA3: dict[str, Any] = dict(
    _GEMMA, **_WINDOWS, **_QK_NORM, norm_placement="both", rotary_base=1e6,
    rotary_base_by_layer=(1e4, 1e6, 1e4, 1e6),
)  # fmt: skip
_GRANITE: dict[str, Any] = dict(attention_scale=0.5, embedding_scale=3.0, residual_scale=0.7, logit_scale=0.25)
_EXPERTS: dict[str, Any] = dict(  # in every layer
    mlp_types=("experts",) * 4, num_experts=4, experts_per_token=2, expert_size=48, first_dense_layers=0
)  # fmt: skip
_DENSE_FIRST: dict[str, Any] = dict(
    _EXPERTS, mlp_types=("dense", *("experts",) * 3), first_dense_layers=1, expert_size=16
)  # fmt: skip
_SHARED: dict[str, Any] = dict(num_shared_experts=1)
_LATENT: dict[str, Any] = dict(  # DeepSeek: 8 dimensions of a query without and 4 with rotation, 6 of a value
    num_kv_heads=4, head_dim=12, value_head_dim=6, rotary_dim=4, attention_scale=_OF_12, rotary_adjacent_pairs=True
)  # fmt: skip
_GPT: dict[str, Any] = dict(_LAYER_NORM, num_kv_heads=4, gated_mlp=False)
_GPT2: dict[str, Any] = dict(_GPT, **_BIASES, **_ABSOLUTE, **_TIED, mlp_size=128, activation="gelu_new")
_NEOX: dict[str, Any] = dict(_GPT, **_BIASES, activation="gelu")
_GPTJ: dict[str, Any] = dict(
    _GPT, mlp_bias=True, mlp_size=128, activation="gelu_new", rotary_dim=4, rotary_adjacent_pairs=True,
    parallel_residual=True, head_bias=True,
)  # fmt: skip
_FALCON: dict[str, Any] = dict(_NEOX, **_TIED, num_kv_heads=1, parallel_residual=True)
_OPT: dict[str, Any] = dict(_GPT, **_BIASES, **_ABSOLUTE, **_TIED, activation="relu")
_LINEAR: dict[str, Any] = dict(
    layer_types=("linear_attention", "attention") * 2, attention_types=(None, "full", None, "full")
)  # fmt: skip
_MAMBA_LAYERS: dict[str, Any] = dict(_LINEAR, layer_types=("mamba", "attention") * 2)
_CONVOLUTIONS: dict[str, Any] = dict(_LINEAR, layer_types=("convolution", "attention") * 2)
_ONLY_MAMBA: dict[str, Any] = dict(
    dict.fromkeys((
        "num_heads", "num_kv_heads", "head_dim", "value_head_dim", "mlp_size", "max_positions", "attention_types",
        "attention_scale", "attention_bias", "attention_output_bias", "attention_sinks", "qk_norm", "activation",
        "gated_mlp", "mlp_bias",
    )),
    **_NO_POSITIONS, norm_eps=1e-5, layer_types=("mamba",) * 4, mlp_types=("none",) * 4,
)  # fmt: skip

# Case of `tests.families` -> class of the model, and how it differs from Llama.
EXPECTED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama3_rope": ("LlamaForCausalLM", dict(rotary_base=500.0, rope_scaling="llama3", rope_scaling_factor=8.0)),
    "mistral": ("MistralForCausalLM", dict(_WINDOW)),
    "qwen2": (
        "Qwen2ForCausalLM",
        dict(attention_bias=True, attention_types=("full", "sliding") * 2, sliding_window=4),
    ),
    "qwen3": ("Qwen3ForCausalLM", dict(_QK_NORM, **_TIED)),
    "gemma": ("GemmaForCausalLM", dict(_GEMMA)),
    "gemma2": (
        "Gemma2ForCausalLM",
        dict(_GEMMA, **_WINDOWS, norm_placement="both", attention_softcap=1.0, final_softcap=2.0),
    ),
    "gemma3_text": ("Gemma3ForCausalLM", dict(_GEMMA3, final_softcap=2.0)),
    "gemma3": (  # the model with the vision tower leaves the cap on logits out
        "Gemma3ForConditionalGeneration",
        dict(
            _GEMMA3, model_type="gemma3_text", is_multimodal=True, vision_hidden_size=16, vision_num_layers=1,
            vision_num_heads=2, tokens_per_image=4,
        ),
    ),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        dict(
            _GEMMA3, norm_weight_offset=False, attention_scale=1.0, final_softcap=2.0, rotary_dim=4,
            rope_scaling="proportional", head_dim_by_layer=(8, 16, 8, 16),
        ),
    ),
    "vaultgemma": (
        "VaultGemmaForCausalLM", dict(_GEMMA, **_WINDOWS, attention_softcap=1.0, final_softcap=2.0)
    ),
    "phi": (
        "PhiForCausalLM",
        dict(
            _LAYER_NORM, **_BIASES, **_QK_NORM, **_HALF_ROTATED, activation="gelu_new", gated_mlp=False,
            parallel_residual=True, head_bias=True,
        ),
    ),
    "phi3": ("Phi3ForCausalLM", dict(_WINDOW, norm_eps=1e-5)),
    "olmo": ("OlmoForCausalLM", dict(normalization="LayerNorm", norm_eps=None, norm_weight_offset=None)),
    "olmo2": ("Olmo2ForCausalLM", dict(_QK_NORM, norm_eps=1e-5, norm_placement="after")),
    "olmo3": ("Olmo3ForCausalLM", dict(_QK_NORM, **_WINDOWS, norm_eps=1e-5, norm_placement="after",
                                       rotary_base=5e5)),
    "starcoder2": (
        "Starcoder2ForCausalLM",
        dict(_LAYER_NORM, **_BIASES, **_WINDOW, **_TIED, activation="gelu_pytorch_tanh", gated_mlp=False),
    ),
    "granite": ("GraniteForCausalLM", dict(_GRANITE)),
    "minicpm3": (  # 1.4 / sqrt(4 layers) of each sublayer; logits over 32 / 8
        "MiniCPM3ForCausalLM",
        dict(
            {**_LATENT, "rotary_adjacent_pairs": False}, **_TIED, norm_eps=1e-5, embedding_scale=3,
            residual_scale=0.7, logit_scale=0.25,
        ),
    ),
    "glm": (
        "GlmForCausalLM",
        dict(_HALF_ROTATED, norm_eps=1.5625e-07, rotary_adjacent_pairs=True, attention_bias=True),
    ),
    "glm4": (
        "Glm4ForCausalLM",
        dict(
            _HALF_ROTATED, norm_eps=1.5625e-07, rotary_adjacent_pairs=True, attention_bias=True, norm_placement="both"
        ),
    ),
    "smollm3": (
        "SmolLM3ForCausalLM", dict(_TIED, rotary_base=2e6, rotary_base_by_layer=(2e6, 2e6, None, 2e6))
    ),
    "nemotron": (
        "NemotronForCausalLM",
        dict(_LAYER_NORM, **_HALF_ROTATED, norm_weight_offset=True, activation="relu2", gated_mlp=False),
    ),
    "helium": ("HeliumForCausalLM", dict(norm_eps=1e-8, rotary_base=1e5, rotary_adjacent_pairs=True)),
    "seed_oss": ("SeedOssForCausalLM", dict(attention_bias=True)),
    "arcee": ("ArceeForCausalLM", dict(norm_eps=1e-5, activation="relu2", gated_mlp=False)),
    "exaone4": (
        "Exaone4ForCausalLM",
        dict(
            _QK_NORM, **_WINDOWS, norm_eps=1e-5, norm_placement="after", rotary_base_by_layer=(1e4, None, 1e4, None)
        ),
    ),
    "ernie4_5": (
        "Ernie4_5ForCausalLM",
        dict(_BIASES, **_TIED, norm_eps=1e-5, rotary_base=5e5, rotary_adjacent_pairs=True),
    ),
    "hunyuan_v1_dense": (
        "HunYuanDenseV1ForCausalLM", dict(norm_eps=1e-5, qk_norm=True, qk_norm_after_rotary=True)
    ),
    "bitnet": ("BitNetForCausalLM", dict(norm_eps=1e-5, rotary_base=5e5, activation="relu2")),
    "nanochat": (  # its norms have no weight
        "NanoChatForCausalLM",
        dict(
            norm_weight_offset=None, embedding_norm=True, qk_norm=True, qk_norm_after_rotary=True,
            activation="relu2", gated_mlp=False, final_softcap=2.0,
        ),
    ),
    "persimmon": (
        "PersimmonForCausalLM",
        dict(
            _LAYER_NORM, **_BIASES, **_QK_NORM, **_HALF_ROTATED, num_kv_heads=4, activation="relu2", gated_mlp=False
        ),
    ),
    "stablelm": ("StableLmForCausalLM", dict(_LAYER_NORM, rotary_dim=2, attention_bias=True)),
    "stablelm_parallel": (
        "StableLmForCausalLM", dict(_LAYER_NORM, **_QK_NORM, rotary_dim=2, parallel_residual=True)
    ),
    "cohere": (
        "CohereForCausalLM",
        dict(
            _LAYER_NORM, **_QK_NORM, **_TIED, rotary_base=5e5, rotary_adjacent_pairs=True, parallel_residual=True,
            logit_scale=0.25,
        ),
    ),
    "cohere2": (
        "Cohere2ForCausalLM",
        dict(
            _LAYER_NORM, **_WINDOWS, **_TIED, rotary_base_by_layer=(1e4, None, 1e4, None), rotary_adjacent_pairs=True,
            parallel_residual=True, logit_scale=0.25,
        ),
    ),
    "modernbert-decoder": (
        "ModernBertDecoderForCausalLM",
        dict(
            _LAYER_NORM, **_WINDOWS, **_TIED, num_kv_heads=4, embedding_norm=True, activation="gelu", head_bias=True,
            rotary_base=160000.0, rotary_base_by_layer=(1e4, 160000.0, 1e4, 160000.0),
        ),
    ),
    "mixtral": ("MixtralForCausalLM", dict(_EXPERTS, **_WINDOW, norm_eps=1e-5, rotary_base=1e6)),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM", dict(_DENSE_FIRST, **_SHARED, attention_bias=True)
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", dict(_DENSE_FIRST, **_QK_NORM)),
    "olmoe": ("OlmoeForCausalLM", dict(_EXPERTS, **_QK_NORM, norm_eps=1e-5)),
    "phimoe": (
        "PhimoeForCausalLM",
        dict(
            _EXPERTS, **_LAYER_NORM, rotary_base=1e6, attention_bias=True, attention_output_bias=True, head_bias=True
        ),
    ),
    "minimax_m2": ("MiniMaxM2ForCausalLM", dict(_EXPERTS, **_QK_NORM, rotary_base=5e6)),
    "granitemoe": ("GraniteMoeForCausalLM", dict(_EXPERTS, **_GRANITE)),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", dict(_EXPERTS, **_GRANITE, **_SHARED)),
    "glm4_moe": (
        "Glm4MoeForCausalLM", dict(_DENSE_FIRST, **_SHARED, **_QK_NORM, **_HALF_ROTATED, norm_eps=1e-5)
    ),
    "deepseek_v2": ("DeepseekV2ForCausalLM", dict(_DENSE_FIRST, **_SHARED, **_LATENT)),
    "deepseek_v3": ("DeepseekV3ForCausalLM", dict(_DENSE_FIRST, **_SHARED, **_LATENT)),
    "afmoe": (
        "AfmoeForCausalLM",
        dict(
            _DENSE_FIRST, **_SHARED, **_QK_NORM, **_WINDOWS, norm_eps=1e-5, norm_placement="both",
            rotary_base_by_layer=(1e4, None, 1e4, None), embedding_scale=_ROOT,
        ),
    ),
    "mimo_v2_flash": (
        "MiMoV2FlashForCausalLM",
        dict(
            _DENSE_FIRST, **_SHARED, **_WINDOWS, norm_eps=1e-5, num_kv_heads=4, num_kv_heads_by_layer=(4, 2, 4, 2),
            value_head_dim=6, rotary_base=5e6, rotary_base_by_layer=(1e4, 5e6, 1e4, 5e6), rotary_dim=2,
            attention_sinks=True,
        ),
    ),
    "laguna": (
        "LagunaForCausalLM",
        dict(
            _DENSE_FIRST, **_SHARED, **_QK_NORM, **_WINDOWS, **_HALF_ROTATED, num_heads_by_layer=(4, 2, 4, 2),
            rotary_base=5e5, rotary_base_by_layer=(1e4, 5e5, 1e4, 5e5),
        ),
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        dict(
            {**_EXPERTS, "mlp_bias": True}, **_WINDOWS, norm_eps=1e-5, rotary_base=1000.0, rope_scaling="yarn",
            rope_scaling_factor=64.0, attention_bias=True, attention_output_bias=True, attention_sinks=True,
            activation="quick_gelu",
        ),
    ),
    "llama4_text": (
        "Llama4ForCausalLM",
        dict(
            _EXPERTS, **_SHARED, mlp_size=40, mlp_types=("dense", "experts") * 2, first_dense_layers=1,
            experts_per_token=1, norm_eps=1e-5, rotary_base=5e5, rotary_base_by_layer=(5e5, 5e5, None, 5e5),
            rotary_adjacent_pairs=True, attention_types=("chunked", "chunked", "full", "chunked"),
            attention_chunk_size=4, qk_norm=True, qk_norm_after_rotary=True,
        ),
    ),
    "dbrx": ("DbrxForCausalLM", dict(_EXPERTS, **_LAYER_NORM, mlp_size=24, expert_size=24)),
    "jetmoe": ("JetMoeForCausalLM", dict(_EXPERTS, **_TIED, mlp_bias=True, attention_output_bias=None)),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        dict(_DENSE_FIRST, **_SHARED, **_LINEAR, **_QK_NORM, norm_weight_offset=True, rotary_dim=2),
    ),
    "olmo_hybrid": ("OlmoHybridForCausalLM", dict(_LINEAR, **_QK_NORM, norm_placement="mixed")),
    "kimi_linear": (
        "KimiLinearForCausalLM",
        dict(_DENSE_FIRST, **_SHARED, **_LINEAR, **{**_LATENT, **_NO_POSITIONS}, norm_eps=1e-5),
    ),
    "minimax": ("MiniMaxForCausalLM", dict(_EXPERTS, **_LINEAR, norm_eps=1e-5, rotary_base=1e6)),
    "lfm2": (  # two thirds of 48, to the next multiple of 16
        "Lfm2ForCausalLM",
        dict(_CONVOLUTIONS, **_QK_NORM, **_TIED, mlp_size=32, norm_eps=1e-5, rotary_base=1e6),
    ),
    "jamba": (  # experts in layer 1, then in every third
        "JambaForCausalLM",
        dict(
            _EXPERTS, **_MAMBA_LAYERS, **_NO_POSITIONS, first_dense_layers=1,
            mlp_types=("dense", "experts", "dense", "dense"),
        ),
    ),
    "bamba": ("BambaForCausalLM", dict(_MAMBA_LAYERS, **_HALF_ROTATED, norm_eps=1e-5)),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        dict(
            norm_eps=1e-5, layer_types=("attention+mamba",) * 4, embedding_scale=3.0, logit_scale=0.3
        ),
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM", dict(_EXPERTS, **_SHARED, **_MAMBA_LAYERS, **_GRANITE)
    ),
    "granitemoehybrid_dense": (
        "GraniteMoeHybridForCausalLM",
        dict(
            _MAMBA_LAYERS, **_NO_POSITIONS, **{**_GRANITE, "attention_scale": 1.0, "embedding_scale": 1.0}, mlp_size=24
        ),
    ),
    "nemotron_h": (
        "NemotronHForCausalLM",
        dict(
            _EXPERTS, **_SHARED, **_NO_POSITIONS, norm_eps=1e-5, layer_types=("mamba", "none", "attention", "none"),
            attention_types=(None, None, "full", None), mlp_types=("none", "experts", "none", "dense"),
            first_dense_layers=1, expert_size=16, activation="relu2", gated_mlp=False,
        ),
    ),
    "recurrent_gemma": (  # half of 48 neurons; the root of 32 in bfloat16; a window in both layers with attention
        "RecurrentGemmaForCausalLM",
        dict(
            _GEMMA, **_HALF_ROTATED, mlp_size=24, embedding_scale=5.65625, layer_types=("recurrent", "attention") * 2,
            attention_types=(None, "sliding", None, "sliding"), sliding_window=4, attention_output_bias=True,
            mlp_bias=True, final_softcap=2.0,
        ),
    ),
    "mamba": ("MambaForCausalLM", dict(_ONLY_MAMBA, **_TIED)),
    "mamba2": ("Mamba2ForCausalLM", dict(_ONLY_MAMBA)),
    "falcon_mamba": ("FalconMambaForCausalLM", dict(_ONLY_MAMBA, **_TIED)),
    "gpt2": ("GPT2LMHeadModel", dict(_GPT2, attention_scale_by_inverse_layer=True)),
    "gpt_bigcode": (
        "GPTBigCodeForCausalLM", dict(_GPT2, num_kv_heads=1, activation="gelu_pytorch_tanh")
    ),
    "gpt_neo": (  # scores are not scaled; only the map behind attention has a bias
        "GPTNeoForCausalLM",
        dict(
            _GPT2, mlp_size=48, attention_bias=False, attention_scale=1.0, attention_types=("full", "sliding") * 2,
            sliding_window=4,
        ),
    ),
    "openai-gpt": ("OpenAIGPTLMHeadModel", dict(_GPT2, norm_placement="after")),
    "gptj": ("GPTJForCausalLM", dict(_GPTJ)),
    "codegen": ("CodeGenForCausalLM", dict(_GPTJ)),
    "gpt_neox": ("GPTNeoXForCausalLM", dict(_NEOX, rotary_dim=2, parallel_residual=True)),
    "gpt_neox_sequential": ("GPTNeoXForCausalLM", dict(_NEOX, rotary_dim=2)),
    "bloom": (
        "BloomForCausalLM",
        dict(
            _GPT, **_BIASES, **_ALIBI, **_TIED, mlp_size=128, max_positions=None, embedding_norm=True,
            activation="gelu_pytorch_tanh",
        ),
    ),
    "falcon": ("FalconForCausalLM", dict(_FALCON)),
    "falcon_alibi": ("FalconForCausalLM", dict(_FALCON, **_ALIBI, num_kv_heads=4) | dict(parallel_residual=False)),
    "falcon_new": ("FalconForCausalLM", dict(_FALCON) | dict(num_kv_heads=2)),
    "mpt": ("MptForCausalLM", dict(_GPT, **_ALIBI, **_TIED, mlp_size=128, activation="gelu")),
    "opt": ("OPTForCausalLM", dict(_OPT)),
    "opt_350m": ("OPTForCausalLM", dict(_OPT, norm_placement="after")),
    "xglm": (
        "XGLMForCausalLM",
        dict(_OPT, activation="gelu", embedding_scale=_ROOT) | dict(positional_embedding="sinusoidal"),
    ),
    "biogpt": ("BioGptForCausalLM", dict(_OPT) | dict(activation="gelu", embedding_scale=_ROOT)),
    "ctrl": (
        "CTRLLMHeadModel",
        dict(_OPT, embedding_scale=_ROOT, head_bias=True) | dict(norm_eps=1e-6, positional_embedding="sinusoidal"),
    ),
    "emu3": ("Emu3ForCausalLM", dict(model_type="emu3_text_model", norm_eps=1e-5, rotary_base=1e6)),
}  # fmt: skip
