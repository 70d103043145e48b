"""`HookedModelConfig` and `ExtractionConfig`: how a model is loaded, and what is taken of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch

from interp.errors import InterpError, nearest

__all__ = ["ExtractionConfig", "HookedModelConfig"]

Heads = Sequence[Mapping[str, int]] | Literal["all"]
Averages = Literal["none", "mean", "sum", "baseline_ratio"]
AVERAGES = ("none", "mean", "sum", "baseline_ratio")
ATTENTION = ("custom_eager", "eager", "sdpa", "flash_attention_2")


@dataclass
class HookedModelConfig:
    """How a model is loaded.

    Arguments:
        model_name: a local folder or a hub id.
        device_map: `balanced` and `auto` spread the model over the GPUs, `cuda` takes the first, `cpu` none; without a
            GPU `balanced` and `auto` are the CPU.
        torch_dtype: of the weights.
        attn_implementation: `custom_eager` and `eager` are transformers' eager attention; the pattern is there under
            each.
        batch_size: examples in a forward pass at most; 1, as easyroutine has it, leaves it to the batches that are
            given.

    Raises:
        InterpError: an attention that there is not, or a batch without an example.
    """

    model_name: Any
    device_map: Any = "balanced"
    torch_dtype: torch.dtype = torch.bfloat16
    attn_implementation: str = "custom_eager"
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.attn_implementation not in ATTENTION:
            known = nearest(str(self.attn_implementation), ATTENTION)
            raise InterpError(f"attn_implementation: {self.attn_implementation!r} is unknown.{known}")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise InterpError(f"batch_size: expected at least 1, got {self.batch_size!r}.")


@dataclass
class ExtractionConfig:
    """What is taken of the runs of a model; each flag also is a keyword of `forward` and `extract_cache`.

    Arguments:
        extract_resid_in: `resid_in_{i}`, the residual stream that enters a layer.
        extract_resid_mid: `resid_mid_{i}`, the residual stream between attention and MLP.
        extract_resid_out: `resid_out_{i}`, the residual stream that leaves a layer.
        extract_resid_in_post_layernorm: `resid_in_post_layernorm_{i}`, what the first norm makes of `resid_in`.
        extract_attn_pattern: `pattern_L{i}H{H}`, (example, position, position): attention from each of the positions to
            each.
        extract_avg_attn_pattern: `avg_pattern_L{i}H{H}`, its mean over the examples, (1, position, position).
        extract_values_vectors_projected: `projected_value_L{i}H{H}`, value vectors through the head's part of the
            output projection, (example, position, hidden).
        extract_avg_values_vectors_projected: `projected_value_L{i}H{H}`, the mean over the examples of the pattern
            times the norm of the projected value at its key, (1, position, position). Where the projected values are
            asked for too: `avg_projected_value_L{i}H{H}`.
        extract_values: `values_{i}`, (example, position, key-value heads times head_dim).
        extract_head_out: `head_out_L{i}H{H}`, what a head adds to the stream, without the bias of the projection.
        extract_attn_out: `attn_out_{i}`, what attention adds to the stream.
        extract_attn_in: `attn_in_{i}`, what attention receives.
        save_input_ids: `input_ids`, each example's own tokens, then padding. `forward` always has them.
        extract_avg: the mean over the positions of each name, in place of these positions.
        attn_heads: `[{"layer": 0, "head": 3}, ...]`, or `all`: whose heads are taken where keys name a head.
        extract_embed: `input_embeddings`, what enters the first layer.
        extract_head_values, extract_head_keys, extract_head_queries: `head_values_L{i}H{H}`, ...: of one head, before
            rotation; values and keys are those of the head's group.
        extract_keys, extract_queries: `keys_L{i}`, `queries_L{i}`: of all heads, before rotation.
        extract_head_values_projected: the same as `extract_values_vectors_projected`.
        extract_head_keys_projected, extract_head_queries_projected: `projected_key_L{i}H{H}`,
            `projected_query_L{i}H{H}`: keys and queries through the output projection, which the model itself never
            sends there.
        extract_mlp_out: `mlp_out_{i}`, what the MLP adds to the stream.
        extract_last_layernorm: `last_layernorm`: `mean`, `variance` and `second_moment` of what enters the last norm.
        avg: the same as `extract_avg`.
        avg_over_example: the same as `extract_avg_attn_pattern`, of the pattern and, if asked for, of the weighted one.
        attn_pattern_avg: one number for each block of the pattern in place of the block: `mean`, `sum`, or
            `baseline_ratio`, the mean over the mean that uniform causal attention would have there.
        attn_pattern_row_positions: names of the pattern's rows; None: those of its columns, the target positions.
        save_logits: True: `logits` at the positions, (example, position, vocabulary). None: at the last token alone,
            (example, vocabulary). False: none.
        keep_gradient: `input_embeddings_gradients`: of the logit of `vocabulary_index` at the last token.

    Raises:
        InterpError: an average that there is not.
    """

    extract_resid_in: bool = False
    extract_resid_mid: bool = False
    extract_resid_out: bool = False
    extract_resid_in_post_layernorm: bool = False
    extract_attn_pattern: bool = False
    extract_avg_attn_pattern: bool = False
    extract_values_vectors_projected: bool = False
    extract_avg_values_vectors_projected: bool = False
    extract_values: bool = False
    extract_head_out: bool = False
    extract_attn_out: bool = False
    extract_attn_in: bool = False
    save_input_ids: bool = False
    extract_avg: bool = False
    attn_heads: Heads = "all"
    # Those that easyroutine 1.1.5 has besides.
    extract_embed: bool = False
    extract_head_values: bool = False
    extract_head_keys: bool = False
    extract_head_queries: bool = False
    extract_keys: bool = False
    extract_queries: bool = False
    extract_head_values_projected: bool = False
    extract_head_keys_projected: bool = False
    extract_head_queries_projected: bool = False
    extract_mlp_out: bool = False
    extract_last_layernorm: bool = False
    avg: bool = False
    avg_over_example: bool = False
    attn_pattern_avg: Averages = "none"
    attn_pattern_row_positions: Sequence[Any] | None = None
    save_logits: bool | None = None
    keep_gradient: bool = False

    def __post_init__(self) -> None:
        if self.attn_pattern_avg not in AVERAGES:
            known = nearest(str(self.attn_pattern_avg), AVERAGES)
            raise InterpError(f"attn_pattern_avg: {self.attn_pattern_avg!r} is unknown.{known}")

    def is_not_empty(self) -> bool:
        """Whether anything is to be extracted: one of the flags is True, or rows of a pattern are named."""
        flags = [field.name for field in fields(self) if field.type == "bool"]
        asked = any(getattr(self, name) for name in flags) or self.save_logits is True
        return asked or self.attn_pattern_avg != "none" or self.attn_pattern_row_positions is not None

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def names(cls) -> list[str]:
        """The names of the fields."""
        return [field.name for field in fields(cls)]

    def changed(self, flags: Mapping[str, Any], method: str) -> ExtractionConfig:
        """A copy with some fields changed.

        Arguments:
            flags: by name.
            method: who was given them, for messages.

        Raises:
            InterpError: a name that is none.
        """
        for name in flags:
            if name not in self.names():
                raise InterpError(f"{method} has no argument {name!r}.{nearest(name, self.names())}")
        return replace(self, **flags)
