"""Tiny random models, built from config: what the tests run on in place of a model hub."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY_SIZE = 400
NUM_LAYERS = 4
HIDDEN_SIZE = 32

TEXT = [
    'Deutsch: "Buch" - Italiano: "libro"',
    'Français: "livre" - Español: "libro" English: "book"',
    "The quick brown fox jumps over the lazy dog. Le renard brun saute par-dessus le chien paresseux.",
    "Привет мир, как дела? 你好世界 今天天气很好。 مرحبا بالعالم こんにちは世界",
    "king king\n1135 1135\nhello hello\n? cat -> cat",
]

# What differs from the defaults that every family shares, by model type.
_LLAMA_LIKE = dict(
    vocab_size=VOCABULARY_SIZE,
    hidden_size=HIDDEN_SIZE,
    intermediate_size=64,
    num_hidden_layers=NUM_LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
FAMILIES: dict[str, dict[str, object]] = {
    "llama": dict(_LLAMA_LIKE),
    "mistral": dict(_LLAMA_LIKE, sliding_window=6),
    "qwen2": dict(_LLAMA_LIKE),
    "qwen3": dict(_LLAMA_LIKE, head_dim=8),
    "gemma2": dict(_LLAMA_LIKE, head_dim=8, sliding_window=6, query_pre_attn_scalar=8, final_logit_softcapping=2.0),
    "gemma3_text": dict(_LLAMA_LIKE, head_dim=8, sliding_window=6, query_pre_attn_scalar=8),
    "gpt2": dict(
        vocab_size=VOCABULARY_SIZE, n_embd=HIDDEN_SIZE, n_layer=NUM_LAYERS, n_head=4, n_positions=256,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
    "gpt_neox": dict(
        vocab_size=VOCABULARY_SIZE, hidden_size=HIDDEN_SIZE, intermediate_size=64, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
}  # fmt: skip


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY_SIZE` entries that begins every text with `<s>` and pads left."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        model_max_length=256,
    )  # fmt: skip


def tiny_model(family: str, **changes: object) -> torch.nn.Module:
    """A random model of a family, the same at every call.

    Arguments:
        family: a key of `FAMILIES`.
        changes: config fields that differ.
    """
    config = CONFIG_MAPPING[family](**{**FAMILIES[family], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # larger than the usual start, so that predictions differ visibly
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.15)
    return model.eval()


def tiny_folder(family: str, folder: Path) -> Path:
    """Save a tiny model and its tokenizer in `folder`, as a user would have it; returns the folder."""
    tiny_model(family).save_pretrained(folder)  # type: ignore[operator]
    tiny_tokenizer().save_pretrained(folder)
    return folder
