"""Nine tiny models, the same in every environment: `record.py` runs TransformerLens on them, and the tests `interp`.

Weights are eighths of a thousandth drawn as integers, so that no machine rounds them otherwise; `digest` says that two
environments have the same.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FOLDER = Path(__file__).parent / "recorded"
SCRIPT = Path(__file__).parents[4] / "examples" / "written_for_transformer_lens.py"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "yes", "no"]
_TOKENS = dict(vocab_size=len(WORDS), bos_token_id=1, eos_token_id=2, pad_token_id=0)
_LLAMA = dict(
    _TOKENS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=32, tie_word_embeddings=False,
)  # fmt: skip
FAMILIES: dict[str, dict[str, object]] = {
    "gpt2": dict(_TOKENS, n_embd=16, n_layer=2, n_head=4, n_inner=24, n_positions=32),
    "gpt_neox": dict(
        {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}, rotary_pct=0.5,
    ),
    "llama": dict(_LLAMA),
    "gemma2": dict(_LLAMA, head_dim=6, sliding_window=3, query_pre_attn_scalar=9, final_logit_softcapping=3.0,
                   attn_logit_softcapping=2.0),
    "olmo2": dict(_LLAMA),
    "qwen3": dict(_LLAMA, head_dim=6),
    "mixtral": dict(_LLAMA, num_local_experts=3, num_experts_per_tok=2, sliding_window=None),
    "falcon": dict(_TOKENS, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=24, alibi=False,
                   multi_query=True, parallel_attn=True, bias=False, new_decoder_architecture=False),
    "bloom": dict(_TOKENS, hidden_size=16, n_layer=2, n_head=4),
}  # fmt: skip
PROMPT = [[1, 7, 12, 30, 12]]
OTHER = [[1, 7, 21, 30, 15]]
ANSWERS = (22, 17)


def made(family: str, **loaded: object) -> torch.nn.Module:
    """A model of a family, the same at every call and in every environment.

    Arguments:
        family: a key of `FAMILIES`.
        loaded: how it is built (`attn_implementation`).
    """
    config = CONFIG_MAPPING[family](**FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, **loaded)
    config.architectures = [type(model).__name__]
    drawn = np.random.RandomState(7)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            whole = drawn.randint(-4000, 4001, size=tuple(parameter.shape)).astype(np.float32) / np.float32(8192)
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(torch.from_numpy(whole + np.float32(1) if is_scale else whole))
    return model.eval()


def digest(model: torch.nn.Module) -> str:
    """What tells one model's weights from another's."""
    told = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        told.update(name.encode() + parameter.detach().numpy().tobytes())
    return told.hexdigest()


def words() -> PreTrainedTokenizerFast:
    """A tokenizer with a token a word, which begins every text with `<s>`."""
    table = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    table.pre_tokenizer = WhitespaceSplit()
    table.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=table, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@cache
def recorded(family: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What TransformerLens gave: tensors by name (`cache/blocks.0.hook_in`), and the other facts."""
    data = gzip.decompress((FOLDER / f"{family}.safetensors.gz").read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors, facts = load(data), json.loads(header["__metadata__"]["recorded"])
    return {name: tensors[key] for name, key in facts.pop("names").items()}, facts


def group(family: str, name: str) -> dict[str, torch.Tensor]:
    """The recorded tensors of one group, by what stands behind its slash."""
    return {
        key.removeprefix(f"{name}/"): each for key, each in recorded(family)[0].items() if key.startswith(f"{name}/")
    }


@cache
def scenario(name: str) -> dict[str, Any]:
    """What TransformerLens did in one of the scenarios of `scenarios.py`."""
    return dict(json.loads((FOLDER / "scenarios.json").read_text(encoding="utf-8"))[name])
