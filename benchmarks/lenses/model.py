"""The benchmark's model: a Llama of about 80 M parameters, built from its config with a seed, and a tokenizer of words.

Every tool loads the same folder. The words are `w2`, `w3`, ..., one token each, so that a tool that takes strings is
fed exactly the token ids that another is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

__all__ = ["SEVEN_BILLION", "SMALL", "Shape", "build", "save", "tokenizer"]

PAD, UNKNOWN = 0, 1  # token ids that no prompt holds


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    layers: int
    hidden: int
    mlp: int
    vocabulary: int
    heads: int


SMALL = Shape(layers=16, hidden=512, mlp=1376, vocabulary=32000, heads=8)
SEVEN_BILLION = Shape(layers=32, hidden=4096, mlp=11008, vocabulary=32000, heads=32)


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word, nothing added, padding on the left."""
    # Special tokens are found inside words too: `w1` would be found in `w12`.
    words = {"<pad>": PAD, "<unknown>": UNKNOWN} | {f"w{token}": token for token in range(UNKNOWN + 1, vocabulary)}
    words_only = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_only, pad_token="<pad>", unk_token="<unknown>", padding_side="left"
    )


def build(shape: Shape, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LlamaForCausalLM:
    """The model with random weights.

    They are larger than transformers would draw them: each layer then changes the residual stream by as much as it
    holds, and the model is sure of some tokens (logits with a standard deviation of 3). With the usual ones every
    probability is about 1 / vocabulary, and two tools would agree within 1e-5 whatever they computed.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=512,
        initializer_range=shape.hidden**-0.5,
        bos_token_id=None,
        eos_token_id=None,  # generation goes on to the last token asked for
        pad_token_id=PAD,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    return model.requires_grad_(False)


def save(folder: Path, shape: Shape, *, seed: int = 0) -> None:
    """Write model and tokenizer, for `from_pretrained`."""
    disable_progress_bar()
    build(shape, seed=seed).save_pretrained(folder)
    tokenizer(shape.vocabulary).save_pretrained(folder)
