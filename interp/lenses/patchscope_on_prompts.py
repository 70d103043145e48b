"""Patchscopes on prompts: source prompts are run, what is in them is written into target prompts, in batches.

patchscope_lens_on_prompts(model, ["The capital of France", "..."], "cat")
patchscope_generate_on_prompts(model, ["Leonardo DiCaprio"], "description", max_new_tokens=30)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from interp.errors import InterpError
from interp.lenses.on_prompts import Targets
from interp.lenses.patchscope import patchscope_lens
from interp.lenses.patchscope_generate import patchscope_generate
from interp.lenses.patchscope_grid import patchscope_grid
from interp.lenses.reading import surprisal_of
from interp.lenses.sources import (
    Positions,
    SourcePrompts,
    Sources,
    TargetPrompts,
    Writing,
    groups_of,
    written_into,
)
from interp.patching import Patch
from interp.readout import reduce_hidden
from interp.results import GenerationResult, LensResult
from interp.translators.affine_maps import AffinePairs, LatentMap

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["patchscope_generate_on_prompts", "patchscope_grid_on_prompts", "patchscope_lens_on_prompts"]


@torch.no_grad()
def patchscope_lens_on_prompts(
    model: StandardizedTransformer,
    source_prompts: SourcePrompts,
    target_prompts: TargetPrompts,
    *,
    source_model: StandardizedTransformer | None = None,
    source_positions: Positions = "last",
    target_positions: Positions | None = None,
    layers: Sequence[int] | None = None,
    patch: Patch = "one_layer",
    site: str = "resid_post",
    mapping: LatentMap | None = None,
    targets: Targets | Sequence[Targets] | None = None,
    policy: str = "first_token",
    top_k: int = 5,
    batch_size: int = 64,
) -> LensResult:
    """Patchscope lens (Ghandeharioun et al. 2024) from source prompts into target prompts.

    Sources are read some hundred at a time and written before the next are: memory does not depend on how many there
    are, but for the result.

    Arguments:
        model: the model that runs the target prompts.
        source_prompts: a text, `Prompt` or list of token ids; or one for each example; or for an example a list of
            them, whose mean is written (Dumas et al. 2025).
        target_prompts: one for all examples, or one each: texts, `Prompt`s, `TargetPrompt`s, or names of
            `interp.prompts.TARGET_NAMES` (`cat`, `description`, `country_currency`, `chat`).
        source_model: the model that runs the sources; None: `model`. One of another width needs a `mapping`.
        source_positions: the token of a source that is read, in the vocabulary of `interp.positions`; or several, which
            are written at once.
        target_positions: the token that is written over, as many as are read; None: the placeholder of the target
            prompt, or its last token.
        layers: the layers that are read and, each by itself, written; None: all that both models have.
        patch: `one_layer`, or `from_layer`: at each layer and every later one, with that layer's latent.
        site: kind of site that is read and written, a hidden state that each layer has.
        mapping: turns the latents into what is written (`interp.translators`); None: they are written as they are.
        targets: the groups: name -> words (or token ids), for all examples or a mapping for each; None: the targets of
            the target prompts that are `Prompt`s, or where none has any, of the source prompts.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.
        top_k: how many top tokens are kept.
        batch_size: target prompts in a forward pass at most.

    Returns:
        The lens, axes `example` and `layer`; logarithms in nats. `surprisal` and `model_top_id` go by what the source
        model says at the (last) source position; they are not known where an example has several sources, or the two
        models have other vocabularies.

    Raises:
        InterpError: what `patchscope_lens` refuses, numbers of prompts or positions that do not fit, or positions that
            a prompt does not have.
    """
    reader = model if source_model is None else source_model
    chosen = _layers(layers, min(model.num_layers, reader.num_layers))
    held = chosen if patch == "one_layer" else tuple(range(chosen[0], model.num_layers))
    _check_depth(held, reader)
    sources = Sources.of(reader, source_prompts, source_positions)
    into = written_into(model, target_prompts, target_positions, sources)
    groups, names = groups_of(model, targets, policy, into, sources)
    parts = []
    for writing in sources.read(site, held):
        part = patchscope_lens(
            model,
            writing.latents,
            into.input_ids[writing.examples],
            into.positions[writing.examples],
            groups[writing.examples],
            layers=chosen,
            patch=patch,
            site=site,
            latent_layers=held,
            mapping=mapping,
            top_k=top_k,
            batch_size=batch_size,
            reference=writing.own if reader is model else None,
        )
        parts.append(part if reader is model else _compared(part, writing, reader, model))
    return replace(LensResult.concatenate(parts), group_names=names)


@torch.no_grad()
def patchscope_grid_on_prompts(
    model: StandardizedTransformer,
    source_prompts: SourcePrompts,
    target_prompts: TargetPrompts,
    *,
    source_model: StandardizedTransformer | None = None,
    source_positions: Positions = "last",
    target_positions: Positions | None = None,
    source_layers: Sequence[int] | None = None,
    target_layers: Sequence[int] | None = None,
    patch: Patch = "one_layer",
    site: str = "resid_post",
    mapping: LatentMap | AffinePairs | None = None,
    targets: Targets | Sequence[Targets] | None = None,
    policy: str = "first_token",
    top_k: int = 5,
    batch_size: int = 64,
) -> LensResult:
    """Patchscope lens over source layers x target layers, from source prompts into target prompts.

    Arguments:
        source_layers: the layers that are read; None: all of the source model.
        target_layers: the layers that are written; None: all of the model.
        patch, mapping: as in `patchscope_grid`.
        model, source_prompts, target_prompts, source_model, source_positions, target_positions, site, targets, policy,
            top_k, batch_size: as in `patchscope_lens_on_prompts`.

    Returns:
        The lens, axes `example`, `source_layer`, `target_layer`; see `patchscope_grid`.

    Raises:
        InterpError: as `patchscope_grid` and `patchscope_lens_on_prompts` do.
    """
    reader = model if source_model is None else source_model
    held = _layers(source_layers, reader.num_layers)
    _check_depth(held, reader)
    sources = Sources.of(reader, source_prompts, source_positions)
    into = written_into(model, target_prompts, target_positions, sources)
    groups, names = groups_of(model, targets, policy, into, sources)
    parts = []
    for writing in sources.read(site, held):
        part = patchscope_grid(
            model,
            writing.latents,
            into.input_ids[writing.examples],
            into.positions[writing.examples],
            groups[writing.examples],
            source_layers=held,
            target_layers=target_layers,
            patch=patch,
            site=site,
            mapping=mapping,
            top_k=top_k,
            batch_size=batch_size,
            reference=writing.own if reader is model else None,
        )
        parts.append(part if reader is model else _compared(part, writing, reader, model))
    return replace(LensResult.concatenate(parts), group_names=names)


@torch.no_grad()
def patchscope_generate_on_prompts(
    model: StandardizedTransformer,
    source_prompts: SourcePrompts,
    target_prompts: TargetPrompts,
    *,
    source_model: StandardizedTransformer | None = None,
    source_positions: Positions = "last",
    target_positions: Positions | None = None,
    layers: Sequence[int] | None = None,
    max_new_tokens: int = 20,
    patch: Patch = "one_layer",
    site: str = "resid_post",
    mapping: LatentMap | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> GenerationResult:
    """Patchscope generation (Ghandeharioun et al. 2024) from source prompts into target prompts.

    Arguments:
        layers: the layers that are read and, each by itself, written, in any order; None: all that both models have.
        max_new_tokens, temperature, top_k, top_p, seed: as in `patchscope_generate`.
        model, source_prompts, target_prompts, source_model, source_positions, target_positions, patch, site, mapping,
            batch_size: as in `patchscope_lens_on_prompts`.

    Returns:
        Token ids and texts by example and layer, layers in the order asked for.

    Raises:
        InterpError: as `patchscope_generate` and `patchscope_lens_on_prompts` do.
    """
    reader = model if source_model is None else source_model
    chosen = _layers(layers, min(model.num_layers, reader.num_layers))
    held = sorted(chosen) if patch == "one_layer" else range(min(chosen), model.num_layers)
    _check_depth(held, reader)
    sources = Sources.of(reader, source_prompts, source_positions)
    into = written_into(model, target_prompts, target_positions, sources)
    parts = [
        patchscope_generate(
            model,
            writing.latents,
            into.input_ids[writing.examples],
            into.positions[writing.examples],
            layers=chosen,
            max_new_tokens=max_new_tokens,
            patch=patch,
            site=site,
            latent_layers=held,
            mapping=mapping,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            example_numbers=range(writing.examples.start, writing.examples.stop),
            batch_size=batch_size,
        )
        for writing in sources.read(site, held)
    ]
    return GenerationResult.concatenate(parts)


def _layers(layers: Sequence[int] | None, num_layers: int) -> tuple[int, ...]:
    chosen = tuple(range(num_layers)) if layers is None else tuple(int(layer) for layer in layers)
    if not chosen:
        raise InterpError("layers: expected at least one, got none.")
    return chosen


def _check_depth(layers: Sequence[int], source_model: StandardizedTransformer) -> None:
    outside = [layer for layer in layers if not 0 <= layer < source_model.num_layers]
    if outside:
        raise InterpError(
            f"layers: the source model has layers 0 to {source_model.num_layers - 1}, latents of {outside} are needed."
        )


def _compared(
    result: LensResult, writing: Writing, source_model: StandardizedTransformer, model: StandardizedTransformer
) -> LensResult:
    """The same with what another source model says at its position, where both models have one vocabulary."""
    if writing.own is None or source_model.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        return result
    read = reduce_hidden(source_model, writing.own, [[]] * len(writing.own), 1)
    ids = torch.from_numpy(result.top_ids[..., 0].astype(np.int64)).flatten(1)  # (example, cell)
    known = ids < source_model.vocab_size  # a head may be wider than its vocabulary
    surprisal = surprisal_of(source_model, writing.own, ids.where(known, 0), read).cpu().where(known, torch.nan)
    return replace(
        result,
        surprisal=surprisal.view(result.surprisal.shape).numpy(),
        model_top_id=read.top_ids[:, 0].cpu().numpy(),
    )
