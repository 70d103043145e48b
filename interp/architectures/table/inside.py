"""Models that hold a language model beside a vision or audio tower: the same layouts, one level down."""

from __future__ import annotations

from dataclasses import replace

from interp.architectures.record import Architecture, Sublayer
from interp.architectures.table.llama_like import LLAMA_LAYOUT, PERSIMMON
from interp.architectures.table.normed import SANDWICH, gemma4

__all__ = ["INSIDE"]


def _inside(record: Architecture, *model_types: str) -> Architecture:
    assert record.final_norm is not None
    layers, embedding, norm = (
        path.replace("model.", "model.language_model.", 1)
        for path in (record.layers, record.embedding, record.final_norm)
    )
    return replace(
        record, family=model_types[0], model_types=model_types, layers=layers, embedding=embedding, final_norm=norm
    )


# Images are words of its vocabulary, which it never says.
CHAMELEON = replace(
    LLAMA_LAYOUT,
    family="chameleon",
    model_types=("chameleon",),
    layer_returns_tuple=True,
    silenced="model.vocabulary_mapping.image_tokens",
    variants=(
        (
            "Swin",  # norms behind attention and MLP
            replace(
                LLAMA_LAYOUT,
                layer_returns_tuple=True,
                attention=Sublayer("self_attn", added=("input_layernorm",), projection="self_attn.o_proj"),
                mlp=Sublayer("mlp", added=("post_attention_layernorm",), projection="mlp.down_proj"),
                middle="mlp",
            ),
        ),
    ),
)

INSIDE: tuple[Architecture, ...] = (
    # Gemma 3 with images leaves the cap of its text config out.
    replace(_inside(SANDWICH, "gemma3"), softcap=None),
    replace(_inside(gemma4(None), "gemma4"), when=(("enable_moe_block", True),)),
    _inside(gemma4("mlp.down_proj"), "gemma4", "gemma4_unified"),
    _inside(LLAMA_LAYOUT, "got_ocr2", "moss_transcribe_diarize"),
    _inside(PERSIMMON, "fuyu"),
    CHAMELEON,
)
