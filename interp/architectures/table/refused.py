"""Families that the names do not fit, and why."""

from __future__ import annotations

from typing import Any

__all__ = ["ENCODER_DECODER", "REFUSED", "why_refused"]

ENCODER_DECODER = (
    "an encoder-decoder has two residual streams, and its decoder reads both. Only decoders are supported."
)
_ENCODER = "an encoder, trained to fill gaps from both sides. Only decoders are supported."
_HYPER_CONNECTIONS = "it has several residual streams (hyper-connections), which every layer mixes anew."
_DRAFT = "it drafts tokens from the hidden states of another model and does not run alone."

# Model type -> the reason, a sentence.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart",
            "prophetnet", "t5", "mt5", "umt5", "t5gemma", "t5gemma2", "trocr", "whisper", "musicgen", "musicgen_melody",
        ),
        ENCODER_DECODER,
    ),
    **dict.fromkeys(
        (
            "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
            "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
            "xmod",
        ),
        _ENCODER,
    ),
    **dict.fromkeys(("deepseek_v4", "hy_v4", "qwen4_exp", "qwen4_exp_text"), _HYPER_CONNECTIONS),
    **dict.fromkeys(
        ("gemma3n", "gemma3n_text"),
        "it has four residual streams (AltUp), of which every layer updates one and predicts the others.",
    ),
    "inkling2_text": "its layers read sums over the outputs of all blocks before them and not one residual stream.",
    "rwkv": "it halves the residual stream every few layers, between one layer and the next.",
    "beam": "it shrinks the residual stream at every sum, by numbers that grow with depth and that no layer holds.",
    "zaya": "every sum gives both of its terms a scale and a bias of their own.",
    "longcat_flash": "each layer has two attentions and two MLPs, and experts that bridge them.",
    "hrm_text": "it runs the same layers several times in a forward pass.",
    "gpt_neox_japanese": "what attention adds in the last layer has a bias that no module adds.",
    "cpmant": "it puts a prompt of its own before every text, so positions inside are not those of the tokens.",
    "blt": "its layers work on patches of bytes, not on tokens.",
    "reformer": "its layers are reversible: there are two residual streams.",
    "xlnet": "it reads in any order, with two streams, and takes no causal mask.",
    "xlm": "it has no layers as modules: their parts stand in separate lists.",
    "xlstm": "it takes no attention mask, so padding would be read as text.",
    "mllama": "its text model attends to images in layers that it leaves out where there is none.",
    "mllama_text_model": "it attends to images in layers that it leaves out where there is none.",
    "git": "it puts the image before the text, so positions inside are not those of the tokens.",
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), _DRAFT),
}  # fmt: skip

# Model type, a field of its config and a value of it -> the reason.
_REFUSED_LAYOUTS: dict[tuple[str, str, object], str] = {
    (
        "doge",
        "is_moe",
        True,
    ): "its experts are chosen across tokens, so that a token sees those after it and in other rows.",
}


def why_refused(model_type: str, config: Any) -> str | None:
    """The reason for which a model cannot be given the names; None where there is none.

    Arguments:
        model_type: of the whole model.
        config: its text model's.
    """
    if model_type in REFUSED:
        return REFUSED[model_type]
    for (family, name, value), reason in _REFUSED_LAYOUTS.items():
        if model_type == family and getattr(config, name, None) == value:
            return reason
    return ENCODER_DECODER if getattr(config, "is_encoder_decoder", False) else None
