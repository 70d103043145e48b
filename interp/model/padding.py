"""Tests whether left padding changes a model's numbers, and keeps padding out of recurrent layers.

A model that counts positions from the first column, or reads no attention mask, takes padding for text. Which prompts
may stand beside longer ones is asked here by everything that pads: lenses, collecting, generation, traces of several
texts.

transformers hands the attention mask to Mamba layers, which zero what comes from padding. Some recurrent blocks are
told of no mask: a left-padded prompt would read its padding as text, and give other logits in a batch than alone.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.architectures import Architecture, submodule
from interp.errors import InterpError
from interp.model.fed import first_position, is_fake
from interp.model.hooks import hooks_aside
from interp.model.verdicts import holds, is_changed, misfit, sample_ids
from interp.passes import after, before  # by name: what travels to a server must not name a module of ours

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["PaddingWatch", "guard_padding", "pads"]

_MARK = "_interp_padding"
_NAME = "padding on the left"


def pads(model: StandardizedTransformer, longest: int) -> bool:
    """Whether prompts padded on the left, under a mask, give what each gives alone; never where the user changed them.

    Found out once by three prompts of different lengths; the verdict is kept.

    Arguments:
        model: the model.
        longest: tokens of the longest prompt.
    """
    return not is_changed(model) and _stands_padding(model, longest)


def _stands_padding(model: StandardizedTransformer, longest: int) -> bool:
    consequence = "prompts run with those of their own length alone (slower): padding on the left"
    return holds(model, _NAME, lambda length: _trial(model, length), consequence, longest=longest)


def _trial(model: StandardizedTransformer, length: int) -> str | None:
    """Why padding does not fit, by prompts up to a length; not by lengths alike that blocks of keys may hide."""
    lengths = (length, length - 3, 6)
    ids = sample_ids(model, 3, length)
    padding = length - torch.tensor(lengths, device=model.device)
    mask = (torch.arange(length, device=model.device) >= padding[:, None]).long()
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.takes_position_ids:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + first_position(model)
    interleaving = model.interleaver.interleaving
    model.interleaver.interleaving = False  # a trace may be about to run, which these passes are no part of
    try:
        with torch.no_grad(), hooks_aside(model._module):
            padded = list(zip(ids, lengths, strict=True))[1:]  # the longest is not
            alone = torch.cat([_final(model, input_ids=row[None, -own:])[0] for row, own in padded])
            return misfit(model, lambda: _final(model, **inputs)[1:][mask[1:].bool().to(alone.device)], alone)
    finally:
        model.interleaver.interleaving = interleaving


class _Final(Exception):
    """What comes after the last layer is not computed."""


def _final(model: StandardizedTransformer, **inputs: Tensor) -> Tensor:
    """(row, position, hidden), after the last layer."""
    found: list[Tensor] = []

    def stop(_: nn.Module, args: Any, output: Any) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])
        raise _Final

    hook = after(model.layer(model.num_layers - 1)._module, stop)
    try:
        model._module(**inputs, use_cache=False)
    except _Final:
        pass
    finally:
        hook.remove()
    return found[0].reshape(*inputs["input_ids"].shape, -1)


class PaddingWatch:
    """Refuses padding that would change a model's numbers, by a hook before its forward pass.

    Arguments:
        model: the model.
    """

    def __init__(self, model: StandardizedTransformer) -> None:
        self.model = model
        self.trying = False

    def watch(self) -> RemovableHandle:
        """Stand before the model's other hooks, which keep what it was given last: a trial here runs the model."""
        return before(self.model._module, self._take, prepend=True)

    def _take(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Look at what a pass is given.

        Raises:
            InterpError: prompts are padded on the left, and this model gives other numbers then.
        """
        mask = kwargs.get("attention_mask")
        fed = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if "interp.model.padding" not in sys.modules:
            return  # on a server, which has families that transformers has, and must not be tried things on
        if self.trying or not isinstance(mask, Tensor) or not isinstance(fed, Tensor) or mask.shape != fed.shape[:2]:
            return  # among others, what goes on from a cache
        if mask.dim() != 2 or is_fake(mask) or bool((mask[:, 0] != 0).all()):
            return
        self.trying = True
        try:
            fits = _stands_padding(self.model, mask.shape[1])
        finally:
            self.trying = False
        if not fits:
            raise InterpError(
                f"{type(module).__name__} gives other numbers for prompts that are padded on the left than for each "
                "alone: it reads no attention mask, or counts positions or blocks of keys from the first column. Trace "
                "prompts of one length together, or one at a time; lenses and `collect` do so by themselves."
            )


def guard_padding(architecture: Architecture, module: nn.Module) -> None:
    """Zero at padding what the modules that a record names in `unpadded` give, in every forward pass from now on.

    Arguments:
        architecture: the record of the model.
        module: the model; it and these modules are given forward hooks, each once, so that a module that was put in the
            place of another is found too. A pass without padding is left alone.
    """
    layers = submodule(module, architecture.layers) or ()
    paths = [(layer, path) for layer in layers for path in architecture.unpadded]
    inner = [part for layer, path in paths if (part := submodule(layer, path)) is not None]
    if not inner:
        return
    known = getattr(module, _MARK, None)
    seen = known if isinstance(known, _Mask) else _Mask()
    if seen is not known:
        setattr(module, _MARK, seen)
        module.register_forward_pre_hook(seen.take, with_kwargs=True)
        module.register_forward_hook(seen.drop, always_call=True)
    for part in inner:
        if getattr(part, _MARK, None) is not seen:  # a copy's hook belongs to the model that it was copied in
            setattr(part, _MARK, seen)
            part.register_forward_hook(seen.clear)


class _Mask(threading.local):
    """The attention mask of the forward pass that runs in this thread."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None

    def __reduce__(self) -> tuple[type[_Mask], tuple[()]]:  # of a copied model
        return _Mask, ()

    def take(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.all()) else None

    def drop(self, module: nn.Module, args: Any, output: Any) -> None:
        self.mask = None

    def clear(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self.mask is None:
            return None
        mask = self.mask[:, -output.shape[1] :]  # of the tokens that are fed, where others are in the cache
        return output * mask[:, :, None].to(output)
