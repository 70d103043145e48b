"""Parts of a model by TransformerLens's names: `model.blocks[0].attn.hook_q`, `model.ln_final(x)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from interp.compat.transformer_lens.named_points import Point
from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.compat.transformer_lens.bridge import TransformerBridge
    from interp.model import StandardizedTransformer

__all__ = ["Part", "envoys_by_name"]


def envoys_by_name(model: StandardizedTransformer, points: Sequence[Point]) -> dict[str, Any]:
    """The modules of a model that have a name in TransformerLens, nnsight's envoys of them.

    Arguments:
        model: the model.
        points: its points, most of which are the input or output of such a module.
    """
    found: dict[str, Any] = {f"blocks.{layer}": model.layer(layer) for layer in range(model.num_layers)}
    for point in points:
        name, _, side = point.name.rpartition(".")
        if side not in ("hook_in", "hook_out") or not name:
            continue
        place: Any = point.place
        while not hasattr(place, "envoy"):
            place = next(getattr(place, inner) for inner in ("projection", "given", "whole") if hasattr(place, inner))
        found.setdefault(name, place.envoy)
    return found


class Part:
    """A part of a bridge: its hook points, weights and parts by name; called, its module.

    Arguments:
        bridge: the model.
        name: dotted, such as `blocks.0.attn`.
    """

    def __init__(self, bridge: TransformerBridge, name: str) -> None:
        self._bridge, self._name = bridge, name

    @property
    def original_component(self) -> nn.Module:
        """The transformers module.

        Raises:
            InterpError: no single module is this part.
        """
        module = self._bridge.mod_dict.get(self._name)
        if module is None:
            raise InterpError(f"{self._name} is no single module of {type(self._bridge.original_model).__name__}.")
        return module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, bridge = self.original_component, self._bridge
        if bridge.standardized.interleaver.interleaving:  # in a hook: it is no part of the forward pass that runs
            return bridge.envoys[self._name](*args, **kwargs)
        return module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        own, bridge = f"{self._name}.{name}", self._bridge
        if own in bridge.hook_dict:
            return bridge.hook_dict[own]
        if any(other.startswith(f"{own}.") for other in bridge.hook_dict):
            return Part(bridge, own)
        if name.startswith("hook_"):
            raise bridge.points.refuse(own)
        if name[:2] in ("W_", "b_"):
            return bridge.weight_of(name, self._name)
        module = bridge.mod_dict.get(self._name)
        if module is not None and hasattr(module, name):
            return getattr(module, name)
        raise AttributeError(f"{self._name} of {type(bridge.original_model).__name__} has no {name!r}.")

    def __getitem__(self, layer: int) -> Part:
        count = len(self)
        if not -count <= layer < count:
            raise IndexError(f"{self._name}[{layer}]: there are {count}.")
        return Part(self._bridge, f"{self._name}.{layer % count}")

    def __len__(self) -> int:
        if self._name != "blocks":
            raise TypeError(f"{self._name} is no list of layers.")
        return int(self._bridge.cfg.n_layers)

    def __iter__(self) -> Iterator[Part]:
        return (self[layer] for layer in range(len(self)))

    def __repr__(self) -> str:
        return f"Part({self._name!r})"
