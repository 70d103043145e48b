"""`forward`, `predict` and `extract_cache` of a `HookedModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from interp.compat.easyroutine.extraction_config import ExtractionConfig, Heads, HookedModelConfig
from interp.compat.easyroutine.flag_values import FlagValues
from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.keyed_cache import ActivationCache
from interp.compat.easyroutine.named_positions import named
from interp.compat.easyroutine.query_methods import QueryMethods
from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["ExtractionMethods"]

_SPLITS = ("split_positions", "pivot_positions")
_UNSET: Any = object()


class ExtractionMethods(QueryMethods):
    """What a `HookedModel` takes of its runs."""

    standardized: StandardizedTransformer
    config: HookedModelConfig

    def forward(
        self,
        inputs: Any,
        target_token_positions: Any = _UNSET,
        split_positions: Any = None,
        extraction_config: ExtractionConfig | None = None,
        ablation_queries: Any = None,
        patching_queries: Any = None,
        external_cache: ActivationCache | None = None,
        attn_heads: Heads = "all",
        batch_idx: int | None = None,
        move_to_cpu: bool = False,
        *,
        extracted_token_position: Any = _UNSET,
        pivot_positions: Any = None,
        vocabulary_index: Any = None,
        interventions: Any = None,
        **flags: Any,
    ) -> ActivationCache:
        """Run a batch, and take of it what the flags ask for.

        Arguments:
            inputs: `input_ids` (example, column), `attention_mask` and what else the model is fed; padding may be on
                either side.
            target_token_positions, extracted_token_position: names of positions (`interp.compat.easyroutine` lists
                them); the last token unless said otherwise.
            split_positions, pivot_positions: where examples are split into groups, of each example's own tokens: one
                list for all, or one for each.
            extraction_config: the flags.
            ablation_queries, patching_queries: what is changed in the run.
            external_cache: keeps running means over batches.
            attn_heads: as in the config, whose place it takes where it is a list.
            batch_idx: number of the batch, for running means; 0 begins anew.
            move_to_cpu: move what was taken to the CPU.
            vocabulary_index: of `keep_gradient`, whose logit: an index, or one for each example.
            interventions: easyroutine's (`Intervention`), or interp's own.
            flags: fields of `ExtractionConfig`, over those of the config.

        Returns:
            The activations by key, with `logits`, `input_ids`, `mapping_index` (name -> where along the axis of
            positions) and `token_dict` (name -> which tokens; of several examples a list of these).

        Raises:
            InterpError: an unknown flag, position, layer or head, or what the model cannot be fed.
        """
        names = named(_one_of(target_token_positions, extracted_token_position, ["last"]))
        if attn_heads != "all":
            flags["attn_heads"] = attn_heads
        config = (extraction_config or ExtractionConfig()).changed(flags, "forward")
        batch = InputBatch.of(self.standardized, inputs, _pivots(split_positions, pivot_positions))
        changes = self.changes(batch, ablation_queries, patching_queries, interventions)
        cache = FlagValues(self.standardized, batch, config, names, changes, self._rows).run()
        return cache.cpu() if move_to_cpu else cache

    @property
    def _rows(self) -> int | None:
        return None if self.config.batch_size == 1 else self.config.batch_size

    def __call__(self, *args: Any, **kwds: Any) -> ActivationCache:
        """`forward`."""
        return self.forward(*args, **kwds)

    def extract_cache(
        self,
        dataloader: Iterable[Mapping[str, Any]],
        target_token_positions: Any = _UNSET,
        batch_saver: Callable[[dict[str, Any]], Mapping[str, Any] | None] = lambda x: None,
        move_to_cpu_after_forward: bool = True,
        *,
        extracted_token_position: Any = _UNSET,
        extraction_config: ExtractionConfig | None = None,
        **kwargs: Any,
    ) -> ActivationCache:
        """Run every batch of a dataloader, and put together what the flags ask for.

        Arguments:
            dataloader: batches, of any sizes, as `forward` takes them.
            target_token_positions, extracted_token_position: names of positions.
            batch_saver: from a batch to what else is kept of it, by key.
            move_to_cpu_after_forward: move what was taken to the CPU after each batch.
            extraction_config: the flags; without one and without a flag the residual streams that leave the layers.
            kwargs: of `forward`.

        Returns:
            The activations of all examples, by key.

        Raises:
            InterpError: as `forward`; no batch.
        """
        names = named(_one_of(target_token_positions, extracted_token_position, ["last"]))
        flags = {name: kwargs.pop(name) for name in list(kwargs) if name in ExtractionConfig.names()}
        config = (extraction_config or ExtractionConfig()).changed(flags, "extract_cache")
        if extraction_config is None and not flags:
            config = config.changed({"extract_resid_out": True}, "extract_cache")
        found = ActivationCache()
        with found.deferred_mode():
            for index, batch in enumerate(tqdm(dataloader, desc="Extracting cache")):
                cache = self.forward(batch, names, extraction_config=config, batch_idx=index, **kwargs)
                cache.update(batch_saver(dict(batch)) or {})
                found.cat(cache.cpu() if move_to_cpu_after_forward else cache)
        return found


def _one_of(first: Any, second: Any, default: Any) -> Any:
    """The argument that goes by two names."""
    if first is not _UNSET and second is not _UNSET:
        raise InterpError("target_token_positions and extracted_token_position are the same. Give one of them.")
    given = second if first is _UNSET else first
    return default if given is _UNSET else given


def _pivots(split: Any, pivot: Any) -> Any:
    if split is not None and pivot is not None:
        raise InterpError("split_positions and pivot_positions are the same. Give one of them.")
    return pivot if split is None else split
