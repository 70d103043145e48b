"""nnterp's two lenses: what a model would say at every layer, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnsight
import torch
from torch import Tensor

from interp.compat.nnterp.collecting import (
    Prompts,
    at_columns,
    get_token_activations,
    layer_numbers,
    listed,
    token_columns,
)
from interp.compat.nnterp.modules import (
    get_layer_output,
    project_negated_on_vocab,
    project_on_vocab,
    set_layer_output,
)
from interp.compat.nnterp.probabilities import last_states, probabilities, prompt_ids
from interp.compat.nnterp.target_prompts import TargetPrompt, TargetPromptBatch, repeat_prompt
from interp.compat.nnterp.walking import can_walk, walked_probs
from interp.errors import InterpError

__all__ = ["logit_lens", "patchscope_lens"]


@torch.no_grad()
def logit_lens(
    nn_model: Any, prompts: Prompts, remote: bool | str = False, return_inv_logits: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Logit lens (nostalgebraist 2020): the residual stream after each layer at the last token, read out.

    Arguments:
        nn_model: the model.
        prompts: one or several.
        remote: run on NDIF.
        return_inv_logits: also read out with the sign turned after the last norm.

    Returns:
        Probabilities (prompt, layer, vocabulary), float32, on the CPU; with `return_inv_logits` two of them.
    """
    probs: Tensor
    inverse: Tensor | None = None
    prompts = listed(prompts)
    ids = None if remote else prompt_ids(nn_model, prompts)
    if ids is not None:
        hidden = last_states(nn_model, ids)  # (prompt, layer, hidden)
        probs = probabilities(nn_model, hidden)
        return (probs, probabilities(nn_model, hidden, negate=True)) if return_inv_logits else probs
    with nn_model.trace(prompts, remote=remote) as tracer:
        hidden = get_token_activations(nn_model, tracer=tracer)
        probs = nnsight.save(torch.stack([_softmax(project_on_vocab(nn_model, h)) for h in hidden], dim=1))
        if return_inv_logits:
            inverse = nnsight.save(
                torch.stack([_softmax(project_negated_on_vocab(nn_model, h)) for h in hidden], dim=1)
            )
        tracer.stop()
    return probs if inverse is None else (probs, inverse)


@torch.no_grad()
def patchscope_lens(
    nn_model: Any,
    source_prompts: Prompts = None,
    target_patch_prompts: str | TargetPrompt | Sequence[TargetPrompt] | TargetPromptBatch | None = None,
    layers: int | Sequence[int] | None = None,
    latents: Tensor | Sequence[Tensor] | None = None,
    remote: bool | str = False,
) -> Tensor:
    """Patchscope lens (Ghandeharioun et al. 2024, arXiv 2401.06102): write a source's last token into a target prompt.

    Layer by layer, the residual stream after a layer at one token of the target prompt becomes what it is after the
    same layer at the source's last token; what the model then predicts is the reading of that layer.

    Arguments:
        nn_model: the model.
        source_prompts: one or several.
        target_patch_prompts: one for all sources, or one each; None: `repeat_prompt()`.
        layers: which, in any order, from the end where negative; None: all.
        latents: in place of sources, (layer, source, hidden): row i is written at `layers[i]`.
        remote: run on NDIF.

    Returns:
        Probabilities (source, layer, vocabulary), float32, on the CPU, in the order of `layers`.

    Raises:
        InterpError: neither or both of `source_prompts` and `latents`, numbers that do not fit, or an index that a
            target prompt does not have.
    """
    if (source_prompts is None) == (latents is None):
        raise InterpError("expected either source_prompts or latents, got " + ("none" if latents is None else "both."))
    wanted = layer_numbers(nn_model, layers)
    if latents is None:
        latents = get_token_activations(nn_model, _several(source_prompts), layers=wanted, remote=remote)
    counts = {len(rows) for rows in latents}
    if len(counts) != 1 or len(latents) < len(wanted):
        raise InterpError(
            f"latents: expected (layer, source, hidden) for layers {wanted}, all with the same sources, got "
            f"{len(latents)} layers with {sorted(counts)} sources."
        )
    targets = TargetPromptBatch.auto(repeat_prompt() if target_patch_prompts is None else target_patch_prompts, *counts)
    if not remote and can_walk(nn_model, wanted):
        return walked_probs(nn_model, targets, dict(zip(wanted, latents, strict=False)))
    probs = [_patched(nn_model, targets, layer, latent, remote) for layer, latent in zip(wanted, latents, strict=False)]
    return torch.stack(probs, dim=1)


def _patched(nn_model: Any, targets: TargetPromptBatch, layer: int, latent: Tensor, remote: bool | str) -> Tensor:
    """(source, vocabulary), predicted after target prompts with latents written over one token of each."""
    probs: Tensor
    with nn_model.trace(targets.prompts, remote=remote):
        last = token_columns(nn_model, -1)
        columns = token_columns(nn_model, targets.index_to_patch)
        patched = get_layer_output(nn_model, layer).clone()  # others may hold the tensor that the model made
        patched[torch.arange(len(patched)), torch.as_tensor(columns).cpu()] = latent.to(patched)
        set_layer_output(nn_model, layer, patched)
        probs = nnsight.save(_softmax(at_columns(nn_model.output.logits, last)))
    return probs


def _several(prompts: Prompts) -> Prompts:
    return [prompts] if isinstance(prompts, str) else listed(prompts)


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(-1).cpu()
