"""`compute_patching`: pairs of prompts, and what becomes of one when activations of the other are written into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from interp.compat.easyroutine.ablation_queries import element_tokens
from interp.compat.easyroutine.extraction_config import ExtractionConfig
from interp.compat.easyroutine.flag_values import FlagValues
from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.keyed_cache import ActivationCache
from interp.compat.easyroutine.named_positions import Name, named
from interp.compat.easyroutine.patching_queries import checked_patches
from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["PairPatching"]

_DEFAULT: tuple[Mapping[str, Any], ...] = (
    {"patching_elem": "@end-image", "layers_to_patch": [1, 2, 3, 4], "activation_type": "resid_in_{}"},
)
_FLAGS = {"input_embeddings": "extract_embed"}
_SPLITS = ("split_positions", "pivot_positions")


class PairPatching:
    """What a `HookedModel` does with pairs of prompts."""

    standardized: StandardizedTransformer
    read_batch: Callable[..., InputBatch]
    changes: Callable[..., list[Any]]
    forward: Callable[..., ActivationCache]

    def compute_patching(
        self,
        target_token_positions: Any,
        base_dataloader: Iterable[Mapping[str, Any]],
        target_dataloader: Iterable[Mapping[str, Any]],
        patching_query: Any = _DEFAULT,
        base_dictonary_idxs: Sequence[Any] | None = None,
        target_dictonary_idxs: Sequence[Any] | None = None,
        return_logit_diff: bool = False,
        batch_saver: Callable[[dict[str, Any]], Mapping[str, Any] | None] = lambda x: None,
        **kwargs: Any,
    ) -> ActivationCache:
        """Write activations of one prompt into another one, pair by pair.

        Each pair takes three passes: the base prompt, whose activations are taken; the target prompt as it is; and the
        target prompt with what the base prompt has at the tokens of the same name.

        Arguments:
            target_token_positions: names of positions, at which the patched pass is extracted.
            base_dataloader: batches of the prompts whose activations are taken.
            target_dataloader: batches of those into which they are written, one for each.
            patching_query: `patching_elem` ("@" and the name of a position, or the text of one token),
                `layers_to_patch` (a list or "all") and `activation_type` ("resid_in_{}", "resid_out_{}",
                "resid_mid_{}", "attn_in_{}", "attn_out_{}", "values_{}", or another key at tokens), as a list, a
                dictionary or a table. All of them are written at once. It stays as it was.
            base_dictonary_idxs, target_dictonary_idxs: of each pair the ids of the tokens that the base prompt, and the
                target prompt, call for. Where both are given, there are differences of logits.
            return_logit_diff: these are wanted.
            batch_saver: from what a batch of `target_dataloader` holds besides to what is kept of it, by key.
            kwargs: of `forward` in the patched pass, flags among them; without a flag it extracts `resid_out` and
                `resid_mid`.

        Returns:
            What the patched pass extracted, and of each pair, (pair,):

            * `logit_diff_in_clean`: the target's logit less the base's, at the last token of the target prompt, as it
              is; of several ids their mean; `logit_diff_in_patched`: the same in the patched pass;
              `logit_diff_variation`: how much that is more;
            * `kl_clean|base`, `kl_patched|base`, `kl_patched|clean`: KL divergences of distributions over the next
              token, in nats: KL(second || first); `kl_difference`: the second of these less the first;
            * `base_logits`, `target_clean_logits`, `target_patched_logits`: at the last token, (pair, vocabulary).

        Raises:
            InterpError: what is unknown or does not fit, before the model runs; loaders or lists of different lengths.
        """
        model = self.standardized
        several = target_token_positions if isinstance(target_token_positions, list) else [target_token_positions]
        names = named([name.strip() if isinstance(name, str) else name for name in several])
        rows = checked_patches(patching_query, model)
        if not rows:
            raise InterpError("patching_query: expected at least one query.")
        tokens = TokenPairs.of(base_dictonary_idxs, target_dictonary_idxs, is_needed=return_logit_diff)
        config, kwargs = _extracted(kwargs)
        flags = {_FLAGS.get(key.name, f"extract_{key.name}"): True for row in rows for key in row["keys"]}
        found = ActivationCache()
        pairs = 0
        with found.deferred_mode():
            for pair in tqdm(_zipped(base_dataloader, target_dataloader), desc="Computing patching"):
                base, target = (self.read_batch(one, _splits(one)) for one in pair)
                queries, base_logits = self._base_pass(base, rows, flags)
                clean = self._last_logits(target)
                if len(clean) != len(base_logits):
                    raise InterpError(
                        f"compute_patching: {len(base_logits)} base prompts in a batch, and {len(clean)} target "
                        "prompts beside them. A pair has one of each."
                    )
                cache = self.forward(
                    target,
                    [*names, *(name for name in _elements(rows) if name not in names)],
                    extraction_config=config,
                    patching_queries=queries,
                    **kwargs,
                )
                patched = cache["logits"]
                del cache["logits"]
                if not config.save_input_ids:
                    del cache["input_ids"]
                cache.update(_divergences(base_logits, clean, patched))
                cache.update(
                    {"base_logits": base_logits, "target_clean_logits": clean, "target_patched_logits": patched}
                )
                if tokens is not None:
                    cache.update(tokens.differences(pairs, clean, patched))
                cache.update(batch_saver(target.others) or {})
                found.cat(cache.cpu())
                pairs += len(clean)
            if not pairs:
                raise InterpError("compute_patching: the dataloaders hold no pair.")
            if tokens is not None:
                tokens.check_all(pairs)
        return found

    def _base_pass(
        self, batch: InputBatch, rows: Sequence[Mapping[str, Any]], flags: Mapping[str, bool]
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Queries with the activations of base prompts, and the logits behind these."""
        names: list[Name] = []
        for index, row in enumerate(rows):
            name = _element(row)
            if name not in names:
                batch.call(
                    name, element_tokens(row["patching_elem"], batch, self.standardized, f"patching_query[{index}]")
                )
                names.append(name)
        cache = self._values(batch, ExtractionConfig().changed(flags, "compute_patching"), names)
        known = ("patching_elem", "layers_to_patch", "activation_type")
        return [
            {
                **{key: row[key] for key in known},
                "patching_activations": cache,
                "base_activation_index": cache["mapping_index"][_element(row)],
            }
            for row in rows
        ], cache["logits"]

    def _last_logits(self, batch: InputBatch) -> Tensor:
        """(example, vocabulary), behind prompts as they are."""
        logits = self._values(batch, ExtractionConfig(), ["last"])["logits"]
        assert isinstance(logits, Tensor)
        return logits

    def _values(self, batch: InputBatch, config: ExtractionConfig, names: Sequence[Name]) -> ActivationCache:
        changes = self.changes(batch)
        return FlagValues(self.standardized, batch, config, names, changes).run(ActivationCache())


