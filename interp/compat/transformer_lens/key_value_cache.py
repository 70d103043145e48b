"""Keys and values of tokens that were seen, as TransformerLens keeps them: (batch, position, key/value heads, head)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.compat.transformer_lens.config import TransformerBridgeConfig

__all__ = ["TransformerLensKeyValueCache", "TransformerLensKeyValueCacheEntry"]


@dataclass
class TransformerLensKeyValueCacheEntry:
    """Keys and values of one layer.

    Arguments:
        past_keys: (batch, position, key/value heads, d_head), after rotation.
        past_values: the same of values.
        frozen: `append` keeps nothing.
    """

    past_keys: Tensor
    past_values: Tensor
    frozen: bool = False

    @classmethod
    def init_cache_entry(
        cls, cfg: TransformerBridgeConfig, device: torch.device | str | None, batch_size: int = 1, layer: int = 0
    ) -> TransformerLensKeyValueCacheEntry:
        """An entry without a position.

        Arguments:
            cfg: the model's config.
            device: where it lies; None: `cfg.device`.
            batch_size: its rows.
            layer: which layer's, where layers differ in heads.
        """
        heads = cfg.n_key_value_heads if cfg.n_key_value_heads is not None else cfg.n_heads
        size = cfg.d_head
        if cfg.per_layer_num_key_value_heads is not None:
            heads = cfg.per_layer_num_key_value_heads[layer] or heads
        if cfg.per_layer_head_dim is not None:
            size = cfg.per_layer_head_dim[layer] or size
        shape = (batch_size, 0, heads, size)
        empty = torch.empty(shape, device=device if device is not None else cfg.device, dtype=cfg.dtype)
        return cls(empty, empty.clone())

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        """Put positions behind those that are there, and keep the result unless the entry is frozen.

        Arguments:
            new_keys, new_values: (batch, new positions, key/value heads, d_head). An entry of one row serves any
                number of them.

        Returns:
            Keys and values of all positions.

        Raises:
            InterpError: the rows or heads do not fit.
        """
        if new_keys.shape[:3] != new_values.shape[:3]:
            raise InterpError(f"keys {tuple(new_keys.shape)} and values {tuple(new_values.shape)} are not of one run")
        keys = _behind(self.past_keys, new_keys, "keys")
        values = _behind(self.past_values, new_values, "values")
        if not self.frozen:
            self.past_keys, self.past_values = keys, values
        return keys, values


@dataclass
class TransformerLensKeyValueCache:
    """Keys and values of all layers: what a model is given as `past_kv_cache=` and goes on from.

    A run appends what it sees, unless the cache is frozen: then any number of runs go on from the same prefix. A cache
    of one row serves a batch of any size.

    Arguments:
        entries: by layer.
        previous_attention_mask: (batch, position), 0 at padding.
        frozen: runs keep nothing in it.
    """

    entries: list[TransformerLensKeyValueCacheEntry]
    previous_attention_mask: Tensor
    frozen: bool = False

    @classmethod
    def init_cache(
        cls, cfg: TransformerBridgeConfig, device: torch.device | str | None, batch_size: int = 1
    ) -> TransformerLensKeyValueCache:
        """A cache without a position.

        Arguments:
            cfg: the model's config.
            device: where it lies until the first run, which brings it to the model; None: `cfg.device`.
            batch_size: its rows. One row serves any batch while the cache is frozen.

        Raises:
            InterpError: the model keeps a state that keys and values do not hold (Mamba, linear attention).
        """
        if cfg.is_stateful:
            raise InterpError(
                f"{cfg.architecture or 'this model'} has layers that keep a state in place of keys and values: no key "
                f"and value cache of TransformerLens's holds it. Run the whole prompt."
            )
        entries = [
            TransformerLensKeyValueCacheEntry.init_cache_entry(cfg, device, batch_size, layer)
            for layer in range(cfg.n_layers)
        ]
        mask = torch.empty((batch_size, 0), device=device if device is not None else cfg.device, dtype=torch.int)
        return cls(entries, mask)

    def __getitem__(self, idx: int) -> TransformerLensKeyValueCacheEntry:
        return self.entries[idx]

    def freeze(self) -> None:
        """From now on nothing is kept."""
        self._set_frozen(True)

    def unfreeze(self) -> None:
        """From now on runs append to it."""
        self._set_frozen(False)

    def append_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """Put a mask behind the one that is there, and keep the result unless the cache is frozen.

        Arguments:
            attention_mask: (batch, new positions), 0 at padding. A cache of one row serves any number of rows.

        Returns:
            The mask of all positions.

        Raises:
            InterpError: the rows do not fit.
        """
        mask = self.extended_attention_mask(attention_mask)
        if not self.frozen:
            self.previous_attention_mask = mask
        return mask

    def extended_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """The mask of all positions, as `append_attention_mask` gives it, without keeping it."""
        return _behind(self.previous_attention_mask, attention_mask, "attention_mask")

    @property
    def length(self) -> int:
        """How many positions it holds."""
        return self.previous_attention_mask.shape[1]

    def to_transformers(self, batch_size: int) -> DynamicCache:
        """A copy that a transformers model can be given as `past_key_values=`, and appends to.

        It has no windows: layers with one get all keys, and their masks hide what lies before the window.

        Arguments:
            batch_size: rows of the run. A cache of one row serves any number.

        Raises:
            InterpError: the rows do not fit, or an entry holds another number of positions than the mask.
        """
        cache = DynamicCache()
        for layer, entry in enumerate(self.entries):
            if entry.past_keys.shape[1] != self.length:
                raise InterpError(
                    f"the cache is of {self.length} positions by its attention mask, and layer {layer} has "
                    f"{entry.past_keys.shape[1]}: append both"
                )
            if self.length:  # without a position, the layer is made by the first run
                keys, values = (
                    _rows(each, batch_size, "the cache").transpose(1, 2)
                    for each in (entry.past_keys, entry.past_values)
                )
                cache.update(keys, values, layer)
        return cache

    def append_from(self, cache: DynamicCache, attention_mask: Tensor) -> None:
        """Keep what a run appended to a copy that `to_transformers` made. Nothing happens where the cache is frozen.

            past = cache.to_transformers(rows)
            model(ids, attention_mask=cache.extended_attention_mask(mask), past_key_values=past, use_cache=True)
            cache.append_from(past, mask)

        Arguments:
            cache: the copy, after the run.
            attention_mask: (batch, new positions), 0 at padding, of the run.

        Raises:
            InterpError: it is of another number of layers, or not all its layers hold keys and values of all positions.
        """
        if self.frozen:
            return
        if len(cache.layers) != len(self.entries):
            raise InterpError(f"the run kept {len(cache.layers)} layers; this cache has {len(self.entries)}")
        if any(type(layer) is not DynamicLayer or layer.keys is None for layer in cache.layers):
            raise InterpError("the run did not keep keys and values of all positions in every layer")
        for entry, layer in zip(self.entries, cache.layers, strict=True):
            entry.past_keys = layer.keys.transpose(1, 2)
            entry.past_values = layer.values.transpose(1, 2)
        self.append_attention_mask(attention_mask)

    def _set_frozen(self, frozen: bool) -> None:
        self.frozen = frozen
        for entry in self.entries:
            entry.frozen = frozen


def _rows(tensor: Tensor, rows: int, what: str) -> Tensor:
    """A tensor of one row or of these many, with these many."""
    if tensor.shape[0] not in (1, rows):
        raise InterpError(
            f"{what} has {tensor.shape[0]} rows and the run {rows}: a cache of one row serves any number, another only "
            f"its own"
        )
    return tensor.expand(rows, *tensor.shape[1:])


def _behind(past: Tensor, new: Tensor, what: str) -> Tensor:
    """Positions (axis 1) of both, on the device of what is new."""
    if past.ndim != new.ndim or past.shape[2:] != new.shape[2:]:
        raise InterpError(f"{what} of shape {tuple(new.shape)} do not go behind those of shape {tuple(past.shape)}")
    return torch.cat([_rows(past, new.shape[0], f"the cache of {what}").to(new.device), new], dim=1)
