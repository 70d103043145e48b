"""Patchscope generation: what does a model write on after a prompt that a hidden state has been written into?

The longer form of the patchscope lens, for what takes more than a token to say: descriptions of entities, extraction of
attributes. What is written also follows the target prompt's own habits, and greedy text hides how near the next best
was. In plain nnsight, greedily, for a latent (hidden_size,) and ids (1, token):

    for _ in range(max_new_tokens):
        with model.trace(input_ids=ids):
            model.layers_output[layer][:, position] = latent
            logits = model.logits[:, -1].save()
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=-1)

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102.

Latents written after layers go through one walk up the layers, and every run then goes on with keys and values of its
own behind those of the target prompt (`interp.patching`). Other sites, and families that this does not fit, are served
the plain way, whole forward passes for each token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.batching import WALKING_TOKENS
from interp.errors import InterpError
from interp.forward import stays_within
from interp.lenses.patchscope import asked_layers, needed_layers
from interp.lenses.patchscope_inputs import PatchscopeInputs, TargetPositions, TargetPrompts
from interp.lenses.reading import Positions
from interp.lenses.sources import Latents, SourcePrompts
from interp.model.fed import check_fed
from interp.passes import in_turn
from interp.patching import (
    Choose,
    Patch,
    PatchPlan,
    check_number,
    check_patch,
    generate_plainly,
    generate_walked,
    generation_fits,
)
from interp.patching.plan import held_layers
from interp.patching.run import run
from interp.readout import Sampling, stop_tokens
from interp.results import GenerationResult
from interp.translators.affine_maps import LatentMap

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["patchscope_generate"]

# Keys and values that the runs of a batch hold, in bytes: what bounds the memory.
CACHE_BYTES = 1 << 31


@torch.no_grad()
def patchscope_generate(
    model: StandardizedTransformer,
    source: SourcePrompts | Latents,
    target_prompts: TargetPrompts,
    target_positions: TargetPositions | None = None,
    *,
    images: Any = None,
    source_positions: Positions = "last",
    source_model: StandardizedTransformer | None = None,
    layers: Sequence[int] | None = None,
    max_new_tokens: int = 20,
    patch: Patch = "one_layer",
    site: str = "resid_post",
    mapping: LatentMap | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Collection[int] | None = None,
    example_numbers: Sequence[int] | None = None,
    batch_size: int = 64,
    batch_tokens: int | None = None,
) -> GenerationResult:
    """Patchscope generation (Ghandeharioun et al. 2024): write latents into target prompts, let the model go on.

    What is drawn for an example and layer depends on the seed, the example's number and the layer alone: other
    batches, other layers beside it or more tokens change nothing, but for roundings of the logits.

    Arguments:
        model: the model that runs the target prompts.
        source, target_prompts, target_positions, images, source_positions, source_model, patch, site, mapping,
            batch_tokens: as in `patchscope_lens`.
        layers: the layers that are patched, each by itself, in any order; None: all that there are latents of, or that
            both models have.
        max_new_tokens: new tokens at most.
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
        InterpError: as `patchscope_lens` does; a layer twice, or sampling out of range.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    if max_new_tokens < 1 or batch_size < 1:
        raise InterpError(f"max_new_tokens, batch_size: expected at least 1, got {max_new_tokens} and {batch_size}.")
    check_patch(patch, site)
    given = PatchscopeInputs.of(
        model, source, target_prompts, target_positions, images=images, source_positions=source_positions,
        source_model=source_model, batch_tokens=batch_tokens,
    )  # fmt: skip
    numbers = range(len(given.source)) if example_numbers is None else example_numbers
    check_number("example_numbers", numbers, len(given.source))
    asked = asked_layers(given, layers)
    order = sorted(range(len(asked)), key=asked.__getitem__)
    ascending = tuple(asked[index] for index in order)
    stops = stop_tokens(model) if stop_ids is None else stop_ids
    ids: list[list[list[int]]] = []  # [example][layer]
    for part in given.parts(site, needed_layers(asked, patch, model)):
        held_layers(ascending, part.layers, patch, site, model.num_layers)
        prompts = part.prompts(model, mapped=mapping is not None)
        check_fed(model, prompts.input_ids, "target_prompts", more=max_new_tokens - 1)  # the last is not fed any more
        own = numbers[part.examples]
        plan = _GenerationPlan(prompts, site, patch, ascending, mapping, max_new_tokens, sampling, own, stops)
        ids += _generated(model, plan, order, batch_size)
    return GenerationResult.decoded(asked, ids, model.tokenizer)


@in_turn
def _generated(
    model: StandardizedTransformer, plan: _GenerationPlan, order: Sequence[int], batch_size: int
) -> list[list[list[int]]]:
    """[example][layer], the new tokens; `order` has the place of each of the plan's layers among those asked for."""
    ids: list[list[list[int]]] = [[[] for _ in order] for _ in plan.input_ids]
    for chosen, runs in run(plan, batch_size):
        tokens = iter(runs)
        for index in order:
            for example in chosen:
                ids[example][index] = next(tokens)
    return ids


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
