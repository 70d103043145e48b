"""nnterp's patchscope lens and generation by a walk up the layers, where the model and its config allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.batching import batches_alike
from interp.compat.nnterp.probabilities import probabilities
from interp.compat.nnterp.prompt_utils import TargetPrompt, TargetPromptBatch
from interp.errors import InterpError
from interp.lenses import patchscope_generate
from interp.model import StandardizedTransformer
from interp.passes import in_turn
from interp.patching import generation_fits, walk, walk_fits

__all__ = ["can_generate", "can_walk", "end_ids", "generated_ids", "longest", "walked_probs"]

_ROWS = 64
# Fields of a generation config without effect on greedy generation, and those that have none at this value.
_WITHOUT_EFFECT = {
    "bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "temperature", "top_k", "top_p",
    "min_p", "typical_p", "use_cache", "cache_implementation", "cache_config", "transformers_version",
    "_from_model_config", "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "early_stopping", "length_penalty",
}  # fmt: skip
_NEUTRAL = {
    "do_sample": False, "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0,
    "diversity_penalty": 0.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "renormalize_logits": False,
    "remove_invalid_values": False, "token_healing": False, "is_assistant": False, "low_memory": False,
}  # fmt: skip


def can_walk(nn_model: Any, layers: Sequence[int], prompts: Sequence[str]) -> bool:
    """Whether a model is one of ours, the walk fits it for these prompts, and each layer is asked for once."""
    ours = isinstance(nn_model, StandardizedTransformer) and len(set(layers)) == len(layers)
    return ours and walk_fits(nn_model, longest(nn_model, prompts))


def longest(nn_model: StandardizedTransformer, prompts: Sequence[str | list[int]]) -> int:
    """Tokens of the longest of some prompts, texts or token ids."""
    ids = (nn_model.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts)
    return max(map(len, ids), default=0)


def can_generate(nn_model: Any, prompt: str, max_new_tokens: int) -> bool:
    """Whether a model is one of ours, generates greedily, and generation by a walk fits it for a prompt and so many
    tokens."""
    if not isinstance(nn_model, StandardizedTransformer):
        return False
    asked = nn_model._module.generation_config.to_dict()
    plain = all(
        value is None or name in _WITHOUT_EFFECT or (name in _NEUTRAL and value == _NEUTRAL[name])
        for name, value in asked.items()
    )
    return plain and generation_fits(nn_model, longest(nn_model, [prompt]) + max_new_tokens)


def end_ids(nn_model: Any) -> list[int]:
    """The tokens that end what a model generates, by its generation config alone."""
    given = nn_model._module.generation_config.eos_token_id
    return [] if given is None else [given] if isinstance(given, int) else list(given)


def generated_ids(
    nn_model: StandardizedTransformer,
    target: TargetPrompt,
    latents: Tensor,
    layers: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
) -> list[list[Tensor]]:
    """What a model writes after a target prompt with a latent written into it, layer by layer.

    Arguments:
        nn_model: the model.
        target: the target prompt, for all sources.
        latents: (layer, source, hidden).
        layers: what the first axis of `latents` stands for, ascending.
        max_new_tokens: at most.
        batch_size: target prompts at once.

    Returns:
        For each layer and source, (length,) token ids, the target prompt's among them.

    Raises:
        InterpError: an index that the target prompt does not have.
    """
    ids: list[int] = nn_model.tokenizer(target.prompt)["input_ids"]
    sources = latents.shape[1]
    found = patchscope_generate(
        nn_model,
        latents,
        [ids] * sources,
        [_own(0, len(ids), int(target.index_to_patch))] * sources,
        layers=layers,
        max_new_tokens=max_new_tokens,
        stop_ids=end_ids(nn_model),
        batch_size=batch_size,
    )
    return [
        [torch.tensor([*ids, *found.ids[source][layer]], device="cpu") for source in range(sources)]
        for layer in range(len(layers))
    ]


@in_turn
@torch.no_grad()
def walked_probs(
    nn_model: StandardizedTransformer, targets: TargetPromptBatch, latents: Mapping[int, Tensor]
) -> Tensor:
    """Probabilities after target prompts with a latent written into each, layer by layer.

    Arguments:
        nn_model: the model.
        targets: a target prompt a source.
        latents: layer -> (source, hidden), what is written after it.

    Returns:
        (source, layer, vocabulary), float32, on the CPU, layers in the order of `latents`.

    Raises:
        InterpError: an index that a target prompt does not have.
    """
    ids: list[list[int]] = [nn_model.tokenizer(prompt)["input_ids"] for prompt in targets.prompts]
    positions = [
        (_own(row, len(own), int(at)),) for row, (own, at) in enumerate(zip(ids, targets.index_to_patch, strict=True))
    ]
    layers = sorted(latents)
    order = [layers.index(layer) for layer in latents]
    probs: list[Tensor] = [torch.empty(0, dtype=torch.float32, device="cpu")] * len(ids)
    for rows in batches_alike(ids, positions, _ROWS, len(layers)):
        distinct = {tuple(ids[row]) for row in rows}
        fed = torch.tensor([ids[row] for row in rows[: 1 if len(distinct) == 1 else None]], device=nn_model.device)
        written = {
            layer: torch.stack([latent[row] for row in rows])[None, :, None].to(nn_model.device, nn_model.dtype)
            for layer, latent in latents.items()
        }
        hidden, _ = walk(nn_model, fed, positions[rows[0]], written, layers=layers)  # (layer, row, hidden)
        for row, states in zip(rows, hidden[order, 0].transpose(0, 1), strict=True):
            probs[row] = probabilities(nn_model, states)
    return torch.stack(probs)


def _own(row: int, length: int, index: int) -> int:
    if not -length <= index < length:
        raise InterpError(f"prompt {row} has {length} tokens, none of them is token {index}.")
    return index % length
