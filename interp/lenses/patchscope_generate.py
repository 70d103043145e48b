"""Patchscope generation: a hidden state is written into another prompt's run, and the model goes on writing.

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102: descriptions of entities, extraction of attributes.

Latents written after layers go through one walk up the layers, and every run then goes on with keys and values of its
own behind those of the target prompt (`interp.forward`). Other sites, and families that this does not fit, are served
the plain way, whole forward passes for each token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.batching import WALKING_TOKENS
from interp.errors import InterpError
from interp.forward import stays_within
from interp.model.fed import check_fed
from interp.passes import in_turn
from interp.patching import (
    Choose,
    Patch,
    PatchedPrompts,
    PatchPlan,
    Sampling,
    TargetPositions,
    check_number,
    generate_plainly,
    generate_walked,
    generation_fits,
)
from interp.patching.plan import held_layers
from interp.patching.run import run
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
    ascending = tuple(asked[index] for index in order)
    held = held_layers(ascending, latent_layers, patch, site, model.num_layers)
    prompts = PatchedPrompts.of(model, latents, held, target_ids, target_positions, mapped=mapping is not None)
    check_fed(model, prompts.input_ids, "target_ids", more=max_new_tokens - 1)  # the last is not fed any more
    numbers = range(len(prompts)) if example_numbers is None else example_numbers
    check_number("example_numbers", numbers, len(prompts))
    stops = stop_tokens(model) if stop_ids is None else stop_ids
    ids: list[list[list[int]]] = [[[] for _ in asked] for _ in prompts.input_ids]  # [example][layer]
    plan = _GenerationPlan(prompts, site, patch, ascending, mapping, max_new_tokens, sampling, numbers, stops)
    for chosen, runs in run(plan, batch_size):
        tokens = iter(runs)
        for index in order:
            for example in chosen:
                ids[example][index] = next(tokens)
    return GenerationResult.decoded(asked, ids, model.tokenizer)


def stop_tokens(model: StandardizedTransformer) -> tuple[int, ...]:
    """The tokens that end what a model writes: of its generation config, or else its tokenizer's."""
    config = getattr(model._module, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    given = model.tokenizer.eos_token_id if given is None else given
    return () if given is None else (given,) if isinstance(given, int) else tuple(given)


@dataclass(frozen=True)
class _GenerationPlan(PatchPlan[list[list[int]]]):
    """Runs that go on writing; a batch gives the new tokens of each run, runs as (layer, prompt).

    Arguments:
        most: new tokens of a run at most.
        sampling: how they are chosen.
        numbers: of the prompts, by which their draws are told apart.
        stops: tokens that end a text.
    """

    most: int
    sampling: Sampling
    numbers: Sequence[int]
    stops: Collection[int]

    @property
    def new_tokens(self) -> int:
        return self.most

    @property
    def budget(self) -> int:
        """Tokens that walk, or whose keys and values are held, at most."""
        model = self.model
        token_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * model.dtype.itemsize
        return min(WALKING_TOKENS, CACHE_BYTES // token_bytes)

    def fits(self) -> bool:
        # As runs go on, the rotation of what is frozen would change with their length.
        return (
            self.kind == "resid_post"
            and generation_fits(self.model, self.longest)
            and stays_within(self.model, [len(ids) for ids in self.input_ids], self.most)
        )

    def fast(self, rows: list[int]) -> Iterator[list[list[int]]]:
        written = self.written(rows)
        yield generate_walked(
            self.model,
            self.prompts.ids(rows),
            self.positions[rows[0]],
            written,
            layers=self.layers,
            later=written if self.patch == "from_layer" else None,
            max_new_tokens=self.most,
            choose=self._chooser(rows),
            stop_ids=self.stops,
        )

    def slow(self, rows: list[int]) -> Iterator[list[list[int]]]:
        written = self.prompts.written(rows, self.mapping)
        yield generate_plainly(
            self.model,
            [self.input_ids[row] for row in rows],
            [self.positions[row] for row in rows],
            [self.writes(layer, written) for layer in self.layers],
            max_new_tokens=self.most,
            choose=self._chooser(rows),
            stop_ids=self.stops,
        )

    def nothing(self) -> list[list[int]]:
        return []

    def _chooser(self, rows: Sequence[int]) -> Choose:
        """The choice of tokens for a batch."""
        noise = torch.zeros(len(self.layers) * len(rows), self.most, dtype=torch.float64, device="cpu")
        if self.sampling.temperature:
            drawn = [self.sampling.noise(self.numbers[row], layer, self.most) for layer in self.layers for row in rows]
            noise = torch.stack([torch.from_numpy(row) for row in drawn])
        return lambda logits, runs, step: self.sampling.choose(logits, noise[runs, step])
