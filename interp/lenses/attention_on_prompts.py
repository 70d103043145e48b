"""The lenses on attention for prompts: texts, or `Prompt`s whose spans are found by their characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from interp.activations import collect
from interp.errors import InterpError
from interp.lenses.attention_knockout import Heads, attention_knockout
from interp.lenses.attention_object import AttentionWindows, attention_object_lens
from interp.lenses.on_prompts import LensPrompt, LensPrompts, Targets, encode_prompts
from interp.prompts.given import listed
from interp.results import LensResult
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["attention_knockout_on_prompts", "attention_object_lens_on_prompts"]

Positions = str | int | Sequence[str | int]
_AT_ONCE = 256  # examples whose source vectors are held together


@torch.no_grad()
def attention_knockout_on_prompts(
    model: StandardizedTransformer,
    prompts: LensPrompt | Sequence[LensPrompt],
    blocks: Mapping[str, Positions],
    *,
    window: int | None,
    layers: Sequence[int] | None = None,
    centred: bool = False,
    query_positions: Positions = "last",
    heads: Heads | None = None,
    targets: Targets | Sequence[Targets] | None = None,
    policy: str = "first_token",
    top_k: int = 5,
    batch_size: int = 64,
) -> LensResult:
    """Attention knock-out (Geva et al. 2023, arXiv 2304.14767) on prompts: which positions does the answer need?

    Arguments:
        model: the model.
        prompts: one text or `Prompt`, or several, or lists of token ids.
        blocks: name -> the positions that are not to be looked at, in the vocabulary of `interp.positions`: `first`,
            `subject.all`, `:-1`, or several of these.
        window, layers, centred: the windows of layers, as in `attention_knockout`.
        query_positions: the positions that may not look, in the same vocabulary.
        heads: the heads that are cut, in every layer of a window or by layer, as in `attention_knockout`; None: all.
        targets: the groups: name -> words (or token ids), for all prompts or a mapping for each; None: the targets of
            the prompts that are `Prompt`s, or where none has any, one group `own`: the token that the unblocked model
            finds most probable, as Geva et al. measure.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.
        top_k: how many top tokens are kept.
        batch_size: prompts in a forward pass at most.

    Returns:
        The lens over (example, window, block); see `attention_knockout`.

    Raises:
        InterpError: what `attention_knockout` refuses, or a position that a prompt does not have.
    """
    if not isinstance(blocks, Mapping):
        raise InterpError(f"blocks: expected names with positions, e.g. {{'start': 'first'}}, got {blocks!r:.80}.")
    prompts = listed(prompts)
    asked = encode_prompts(model, prompts, query_positions, targets, policy)
    found = {name: encode_prompts(model, prompts, positions) for name, positions in blocks.items()}
    result = attention_knockout(
        model,
        asked.input_ids,
        [{name: _there(block, example) for name, block in found.items()} for example in range(len(asked.input_ids))],
        asked.groups if asked.group_names else None,
        window=window,
        layers=layers,
        centred=centred,
        query_positions=[_there(asked, example) for example in range(len(asked.input_ids))],
        heads=heads,
        top_k=top_k,
        batch_size=batch_size,
    )
    return replace(result, group_names=asked.group_names or result.group_names)


def _there(prompts: LensPrompts, example: int) -> list[int]:
    """The positions that a prompt has, ascending."""
    return sorted({position for position in prompts.positions[example] if position >= 0})


@torch.no_grad()
def attention_object_lens_on_prompts(
    model: StandardizedTransformer,
    source_prompts: LensPrompt | Sequence[LensPrompt],
    target_prompts: LensPrompt | Sequence[LensPrompt],
    *,
    source_position: Positions = "last",
    position: Positions = "last",
    num_layers: int | None = 5,
    layers: Sequence[int] | None = None,
    targets: Targets | Sequence[Targets] | None = None,
    policy: str = "first_token",
    top_k: int = 5,
    batch_size: int = 64,
) -> LensResult:
    """Attention-object lens (nnterp's `patch_object_attn_lens`) from source prompts into target prompts.

    Sources are read some hundred at a time, so that memory does not depend on how many there are.

    Arguments:
        model: the model.
        source_prompts: texts, `Prompt`s or lists of token ids: one for each target prompt, or one for all.
        target_prompts: likewise: one for each source, or one for all.
        source_position: the token of a source whose vectors attention receives, in the vocabulary of
            `interp.positions`: `last`, `subject.last`, `-2`; or several, `-2:`, `["subject.first", "subject.last"]`.
        position: the token of the target prompt at which it receives them; as many as are read, all at once.
        num_layers, layers: the windows of layers, as in `attention_object_lens`.
        targets: the groups: name -> words (or token ids), for all examples or a mapping for each; None: the targets of
            the target prompts that are `Prompt`s, or where none has any, of the source prompts.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.
        top_k: how many top tokens are kept.
        batch_size: prompts in a forward pass at most.

    Returns:
        The lens over (example, layer); see `attention_object_lens`. `surprisal` and `model_top_id` go by what the model
        says at the (last) source token.

    Raises:
        InterpError: what `attention_object_lens` refuses, numbers of prompts or of positions that do not fit, or a
            position that a prompt does not have.
    """
    several = [listed(source_prompts, "source_prompts"), listed(target_prompts, "target_prompts")]
    examples = max(map(len, several))
    if any(len(given) not in (1, examples) for given in several):
        raise InterpError(
            "expected a source prompt for each target prompt, or one for all of them, got "
            f"{len(several[0])} source prompts and {len(several[1])} target prompts."
        )
    into = encode_prompts(
        model,
        several[1] * (examples if len(several[1]) < examples else 1),
        position,
        targets,
        policy,
        name="target_prompts",
    )
    sources = encode_prompts(model, several[0], source_position, name="source_prompts")
    _check_alike(sources, into)
    named = into if into.group_names else sources
    groups = list(named.groups) * (examples if len(named.groups) < examples else 1)
    attending = AttentionWindows.of(model, layers, num_layers).attending
    sites = [*(Site("attn_in", layer) for layer in attending), Site("resid_post", model.num_layers - 1)]
    parts = []
    for start in range(0, examples, _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        own = slice(None) if len(several[0]) < examples else rows
        read = collect(model, sources.input_ids[own], sites, sources.positions[own])
        latents, reference = read["attn_in"], read["resid_post"][0, :, -1]
        here = len(into.input_ids[rows])
        parts.append(
            attention_object_lens(
                model,
                latents.expand(-1, here, -1, -1),
                into.input_ids[rows],
                into.positions[rows],
                groups[rows],
                num_layers=num_layers,
                layers=layers,
                latent_layers=attending,
                top_k=top_k,
                batch_size=batch_size,
                reference=reference.expand(here, -1),
            )
        )
    return replace(LensResult.concatenate(parts), group_names=named.group_names)


def _check_alike(sources: LensPrompts, into: LensPrompts) -> None:
    """Whether each token that is read has one where it is received, in every prompt.

    Raises:
        InterpError: there are more of one, or a prompt has fewer than another.
    """
    counts = {"source_position": len(sources.labels), "position": len(into.labels)}
    (fewer, least), (more, most) = sorted(counts.items(), key=lambda item: item[1])
    if least < most:
        labels = sources.labels if more == "source_position" else into.labels
        number = "one token" if least == 1 else f"{least} tokens"
        raise InterpError(f"{more}: expected {number} of each prompt, as many as {fewer} stands for, got {labels}.")
    for name, encoded in (("position", into), ("source_position", sources)):
        for prompt, own in enumerate(encoded.positions):
            if -1 in own:
                raise InterpError(
                    f"{name}: prompt {prompt} has {sum(at >= 0 for at in own)} such tokens, others have {len(own)}. "
                    "What attention receives is put at equally many tokens of every prompt, e.g. `word.last`."
                )
