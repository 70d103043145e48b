"""Run the last layer that is needed at the tokens that are read; of all others it needs only keys and values."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from interp.forward.batch import Feed
from interp.forward.prefix import repeated
from interp.forward.shared_attention import Shared, hold
from interp.model.verdicts import Pair, verdict

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["LastLayer", "last_layer_fits"]


class _Kept(Exception):
    """Ends a layer once it has made its keys and values."""


class _Keep(DynamicCache):
    """A cache that takes the keys and values of one layer, then ends it."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states
        raise _Kept


class _Give(DynamicCache):
    """A cache that gives a layer the keys and values made before: those of a prefix, then its own."""

    def __init__(self, module: nn.Module, keys: Tensor, values: Tensor, prefix: Shared | None) -> None:
        super().__init__()
        self.module, self.given, self.prefix = module, (keys, values), prefix

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self.given
        if self.prefix is None or hold(self.module, self.prefix):
            return keys, values
        return (
            torch.cat([repeated(self.prefix.keys, len(keys)), keys], dim=-2),
            torch.cat([repeated(self.prefix.values, len(values)), values], dim=-2),
        )


@dataclass
class LastLayer:
    """One layer run at a few tokens, with the arguments that the model calls it with (taken by a hook).

    Arguments:
        model: the model.
        layer: which layer.
        given: what it is given, by name, the residual stream first.
        cache: its name for the cache of keys and values.
    """

    model: StandardizedTransformer
    layer: int
    given: dict[str, Any] = field(default_factory=dict)
    cache: str = "past_key_values"

    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook, to be registered before the layer's forward pass, with keywords."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]  # without self
        self.cache = "layer_past" if "layer_past" in names else "past_key_values"
        self.given = dict(zip(names, args, strict=False)) | kwargs
        self.given = {names[0]: self.given.pop(names[0])} | self.given

    @torch.no_grad()
    def at(self, rows: Tensor, columns: Tensor, feed: Feed) -> Tensor:
        """What the layer gives at some tokens of the batch that it was called with.

        Each of these tokens goes through the layer as a row of its own, beside the keys and values of its prompt.

        Arguments:
            rows, columns: which prompt each of these tokens is of, and its place in it, each (entry,).
            feed: the batch.

        Returns:
            (entry, hidden), the residual stream after the layer.
        """
        module = self.model.layer(self.layer)._module
        (name, hidden), *rest = self.given.items()
        keywords = dict(rest)
        rows, columns = rows.to(hidden.device), columns.to(hidden.device)
        keep = _Keep()
        try:
            module(**{name: hidden}, **keywords | {self.cache: keep})
        except _Kept:
            pass
        else:
            raise NotImplementedError("the layer keeps no keys")
        keys, values = keep.keys, keep.values
        places = feed.places(rows, columns)
        short = {key: _at(value, hidden.shape[:2], *places) for key, value in keywords.items()}
        if feed.packed is not None:
            keys, values = feed.packed.unpacked(keys), feed.packed.unpacked(values)
            mask = feed.packed.mask(keywords.get("attention_mask"))
            short["attention_mask"] = _at(mask, torch.Size(keys.shape[::2][:2]), rows, columns)
        prefix, start = None, 0
        if feed.prefix is not None:
            before: Any = feed.prefix.cache.layers[self.layer]
            prefix, start = Shared(before.keys, before.values), feed.prefix.length
        if keywords.get("attention_mask") is None:
            seen = torch.arange(start + keys.shape[-2], device=hidden.device) <= start + columns[:, None]
            short["attention_mask"] = seen[:, None, None]
        short[self.cache] = _Give(self.model._module, keys[rows], values[rows], prefix)
        with feed.sharing(self.model):
            output = module(**{name: hidden[places][:, None]}, **short)
        return (output if isinstance(output, Tensor) else output[0])[:, 0]


def _at(value: Any, fed: torch.Size, rows: Tensor, columns: Tensor) -> Any:
    """What a layer is given beside the residual stream, for tokens that are a row each.

    Arguments:
        value: for the batch; masks and biases have four axes, the third of them is the token's.
        fed: rows and positions of the batch.
        rows, columns: of the tokens.
    """
    if isinstance(value, tuple | list):
        return type(value)(_at(item, fed, rows, columns) for item in value)
    if isinstance(value, dict):
        return {name: _at(item, fed, rows, columns) for name, item in value.items()}
    if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] not in (1, fed[0]):
        return value
    rows, columns = (index.to(value.device) for index in (rows if value.shape[0] > 1 else rows * 0, columns))
    if value.dim() == 4 and value.shape[2] == fed[1]:
        return value[rows, :, columns][:, :, None]
    return value[rows, columns][:, None] if value.shape[1] == fed[1] else value


At = Callable[[Tensor, Tensor], Tensor]


def last_layer_fits(model: StandardizedTransformer, layer: int, feed: Feed, short: At, whole: At) -> bool:
    """Whether a layer run at a few tokens gives there what it gives when it runs at all tokens.

    Found out once for each layer, form of batch and regime by the batch at hand, done both ways at the middle and the
    end of each row; the verdict is kept.

    Arguments:
        model: the model.
        layer: the layer.
        feed: the batch.
        short, whole: (row, column) of tokens -> (token, hidden), what the layer gives, each way.
    """

    def trial(_: int) -> list[Pair]:
        lengths = torch.tensor(feed.lengths, device=model.device)
        rows = torch.arange(len(lengths), device=model.device).repeat(2)
        columns = torch.cat([lengths // 2, lengths - 1])
        return [(lambda: short(rows, columns), lambda: whole(rows, columns))]

    name = f"layer {layer} at a few tokens" + " of packed prompts" * (feed.packed is not None)
    name += " behind a prefix" * (feed.prefix is not None)
    consequence = f"runs layer {layer} at all tokens: at a few it"
    # The slow way costs little: no warning.
    return verdict(model, name, trial, consequence, longest=feed.keys, at_hand=True, level=logging.INFO)
