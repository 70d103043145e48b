"""`forward`, `predict` and `extract_cache` of a `HookedModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm.auto import tqdm

from interp.compat.easyroutine.cache_files import described
from interp.compat.easyroutine.extraction_config import ExtractionConfig, Heads, HookedModelConfig
from interp.compat.easyroutine.flag_values import FlagValues
from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.keyed_cache import ActivationCache
from interp.compat.easyroutine.named_positions import named
from interp.errors import InterpError
from interp.interventions import Intervention

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["ExtractionMethods"]

_BY_BATCH = ("split_positions", "pivot_positions", "vocabulary_index")
_UNSET: Any = object()


class ExtractionMethods:
    """What a `HookedModel` takes of its runs."""

    standardized: StandardizedTransformer
    config: HookedModelConfig
    name: Any  # what the model is called

    read_batch: Callable[..., InputBatch]  # of `ModuleMethods`
    changes: Callable[..., list[Intervention]]  # all that is changed in a run of a batch, as interventions of interp

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
                them); the last token unless said otherwise, but of patterns every token.
            split_positions, pivot_positions: where examples are split into groups, of each example's own tokens: one
                list for all, or one for each.
            extraction_config: the flags.
            ablation_queries, patching_queries: what is changed in the run.
            external_cache: keeps running means over batches.
            attn_heads: as in the config, whose place it takes where it is a list.
            batch_idx: number of the batch, for running means; 0 begins anew.
            move_to_cpu: move what was taken to the CPU.
            vocabulary_index: of `keep_gradient`, whose logit: an index, or one for each example.
            interventions: easyroutine's or interp's own, one or several.
            flags: fields of `ExtractionConfig`, over those of the config.

        Returns:
            The activations by key, with `logits`, `input_ids`, `mapping_index` (name -> where along the axis of
            positions) and `token_dict` (name -> which tokens; of several examples a list of these).

        Raises:
            InterpError: an unknown flag, position, layer or head, or what the model cannot be fed.
        """
        asked = _one_of(target_token_positions, extracted_token_position)
        names = named(["last"] if asked is _UNSET else asked)
        if attn_heads != "all":
            flags["attn_heads"] = attn_heads
        config = (extraction_config or ExtractionConfig()).changed(flags, "forward")
        batch = self.read_batch(inputs, _pivots(split_positions, pivot_positions))
        changes = self.changes(batch, ablation_queries, patching_queries, interventions)
        if external_cache is not None and batch_idx == 0:
            external_cache.forget_means()
        means = ActivationCache() if external_cache is None else external_cache
        columns = ["all"] if asked is _UNSET else None
        values = FlagValues(self.standardized, batch, config, names, changes, vocabulary_index, self._rows, columns)
        cache = values.run(means)
        cache.put("input_ids", batch.input_ids, {"tokens": batch.input_ids.shape[1]})
        if external_cache is None:
            cache.update(means)
        if move_to_cpu:
            cache.cpu()
            means.cpu()
        return cache

    @property
    def _rows(self) -> int | None:
        return None if self.config.batch_size == 1 else self.config.batch_size

    def __call__(self, *args: Any, **kwds: Any) -> ActivationCache:
        """`forward`."""
        return self.forward(*args, **kwds)

    def predict(self: Any, k: int = 10, strip: bool = True, **kwargs: Any) -> dict[str, float] | list[dict[str, float]]:
        """The most probable next tokens.

        Arguments:
            k: how many.
            strip: without the spaces around each; of tokens that are then the same, the most probable counts.
            kwargs: of `forward`, `inputs` among them.

        Returns:
            Text -> probability, the highest first; of several examples a list of these.

        Raises:
            InterpError: as `forward`; fewer tokens than `k` in the vocabulary.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= self.standardized.vocab_size:
            raise InterpError(f"predict: k is 1 to {self.standardized.vocab_size}, got {k!r}.")
        logits: Tensor = self.forward(**{**kwargs, "save_logits": None})["logits"]
        found = []
        for values, ids in zip(*logits.float().softmax(-1).topk(k), strict=True):
            named: dict[str, float] = {}
            for text, value in zip(self.to_string_tokens(ids), values.tolist(), strict=True):
                named.setdefault(text.strip() if strip else text, value)
            found.append(named)
        return found[0] if len(found) == 1 else found

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
        where = _one_of(target_token_positions, extracted_token_position)
        flags = {name: kwargs.pop(name) for name in list(kwargs) if name in ExtractionConfig.names()}
        config = (extraction_config or ExtractionConfig()).changed(flags, "extract_cache")
        if extraction_config is None and not flags:
            config = config.changed({"extract_resid_out": True}, "extract_cache")
        register = kwargs.pop("register_aggregation", None)
        given, found = kwargs.pop("external_cache", None), ActivationCache()
        means = ActivationCache() if given is None else given
        if register is not None:
            found.register_aggregation(*register)
        with found.deferred_mode():
            for index, batch in enumerate(tqdm(dataloader, desc="Extracting cache")):
                read = self.read_batch(batch)
                cache = self.forward(
                    read, where, extraction_config=config, batch_idx=index, external_cache=means,
                    **{**_of_batch(batch), **kwargs},
                )  # fmt: skip
                if not config.save_input_ids:
                    del cache["input_ids"]
                cache.update(batch_saver(read.others) or {})
                found.cat(cache.cpu() if move_to_cpu_after_forward else cache)
        if found.is_empty():
            raise InterpError("extract_cache: the dataloader gives no batch.")
        found.update(means.cpu() if move_to_cpu_after_forward else means)
        asked = {name: kwargs.get(name) for name in ("ablation_queries", "patching_queries", "interventions")}
        names = ["last"] if where is _UNSET else named(where)
        changed = {name: described(one) for name, one in asked.items() if one is not None}
        found.add_metadata(names, self.name, config.to_dict(), changed)
        return found


def _one_of(first: Any, second: Any) -> Any:
    """The argument that goes by two names; `_UNSET` where neither is given."""
    if first is not _UNSET and second is not _UNSET:
        raise InterpError("target_token_positions and extracted_token_position are the same. Give one of them.")
    return second if first is _UNSET else first


def _pivots(split: Any, pivot: Any) -> Any:
    if split is not None and pivot is not None:
        raise InterpError("split_positions and pivot_positions are the same. Give one of them.")
    return pivot if split is None else split


def _of_batch(batch: Any) -> dict[str, Any]:
    """Keywords of `forward` that a batch itself may hold."""
    return {name: batch[name] for name in _BY_BATCH if isinstance(batch, Mapping) and name in batch}
