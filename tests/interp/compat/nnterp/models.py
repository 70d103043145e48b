"""Tiny models under nnterp's names and under none, and plain transformers with torch hooks beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor, nn

from interp.compat.nnterp import StandardizedTransformer
from tests.interp.reference import build, place, plain, reading
from tests.tiny import tiny_tokenizer

# Of different lengths, so that batches are padded.
PROMPTS = ["The quick brown fox", 'Deutsch: "Buch" - Italiano: "', "king"]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@cache
def standardized(case: str) -> StandardizedTransformer:
    """The model of a case under nnterp's names."""
    return StandardizedTransformer(build(case), tokenizer=tiny_tokenizer())


@cache
def raw(case: str) -> TransformersModel:
    """The model of a case in nnsight, under its own names."""
    return TransformersModel(build(case), tokenizer=tiny_tokenizer(), task="text-generation")


def wrap(kind: str, case: str) -> Any:
    """`standardized` or `raw`."""
    return standardized(case) if kind == "standardized" else raw(case)


def ids_of(text: str) -> Tensor:
    """(1, position), the token ids of one prompt."""
    return torch.tensor([tiny_tokenizer()(text).input_ids])


@torch.no_grad()
def hidden(case: str, text: str, site: str) -> Tensor:
    """(position, hidden) at a site, of a prompt alone."""
    with reading(case, [site]) as values:
        plain(case)(input_ids=ids_of(text))
    return values[site][0]


@torch.no_grad()
def read_out(case: str, vectors: Tensor, sign: int = 1) -> Tensor:
    """Logits of (..., hidden) as the family's forward pass computes them, written out by hand."""
    model: Any = plain(case)
    norm, _ = place(case, "final_norm")
    logits = model.lm_head(sign * norm(vectors))
    if case == "cohere":
        logits = logits * model.config.logit_scale
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def next_probs(case: str, text: str, written: Mapping[str, tuple[int, Tensor]] | None = None) -> Tensor:
    """(vocabulary,), predicted after a prompt alone, while vectors are written at sites: site -> (token, vector)."""
    with ExitStack() as stack:
        for site, (token, vector) in (written or {}).items():
            stack.enter_context(writing_token(case, site, token, vector))
        return plain(case)(input_ids=ids_of(text)).logits[0, -1].float().softmax(-1)


@contextmanager
def writing_token(case: str, site: str, token: int, vector: Tensor) -> Iterator[None]:
    """A hook that puts a vector at one token of a site, in forward passes over more than one token."""
    module, side = place(case, site)

    def changed(value: Tensor) -> Tensor:
        if value.shape[1] == 1:
            return value
        new = value.clone()
        new[:, token] = vector
        return new

    def before(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"])}

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        return changed(output) if isinstance(output, Tensor) else (changed(output[0]), *output[1:])

    if side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
