"""Run tokens through a model's layers without the head, as the model does or with other rows in each layer; and check
that a model is ready to run, and causal.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from interp import passes
from interp.errors import InterpError
from interp.matmul import faster_products
from interp.model.fed import first_position
from interp.model.image_inputs import with_media
from interp.model.verdicts import off_by, sample_ids, verdict
from interp.passes import check_not_open
from interp.prompts import Media
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["by_name", "check_ready", "is_causal", "run_layers", "run_rows"]


class _Done(Exception):
    """Ends a forward pass."""


@torch.no_grad()
def run_layers(
    model: StandardizedTransformer,
    input_ids: Tensor,
    cache: DynamicCache,
    start: int,
    media: Sequence[Media | None] = (),
) -> Tensor:
    """Run tokens through all layers.

    Arguments:
        model: the model.
        input_ids: (row, position), without padding.
        cache: what lies before them, and where their keys and values go.
        start: the position of the first of them.
        media: what each row is fed beside them, all or none of them; empty: nothing.

    Returns:
        (row, position, hidden), the residual stream after the last layer.
    """
    with (
        faster_products(input_ids.numel(), model.hidden_size, model.dtype, model.device),
        _up_to_the_last_layer(model) as final,
    ):
        _forward(model, input_ids, cache, start, media)
    return final[0]


@torch.no_grad()
def run_rows(
    model: StandardizedTransformer,
    input_ids: Tensor,
    cache: DynamicCache,
    start: int,
    entering: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """Run tokens through all layers, with other rows in each.

    Arguments:
        model: the model.
        input_ids: (row, position), the tokens of the rows that enter layer 0.
        cache, start: as in `run_layers`.
        entering: which layer, 1 or higher, and (row, position, hidden) before it -> the rows that go through it.

    Returns:
        (row, position, hidden), the residual stream after the last layer.
    """
    embedded = _embedded(model, input_ids, cache, start)

    def replacing(index: int) -> Callable[..., Any]:
        def replace(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            (_, hidden), *rest = by_name(layer, args, kwargs).items()
            return (entering(index, hidden) if index else embedded,), dict(rest)

        return replace

    hooks = [passes.before(model.layer(index)._module, replacing(index)) for index in range(model.num_layers)]
    try:
        with _up_to_the_last_layer(model) as final:
            _forward(model, input_ids[:1], cache, start)  # what layers are given for one row serves any number
    finally:
        for hook in hooks:
            hook.remove()
    return final[0]


def by_name(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a layer is given, by the names that its forward pass has for it; the residual stream is first."""
    names = list(inspect.signature(type(layer).forward).parameters)[1:]  # without self
    given = dict(zip(names, args, strict=False)) | kwargs
    return {names[0]: given.pop(names[0])} | given


def _embedded(model: StandardizedTransformer, input_ids: Tensor, cache: DynamicCache, start: int) -> Tensor:
    """(row, position, hidden), what layer 0 is given."""
    found: list[Tensor] = []

    def stop(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(next(iter(by_name(layer, args, kwargs).values())))
        raise _Done

    hook = passes.before(model.layer(0)._module, stop)
    try:
        _forward(model, input_ids, cache, start)
    except _Done:
        pass
    finally:
        hook.remove()
    return found[0]


@contextmanager
def _up_to_the_last_layer(model: StandardizedTransformer) -> Iterator[list[Tensor]]:
    """Stop a forward pass after the last layer and append its output to the list."""
    final: list[Tensor] = []

    def stop(_: nn.Module, args: Any, output: Any) -> None:
        final.append(output if isinstance(output, Tensor) else output[0])
        raise _Done

    hook = passes.after(model.layer(model.num_layers - 1)._module, stop)
    try:
        yield final
    except _Done:
        pass
    finally:
        hook.remove()


def _forward(
    model: StandardizedTransformer,
    input_ids: Tensor,
    cache: DynamicCache,
    start: int,
    media: Sequence[Media | None] = (),
) -> None:
    rows, length = input_ids.shape
    device = input_ids.device
    inputs = {"input_ids": input_ids}
    inputs["attention_mask"] = torch.ones(rows, start + length, dtype=torch.long, device=device)
    if model.takes_position_ids:
        positions = torch.arange(start, start + length, device=device) + first_position(model)
        inputs["position_ids"] = positions.expand(rows, length)
    model._module(**with_media(model, inputs, media, [0] * rows), past_key_values=cache, use_cache=True)


_SHORT, _AFTER = 6, 4  # tokens of a short prompt, and those that follow


@torch.no_grad()
def is_causal(model: StandardizedTransformer, longest: int) -> bool:
    """Whether later tokens change nothing at earlier ones.

    Then prompts may be filled up on the right without a mask, and what follows the last token that is read need not be
    computed. Found out once, by two prompts that begin alike, and by their beginnings alone; the verdict is kept by the
    model.

    Arguments:
        model: the model.
        longest: tokens of the longest prompt.
    """
    consequence = "prompts run whole, padded under a mask: the model"
    return verdict(model, "causal", lambda length: _looks_ahead(model, length), consequence, longest=longest)


def _looks_ahead(model: StandardizedTransformer, length: int) -> str | None:
    ids = sample_ids(model, 2, length + 1)
    before = length + 1 - _AFTER
    ids[1, :before] = ids[0, :before]
    whole = _final(model, ids)[:, :before]
    difference = off_by(model, whole[1], whole[0])
    for beginning in {_SHORT, before} if difference is None else ():
        alone = _final(model, ids[:1, :beginning])
        difference = difference or off_by(model, whole[0, :beginning], alone[0])
    return None if difference is None else f"looks ahead (by {difference:.2g})"


def _final(model: StandardizedTransformer, ids: Tensor) -> Tensor:
    """(row, position, hidden), after the last layer."""
    with model.trace(input_ids=ids, use_cache=False) as tracer:
        hidden: Tensor = nnsight.save(model.read(Site("resid_post", model.num_layers - 1)).clone())
        tracer.stop()
    return hidden


def check_ready(model: StandardizedTransformer) -> None:
    """Refuse a model in training mode, whose numbers would be random, or one in the middle of a pass.

    Arguments:
        model: the model.

    Raises:
        InterpError: it is in training mode, or a trace of it is open.
    """
    if model._module.training:
        raise InterpError(
            f"{type(model._module).__name__} is in training mode, where dropout draws at random. It was in eval mode "
            "when it was loaded: call `.eval()` on it first, and `.train()` afterwards."
        )
    check_not_open(model)
