"""What each flag of `ExtractionConfig` takes: keys, and the sites of interp that they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.activations.cached_run import CacheRequest
from interp.activations.forward_passes import ForwardPasses
from interp.compat.easyroutine.extraction_config import ExtractionConfig
from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.keyed_cache import ActivationCache, Layout, offsets
from interp.compat.easyroutine.named_positions import Name
from interp.forward.layers import check_ready
from interp.interventions import Intervention

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["FlagValues"]

# Flag -> (the key of a layer, the site's kind).
BY_LAYER = {
    "extract_resid_in": ("resid_in_{}", "resid_pre"),
    "extract_resid_mid": ("resid_mid_{}", "resid_mid"),
    "extract_resid_out": ("resid_out_{}", "resid_post"),
    "extract_resid_in_post_layernorm": ("resid_in_post_layernorm_{}", "attn_in"),
    "extract_attn_in": ("attn_in_{}", "attn_in"),
    "extract_attn_out": ("attn_out_{}", "attn_out"),
    "extract_mlp_out": ("mlp_out_{}", "mlp_out"),
}


@dataclass
class FlagValues:
    """One batch, and what is taken of it.

    Arguments:
        model: the model.
        batch: the examples.
        config: the flags.
        names: where.
        interventions: what is changed before anything is taken.
        batch_size: examples in a forward pass at most; None: as many as suit the device.
    """

    model: StandardizedTransformer
    batch: InputBatch
    config: ExtractionConfig
    names: Sequence[Name]
    interventions: Iterable[Intervention] = ()
    batch_size: int | None = None

    def run(self) -> ActivationCache:
        """Run the batch.

        Returns:
            The keys that the flags ask for, `logits`, `mapping_index` and `token_dict`.
        """
        check_ready(self.model)
        asked = {flag: pair for flag, pair in BY_LAYER.items() if getattr(self.config, flag)}
        sites = [f"{kind}.*" for _, kind in asked.values()]
        table, layout = self.batch.layout(self.names)
        passes = ForwardPasses.whole(self.model, self.batch.encoded, self.batch_size, "left")
        wanted = [*dict.fromkeys(sites), *(["logits"] if self.config.save_logits or not sites else [])]
        request = CacheRequest.of(passes, wanted, "last", interventions=self.interventions)
        labels = [str(name) for name, width in layout.items() for _ in range(width)]
        logits, values = replace(request, table=table, labels=labels).run()
        cache = ActivationCache()
        for key, kind in asked.values():
            for site in values.sites:
                if site.kind == kind:
                    self._put(cache, key.format(site.layer), values[site], layout)
        self._logits(cache, logits, layout, table)
        cache["mapping_index"] = offsets(dict.fromkeys(layout, 1) if self._averages else layout)
        cache["token_dict"] = self._token_dict()
        return cache

    @property
    def _averages(self) -> bool:
        return self.config.avg or self.config.extract_avg

    def _put(self, cache: ActivationCache, key: str, value: Tensor, layout: Layout) -> None:
        """Keep (example, position, ...), or its mean over the positions of each name."""
        if self._averages:
            value = torch.stack([part.nanmean(1) for part in value.split(list(layout.values()), 1)], 1)
            layout = dict.fromkeys(layout, 1)
        cache.put(key, value, layout)

    def _logits(self, cache: ActivationCache, logits: Tensor, layout: Layout, table: Tensor) -> None:
        if self.config.save_logits is False:
            return
        rows = torch.arange(len(self.batch), device=logits.device)
        if self.config.save_logits is None:
            last = torch.tensor([len(one.input_ids) - 1 for one in self.batch.encoded], device=logits.device)
            cache["logits"] = logits[rows, last]
            return
        found = logits[rows[:, None], table.clamp(min=0).to(logits.device)]
        missing = (table < 0).to(found.device)[:, :, None]
        cache.put("logits", found.masked_fill(missing, torch.nan), layout)

    def _token_dict(self) -> dict[Name, list[int]] | list[dict[Name, list[int]]]:
        rows = [{name: self.batch.tokens(name)[row] for name in self.names} for row in range(len(self.batch))]
        return rows[0] if len(rows) == 1 else rows
