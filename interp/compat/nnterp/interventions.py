"""nnterp's `interventions`: lenses, patched generation, attention to another prompt's token, steering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nnsight
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp.compat.nnterp.modules import (
    GetModuleOutput,
    attention_input,
    get_layer_output,
    get_num_layers,
    layer_output,
    named,
    project_negated_on_vocab,
    project_on_vocab,
    set_layer_output,
)
from interp.compat.nnterp.nnsight_utils import (
    Prompts,
    at_columns,
    get_token_activations,
    layer_numbers,
    several,
    token_columns,
    traced,
)
from interp.compat.nnterp.plans import (
    attended_probs,
    end_ids,
    generated_ids,
    is_greedy,
    is_ours,
    last_states,
    patched_probs,
    prompt_ids,
)
from interp.compat.nnterp.prompt_utils import TargetPrompt, TargetPromptBatch, it_repeat_prompt, repeat_prompt
from interp.errors import InterpError
from interp.model import interventions
from interp.model.places import ModulePlace
from interp.readout import probabilities_of

__all__ = [
    "TargetPrompt",
    "TargetPromptBatch",
    "it_repeat_prompt",
    "logit_lens",
    "patch_object_attn_lens",
    "patchscope_generate",
    "patchscope_lens",
    "repeat_prompt",
    "steer",
]


@torch.no_grad()
def patchscope_generate(
    nn_model: Any,
    prompts: str | Sequence[str],
    target_patch_prompt: TargetPrompt | str,
    max_length: int = 50,
    layers: int | Sequence[int] | None = None,
    remote: bool | str = False,
    max_batch_size: int = 32,
) -> dict[int, Tensor]:
    """Generate from a target prompt into which each source's last token is written, layer by layer.

    Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102. The model's own generation config counts: whether it
    samples, and where it stops.

    Arguments:
        nn_model: the model.
        prompts: the sources, one or several.
        target_patch_prompt: the target prompt.
        max_length: tokens that are generated at most.
        layers: which, in any order, from the end where negative; None: all.
        remote: run on NDIF.
        max_batch_size: target prompts that are generated from at once.

    Returns:
        Layer as asked for -> token ids (source, length), the target prompt's among them, on the CPU.

    Raises:
        InterpError: no such layer, or an index that the target prompt does not have.
    """
    sources = several(prompts)
    target = TargetPromptBatch.auto(target_patch_prompt, 1)
    asked = range(get_num_layers(nn_model)) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    numbers = layer_numbers(nn_model, asked)
    layers_up = sorted(set(numbers))
    latents = get_token_activations(nn_model, sources, layers=layers_up, remote=remote)  # (layer, source, hidden)
    # Whole layers in a batch where they fit: what is generated in one batch is equally long.
    at_once = max(max_batch_size // len(sources), 1)
    generated: dict[int, Tensor] = {}
    for start in range(0, len(layers_up), at_once):
        batch = layers_up[start : start + at_once]
        held = latents[start : start + len(batch)]
        # nnsight makes edits in the first pass of a generation alone.
        if is_ours(nn_model, remote) and is_greedy(nn_model) and not nn_model._edits:
            by_layer = generated_ids(nn_model, target, batch, held, max_length, max_batch_size)
        else:
            by_layer = _generated(nn_model, target, batch, held, max_length, remote, max_batch_size)
        ids = pad_sequence(
            [row for rows in by_layer for row in rows], batch_first=True, padding_value=_padding(nn_model)
        )
        generated |= zip(batch, ids.split(len(sources)), strict=True)
    return {name: generated[layer] for name, layer in zip(asked, numbers, strict=True)}


def _padding(nn_model: Any) -> int:
    """What stands behind a text that ended, as transformers has it."""
    given = (nn_model._module.generation_config.pad_token_id, nn_model.tokenizer.pad_token_id, *end_ids(nn_model))
    return next((int(token) for token in given if token is not None), 0)


def _generated(
    nn_model: Any,
    target: TargetPromptBatch,
    layers: Sequence[int],
    latents: Tensor,
    max_length: int,
    remote: bool | str,
    max_batch_size: int,
) -> list[list[Tensor]]:
    """For each layer and source, (length,) token ids, by nnsight; latents (layer, source, hidden)."""
    sources = latents.shape[1]
    rows = [(layer, source) for layer in range(len(layers)) for source in range(sources)]
    found: list[Tensor] = []
    for first in range(0, len(rows), max_batch_size):
        batch = rows[first : first + max_batch_size]
        written = torch.stack([latents[layer, source] for layer, source in batch])
        found += _generate(nn_model, target, [layers[layer] for layer, _ in batch], written, max_length, remote)
    return [found[start : start + sources] for start in range(0, len(found), sources)]


def _generate(
    nn_model: Any,
    target: TargetPromptBatch,
    layers: Sequence[int],
    latents: Tensor,
    max_length: int,
    remote: bool | str,
) -> Tensor:
    """(row, length), token ids; in row i `latents[i]` (row, hidden) is written at `layers[i]`, which ascend."""
    ids: Tensor
    with nn_model.generate(target.prompts * len(layers), max_new_tokens=max_length, remote=remote) as tracer:
        columns = torch.as_tensor(token_columns(nn_model, target.index_to_patch), device="cpu").cpu()
        for layer in sorted(set(layers)):
            rows = torch.tensor([row for row, at in enumerate(layers) if at == layer], device="cpu")
            patched = get_layer_output(nn_model, layer).clone()
            patched[rows, columns[rows]] = latents[rows].to(patched)
            set_layer_output(nn_model, layer, patched)
        ids = nnsight.save(tracer.result)
    return ids.cpu()


@torch.no_grad()
def patch_object_attn_lens(
    nn_model: Any,
    source_prompts: str | Sequence[str],
    target_prompts: str | Sequence[str],
    attn_idx_patch: int,
    num_patches: int = 5,
) -> Tensor:
    """Let attention see a source's last token in place of a token of the target prompt, in a few layers from each on.

    For each layer, what attention receives at that token in this and the next layers becomes what it receives at the
    source's last token. The MLP keeps what it receives, also in layers where both read the same tensor.

    Arguments:
        nn_model: the model.
        source_prompts: one for all target prompts, or one each.
        target_prompts: what the next token is predicted for.
        attn_idx_patch: the token, counted in each target prompt's own tokens; from the end where negative.
        num_patches: in how many layers.

    Returns:
        Probabilities (target prompt, layer, vocabulary), float32, on the CPU.

    Raises:
        InterpError: numbers of prompts that do not fit, or a token that a target prompt does not have.
    """
    sources, targets = several(source_prompts, "source_prompts"), several(target_prompts, "target_prompts")
    if len(sources) not in (1, len(targets)):
        raise InterpError(f"expected one source, or one for each of {len(targets)} targets, got {len(sources)}.")
    if num_patches < 1:
        raise InterpError(f"num_patches: expected at least 1, got {num_patches}.")
    received = get_token_activations(
        nn_model, sources, get_activations=lambda model, layer: attention_input(model, layer).read()
    )
    if is_ours(nn_model) and all(nn_model.has(f"attn_in.{layer}") for layer in range(nn_model.num_layers)):
        return attended_probs(nn_model, targets, attn_idx_patch, received, num_patches)
    num_layers = get_num_layers(nn_model)
    probs = []
    for layer in range(num_layers):
        chosen = range(layer, min(num_layers, layer + num_patches))
        latents = {i: received[i] for i in chosen}
        probs.append(_written(nn_model, targets, torch.tensor(attn_idx_patch, device="cpu"), attention_input, latents))
    return torch.stack(probs, dim=1)


def _written(
    nn_model: Any,
    prompts: Sequence[str | list[int]],
    index: Tensor,
    place_of: Callable[[Any, int], ModulePlace],
    latents: Mapping[int, Tensor],
    remote: bool | str = False,
) -> Tensor:
    """(prompt, vocabulary), predicted in a trace of prompts while vectors are written over one token of each.

    Arguments:
        nn_model: the model.
        prompts: texts or token ids.
        index: () or (prompt,), the token in each prompt's own tokens.
        place_of: (model, layer) -> what is written.
        latents: layer -> (1 or prompt, hidden).
        remote: run on NDIF.
    """
    probs: Tensor
    with nn_model.trace(list(prompts), remote=remote):
        last = token_columns(nn_model, -1)
        columns = torch.as_tensor(token_columns(nn_model, index), device="cpu").cpu()
        for layer, latent in latents.items():
            place = place_of(nn_model, layer)
            patched = place.read().clone()  # others may hold the same tensor: the MLP, in parallel layers
            patched[torch.arange(len(patched), device="cpu"), columns] = latent.to(patched)
            place.write(patched)
        probs = nnsight.save(_softmax(at_columns(nn_model.output.logits, last)))
    return probs


def steer(
    nn_model: Any,
    layers: int | Sequence[int],
    steering_vector: Tensor,
    factor: float = 1,
    position: int | Sequence[int] | Tensor | None = -1,
    get_module: GetModuleOutput = get_layer_output,
) -> None:
    """Add `factor * steering_vector` at one position, inside a trace; of nnterp 1.0.

    Arguments:
        nn_model: the model.
        layers: one or several, in any order.
        steering_vector: (hidden,), or what broadcasts.
        factor: its multiple.
        position: in the padded batch; the last one by default; None: all.
        get_module: (model, layer) -> (prompt, position, hidden), what is steered. But for the layer's output, which is
            replaced, it is changed in place.
    """
    for layer in sorted(layer_numbers(nn_model, layers)):
        if get_module is get_layer_output:
            model = named(nn_model)
            vector = steering_vector.expand(torch.broadcast_shapes(steering_vector.shape, (model.hidden_size,)))
            interventions.steer(model, layer, vector, factor, token_positions=position)
        else:
            columns = slice(None) if position is None else position
            live = get_module(nn_model, layer)
            live[:, columns] += factor * steering_vector.to(live)


@torch.no_grad()
def logit_lens(
    nn_model: Any, prompts: Prompts, remote: bool | str = False, return_inv_logits: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Logit lens (nostalgebraist 2020): the residual stream after each layer at the last token, read out.

    Arguments:
        nn_model: the model.
        prompts: one or several.
        remote: run on NDIF.
        return_inv_logits: also read out the state negated after the last norm.

    Returns:
        Probabilities (prompt, layer, vocabulary), float32, on the CPU; with `return_inv_logits` two of them.
    """
    probs: Tensor
    inverse: Tensor | None = None
    prompts = traced(prompts)
    ids = prompt_ids(nn_model, prompts) if is_ours(nn_model, remote) else None
    if ids is not None:
        hidden = last_states(nn_model, ids)  # (prompt, layer, hidden)
        probs = probabilities_of(nn_model, hidden)
        return (probs, probabilities_of(nn_model, hidden, inverted=True)) if return_inv_logits else probs
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
    if is_ours(nn_model, remote):
        return patched_probs(
            nn_model, targets, wanted, [latent.to(nn_model.device) for latent in latents[: len(wanted)]]
        )
    probs = [
        _written(nn_model, targets.prompts, targets.index_to_patch, layer_output, {layer: latent}, remote)
        for layer, latent in zip(wanted, latents, strict=False)
    ]
    return torch.stack(probs, dim=1)


def _several(prompts: Prompts) -> Prompts:
    return [prompts] if isinstance(prompts, str) else traced(prompts)


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(-1).cpu()
