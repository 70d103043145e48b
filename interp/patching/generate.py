"""New tokens after patched target prompts, with the key/value cache: one walk for the first, then a token a step.

The keys and values of the tokens before the first written one are shared by all runs of a prompt. From there on, those
of a run are the clean prompt's up to the layer that it is patched at, and its own above it. So runs of one prompt that
have written the same so far are one row up to their patches (`Histories`): neighbouring layers often say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache

from interp.batching import how_many
from interp.forward.layers import run_rows
from interp.forward.prefix import FrozenPrefix
from interp.matmul import faster_products
from interp.patching.continuations import Continuations, Histories
from interp.patching.patched_runs import Call, CleanRun, calls_of, run_patched, walk_up, walking
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Choose", "generate_plainly", "generate_walked"]


Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(logits (run, vocabulary), which runs (run,) on the CPU, step) -> (run,) token ids."""

# Ended runs leave when they are one in so many: to leave, what the others remember has to be copied.
_LEAVING = 8


@torch.no_grad()
def generate_walked(
    model: StandardizedTransformer,
    target_ids: Tensor,
    positions: Sequence[int],
    latents: Mapping[int, Tensor],
    *,
    layers: Sequence[int],
    later: Mapping[int, Tensor] | None = None,
    max_new_tokens: int,
    choose: Choose,
    stop_ids: Collection[int],
) -> list[list[int]]:
    """Write latents into target prompts, a layer at a time, and go on from each.

    Arguments:
        model: the model, of a family that `generation_fits`.
        target_ids: (row, length), target prompts, all equally long; or (1, length), one for all rows.
        positions: the tokens of them that are written, all at once, counted from 0.
        latents: layer -> (row, position, hidden), what is written after it.
        layers: the layers that are patched, ascending.
        later: as in `walk`.
        max_new_tokens: new tokens of a run at most, at least 1.
        choose: which token comes next.
        stop_ids: a run ends behind any of these.

    Returns:
        The new tokens of each run, the one that ended it included; runs stand as (layer, row), rows side by side.
    """
    states, walked = _patched(model, target_ids, positions, latents, layers, later, room=max_new_tokens - 1)
    hidden, prompts = walked[:, -1], len(target_ids)  # (run, hidden)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device="cpu")
    tokens = torch.full((len(hidden), max_new_tokens), -1, dtype=torch.long, device="cpu")  # (run, step)
    runs = torch.arange(len(hidden), device="cpu")  # those that go on; the ended among them are carried along
    ended = torch.zeros(len(runs), dtype=torch.bool, device="cpu")
    # Rows of several prompts have to stand in the order of the prompts, so each run is a row by itself.
    joins = torch.tensor(layers, device="cpu").repeat_interleave(len(hidden) // len(layers))
    histories = Histories.of(joins if prompts == 1 else torch.full_like(joins, -1))
    for step in range(max_new_tokens):
        chosen = _chosen(model, hidden, runs, step, choose)
        tokens[runs[~ended], step] = chosen[~ended]
        ended = ended | torch.isin(chosen, stops)
        if step == max_new_tokens - 1 or bool(ended.all()):
            break
        previous = histories
        histories, before = previous.written(chosen)  # (history,), the one that each goes on from
        kept = torch.arange(len(runs), device="cpu")
        if int(ended.sum()) * _LEAVING >= len(ended):
            kept, of_prompts = _kept(ended, prompts)
            histories, same = histories.kept(kept)
            runs, ended, chosen, before, prompts = runs[kept], ended[kept], chosen[kept], before[same], len(of_prompts)
            states.keep_prompts(of_prompts)
        states.arrange(partial(_rows, previous, histories, kept, before), len(kept))
        hidden = _next(model, states, histories, chosen)
    return [[token for token in row if token >= 0] for row in tokens.tolist()]


def _chosen(model: StandardizedTransformer, hidden: Tensor, runs: Tensor, step: int, choose: Choose) -> Tensor:
    """(run,) the next token of each run, on the CPU; some runs' logits at a time."""
    size = how_many(model.vocab_size, hidden.device)
    with faster_products(len(hidden), model.hidden_size, model.dtype, model.device):
        chosen = [
            choose(model.readout(hidden[at : at + size]), runs[at : at + size], step)
            for at in range(0, len(hidden), size)
        ]
    return torch.cat(chosen).cpu()


def _patched(
    model: StandardizedTransformer,
    target_ids: Tensor,
    positions: Sequence[int],
    latents: Mapping[int, Tensor],
    layers: Sequence[int],
    later: Mapping[int, Tensor] | None,
    *,
    room: int,
) -> tuple[Continuations, Tensor]:
    """The patched runs: what their layers remember, with room for more, and (run, position, hidden) of the last one."""
    start, suffix = min(positions), target_ids.shape[1] - min(positions)
    prefix = FrozenPrefix.of(model, target_ids[:, :start])
    states = Continuations(prefix)
    calls = calls_of(model, FrozenPrefix(states.cache, start), target_ids[:, start:])
    # All runs begin with what the clean prompts have; runs that walk through a layer write over it there.
    states.make_room(len(layers) * len(latents[layers[0]]), room)
    clean = CleanRun(model, prefix, [_remembering(call, states.cache) for call in calls])
    variants = {layer: latents[layer][None] for layer in layers}
    walked = walk_up(clean, [position - start for position in positions], variants, layers=layers, later=later)
    states.advance(suffix)
    return states, walked


def _remembering(call: Call, cache: Cache) -> Call:
    """The same call of a layer, whose keys and values go into a cache."""
    keywords = {name: cache if isinstance(value, Cache) else value for name, value in call.keywords.items()}
    return replace(call, keywords=keywords)


def _rows(previous: Histories, histories: Histories, kept: Tensor, before: Tensor, layer: int) -> Tensor:
    """(row,), the rows that a layer's remembered keys and values are of, by where they have been.

    Arguments:
        previous: the histories before the last tokens.
        histories: those after them.
        kept: (run,), which of the runs go on.
        before: (history,), the history that each goes on from.
        layer: which.
    """
    alone = previous.alone(layer)
    return torch.cat([kept[kept < alone], alone + before[: histories.shared(layer)]])


def _next(model: StandardizedTransformer, states: Continuations, histories: Histories, tokens: Tensor) -> Tensor:
    """(run, hidden), the residual stream after the last layer, one token on; tokens (run,)."""

    def entering(layer: int, hidden: Tensor) -> Tensor:
        rows = histories.entering(layer)
        if torch.equal(rows, torch.arange(len(hidden), device="cpu")):
            return hidden
        return hidden[rows.to(hidden.device)]

    fed = histories.fed(tokens)[:, None].to(model.device)
    with (
        walking(model),
        faster_products(len(tokens), model.hidden_size, model.dtype, model.device),
    ):
        hidden = run_rows(model, fed, states.cache, states.length, entering)
    states.advance(1)
    return entering(model.num_layers, hidden)[:, -1]


def _kept(ended: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
    """Which runs and prompts go on: where there are several prompts, one leaves when all its runs have ended."""
    if prompts == 1:
        return (~ended).nonzero()[:, 0], torch.arange(1, device="cpu")
    ongoing = (~ended).view(-1, prompts).any(0)  # (prompt,)
    return ongoing.repeat(len(ended) // prompts).nonzero()[:, 0], ongoing.nonzero()[:, 0]


@torch.no_grad()
def generate_plainly(
    model: StandardizedTransformer,
    target_ids: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    writes: Sequence[Sequence[tuple[Site, Tensor]]],
    *,
    max_new_tokens: int,
    choose: Choose,
    stop_ids: Collection[int],
) -> list[list[int]]:
    """What `generate_walked` gives, in any family and at any site: each token by whole forward passes.

    Arguments:
        model: the model.
        target_ids: token ids of each row's prompt, unpadded.
        positions: the tokens of each row that are written, equally many in each.
        writes: for each layer that is patched: sites in the order of a forward pass, and what is written there,
            (row, position, hidden).
        max_new_tokens, choose, stop_ids: as in `generate_walked`.

    Returns:
        The new tokens of each run, runs as (layer, row).
    """
    rows, stops = len(target_ids), set(stop_ids)
    tokens: list[list[int]] = [[] for _ in range(rows * len(writes))]
    for index, of_layer in enumerate(writes):
        going = list(range(rows))
        for step in range(max_new_tokens):
            runs = [index * rows + row for row in going]
            ids = [[*target_ids[row], *tokens[run]] for row, run in zip(going, runs, strict=True)]
            latents = [(site, latent[going]) for site, latent in of_layer]
            hidden = run_patched(model, ids, [positions[row] for row in going], latents)
            chosen = _chosen(model, hidden, torch.tensor(runs, device="cpu"), step, choose)
            for run, token in zip(runs, chosen.tolist(), strict=True):
                tokens[run].append(token)
            going = [row for row, run in zip(going, runs, strict=True) if tokens[run][-1] not in stops]
            if not going:
                break
    return tokens
