"""One edge patched by plain torch hooks, in families that call their modules as Llama does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Hook = Callable[..., Any]


@contextmanager
def hooked(*hooks: tuple[nn.Module, str, Hook]) -> Iterator[None]:
    """Hooks on modules, `before` or `after` their forward pass."""
    handles = [
        module.register_forward_pre_hook(hook) if when == "before" else module.register_forward_hook(hook)
        for module, when, hook in hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class EdgeTwin:
    """A plain transformers model whose edges are patched one by one.

    Arguments:
        plain: the model.
        parallel: attention and MLP read the same norm of the same stream (Cohere).
    """

    def __init__(self, plain: Any, *, parallel: bool = False) -> None:
        self.plain, self.layers, self.parallel = plain, plain.model.layers, parallel

    def written(self, sender: str, ids: Tensor) -> Tensor:
        """(row, position, hidden), what a node writes in the run of some prompts."""
        kept: dict[str, Tensor] = {}

        def before(name: str) -> Hook:
            return lambda _, args: kept.__setitem__(name, args[0])

        kind, *where = sender.split(".")
        layer = self.layers[int(where[0])] if where else self.layers[0]
        watched = {
            "embed": (layer, "before", before("value")),
            "head_out": (layer.self_attn.o_proj, "before", before("value")),
            "mlp_out": (layer.mlp, "after", lambda _, args, output: kept.__setitem__("value", output)),
        }[kind]
        with hooked(watched), torch.no_grad():
            self.plain(input_ids=ids)
        if kind != "head_out":
            return kept["value"]
        size = layer.self_attn.head_dim
        own = slice(int(where[1][1:]) * size, (int(where[1][1:]) + 1) * size)
        return kept["value"][..., own] @ layer.self_attn.o_proj.weight[:, own].T

    def logits(self, ids: Tensor, receiver: str, more: Tensor) -> Tensor:
        """(row, vocabulary) after prompts one of whose nodes reads more than the residual stream."""
        kind, *where = receiver.split(".")
        if kind == "logits":
            with hooked((self.plain.model.norm, "before", lambda _, args: (args[0] + more,))):
                return self.plain(input_ids=ids).logits[:, -1]
        layer = self.layers[int(where[0])]
        stream: list[Tensor] = []
        norm = layer.input_layernorm if kind != "mlp_in" or self.parallel else layer.post_attention_layernorm
        hooks: list[tuple[nn.Module, str, Hook]] = [(norm, "before", lambda _, args: stream.append(args[0]))]

        def read() -> Tensor:
            return norm.forward(stream[0] + more)

        if kind == "mlp_in":
            hooks.append((layer.mlp, "before", lambda _, args: (read(),)))
        else:
            projection = getattr(layer.self_attn, f"{kind}_proj")
            size = layer.self_attn.head_dim
            own = slice(int(where[1][1:]) * size, (int(where[1][1:]) + 1) * size)

            def replace(_: nn.Module, args: Any, output: Tensor) -> Tensor:
                output = output.clone()
                output[..., own] = (read() @ projection.weight.T)[..., own]
                return output

            hooks.append((projection, "after", replace))
        with hooked(*hooks):
            return self.plain(input_ids=ids).logits[:, -1]

    def patched(
        self, edge: str, clean: Tensor, corrupted: Tensor, metric: Callable[[Tensor], Tensor], part: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(row,) of clean prompts with a part of the way to its corrupted value on one edge; and the slope there.

        Arguments:
            edge: `sender -> receiver`.
            clean, corrupted: (row, position), token ids.
            metric: of (row, vocabulary).
            part: 1: all of the way.
        """
        sender, receiver = edge.split(" -> ")
        more = self.written(sender, corrupted) - self.written(sender, clean)
        parts = torch.full((len(clean), 1, 1), part, dtype=more.dtype, requires_grad=True)
        values = metric(self.logits(clean, receiver, parts * more))
        (slopes,) = torch.autograd.grad(values.sum(), parts)
        return values.detach(), slopes[:, 0, 0]
