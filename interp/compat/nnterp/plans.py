"""Translates nnterp's arguments into interp's plans, for models of nnterp's class and of interp's.

What a trace alone can do (on a server, in any nnsight model, of more than tokens, where the generation config draws)
is in `interventions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnsight
import torch
from torch import Tensor

from interp.activations import collect
from interp.compat.nnterp.nnsight_utils import Prompts
from interp.compat.nnterp.prompt_utils import TargetPromptBatch
from interp.errors import InterpError
from interp.lenses import Latents, patchscope_generate
from interp.lenses.attention_object import AttentionInputPlan, AttentionWindows
from interp.model import StandardizedTransformer
from interp.passes import in_turn
from interp.patching import LayersPlan, PatchedPrompts
from interp.patching.run import EndsPlan, run
from interp.prompts.given import listed
from interp.readout import probabilities_of
from interp.sites import Site

__all__ = [
    "attended_probs",
    "end_ids",
    "generated_ids",
    "is_greedy",
    "is_ours",
    "last_states",
    "patched_probs",
    "prompt_ids",
]

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


def is_ours(nn_model: Any, remote: bool | str = False) -> bool:
    """Whether this runs on this machine, on a model of interp's, so that interp's plans can run it."""
    return not remote and isinstance(nn_model, StandardizedTransformer)


def prompt_ids(nn_model: StandardizedTransformer, prompts: Prompts) -> list[list[int]] | None:
    """The token ids of prompts as a trace of them feeds the model, without padding.

    Arguments:
        nn_model: the model.
        prompts: whatever nnsight traces.

    Returns:
        The ids of each prompt; None where they are not all that the model is given: the model has been edited, or
        there are images, embeddings, masks with gaps, or positions that do not count from 0.
    """
    if nn_model._edits:  # of the readout too, which is called by itself
        return None
    with nn_model.trace(prompts) as tracer:
        _, given = nn_model.inputs
        fed = nnsight.save(dict(given))
        tracer.stop()
    try:
        return listed(fed)
    except InterpError:  # more than text
        return None


def last_states(nn_model: StandardizedTransformer, ids: list[list[int]]) -> Tensor:
    """(prompt, layer, hidden), the residual stream after each layer at each prompt's last token, on the CPU."""
    sites = [Site("resid_post", layer) for layer in range(nn_model.num_layers)]
    read = collect(nn_model, ids, sites, [[len(own) - 1] for own in ids])["resid_post"]
    return read[:, :, 0].transpose(0, 1)


def patched_probs(
    nn_model: StandardizedTransformer, targets: TargetPromptBatch, layers: list[int], latents: Sequence[Tensor]
) -> Tensor:
    """(source, layer, vocabulary) by the plan of `interp.lenses.patchscope_lens`, whose layers ascend."""
    if len(set(layers)) < len(layers):  # each time with its own latents
        each = zip(layers, latents, strict=True)
        return torch.cat([patched_probs(nn_model, targets, [layer], [latent]) for layer, latent in each], dim=1)
    ids, positions = _own_ids(nn_model, targets.prompts, targets.index_to_patch.tolist())
    ascending = sorted(layers)
    latent = torch.stack([latents[layers.index(layer)] for layer in ascending])
    written = PatchedPrompts.of(nn_model, latent, ascending, ids, positions, mapped=False)
    plan = LayersPlan(written, "resid_post", "one_layer", tuple(ascending), None)
    return _said(nn_model, plan, [ascending.index(layer) for layer in layers])


def attended_probs(
    nn_model: StandardizedTransformer, targets: Sequence[str | list[int]], index: int, received: Tensor, window: int
) -> Tensor:
    """Probabilities after target prompts while attention receives other vectors at one token, in layers from each on.

    Arguments:
        nn_model: the model.
        targets: the target prompts, texts or token ids.
        index: the token, counted in each prompt's own tokens; from the end where negative.
        received: (layer, 1 or target prompt, hidden), what attention of each layer receives.
        window: in how many layers.

    Returns:
        (target prompt, layer, vocabulary), float32, on the CPU.

    Raises:
        InterpError: a token that a target prompt does not have.
    """
    ids, positions = _own_ids(nn_model, targets, [index] * len(targets))
    windows = AttentionWindows.of(nn_model, None, window)
    latents = received.expand(-1, len(ids), -1)
    written = PatchedPrompts.of(nn_model, latents, windows.attending, ids, positions, mapped=False)
    return _said(nn_model, AttentionInputPlan(written, windows), list(range(nn_model.num_layers)))


def is_greedy(nn_model: Any) -> bool:
    """Whether a model's generation config asks for the most probable tokens and nothing else."""
    return all(
        value is None or name in _WITHOUT_EFFECT or (name in _NEUTRAL and value == _NEUTRAL[name])
        for name, value in nn_model._module.generation_config.to_dict().items()
    )


def end_ids(nn_model: Any) -> list[int]:
    """The tokens that end what a model generates, by its generation config alone."""
    given = nn_model._module.generation_config.eos_token_id
    return [] if given is None else [given] if isinstance(given, int) else list(given)


def generated_ids(
    nn_model: StandardizedTransformer,
    target: TargetPromptBatch,
    layers: Sequence[int],
    latents: Tensor,
    max_length: int,
    max_batch_size: int,
) -> list[list[Tensor]]:
    """What a model writes after a target prompt with a latent written into it, layer by layer, greedily.

    Arguments:
        nn_model: the model.
        target: the target prompt, for all sources.
        layers: what the first axis of `latents` stands for, ascending.
        latents: (layer, source, hidden).
        max_length: new tokens at most.
        max_batch_size: target prompts at once.

    Returns:
        For each layer and source, (length,) token ids, the target prompt's among them.

    Raises:
        InterpError: an index that the target prompt does not have.
    """
    sources = range(latents.shape[1])
    ids, positions = _own_ids(nn_model, target.prompts, target.index_to_patch.tolist())
    found = patchscope_generate(
        nn_model,
        Latents(latents, layers),
        ids * len(sources),
        [positions] * len(sources),
        max_new_tokens=max_length,
        stop_ids=end_ids(nn_model),
        batch_size=max_batch_size,
    )
    return [
        [torch.tensor([*ids[0], *found.ids[source][layer]], device="cpu") for source in sources]
        for layer in range(len(layers))
    ]


@in_turn
def _said(nn_model: StandardizedTransformer, plan: EndsPlan, entries: list[int]) -> Tensor:
    """(prompt, entry, vocabulary), float32, on the CPU: what a plan's runs predict, for its entries in an order."""
    order: list[int] = []
    parts = []
    for rows, (hidden, _) in run(plan, _ROWS):
        order += rows
        parts.append(hidden)
    rows_in_order = torch.tensor(order, dtype=torch.long, device="cpu").argsort()
    ends = torch.cat(parts, dim=1).transpose(0, 1)[rows_in_order]  # (prompt, entry, hidden)
    return probabilities_of(nn_model, ends[:, entries])


def _own_ids(
    nn_model: Any, prompts: Sequence[str | list[int]], indices: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """The token ids of each prompt, and one of its tokens each, counted from its first.

    Raises:
        InterpError: a token that a prompt does not have.
    """
    ids = [nn_model.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts]
    for row, (own, index) in enumerate(zip(ids, indices, strict=True)):
        if not -len(own) <= index < len(own):
            raise InterpError(f"prompt {row} has {len(own)} tokens, none of them is token {index}.")
    return ids, [index % len(own) for own, index in zip(ids, indices, strict=True)]
