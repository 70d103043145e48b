"""What a tiny model of each family is made of: its config, its image processor, its special tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import (
    ChameleonImageProcessorPil,
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    PixtralImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
)

NUM_LAYERS = 3
NUM_VISION_LAYERS = 2
HIDDEN_SIZE = 32
VISION_SIZE = 16  # differs from the text's, so that one cannot be taken for the other
# Ids from here on are the special tokens of the family (`tests.tiny.VOCABULARY_SIZE` come before them).
VOCABULARY_SIZE = 448

_TEXT: dict[str, Any] = dict(
    vocab_size=VOCABULARY_SIZE, hidden_size=HIDDEN_SIZE, intermediate_size=48, num_hidden_layers=NUM_LAYERS,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    pad_token_id=0,
)  # fmt: skip
_VISION: dict[str, Any] = dict(
    hidden_size=VISION_SIZE, intermediate_size=24, num_hidden_layers=NUM_VISION_LAYERS, num_attention_heads=2,
    image_size=16, patch_size=4,
)  # fmt: skip
_GEMMA = dict(_TEXT, head_dim=8)
# Rotary positions of an image have three axes, each with a part of the eight dimensions of a head.
_MROPE = dict(rope_type="default", rope_theta=1000.0, mrope_section=[2, 1, 1])
_SMALL_PIXELS = dict(shortest_edge=8 * 8, longest_edge=32 * 32)
_PINPOINTS = [[16, 32], [32, 16], [32, 32]]
_FIXED = dict(size={"height": 16, "width": 16})
_CLIP = dict(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
_IDEFICS_TOKENS = dict(
    image_token="<image>", fake="<fake_token_around_image>", end_of_utterance_token="<end_of_utterance>",
    global_image_token="<global-img>", **{f"tile_{row}_{column}": f"<row_{row}_col_{column}>"
                                          for row in (1, 2) for column in (1, 2)},
)  # fmt: skip
_QWEN_TOKENS = dict(
    image_token="<|image_pad|>", video_token="<|video_pad|>", vision_start_token="<|vision_start|>",
    vision_end_token="<|vision_end|>",
)  # fmt: skip
_QWEN_IDS = dict(
    image_token_id="<|image_pad|>", video_token_id="<|video_pad|>", vision_start_token_id="<|vision_start|>",
    vision_end_token_id="<|vision_end|>",
)  # fmt: skip
_QWEN_VISION = dict(depth=NUM_VISION_LAYERS, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)


@dataclass(frozen=True)
class Family:
    """How a tiny model of a family is made.

    Arguments:
        model_type: of its config.
        config: what the config says.
        tokens: its special tokens by the tokenizer's name for each.
        token_ids: fields of the config that are ids of tokens, by the token.
        processor_class: name of its processor.
        processor: what the processor is given beside image processor and tokenizer.
        image_processor: class of its image processor, and what that is given.
        image: placeholder of an image in a text.
        video: `video_processor_type` of its video processor, None where it has none.
    """

    model_type: str
    config: dict[str, Any]
    tokens: dict[str, str]
    token_ids: dict[str, str]
    processor_class: str
    image_processor: tuple[type, dict[str, Any]]
    image: str = "<image>"
    processor: dict[str, Any] = field(default_factory=dict)
    video: str | None = None


_LLAVA = dict(
    text_config=dict(_TEXT, model_type="llama"), vision_config=dict(_VISION, model_type="clip_vision_model"),
    vision_feature_layer=-2, vision_feature_select_strategy="default",
)  # fmt: skip
_LLAVA_IMAGE = dict(patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1)


def _paligemma(text: dict[str, Any]) -> Family:
    return Family(
        "paligemma",
        dict(
            text_config=text, vision_config=dict(_VISION, model_type="siglip_vision_model", projection_dim=HIDDEN_SIZE),
            projection_dim=HIDDEN_SIZE, hidden_size=HIDDEN_SIZE,
        ),
        dict(image_token="<image>"),
        dict(image_token_index="<image>"),
        "PaliGemmaProcessor",
        (SiglipImageProcessorPil, dict(_FIXED, image_seq_length=16)),
    )  # fmt: skip


FAMILIES: dict[str, Family] = {
    "llava": Family(
        "llava", dict(_LLAVA, image_seq_length=16), dict(image_token="<image>"), dict(image_token_index="<image>"),
        "LlavaProcessor", (CLIPImageProcessorPil, _CLIP), processor=_LLAVA_IMAGE,
    ),
    "llava_next": Family(
        "llava_next",
        dict(_LLAVA, text_config=dict(_TEXT, model_type="mistral", sliding_window=None),
             image_grid_pinpoints=_PINPOINTS),
        dict(image_token="<image>"), dict(image_token_index="<image>"), "LlavaNextProcessor",
        (LlavaNextImageProcessorPil, dict(_CLIP, image_grid_pinpoints=_PINPOINTS)), processor=_LLAVA_IMAGE,
    ),
    "llava_onevision": Family(
        "llava_onevision",
        dict(text_config=dict(_TEXT, model_type="qwen2"), image_grid_pinpoints=_PINPOINTS,
             vision_config=dict(_VISION, model_type="siglip_vision_model", vision_use_head=False),
             vision_feature_layer=-1, vision_feature_select_strategy="full"),
        dict(image_token="<image>", video_token="<video>"),
        dict(image_token_index="<image>", video_token_index="<video>"), "LlavaOnevisionProcessor",
        (LlavaOnevisionImageProcessorPil, dict(_FIXED, image_grid_pinpoints=_PINPOINTS)),
        processor=dict(num_image_tokens=16, vision_feature_select_strategy="full"),
        video="LlavaOnevisionVideoProcessor",
    ),
    "idefics3": Family(
        "idefics3",
        dict(text_config=dict(_TEXT, model_type="llama"), vision_config=dict(_VISION), scale_factor=2),
        _IDEFICS_TOKENS, dict(image_token_id="<image>"), "Idefics3Processor",
        (Idefics3ImageProcessorPil, dict(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})),
        processor=dict(image_seq_len=4),
    ),
    "smolvlm": Family(
        "smolvlm",
        dict(text_config=dict(_TEXT, model_type="llama"), vision_config=dict(_VISION), scale_factor=2),
        _IDEFICS_TOKENS, dict(image_token_id="<image>"), "SmolVLMProcessor",
        (SmolVLMImageProcessorPil, dict(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})),
        processor=dict(image_seq_len=4), video="SmolVLMVideoProcessor",
    ),
    "paligemma": _paligemma(dict(_GEMMA, model_type="gemma", vocab_size=1664)),
    "paligemma2": _paligemma(
        dict(_GEMMA, model_type="gemma2", vocab_size=1664, query_pre_attn_scalar=8, sliding_window=8,
             final_logit_softcapping=4.0)
    ),
    "gemma3": Family(
        "gemma3",
        dict(text_config=dict(_GEMMA, sliding_window=8, query_pre_attn_scalar=8,
                              layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
             vision_config=dict(_VISION, vision_use_head=False), mm_tokens_per_image=4),
        dict(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"),
        dict(image_token_index="<image_soft_token>", boi_token_index="<start_of_image>",
             eoi_token_index="<end_of_image>"),
        "Gemma3Processor", (Gemma3ImageProcessorPil, dict(_FIXED, image_seq_length=4)), image="<start_of_image>",
        processor=dict(image_seq_length=4),
    ),
    "qwen2_vl": Family(
        "qwen2_vl",
        dict(text_config=dict(_TEXT, rope_parameters=_MROPE),
             vision_config=dict(_QWEN_VISION, embed_dim=VISION_SIZE, hidden_size=HIDDEN_SIZE, mlp_ratio=2)),
        _QWEN_TOKENS, _QWEN_IDS, "Qwen2VLProcessor",
        (Qwen2VLImageProcessorPil, dict(patch_size=4, merge_size=2, temporal_patch_size=2, size=_SMALL_PIXELS)),
        image="<|vision_start|><|image_pad|><|vision_end|>", video="Qwen2VLVideoProcessor",
    ),
    "qwen2_5_vl": Family(
        "qwen2_5_vl",
        dict(text_config=dict(_TEXT, rope_parameters=_MROPE),
             vision_config=dict(_QWEN_VISION, hidden_size=VISION_SIZE, out_hidden_size=HIDDEN_SIZE,
                                intermediate_size=24, window_size=16, fullatt_block_indexes=[1])),
        _QWEN_TOKENS, _QWEN_IDS, "Qwen2_5_VLProcessor",
        (Qwen2VLImageProcessorPil, dict(patch_size=4, merge_size=2, temporal_patch_size=2, size=_SMALL_PIXELS)),
        image="<|vision_start|><|image_pad|><|vision_end|>", video="Qwen2VLVideoProcessor",
    ),
    "qwen3_vl": Family(
        "qwen3_vl",
        dict(text_config=dict(_TEXT, head_dim=8, rope_parameters=dict(_MROPE, mrope_interleaved=True)),
             vision_config=dict(_QWEN_VISION, hidden_size=VISION_SIZE, out_hidden_size=HIDDEN_SIZE,
                                intermediate_size=24, num_position_embeddings=16, deepstack_visual_indexes=[0, 1])),
        _QWEN_TOKENS, _QWEN_IDS, "Qwen3VLProcessor",
        (Qwen2VLImageProcessorPil, dict(patch_size=4, merge_size=2, temporal_patch_size=2, size=_SMALL_PIXELS)),
        image="<|vision_start|><|image_pad|><|vision_end|>", video="Qwen3VLVideoProcessor",
    ),
    "pixtral": Family(
        "llava",
        dict(text_config=dict(_TEXT, model_type="mistral", sliding_window=None, head_dim=8),
             vision_config=dict(_VISION, model_type="pixtral", head_dim=8), vision_feature_layer=-1,
             vision_feature_select_strategy="full", multimodal_projector_bias=True),
        dict(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]"),
        dict(image_token_index="[IMG]"), "PixtralProcessor",
        (PixtralImageProcessorPil, dict(size={"longest_edge": 16}, patch_size={"height": 4, "width": 4})),
        image="[IMG]", processor=dict(patch_size=4),
    ),
    "chameleon": Family(
        "chameleon",
        dict({**_TEXT, "num_key_value_heads": 4},
             vq_config=dict(embed_dim=8, num_embeddings=24, latent_channels=8, resolution=16, base_channels=32,
                            channel_multiplier=[1, 1], num_res_blocks=1)),
        dict(image_token="<image>", boi_token="<racm3:break>", eoi_token="<eoss>", sep_token="<reserved08706>"), {},
        "ChameleonProcessor", (ChameleonImageProcessorPil, _CLIP), processor=dict(image_seq_length=64),
    ),
    "internvl": Family(
        "internvl",
        dict(text_config=dict(_TEXT, model_type="qwen2"), downsample_ratio=0.5, image_seq_length=4,
             vision_config={**_VISION, "image_size": [16, 16], "patch_size": [4, 4]}),
        dict(start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
             video_token="<video>"),
        dict(image_token_id="<IMG_CONTEXT>"), "InternVLProcessor",
        (GotOcr2ImageProcessorPil, dict(_FIXED, crop_to_patches=True, min_patches=1, max_patches=3)),
        image="<IMG_CONTEXT>", processor=dict(image_seq_length=4), video="InternVLVideoProcessor",
    ),
}  # fmt: skip