def _extracted(kwargs: Mapping[str, Any]) -> tuple[ExtractionConfig, dict[str, Any]]:
    """The flags of the patched pass, whose logits are those of the last token; and what else is for `forward`."""
    flags = {name: value for name, value in kwargs.items() if name in ExtractionConfig.names()}
    rest = {name: value for name, value in kwargs.items() if name not in flags}
    for name in ("target_token_positions", "extracted_token_position", "patching_queries"):
        if name in rest:
            raise InterpError(f"compute_patching has no argument {name!r}: it has one of its own.")
    given = rest.pop("extraction_config", None)
    if given is None and not flags:
        flags = {"extract_resid_out": True, "extract_resid_mid": True}
    config = (given or ExtractionConfig()).changed(flags, "compute_patching")
    return config.changed({"save_logits": None}, "compute_patching"), rest


def _zipped(base: Iterable[Any], target: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    others = iter(target)
    missing: Any = object()
    for count, one in enumerate(base):
        other = next(others, missing)
        if other is missing:
            raise InterpError(
                f"target_dataloader: it has {count} batches, base_dataloader more. A pair has one of each."
            )
        yield one, other
    if next(others, missing) is not missing:
        raise InterpError("base_dataloader: it has fewer batches than target_dataloader. A pair has one of each.")


def _splits(batch: Any) -> Any:
    held = batch if isinstance(batch, Mapping) else {}
    return next((held[name] for name in _SPLITS if held.get(name) is not None), None)


def _element(row: Mapping[str, Any]) -> Any:
    """What the tokens of a query are called: the name of a position, or, of the text of a token, that text."""
    given = row["patching_elem"]
    if not isinstance(given, str):
        return tuple(given) if isinstance(given, list) else given
    return given[1:].strip() if given.startswith("@") else f"token {given!r}"


def _elements(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The names of positions among the elements of queries, each once."""
    named = [row for row in rows if not isinstance(row["patching_elem"], str) or row["patching_elem"].startswith("@")]
    return list(dict.fromkeys(_element(row) for row in named))


def _divergences(base: Tensor, clean: Tensor, patched: Tensor) -> dict[str, Tensor]:
    """KL divergences of each pair, (pair,)."""
    spread = {"base": base, "clean": clean, "patched": patched}
    logs = {name: logits.float().log_softmax(-1) for name, logits in spread.items()}

    def divergence(first: str, second: str) -> Tensor:
        return torch.nn.functional.kl_div(logs[first], logs[second], reduction="none", log_target=True).sum(-1)

    found = {
        f"kl_{first}|{second}": divergence(first, second)
        for first, second in (("clean", "base"), ("patched", "base"), ("patched", "clean"))
    }
    return {**found, "kl_difference": found["kl_patched|base"] - found["kl_clean|base"]}


class TokenPairs:
    """The tokens that the prompts of each pair call for.

    Arguments:
        base, target: of each pair the ids.
    """

    def __init__(self, base: list[list[int]], target: list[list[int]]) -> None:
        self.base, self.target = base, target

    @classmethod
    def of(cls, base: Any, target: Any, *, is_needed: bool) -> TokenPairs | None:
        """Read both lists.

        Raises:
            InterpError: one of them alone, none where differences are asked for, other lengths, or what are no ids.
        """
        if base is None and target is None and not is_needed:
            return None
        if base is None or target is None:
            raise InterpError(
                "return_logit_diff: a difference of logits takes the tokens of both: base_dictonary_idxs and "
                "target_dictonary_idxs."
            )
        both = [_ids(given, name) for given, name in ((base, "base"), (target, "target"))]
        if len(both[0]) != len(both[1]):
            raise InterpError(
                f"base_dictonary_idxs has {len(both[0])} entries, target_dictonary_idxs {len(both[1])}. Each pair has "
                "one in both."
            )
        return cls(*both)

    def differences(self, first: int, clean: Tensor, patched: Tensor) -> dict[str, Tensor]:
        """Differences of logits of pairs, (pair,); `first` is the number of the first of them.

        Raises:
            InterpError: pairs without tokens, or ids outside the vocabulary.
        """
        self.check_all(first + len(clean), at_least=True)
        before, after = (
            torch.stack([self._difference(first + index, row) for index, row in enumerate(logits)])
            for logits in (clean, patched)
        )
        return {
            "logit_diff_variation": after - before,
            "logit_diff_in_clean": before,
            "logit_diff_in_patched": after,
        }

    def _difference(self, pair: int, logits: Tensor) -> Tensor:
        for name, ids in (("base", self.base[pair]), ("target", self.target[pair])):
            if min(ids) < 0 or max(ids) >= len(logits):
                raise InterpError(
                    f"{name}_dictonary_idxs[{pair}]: {ids}; the vocabulary has {len(logits)} tokens, from 0."
                )
        return logits[self.target[pair]].float().mean() - logits[self.base[pair]].float().mean()

    def check_all(self, pairs: int, *, at_least: bool = False) -> None:
        """Refuse another number of pairs than there are entries.

        Raises:
            InterpError: the numbers differ.
        """
        if pairs > len(self.base) or (pairs < len(self.base) and not at_least):
            raise InterpError(
                f"base_dictonary_idxs, target_dictonary_idxs: {len(self.base)} entries for {pairs} pairs of prompts. "
                "Each pair has one."
            )


def _ids(given: Any, name: str) -> list[list[int]]:
    plain = given.tolist() if isinstance(given, Tensor) else given
    found = []
    for entry in plain if isinstance(plain, Sequence) and not isinstance(plain, str) else [None]:
        ids = entry.tolist() if isinstance(entry, Tensor) else entry
        ids = [ids] if isinstance(ids, int) else ids
        if not isinstance(ids, Sequence) or not ids or not all(isinstance(one, int) for one in ids):
            raise InterpError(
                f"{name}_dictonary_idxs: expected token ids of each pair, e.g. [[17], [3, 8]], got {given!r:.80}."
            )
        found.append(list(ids))
    return found
