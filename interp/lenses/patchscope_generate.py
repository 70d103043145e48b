"""Patchscope generation: a hidden state is written into another prompt's run, and the model goes on writing.

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102: descriptions of entities, extraction of attributes.

Latents written after layers go through one walk up the layers, and every run then goes on with keys and values of its
own behind those of the target prompt (`interp.forward`). Other sites, and families that this does not fit, are served
the plain way, whole forward passes for each token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.batching import WALKING_TOKENS, batches_alike
from interp.errors import InterpError
from interp.forward import (
    Choose,
    Sampling,
    generate_plainly,
    generate_walked,
    generation_fits,
    stays_within,
    whole_batches,
)
from interp.lenses.patching import Patch, PatchedPrompts, PatchPlan, TargetPositions, check_number
from interp.model.fed import check_fed
from interp.passes import in_turn
from interp.results import GenerationResult
from interp.translators.affine_maps import LatentMap

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["patchscope_generate", "stop_tokens"]

# Keys and values that the runs of a batch hold, in bytes: what bounds the memory.
CACHE_BYTES = 1 << 31


@in_turn
@torch.no_grad()
def patchscope_generate(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    target_positions: TargetPositions,
    *,
    layers: Sequence[int],
    max_new_tokens: int = 20,
    patch: Patch = "one_layer",
    site: str = "resid_post",
    latent_layers: Sequence[int] | None = None,
    mapping: LatentMap | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Collection[int] | None = None,
    example_numbers: Sequence[int] | None = None,
    batch_size: int = 64,
) -> GenerationResult:
    """Patchscope generation (Ghandeharioun et al. 2024): write latents into target prompts, let the model go on.

    What is drawn for an example and layer depends on the seed, the example's number and the layer alone: other
    batches, other layers beside it or more tokens change nothing, but for roundings of the logits.

    Arguments:
        model: the model that runs the target prompts. The latents may be another one's.
        latents: (layer, example, hidden_size), what is written; or (layer, example, position, hidden_size) where
            several tokens are. Any device and float dtype, the model's is used.
        target_ids: per example: token ids of its target prompt as the model is fed, unpadded.
        target_positions: per example: the token of the target prompt that is written, counted from 0 without padding;
            or several that are written at once, equally many in every example.
        layers: the layers that are patched, each by itself, in any order.
        max_new_tokens: new tokens at most.
        patch: `one_layer`, or `from_layer`: also every later layer, with that layer's latent.
        site: kind of site that is written, a hidden state that each layer has (`interp.sites.HIDDEN_KINDS`).
        latent_layers: what the axis `layer` of `latents` stands for, ascending; None: `layers`, in their order.
            `one_layer` needs all of `layers` there, `from_layer` every layer from the first of `layers` to the model's
            last.
        mapping: turns the latents into what is written (`interp.translators`); None: they are written as they are.
        temperature: logits are divided by it and a token is drawn; 0: the most probable token is taken.
        top_k: only so many of the most probable tokens may be drawn; None: all.
        top_p: only the most probable tokens that together have this probability may be drawn, after `top_k`; None: all.
        seed: of the draws.
        stop_ids: tokens that end a text; None: those of the model's generation config, or its tokenizer's.
        example_numbers: by which the draws of the examples are told apart, for a call that has a part of them; None:
            0, 1, ...
        batch_size: target prompts that are generated from at once, each for all layers; fewer where what they have to
            remember would not fit.

    Returns:
        Token ids and texts by example and layer, layers in the order asked for. A token that ended a text is the last
        of its ids.

    Raises:
        InterpError: shapes that do not fit, layers that the model or the latents do not have, a layer twice, a
            position outside its target prompt, token ids outside the vocabulary, sampling out of range.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    if max_new_tokens < 1 or batch_size < 1:
        raise InterpError(f"max_new_tokens, batch_size: expected at least 1, got {max_new_tokens} and {batch_size}.")
    asked = [int(layer) for layer in layers]
    order = sorted(range(len(asked)), key=asked.__getitem__)
    if latent_layers is None and len(latents) == len(asked):
        latents = latents[order]
    plan = PatchPlan.of([asked[index] for index in order], latent_layers, patch, site, mapping, model.num_layers)
    prompts = PatchedPrompts.of(
        model, latents, plan.latent_layers, target_ids, target_positions, mapped=mapping is not None
    )
    check_fed(model, prompts.input_ids, "target_ids", more=max_new_tokens - 1)  # the last is not fed any more
    numbers = range(len(prompts)) if example_numbers is None else example_numbers
    check_number("example_numbers", numbers, len(prompts))
    stops = stop_tokens(model) if stop_ids is None else stop_ids
    ids: list[list[list[int]]] = [[[] for _ in asked] for _ in prompts.input_ids]  # [example][layer]
    fast = len(prompts) > 0 and plan.kind == "resid_post" and generation_fits(model, prompts.longest + max_new_tokens)
    fast = fast and stays_within(model, [len(ids) for ids in prompts.input_ids], max_new_tokens)
    for chosen in _batches(prompts, plan, max_new_tokens, batch_size, fast=fast):
        choose = _chooser(sampling, plan.layers, [numbers[example] for example in chosen], max_new_tokens)
        generate = _walked if fast else _plain
        runs = iter(generate(prompts, plan, chosen, max_new_tokens, choose, stops))
        for index in order:
            for example in chosen:
                ids[example][index] = next(runs)
    return GenerationResult.decoded(asked, ids, model.tokenizer)


