"""`LogitLens` of easyroutine: what activations in a cache say of the next token, with the last norm's scale held.

Every layer and head is divided by what the last norm divided the last residual stream by, so that what the parts say
adds up to what the model says (direct logit attribution, Elhage et al. 2021). `interp.lenses.logit_lens` norms each
layer by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InterpError, nearest
from interp.model.places_inside import norm_kind, norm_weights
from interp.translators.layer_translators import TunedLens, load_public

if TYPE_CHECKING:
    from interp.compat.easyroutine.hooked_model import HookedModel
    from interp.compat.easyroutine.keyed_cache import ActivationCache

__all__ = ["LogitLens"]

METRICS = ("logit_diff", "accuracy")
_STREAM = re.compile(r"resid_(?:in|mid|out)_L?(\d+)")


class LogitLens:
    """The last norm and the head of a model, for activations that it gave.

    Arguments:
        model: the model.
        tuned_lens: translators of its layers, which `resid_out` goes through first; None: none.
    """

    def __init__(self, model: HookedModel, tuned_lens: TunedLens | None = None) -> None:
        self.model, self.tuned_lens = model.standardized, tuned_lens
        self.model_name = model.name

    def __repr__(self) -> str:
        return f"LogitLens({self.model_name})"

    @classmethod
    def from_model(cls, model: HookedModel) -> LogitLens:
        """The lens of a model."""
        return cls(model)

    @classmethod
    def from_tuned_lens(cls, tuned_lens_path: str | Path, model: HookedModel) -> LogitLens:
        """A lens with translators that the tuned-lens library, or this one, saved for the model.

        Raises:
            InterpError: no lens there, or one of another model.
        """
        folder = Path(tuned_lens_path)
        load = load_public if (folder / "params.pt").is_file() else TunedLens.load
        return cls(model, load(folder, model.standardized))

    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def get_vocab_size(self) -> int:
        """How many tokens there are."""
        return int(self.model.vocab_size)

    def get_keys(self, activations: ActivationCache, key_pattern: str) -> list[str]:
        """Keys of a cache, by layer and head.

        Arguments:
            activations: the cache.
            key_pattern: a key, with `{i}` or such in place of numbers: `resid_out_{i}`, `head_out_L{i}H{j}`.

        Raises:
            InterpError: the cache has none.
        """
        pieces = re.split(r"\{.*?\}", key_pattern)
        pattern = re.compile(r"(\d+)".join(map(re.escape, pieces)))
        found = [key for key in activations if pattern.fullmatch(key)]
        if not found and key_pattern in activations:
            return [key_pattern]
        if not found:
            raise InterpError(f"target_key: the cache has no {key_pattern!r}.{nearest(key_pattern, list(activations))}")
        return sorted(found, key=lambda key: [int(number) for number in re.findall(r"\d+", key)])

    @torch.no_grad()
    def compute(
        self,
        activations: ActivationCache,
        target_key: str,
        token_directions: Sequence[Any] | None = None,
        apply_norm: bool = True,
        apply_softmax: bool = False,
        metric: str = "logit_diff",
    ) -> dict[str, Tensor]:
        """What activations say.

        Arguments:
            activations: a cache of `forward` or `extract_cache`; with `last_layernorm`, unless the norm is left out.
            target_key: one key or, with `{i}`, several: of a residual stream, or of what is added to it.
            token_directions: of each example a token id, or two.
            apply_norm: divide as the last norm did, times its weight; its bias is of residual streams alone.
            apply_softmax: probabilities in place of logits.
            metric: of `token_directions`: `logit_diff`, the logit of the first less that of the second (of one token
                its logit); `accuracy`, the share of examples in which the first is above the second.

        Returns:
            `logit_lens_KEY` -> (example, position, vocabulary); of tokens (example, position); of `accuracy`
            (position,).

        Raises:
            InterpError: a key that the cache lacks, an unknown metric, or directions of another number of examples.
        """
        if metric not in METRICS:
            raise InterpError(
                f"metric: expected {' or '.join(METRICS)}, got {metric!r}.{nearest(str(metric), METRICS)}"
            )
        if token_directions is not None and apply_softmax:
            raise InterpError("apply_softmax: is of the whole vocabulary. Leave token_directions out.")
        statistics = activations.get("last_layernorm")
        if apply_norm and statistics is None and self.model.tail.norm is not None:
            raise InterpError("apply_norm: the cache has no last_layernorm. Extract it (extract_last_layernorm=True).")
        found = {}
        for key in self.get_keys(activations, target_key):
            logits = self._logits(key, activations[key], statistics if apply_norm else None, apply_norm=apply_norm)
            if token_directions is not None:
                logits = _of_tokens(logits, token_directions, metric)
            found[f"logit_lens_{key}"] = logits.softmax(-1) if apply_softmax else logits
        return found

    def _logits(self, key: str, value: Tensor, statistics: Mapping[str, Tensor] | None, *, apply_norm: bool) -> Tensor:
        model, tail = self.model, self.model.tail
        if value.dim() != 3 or value.shape[-1] != model.hidden_size:
            raise InterpError(
                f"target_key: {key}: expected (example, position, {model.hidden_size}), got {tuple(value.shape)}."
            )
        stream = _STREAM.fullmatch(key)
        hidden = value.as_subclass(Tensor).detach().to(model.device).float()
        if self.tuned_lens is not None:
            return self._translated(key, hidden)
        if apply_norm and statistics is not None:
            hidden = self._normed(key, hidden, statistics, is_whole=stream is not None)
        rest = replace(tail, paths=tail.paths if tail.norm is None else tail.paths[1:], norm=None)
        if stream is None:  # parts add up before the softcap
            rest = replace(rest, softcap=None, silenced=())
        return rest(hidden.to(model.dtype), model._module.get_submodule)

    def _normed(self, key: str, hidden: Tensor, statistics: Mapping[str, Tensor], *, is_whole: bool) -> Tensor:
        """The last norm, which divides by what it divided the last residual stream by."""
        model = self.model
        norm: Any = model._module.get_submodule(str(model.tail.norm))
        kind = norm_kind(norm, model.hidden_size, device=model.device, dtype=model.dtype)
        if kind is None:
            raise InterpError(
                f"{type(norm).__name__} is neither a layer norm nor an RMS norm: its scale cannot be held."
            )
        centred, eps = kind
        weight, bias = norm_weights(norm, centred, eps, hidden.to(model.dtype))
        scale = statistics["variance" if centred else "second_moment"].to(hidden)
        if scale.shape != hidden.shape[:2]:
            raise InterpError(
                f"{key}: {tuple(hidden.shape[:2])} positions, and last_layernorm has {tuple(scale.shape)}. Extract "
                "both together."
            )
        moved = hidden - hidden.mean(-1, keepdim=True) if centred else hidden
        normed = moved / (scale + eps).sqrt()[..., None] * weight.float()
        return normed + bias.float() if is_whole else normed

    def _translated(self, key: str, hidden: Tensor) -> Tensor:
        """Through the tuned lens; what it gives is normed by itself, as it was trained."""
        match = re.fullmatch(r"resid_out_L?(\d+)", key)
        if match is None:
            raise InterpError(f"target_key: the tuned lens translates resid_out_{{i}}, got {key!r}.")
        assert self.tuned_lens is not None
        moved = self.tuned_lens.translate(hidden.flatten(0, 1)[None], [int(match[1])])[0]
        return self.model.readout(moved.view_as(hidden).to(self.model.dtype))


def _of_tokens(logits: Tensor, directions: Sequence[Any], metric: str) -> Tensor:
    """(example, position) of logits of one or two tokens of each example, or the share of examples, (position,)."""
    pairs = [tuple(one) if isinstance(one, Sequence | Tensor) else (one,) for one in directions]
    counts = {len(pair) for pair in pairs}
    if len(pairs) != len(logits) or not counts <= {1, 2} or (metric == "accuracy" and counts != {2}):
        wanted = "two token ids" if metric == "accuracy" else "a token id, or two,"
        raise InterpError(
            f"token_directions: expected {wanted} for each of {len(logits)} examples, got {directions!r:.80}."
        )
    first = torch.stack([row[:, int(pair[0])] for row, pair in zip(logits, pairs, strict=True)])
    second = torch.stack(
        [
            row[:, int(pair[1])] if len(pair) == 2 else torch.zeros_like(row[:, 0])
            for row, pair in zip(logits, pairs, strict=True)
        ]
    )
    if metric == "logit_diff":
        return first - second
    above = (first > second).float().masked_fill(first.isnan(), torch.nan)
    return above.nanmean(0)
