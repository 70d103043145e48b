"""Padding that a family lets its recurrent layers read, kept out of them.

transformers hands the attention mask to Mamba layers, which zero what comes from padding. Some recurrent blocks are
told of no mask: a left-padded prompt would read its padding as text, and give other logits in a batch than alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from interp.architectures import Architecture, submodule

__all__ = ["guard_padding"]

_MARK = "_interp_padding"


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


class _Mask:
    """The attention mask of the forward pass that runs."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None

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
