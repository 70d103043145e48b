"""`generate` of a `HookedModel`: transformers' own, with queries and interventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from interp.activations.edited_generation import GeneratedBatch, generate_edited
from interp.compat.easyroutine.extraction_config import ExtractionConfig
from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.keyed_cache import ActivationCache
from interp.errors import InterpError, nearest

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["GenerationCalls"]

_QUERIES = ("ablation_queries", "patching_queries", "interventions")
_OF_FORWARD = ("extraction_config", "extracted_token_position", "attn_heads", "move_to_cpu")
_SPLITS = ("split_positions", "pivot_positions")
_OF_TRANSFORMERS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "tokenizer")


class GenerationCalls:
    """What a `HookedModel` writes."""

    standardized: StandardizedTransformer
    read_batch: Callable[..., InputBatch]
    changes: Callable[..., list[Any]]
    forward: Callable[..., ActivationCache]
    hf_tokenizer: Any

    def generate(
        self,
        inputs: Any,
        generation_config: GenerationConfig | None = None,
        target_token_positions: Any = None,
        return_text: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Write on from prompts with transformers' `generate`, with queries and interventions, over a cache or without.

        Arguments:
            inputs: as of `forward`.
            generation_config: transformers' own; None: the model's.
            target_token_positions: names of positions of the prompts, at which flags extract.
            return_text: the texts, prompts included; of one prompt one text.
            kwargs: `ablation_queries`, `patching_queries`, `interventions`; flags and positions of `forward`; fields of
                the generation config, as `max_new_tokens=5`.

        Returns:
            A cache with `sequences`, (row, column) token ids, prompts included, which are padded on the left; what the
            config has transformers return besides; and, where positions or flags are given, what `forward` gives of the
            prompts. Or the texts.

        Raises:
            InterpError: an unknown argument, what does not fit, or a way to generate that interventions cannot follow.
        """
        fields = set(GenerationConfig().to_dict()) | {*_OF_TRANSFORMERS}
        known = {*_QUERIES, *_OF_FORWARD, *_SPLITS, *ExtractionConfig.names(), *fields}
        for name in kwargs:
            if name not in known:
                raise InterpError(f"generate has no argument {name!r}.{nearest(name, known)}")
        asked = {name: value for name, value in kwargs.items() if name in fields}
        rest = {name: value for name, value in kwargs.items() if name not in fields}
        queries = {name: rest.get(name) for name in _QUERIES}
        splits = next((rest[name] for name in _SPLITS if rest.get(name) is not None), None)
        batch = self.read_batch(inputs, splits)
        changes = self.changes(batch, **queries)
        parts = generate_edited(
            self.standardized,
            batch.encoded,
            changes,
            batch_size=len(batch),
            generation_config=generation_config,
            **asked,
        )
        sequences = _together(parts, parts[0].pad, len(batch))
        if return_text:
            texts = self.hf_tokenizer.batch_decode(sequences, skip_special_tokens=True)
            return texts[0] if len(texts) == 1 else texts
        cache = ActivationCache()
        if target_token_positions is not None or set(rest) - {*_QUERIES, *_SPLITS}:
            if target_token_positions is not None:
                rest["target_token_positions"] = target_token_positions
            cache = self.forward(batch, **rest)
        if not isinstance(parts[0].output, Tensor):
            if len(parts) > 1:
                raise InterpError(
                    "return_dict_in_generate: this model does not generate prompts of different lengths together. "
                    "Give them one at a time, or leave it out."
                )
            cache.update({name: value for name, value in parts[0].output.items() if name != "past_key_values"})
        cache["sequences"] = sequences
        return cache


def _together(parts: list[GeneratedBatch], pad: int, examples: int) -> Tensor:
    """(row, column) of all prompts in their order: padded on the left up to the new tokens, and behind them."""
    width = max(part.width for part in parts)
    new = max(part.sequences.shape[1] - part.width for part in parts)
    rows: list[list[Tensor]] = [[] for _ in range(examples)]
    for part in parts:
        each = len(part.sequences) // len(part.rows)
        left, right = width - part.width, new - (part.sequences.shape[1] - part.width)
        padded = torch.nn.functional.pad(part.sequences, (left, right), value=pad)
        for index, row in enumerate(part.rows):
            rows[row] = list(padded[index * each : (index + 1) * each])
    return torch.stack([one for several in rows for one in several])
