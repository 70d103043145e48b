"""What each flag of `ExtractionConfig` takes: easyroutine's keys, and what of interp they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.cached_run import CacheRequest
from interp.activations.chosen_sites import sites_of
from interp.activations.extracted_kinds import Derived, Extracted
from interp.activations.extraction_pass import BatchSlots, BatchValues, ExtractionPlan
from interp.activations.forward_passes import ForwardPasses
from interp.activations.token_slots import TokenSlots
from interp.compat.easyroutine.cache_files import ValueWithInfo
from interp.compat.easyroutine.extraction_config import ExtractionConfig
from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.joined_values import offsets
from interp.compat.easyroutine.keyed_cache import ActivationCache
from interp.compat.easyroutine.named_positions import Name, named
from interp.compat.easyroutine.projections import chosen_heads, heads_of, projected, through_output
from interp.errors import InterpError
from interp.forward.layers import check_ready
from interp.interventions import Intervention
from interp.positions import Position
from interp.sites import Site

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
# Flag -> (the key of a layer, values, keys or queries); of heads, the key of a head.
PACKED = {
    "extract_values": ("values_{}", "v"),
    "extract_keys": ("keys_L{}", "k"),
    "extract_queries": ("queries_L{}", "q"),
}
BY_HEAD = {
    "extract_head_values": ("head_values_L{}H{}", "v"),
    "extract_head_keys": ("head_keys_L{}H{}", "k"),
    "extract_head_queries": ("head_queries_L{}H{}", "q"),
}
PROJECTED = {
    "extract_values_vectors_projected": ("projected_value_L{}H{}", "v"),
    "extract_head_values_projected": ("projected_value_L{}H{}", "v"),
    "extract_head_keys_projected": ("projected_key_L{}H{}", "k"),
    "extract_head_queries_projected": ("projected_query_L{}H{}", "q"),
}
_STATISTICS = {"mean": "pattern_mean", "sum": "pattern_sum", "baseline_ratio": "pattern_ratio"}
_NORM = ("mean", "variance", "second_moment")


@dataclass
class FlagValues:
    """One batch, and what is taken of it.

    Arguments:
        model: the model.
        batch: the examples.
        config: the flags.
        names: where.
        interventions: what is changed before anything is taken.
        vocabulary_index: of `keep_gradient`: whose logit, one for all examples or one for each.
        batch_size: examples in a forward pass at most; None: all.
        columns: from where to where patterns are taken; None: the names.
    """

    model: StandardizedTransformer
    batch: InputBatch
    config: ExtractionConfig
    names: Sequence[Name]
    interventions: Sequence[Intervention] = ()
    vocabulary_index: Any = None
    batch_size: int | None = None
    columns: Sequence[Name] | None = None
    heads: list[tuple[int, int]] = field(init=False)  # of which keys that name a head are taken

    def __post_init__(self) -> None:
        check_ready(self.model)
        self.heads = chosen_heads(self.model, self.config.attn_heads)
        rows = self.config.attn_pattern_row_positions
        self._columns = self.names if self.columns is None else self.columns
        self.rows = self._columns if rows is None else named(rows, "attn_pattern_row_positions")

    def run(self, means: ActivationCache) -> ActivationCache:
        """Run the batch.

        Arguments:
            means: takes the running means.

        Returns:
            The keys that the flags ask for, with `logits`, `mapping_index` and `token_dict`.
        """
        slots, plan = self.slots(), self.plan
        plan.check()
        found = plan.run(self.batch.encoded, slots, interventions=self.interventions, batch_size=self.batch_size)
        return self.keyed(found, slots, means)

    @property
    def plan(self) -> ExtractionPlan:
        """What is taken."""
        return ExtractionPlan(self.model, self._kept(), self._averaged(), False, None, None)

    def keyed(self, found: BatchValues, slots: BatchSlots, means: ActivationCache) -> ActivationCache:
        """What was taken, by easyroutine's keys.

        Arguments:
            found: what the plan gave.
            slots: where.
            means: takes the running means.
        """
        self.layout = {name: slots.position.widths[at] for at, name in enumerate(self.names)}
        self.row_layout = {name: slots.query.widths[at] for at, name in enumerate(self.rows)}
        self.column_layout = {name: slots.key.widths[at] for at, name in enumerate(self._columns)}
        cache = ActivationCache()
        cache.padding_id = getattr(self.model.tokenizer, "pad_token_id", None) or 0
        self._streams(cache, found)
        self._of_heads(cache, found)
        self._patterns(cache, found, means)
        self._whole(cache, found)
        cache["mapping_index"] = offsets(dict.fromkeys(self.layout, 1) if self._averages else self.layout)
        cache["token_dict"] = self._token_dict()
        return cache

    # What is asked for ------------------------------------------------------------------------------------------------

    @property
    def _averages(self) -> bool:
        return self.config.avg or self.config.extract_avg

    def _asked(self, table: dict[str, tuple[str, str]]) -> dict[str, str]:
        """Of the flags of a table that are set, key -> kind."""
        return dict(pair for flag, pair in table.items() if getattr(self.config, flag))

    @property
    def _of_each_head(self) -> dict[str, str]:
        return {**self._asked(BY_HEAD), **self._asked(PROJECTED)}

    @property
    def _mean_patterns(self) -> tuple[bool, bool]:
        """Whether the mean of the pattern over examples is asked for, and that of the weighted one."""
        config = self.config
        weighted = config.extract_avg_values_vectors_projected
        return (
            config.extract_avg_attn_pattern or config.avg_over_example,
            weighted or (config.avg_over_example and config.extract_head_values_projected),
        )

    @property
    def _keeps_pattern(self) -> bool:
        config = self.config
        named_rows = config.attn_pattern_row_positions is not None or config.attn_pattern_avg != "none"
        return (config.extract_attn_pattern and not config.avg_over_example) or named_rows

    def _kept(self) -> list[Extracted]:
        kept: list[Extracted] = []
        for kind in dict.fromkeys(self._asked(BY_LAYER).values()):
            kept += sites_of(self.model, f"{kind}.*")
        packed = set(self._asked(PACKED).values())
        of_heads = set(self._of_each_head.values())
        layers = sorted({layer for layer, _ in self.heads})
        if "v" in packed:
            kept += sites_of(self.model, "v.*")
        elif "v" in of_heads:
            kept += [Site("v", layer) for layer in layers]
        if packed & {"k", "q"}:
            kept += sites_of(self.model, "attn_in.*")
        elif of_heads & {"k", "q"}:
            kept += [Site("attn_in", layer) for layer in layers]
        if self.config.extract_head_out:
            kept += [Site("head_out", layer, head) for layer, head in self.heads]
        if self._keeps_pattern:
            kept += [self._pattern(layer, head) for layer, head in self.heads]
        if self.config.extract_last_layernorm:
            kept += [Derived(f"last_norm_{name}") for name in _NORM]
        if self.config.extract_embed:
            kept.append(Site("embed"))
        if self.config.save_logits is not False:
            kept.append(Site("logits"))
        return list(dict.fromkeys(kept))

    def _pattern(self, layer: int, head: int) -> Extracted:
        if self.config.attn_pattern_avg == "none":
            return Site("pattern", layer, head)
        return Derived(_STATISTICS[self.config.attn_pattern_avg], layer, head)

    def _averaged(self) -> list[Extracted]:
        plain, weighted = self._mean_patterns
        found: list[Extracted] = [Site("pattern", *pair) for pair in self.heads] if plain else []
        return [*found, *(Derived("value_weighted_pattern", *pair) for pair in self.heads if weighted)]

    # Where ------------------------------------------------------------------------------------------------------------

    def slots(self) -> BatchSlots:
        """The tokens at the names, and behind them the last one of each example, whose logits are kept."""
        named, last = self._at(self.names), tuple((len(one.input_ids) - 1,) for one in self.batch.encoded)
        tokens = tuple((*at, own) for at, own in zip(named.tokens, last, strict=True))
        position = TokenSlots((*named.positions, Position("last token")), tokens, (*named.widths, 1))
        return BatchSlots(position, self._at(self.rows), self._at(self._columns))

    def _at(self, names: Sequence[Name]) -> TokenSlots:
        found = [self.batch.tokens(name) for name in names]
        tokens = tuple(tuple(tuple(at[row]) for at in found) for row in range(len(self.batch)))
        widths = tuple(max(map(len, at)) for at in found)
        return TokenSlots(tuple(Position(repr(name)) for name in names), tokens, widths)

    def _token_dict(self) -> Any:
        rows = [{name: self.batch.tokens(name)[row] for name in self.names} for row in range(len(self.batch))]
        return rows[0] if len(rows) == 1 else rows

    # Keys -------------------------------------------------------------------------------------------------------------

    def _put(self, cache: ActivationCache, key: str, value: Tensor, info: str | None = None) -> None:
        """Keep (example, position, ...) at the names, or its mean over the positions of each name."""
        value, layout = value[:, : sum(self.layout.values())], self.layout
        if self._averages:
            value = torch.stack([part.nanmean(1) for part in value.split(list(layout.values()), 1)], 1)
            layout = dict.fromkeys(layout, 1)
        cache.put(key, value if info is None else ValueWithInfo.of(value, info), layout)

    def _streams(self, cache: ActivationCache, found: BatchValues) -> None:
        for key, kind in self._asked(BY_LAYER).items():
            for layer, value in _layers(found, kind):
                self._put(cache, key.format(layer), value)
        for key, kind in self._asked(PACKED).items():
            source = "v" if kind == "v" else "attn_in"
            for layer, value in _layers(found, source):
                heads = self._heads(kind, layer, value)
                self._put(cache, key.format(layer), heads.flatten(-2))

    def _heads(self, kind: str, layer: int, value: Tensor) -> Tensor:
        """(example, position, head, head_dim) of values, or of keys or queries before rotation."""
        return value.transpose(1, 2) if kind == "v" else projected(self.model, layer, kind, value)

    def _of_heads(self, cache: ActivationCache, found: BatchValues) -> None:
        apart, through = self._asked(BY_HEAD), self._asked(PROJECTED)
        for layer in sorted({layer for layer, _ in self.heads}):
            heads = [head for at, head in self.heads if at == layer]
            for key, kind in {**apart, **through}.items():
                source = found.tensors[f"{'v' if kind == 'v' else 'attn_in'}.{layer}"]
                own = self._heads(kind, layer, source)
                total = heads_of(self.model, layer)  # keys and values are those of a group
                own = own[:, :, [head * own.shape[2] // total for head in heads]]
                if key in through:
                    own = through_output(self.model, layer, heads, own)
                for head, value in zip(heads, own.unbind(2), strict=True):
                    self._put(cache, key.format(layer, head), value, "example, position, number")
            if self.config.extract_head_out:
                for head in heads:
                    value = found.tensors[f"head_out.{layer}.h{head}"]
                    self._put(cache, f"head_out_L{layer}H{head}", value, "example, position, hidden")

    def _patterns(self, cache: ActivationCache, found: BatchValues, means: ActivationCache) -> None:
        blocks = self.config.attn_pattern_avg != "none"
        rows, columns = self.row_layout, self.column_layout
        if blocks:
            rows, columns = dict.fromkeys(rows, 1), dict.fromkeys(columns, 1)
        plain, weighted = self._mean_patterns
        vectors = "projected_value_L{}H{}" in self._asked(PROJECTED)
        for layer, head in self.heads:
            if self._keeps_pattern:
                value = found.tensors[str(self._pattern(layer, head))]
                cache.put(f"pattern_L{layer}H{head}", value, rows, columns)
            for asked, kind, key in (
                (plain, "pattern", f"avg_pattern_L{layer}H{head}"),
                (weighted, "value_weighted_pattern", f"{'avg_' if vectors else ''}projected_value_L{layer}H{head}"),
            ):
                if asked:
                    name = f"{kind}.{layer}.h{head}"
                    sums, counts = found.sums[name][None].float(), found.counts[name][None].float()
                    means.add_to_mean(key, sums, counts, self.row_layout, self.column_layout)

    def _whole(self, cache: ActivationCache, found: BatchValues) -> None:
        """What is of no layer."""
        if self.config.extract_last_layernorm:
            parts = ActivationCache()
            for name in _NORM:
                self._put(parts, name, found.tensors[f"last_norm_{name}"])
            cache.put("last_layernorm", {name: parts[name] for name in _NORM}, parts.layouts[_NORM[0]][1])
        if self.config.extract_embed:
            self._put(cache, "input_embeddings", found.tensors["embed"])
        if self.config.keep_gradient:
            self._put(cache, "input_embeddings_gradients", self._gradients())
        if self.config.save_logits is not False:
            logits = found.tensors["logits"]
            if self.config.save_logits:
                cache.put("logits", logits[:, :-1], self.layout)
            else:
                cache["logits"] = logits[:, -1].clone()

    def _gradients(self) -> Tensor:
        """(example, position, hidden): of the logit of the index at each last token, at what enters the first layer."""
        last = [len(one.input_ids) - 1 for one in self.batch.encoded]
        given = self.vocabulary_index
        if given is None:
            raise InterpError("keep_gradient: vocabulary_index= says whose logit: an index, or one for each example.")
        index = torch.as_tensor(given).flatten().tolist()
        index = index * len(last) if len(index) == 1 else index
        if len(index) != len(last) or not all(0 <= int(one) < self.model.vocab_size for one in index):
            raise InterpError(
                f"vocabulary_index: expected an index below {self.model.vocab_size}, or one for each of {len(last)} "
                f"examples; got {given!r:.80}."
            )
        passes = ForwardPasses.whole(self.model, self.batch.encoded, self.batch_size or len(last), "left")
        request = CacheRequest.of(passes, "logits", "last", gradients="embed", interventions=self.interventions)
        table = self.slots().position.table
        request = replace(request, table=table, labels=[str(place) for place in range(table.shape[1])])
        _, values = request.run(
            lambda logits: torch.stack([logits[row, at, index[row]] for row, at in enumerate(last)]).sum()
        )
        return values.gradients["embed"]


def _layers(found: BatchValues, kind: str) -> Iterator[tuple[int, Tensor]]:
    """What was taken of a kind, layer by layer."""
    for name, value in found.tensors.items():
        begin, _, layer = name.partition(".")
        if begin == kind:
            yield int(layer), value