def stop_tokens(model: StandardizedTransformer) -> tuple[int, ...]:
    """The tokens that end what a model writes: of its generation config, or else its tokenizer's."""
    config = getattr(model._module, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    given = model.tokenizer.eos_token_id if given is None else given
    return () if given is None else (given,) if isinstance(given, int) else tuple(given)


def _batches(
    prompts: PatchedPrompts, plan: PatchPlan, max_new_tokens: int, batch_size: int, *, fast: bool
) -> list[list[int]]:
    if not fast:
        return whole_batches(prompts.model, [len(ids) for ids in prompts.input_ids], batch_size, max_new_tokens)
    model = prompts.model
    token_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * model.dtype.itemsize
    budget = min(WALKING_TOKENS, CACHE_BYTES // token_bytes)
    runs = len(plan.layers)
    return batches_alike(
        prompts.input_ids, prompts.positions, batch_size, runs, new_tokens=max_new_tokens, budget=budget
    )


def _chooser(sampling: Sampling, layers: Sequence[int], examples: Sequence[int], tokens: int) -> Choose:
    """The choice of tokens for a batch, whose runs stand as (layer, example)."""
    noise = torch.zeros(len(layers) * len(examples), tokens, dtype=torch.float64, device="cpu")
    if sampling.temperature:
        rows = [sampling.noise(example, layer, tokens) for layer in layers for example in examples]
        noise = torch.stack([torch.from_numpy(row) for row in rows])
    return lambda logits, runs, step: sampling.choose(logits, noise[runs, step])


def _walked(
    prompts: PatchedPrompts,
    plan: PatchPlan,
    chosen: Sequence[int],
    max_new_tokens: int,
    choose: Choose,
    stops: Collection[int],
) -> list[list[int]]:
    """The new tokens of (layer, example), of target prompts of one length that are patched at the same tokens."""
    written = plan.by_layer(prompts.written(chosen, plan.mapping))
    return generate_walked(
        prompts.model,
        prompts.ids(chosen),
        prompts.positions[chosen[0]],
        written,
        layers=plan.layers,
        later=written if plan.patch == "from_layer" else None,
        max_new_tokens=max_new_tokens,
        choose=choose,
        stop_ids=stops,
    )


def _plain(
    prompts: PatchedPrompts,
    plan: PatchPlan,
    chosen: Sequence[int],
    max_new_tokens: int,
    choose: Choose,
    stops: Collection[int],
) -> list[list[int]]:
    """The same of any target prompts, in any family."""
    written = prompts.written(chosen, plan.mapping)
    return generate_plainly(
        prompts.model,
        [prompts.input_ids[example] for example in chosen],
        [prompts.positions[example] for example in chosen],
        [plan.writes(layer, written) for layer in plan.layers],
        max_new_tokens=max_new_tokens,
        choose=choose,
        stop_ids=stops,
    )
