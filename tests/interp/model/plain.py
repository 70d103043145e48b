"""Five tiny models, plain and wrapped; the plain one is read and changed with torch hooks.

Where things are is written by hand from transformers' source. Bloom's layers return a tuple, Gemma 2 norms what
attention and MLP return before it is added, OPT keeps the two maps of its MLP on the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from tests.families.cases import build
from tests.tiny import tiny_tokenizer

FAMILIES = ("llama", "gpt2", "gemma2", "opt", "bloom")
NUM_LAYERS = 4
IDS = torch.tensor([[1, 17, 250, 33, 94, 301], [1, 88, 5, 260, 71, 12]])
PROMPT = "The quick brown fox"
OTHER = "hello"

LAYERS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "gemma2": "model.layers",
    "opt": "model.decoder.layers",
    "bloom": "transformer.h",
}
NORMS = {
    "llama": "model.norm",
    "gpt2": "transformer.ln_f",
    "gemma2": "model.norm",
    "opt": "model.decoder.final_layer_norm",
    "bloom": "transformer.ln_f",
}
ATTENTIONS = {
    "llama": "self_attn",
    "gpt2": "attn",
    "gemma2": "self_attn",
    "opt": "self_attn",
    "bloom": "self_attention",
}

# What gives `mlp_out`.
MLP_ADDED = {
    "llama": "mlp",
    "gpt2": "mlp",
    "gemma2": "post_feedforward_layernorm",
    "opt": "fc2",
    "bloom": "mlp.dense_4h_to_h",
}

families = pytest.mark.parametrize("family", FAMILIES)


@cache
def plain(family: str) -> Any:
    """The model that nothing ever wraps."""
    return build(family)


@cache
def wrapped(family: str) -> StandardizedTransformer:
    """The same with standard names, made once."""
    return StandardizedTransformer(build(family), tokenizer=tiny_tokenizer())


def layers(family: str, model: nn.Module | None = None) -> Any:
    """The layers of a plain model."""
    return (plain(family) if model is None else model).get_submodule(LAYERS[family])


def head(family: str, hidden: Tensor) -> Tensor:
    """The plain model's way from a residual stream to the logits."""
    logits = plain(family).lm_head(plain(family).get_submodule(NORMS[family])(hidden))
    return torch.tanh(logits / 2.0) * 2.0 if family == "gemma2" else logits


def encoded(*prompts: str) -> dict[str, Tensor]:
    """Prompts as a plain model takes them, left-padded; `position_ids` count from a prompt's own first token."""
    batch = tiny_tokenizer()(list(prompts), return_tensors="pt", padding=True)
    mask = batch["attention_mask"]
    return {"input_ids": batch["input_ids"], "attention_mask": mask}


def positioned(family: str, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch with the positions of its tokens, for families that take them."""
    if family == "bloom":
        return dict(batch)
    positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    return {**batch, "position_ids": positions}


@contextmanager
def seeing(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Hooks that append a clone of what each module gives, call by call, while they stand."""
    seen: dict[str, list[Tensor]] = {name: [] for name in modules}

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: seen[name].append(_first(output).detach().clone())

    hooks = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def changing(module: nn.Module, change: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """A hook that replaces what a module gives by `change(value, number of the call)` while it stands."""
    calls = 0

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal calls
        new = change(_first(output), calls)
        calls += 1
        return new if isinstance(output, Tensor) else type(output)((new, *output[1:]))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@torch.no_grad()
def residuals(family: str, **inputs: Any) -> tuple[list[Tensor], Tensor]:
    """What every layer of the plain model gives, and the logits."""
    modules = {str(i): layer for i, layer in enumerate(layers(family))}
    with seeing(modules) as seen:
        logits = plain(family)(**inputs).logits
    return [seen[name][0] for name in modules], logits
