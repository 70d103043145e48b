"""`ActivationCache`: what a run passed through its hook points, by name; the residual stream taken apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.compat.transformer_lens.hook_points import near_names
from interp.compat.transformer_lens.names import get_act_name
from interp.compat.transformer_lens.slices import Slice, SliceInput
from interp.compat.transformer_lens.stack_methods import StackMethods, as_slice
from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.compat.transformer_lens.bridge import TransformerBridge

__all__ = ["ActivationCache"]


class ActivationCache(StackMethods):
    """Values by name: `cache["blocks.0.attn.hook_q"]`, `cache["q", 0]`, `cache["resid_post", -1]`, `cache["k1"]`.

    What is taken apart here is a stack: (component, batch, position, d_model). Norms are applied with the scale that
    the whole stream had (`ln_final.hook_scale` and the like, which have to be in the cache), so that the parts sum to
    the whole. Attribution to logits needs the weights folded: `model.enable_compatibility_mode()`.

    Arguments:
        cache_dict: the values.
        model: the bridge that they are of.
        has_batch_dim: they have their batch axis.
        tokens: (batch, position), what was run; None: more than tokens was given.
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: TransformerBridge,
        has_batch_dim: bool = True,
        tokens: Tensor | None = None,
    ) -> None:
        self.cache_dict = cache_dict
        self.tokens = tokens
        self.model: Any = model
        self.has_batch_dim = has_batch_dim

    @property
    def has_embed(self) -> bool:  # type: ignore[override]
        """The token embeddings are there."""
        return "hook_embed" in self.cache_dict

    @property
    def has_pos_embed(self) -> bool:  # type: ignore[override]
        """The embeddings of positions are there."""
        return "hook_pos_embed" in self.cache_dict

    # A mapping -----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        """A value by its name, another name of its hook point, or TransformerLens's shorthand of one.

        Raises:
            InterpError: (also a KeyError) it is not there, with the nearest that are.
        """
        if isinstance(key, str) and key in self.cache_dict:
            return self.cache_dict[key]
        parts = list(key) if isinstance(key, tuple) else [key]
        if len(parts) > 1 and isinstance(parts[1], int) and parts[1] < 0:
            parts[1] += self.model.cfg.n_layers
        name = get_act_name(*parts)
        point = self.model.points.by_name.get(name)
        for own in (name, *(() if point is None else point.names)):
            if own in self.cache_dict:
                return self.cache_dict[own]
        raise _NotCached(f"the cache has no {name!r}. {near_names(name, self.cache_dict)}")

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except InterpError:
            return False
        return True

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def __repr__(self) -> str:
        return f"ActivationCache with keys {list(self.cache_dict)}"

    def keys(self) -> KeysView[str]:
        """The names."""
        return self.cache_dict.keys()

    def values(self) -> ValuesView[Tensor]:
        """The values."""
        return self.cache_dict.values()

    def items(self) -> ItemsView[str, Tensor]:
        """Names and values."""
        return self.cache_dict.items()

    def to(self, device: torch.device | str) -> ActivationCache:
        """Move the values to a device."""
        self.cache_dict = {name: value.to(device) for name, value in self.cache_dict.items()}
        return self

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Switch gradients on or off, everywhere: `torch.set_grad_enabled(mode)`. `torch.no_grad()` is of one block."""
        torch.set_grad_enabled(mode)

    def remove_batch_dim(self, batch_size: int | None = None) -> ActivationCache:
        """Drop the batch axis, of a batch of one.

        Arguments:
            batch_size: how many rows were run; None: the first axis that most values have.

        Raises:
            InterpError: the batch has several rows.
        """
        rows = self._rows() if batch_size is None else batch_size
        if self.has_batch_dim and rows != 1:
            raise InterpError(f"remove_batch_dim: the cache is of {rows} rows, expected one.")
        if self.has_batch_dim:
            for name, value in self.cache_dict.items():
                if value.ndim and value.shape[0] == 1:
                    self.cache_dict[name] = value[0]
            self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Slice | SliceInput) -> ActivationCache:
        """A cache of some rows.

        Arguments:
            batch_slice: which; an integer drops the batch axis.

        Raises:
            InterpError: there is no batch axis, or no such row.
        """
        chosen = as_slice(batch_slice)
        if not self.has_batch_dim:
            raise InterpError("apply_slice_to_batch_dim: this cache has no batch axis.")
        rows = self._rows()
        sliced = {
            name: chosen.apply(value, dim=0) if value.ndim and value.shape[0] == rows else value
            for name, value in self.cache_dict.items()
        }
        return ActivationCache(sliced, self.model, has_batch_dim=chosen.mode != "int")

    def _rows(self) -> int:
        counts = Counter(value.shape[0] for value in self.cache_dict.values() if value.ndim)
        return counts.most_common(1)[0][0] if counts else 1


class _NotCached(InterpError, KeyError):
    """A name that a cache does not have."""

    __str__ = InterpError.__str__
