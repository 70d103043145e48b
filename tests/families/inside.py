"""Language models beside a vision or audio tower, which text leaves alone."""

from __future__ import annotations

from tests.families.sizes import LLAMA, SLIDING

_VISION = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)  # fmt: skip
_AUDIO = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_mel_bins=8)
_GEMMA = dict(LLAMA, head_dim=8, sliding_window=4, layer_types=SLIDING, final_logit_softcapping=2.0)

_CHAMELEON = dict(
    {**LLAMA, "num_key_value_heads": 4},
    vocabulary_map={"<image>": 399, **{f"IMGIMG{letter}Z": 390 + entry for entry, letter in enumerate("ABCDEFGH")}},
    vq_config=dict(embed_dim=8, num_embeddings=8, latent_channels=8, resolution=16, base_channels=32,
                   channel_multiplier=[1], num_res_blocks=1),
)  # fmt: skip

INSIDE: dict[str, tuple[str, dict[str, object]]] = {
    "gemma3": (
        "gemma3",
        dict(
            text_config=dict(_GEMMA, query_pre_attn_scalar=8), vision_config=_VISION, mm_tokens_per_image=4,
            image_token_index=399, boi_token_index=397, eoi_token_index=398,
        ),
    ),
    "gemma4": (
        "gemma4",
        dict(
            text_config=dict(
                _GEMMA, global_head_dim=16, hidden_size_per_layer_input=8, vocab_size_per_layer_input=400
            ),
            image_token_id=399, video_token_id=398, audio_token_id=397, boi_token_id=396, eoi_token_id=395,
            boa_token_id=394, eoa_token_index=393,
        ),
    ),
    "gemma4_unified": (
        "gemma4_unified",
        dict(
            text_config=dict(_GEMMA, global_head_dim=16), image_token_id=399, video_token_id=398, audio_token_id=397,
            boi_token_id=396, eoi_token_id=395, boa_token_id=394, eoa_token_index=393,
        ),
    ),
    "got_ocr2": (
        "got_ocr2",
        dict(
            text_config=dict(LLAMA, model_type="qwen2"), image_token_index=399,
            vision_config=dict(_VISION, output_channels=8, window_size=2, global_attn_indexes=[0], mlp_dim=16),
        ),
    ),
    "moss_transcribe_diarize": (
        "moss_transcribe_diarize",
        dict(
            text_config=dict(LLAMA, model_type="qwen3", head_dim=8), audio_token_id=399,
            audio_config=dict(_AUDIO, max_source_positions=8),
        ),
    ),
    "fuyu": (
        "fuyu",
        dict(
            text_config=dict(LLAMA, model_type="persimmon"), image_size=28, patch_size=14, image_token_id=399,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
    ),
    "phi4_multimodal": (
        "phi4_multimodal",
        dict(
            LLAMA, vision_config=dict(_VISION, crop_size=28, image_token_id=399),
            audio_config=dict(
                hidden_size=16, intermediate_size=16, num_blocks=1, num_attention_heads=2, ext_pw_out_channel=16,
                depthwise_separable_out_channel=16, input_size=8, nemo_conv_channels=8, nemo_final_size=1,
                audio_token_id=398,
            ),
        ),
    ),
    "chameleon": ("chameleon", dict(_CHAMELEON)),
    "chameleon_swin": ("chameleon", dict(_CHAMELEON, swin_norm=True)),
    "emu3": ("emu3", dict(text_config=dict(LLAMA), vocabulary_map={"<image>": 399})),
}  # fmt: skip
