"""Slow twins of the lenses on attention: whole prompts one by one, in plain transformers with eager attention.

They know nothing of masks, caches or of `interp`: edges are cut where torch takes the softmax, and what attention
receives is changed by a hook on the module.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SOFTMAX = {functional.softmax, torch.softmax, Tensor.softmax}


class _Cutting(TorchFunctionMode):
    """While switched on, scores (..., head, query, key) of some edges are minus infinity when they come to a softmax.

    `heads` are those of the layer that runs; None: all.
    """

    def __init__(self, length: int, edges: Collection[tuple[int, int]]) -> None:
        super().__init__()
        self.length, self.edges, self.on, self.cut = length, edges, False, 0
        self.heads: list[int] | None = None

    def __torch_function__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        scores = args[0] if args else None
        if self.on and func in _SOFTMAX and scores.dim() > 2 and scores.shape[-2] == self.length:
            assert scores.shape[-1] in (self.length, self.length + 1)  # with an attention sink, one term more
            scores = scores.clone()
            heads = range(scores.shape[-3]) if self.heads is None else self.heads
            for query, key in self.edges:
                for head in heads:
                    scores[..., head, query, key] = torch.finfo(scores.dtype).min
            args = (scores, *args[1:])
            self.cut += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def cut_logits(
    plain: nn.Module,
    layers: Any,
    ids: Sequence[int],
    window: Collection[int],
    edges: Collection[tuple[int, int]],
    heads: Mapping[int, Sequence[int]] | None = None,
) -> np.ndarray:
    """(vocabulary,) float64 after the last token, with edges cut in the layers of a window.

    Arguments:
        plain: a transformers model with eager attention.
        layers: its layers.
        ids: the prompt.
        window: layers.
        edges: (query, key).
        heads: layer -> the heads that are cut there; None: all, in each.
    """
    cutting = _Cutting(len(ids), edges)

    def switch(on: bool, layer: int = 0) -> Any:
        def hook(*_: Any) -> None:
            cutting.on = on
            cutting.heads = None if heads is None else list(heads.get(layer, ()))

        return hook

    with ExitStack() as stack:
        for index in window:
            stack.callback(layers[index].register_forward_pre_hook(switch(True, index)).remove)
            stack.callback(layers[index].register_forward_hook(switch(False)).remove)
        stack.enter_context(cutting)
        logits = plain(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    assert cutting.cut >= len(window)  # every layer's softmax was met
    return logits.double().numpy()


@contextmanager
def receiving(attention: nn.Module, position: int | list[int], latent: Tensor) -> Iterator[None]:
    """For a while, an attention module receives another vector at one position, or others at several."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        live = args[0] if args else kwargs["hidden_states"]
        patched = live.clone()
        patched[:, position] = latent
        return (
            tuple(patched if value is live else value for value in args),
            {name: patched if value is live else value for name, value in kwargs.items()},
        )

    handle = attention.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def received_logits(
    plain: nn.Module,
    attentions: Mapping[int, nn.Module],
    ids: Sequence[int],
    position: int | list[int],
    latents: Mapping[int, Tensor],
) -> np.ndarray:
    """(vocabulary,) float64 after the last token, while attention of some layers receives other vectors.

    Arguments:
        plain: a transformers model.
        attentions: layer -> its attention module.
        ids: the prompt.
        position: the token at which they are received, or several.
        latents: layer -> (hidden,), or (position, hidden).
    """
    with ExitStack() as stack:
        for layer, latent in latents.items():
            stack.enter_context(receiving(attentions[layer], position, latent))
        logits = plain(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    return logits.double().numpy()


@torch.no_grad()
def attention_inputs(
    plain: nn.Module, attentions: Sequence[nn.Module], ids: Sequence[int], position: int | list[int]
) -> Tensor:
    """(layer, hidden): what each attention module receives at one position; (layer, position, hidden) at several."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0, position].clone())

    with ExitStack() as stack:
        for attention in attentions:
            stack.callback(attention.register_forward_pre_hook(hook, with_kwargs=True).remove)
        plain(input_ids=torch.tensor([list(ids)]), use_cache=False)
    return torch.stack(seen)
