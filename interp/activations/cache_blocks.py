"""Caches of many prompts, block by block: for what is too large to be in memory at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from interp.activations.activation_cache import ActivationCache, CachedModel, axes_of
from interp.activations.cached_run import CacheRequest, Positions
from interp.activations.chosen_sites import Sites
from interp.activations.forward_passes import ForwardPasses
from interp.errors import InterpError
from interp.prompts.images import image_digests
from interp.sites import MAP_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["CacheBlocks"]


@dataclass(frozen=True)
class CacheBlocks:
    """An iterable of caches, each of some prompts; a block is run when it is asked for, and kept nowhere.

        for cache in model.cache_blocks(prompts, sites="resid_post.*", block_size=64):
            ...

    The protocol of what writes them (`pipeline.store.write_cache`): `sites`, `axes`, `positions`, `labels`, `lengths`,
    `input_ids` and `about` as of an `ActivationCache` of all prompts, known before anything runs; `ranges`, and
    `block(index)`.

    Attributes:
        request: what is cached of all prompts.
        ranges: which prompts each block has.
    """

    request: CacheRequest
    ranges: Sequence[range]

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        prompts: Any,
        *,
        sites: Sites | None,
        positions: Positions | None,
        dtype: torch.dtype | None,
        block_size: int,
        images: Any = None,
    ) -> CacheBlocks:
        """See `StandardizedTransformer.cache_blocks`."""
        if block_size < 1:
            raise InterpError(f"block_size: expected at least 1, got {block_size}.")
        passes = ForwardPasses.of(model, prompts, images=images)
        request = CacheRequest.of(passes, sites, positions, device="cpu", dtype=dtype)
        count = len(passes.encoded)
        return cls(request, [range(at, min(at + block_size, count)) for at in range(0, count, block_size)])

    @property
    def sites(self) -> list[Site]:
        """What is cached, in the order of the forward pass."""
        return self.request.sites

    @property
    def positions(self) -> list[list[int]]:
        """Per prompt, the token at each place along the axis `position`; -1: none."""
        return self.request.table.tolist()

    @property
    def labels(self) -> list[str]:
        """Names along the axis `position`."""
        return self.request.labels

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return self.request.passes.lengths

    @property
    def input_ids(self) -> list[list[int]]:
        """Tokens of each prompt."""
        return [list(one.input_ids) for one in self.request.passes.encoded]

    @property
    def about(self) -> CachedModel:
        """What is known of the model, its digest included."""
        model = self.request.passes.model
        return replace(CachedModel.of(model), digest=model.digest())

    @property
    def means(self) -> tuple[()]:
        """Nothing is averaged over examples."""
        return ()

    @property
    def static(self) -> dict[str, Any]:
        """No arrays beside the cache's own."""
        return {}

    @property
    def attributes(self) -> dict[str, Any]:
        """Which images the prompts have, so that no store goes on with others; nothing where there are none."""
        return image_digests([one.media for one in self.request.passes.encoded])

    def axes(self, site: Site) -> tuple[str, ...]:
        """Names of the axes of a site's tensor."""
        return axes_of(site)

    def block(self, index: int) -> ActivationCache:
        """Run the prompts of a block, without the head where no logits are asked for."""
        rows, whole = self.ranges[index], self.request
        model = whole.passes.model
        encoded = [whole.passes.encoded[row] for row in rows]
        stop = None if any(site.kind in ("logits", "final_norm") for site in self.sites) else model.num_layers
        passes = replace(ForwardPasses.whole(model, encoded, None, "left"), stop=stop)
        part = replace(whole, passes=passes, table=whole.table[rows.start : rows.stop])
        _, cache = part.run()
        return replace(cache, tensors={site: self._padded(site, cache) for site in self.sites})

    def _padded(self, site: Site, cache: ActivationCache) -> torch.Tensor:
        """A map with as many keys as that of the longest of all prompts."""
        value = cache.tensors[site]
        if site.kind not in MAP_KINDS or value.shape[-1] == self.request.keys:
            return value
        more = self.request.keys - value.shape[-1]
        return torch.nn.functional.pad(value, (0, more), value=float("nan"))

    def __len__(self) -> int:
        return len(self.ranges)

    def __iter__(self) -> Iterator[ActivationCache]:
        return (self.block(index) for index in range(len(self)))
