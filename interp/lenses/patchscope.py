"""The patchscope lens: what is in a hidden state, as the model says it in another prompt?

The hidden state is written into another prompt's run, at the same layer, and the model goes on from it. What it says is
what it can make of the state there: a reading depends on the target prompt, and a state that the target layer does not
know (of a much earlier layer, or another model) may say nothing though something is in it. In plain nnsight:

    for layer in layers:
        with model.trace(target_prompt):
            hidden = model.read(f"resid_post.{layer}").clone()
            hidden[:, position] = latents[layer]
            model.write(f"resid_post.{layer}", hidden)
            log_prob[layer] = model.logits[:, -1].log_softmax(-1).save()

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102. With target prompts that translate, and with patching from
a layer onwards: Dumas et al., "Separating Tongue from Thought" (2025), arXiv 2411.08745.

Latents written after layers go through one walk up the layers (`interp.patching`). Other sites, and families that the
walk does not fit, are served the plain way, one traced forward pass of the whole target prompts for each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.maps import LatentMap
from interp.lenses.prompted import Targets
from interp.lenses.reading import read_layers
from interp.lenses.remote import patch_elsewhere
from interp.lenses.sources import Given, Latents, Positions, SourcePrompts, TargetPositions, TargetPrompts
from interp.passes import in_turn
from interp.patching import (
    Patch,
    PatchedPrompts,
    PatchPlan,
    TargetPositions,
    check_number,
    run_patched,
    walk,
    walk_fits,
)
from interp.patching.plan import held_layers
from interp.patching.run import Ends, EndsPlan, run
from interp.readout import Groups, TokenGroups, reduce_hidden
from interp.results import Floats, LensResult

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["patchscope_lens"]


@torch.no_grad()
def patchscope_lens(
    model: StandardizedTransformer,
    source: SourcePrompts | Latents,
    target_prompts: TargetPrompts,
    target_positions: TargetPositions | None = None,
    targets: Targets | Sequence[Targets] | Groups | None = None,
    *,
    source_positions: Positions = "last",
    source_model: StandardizedTransformer | None = None,
    layers: Sequence[int] | None = None,
    patch: Patch = "one_layer",
    site: str = "resid_post",
    mapping: LatentMap | None = None,
    policy: str = "first_token",
    top_k: int = 5,
    batch_size: int = 64,
    remote: bool | str = False,
) -> LensResult:
    """Patchscope lens (Ghandeharioun et al. 2024): write latents into target prompts, read the next token.

    For each layer j the target prompt is run once, with the source's latent written over the target's own at one token:
    at layer j only (`one_layer`), or at j and every later layer, each with the latent of that same layer (`from_layer`,
    Dumas et al. 2025). What the model then predicts after the target prompt's last token is the reading of layer j.

        patchscope_lens(model, ["The capital of France", "..."], "cat")
        patchscope_lens(model, Latents(hidden, layers=[3, 5]), "cat", layers=[3, 5])

    Source prompts are read some hundred at a time and written before the next are: memory does not depend on how many
    there are, but for the result.

    Arguments:
        model: the model that runs the target prompts.
        source: source prompts: a text, `Prompt` or list of token ids; or one for each example; or for an example a list
            of them, whose mean is written (Dumas et al. 2025). Or `Latents`, which are written as they are.
        target_prompts: one for all examples, or one each: texts, `Prompt`s, `TargetPrompt`s, lists of token ids, or
            names of `interp.prompts.TARGET_NAMES` (`cat`, `description`, `country_currency`, `chat`).
        target_positions: the token that is written over, in the vocabulary of `interp.positions`; or several, as many
            as are read; or for each target prompt a list of its own, counted from 0. None: the placeholder of the
            target prompt, or its last token.
        targets: the groups whose probability is read: name -> words (or token ids), for all examples or a mapping for
            each; or per example, per group: token ids. None: the targets of the target prompts that are `Prompt`s, or
            where none has any, of the source prompts.
        source_positions: the token of a source prompt that is read, in the vocabulary of `interp.positions`; or
            several, which are written at once.
        source_model: the model that runs the source prompts; None: `model`. One of another width needs a `mapping`.
        layers: the layers j, ascending; None: all that there are latents of, or that both models have. `one_layer` needs
            latents of these, `from_layer` of every layer from the first of them to the model's last.
        patch: `one_layer` or `from_layer`.
        site: kind of site that is read and written, a hidden state that each layer has (`interp.sites.HIDDEN_KINDS`).
        mapping: turns the latents into what is written (`interp.lenses.maps`); latents of a model of another width
            need one. None: they are written as they are.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.
        top_k: how many top tokens are kept.
        batch_size: target prompts in a forward pass at most; memory does not depend on the number of examples.
        remote: for `Latents`. True: on NDIF, in one session of plain traces; `local`: packed as for a server, and run
            here; or an address.

    Returns:
        The lens, axes `example` and `layer`; logarithms in nats. `baseline` is read after the unpatched target prompts.
        `surprisal` and `model_top_id` go by what the source model says at the (last) source position; they are not
        known where an example has several sources, or the two models have other vocabularies.

    Raises:
        InterpError: shapes or numbers of prompts or positions that do not fit, layers that the model or the latents do
            not have, a position that a prompt does not have, token ids outside the vocabulary.
    """
    given = Given.of(
        model, source, target_prompts, target_positions,
        source_model=source_model, source_positions=source_positions, targets=targets, policy=policy,
    )  # fmt: skip
    given.check_here(remote)
    chosen = given.layers(layers, model.num_layers)
    needed = chosen if patch == "one_layer" else range(min(chosen), model.num_layers)
    held = given.source.held(chosen, needed)
    parts = [
        given.compared(
            _of_latents(
                model, *writing.written, given.groups[writing.examples], layers=chosen, patch=patch, site=site,
                latent_layers=held, mapping=mapping, top_k=top_k, batch_size=batch_size,
                reference=given.reference(writing, model), remote=remote,
            ),
            writing, model,
        )
        for writing in given.read(site, held)
    ]  # fmt: skip
    return replace(LensResult.concatenate(parts), group_names=given.names)


@in_turn
def _of_latents(
    model: StandardizedTransformer,
    latents: Tensor,
    target_ids: Sequence[Sequence[int]],
    target_positions: Sequence[Sequence[int]],
    groups: Groups,
    *,
    layers: Sequence[int],
    patch: Patch,
    site: str,
    latent_layers: Sequence[int],
    mapping: LatentMap | None,
    top_k: int,
    batch_size: int,
    reference: Tensor | None,
    remote: bool | str,
) -> LensResult:
    """The lens on latents that are there."""
    layers = tuple(map(int, layers))
    held = held_layers(layers, latent_layers, patch, site, model.num_layers)
    prompts = PatchedPrompts.of(model, latents, held, target_ids, target_positions, mapped=mapping is not None)
    plan = _LayersPlan(prompts, site, patch, layers, mapping)
    check_lens_inputs(prompts, groups, reference, batch_size)
    padded_groups = TokenGroups.pad(groups, model.vocab_size)
    if remote and len(prompts):
        if plan.mapping is not None:
            raise InterpError("mapping: latents go to a remote model as they are. Map them first, or leave it out.")
        writes = [plan.writes(layer, prompts.latents.cpu()) for layer in plan.layers]
        given: dict[str, Any] = dict(layers=plan.layers, top_k=top_k, batch_size=batch_size, remote=remote)
        return patch_elsewhere(
            model, prompts.input_ids, prompts.positions, writes, padded_groups, **given, reference=reference
        )
    parts, order = [], []
    for chosen, (hidden, clean) in run(plan, batch_size):
        rows = torch.tensor(chosen, dtype=torch.long, device="cpu")
        order += chosen
        batch_groups = padded_groups.rows(rows)
        parts.append(
            read_layers(
                model,
                hidden,
                batch_groups,
                layers=plan.layers,
                top_k=top_k,
                reference=None if reference is None else reference[rows.to(reference.device)],
                baseline=read_baseline(model, clean, batch_groups),
            )
        )
    return LensResult.concatenate(parts, order=order)


class _LayersPlan(PatchPlan[Ends], EndsPlan):
    """Every layer by itself; entries are layers."""

    @property
    def entries(self) -> tuple[int, ...]:
        return (len(self.layers),)

    def fits(self) -> bool:
        return self.kind == "resid_post" and walk_fits(self.model, self.longest)

    def fast(self, rows: list[int]) -> Iterator[Ends]:
        written = self.written(rows)
        hidden, clean = walk(
            self.model,
            self.prompts.ids(rows),
            self.positions[rows[0]],
            {layer: written[layer][None] for layer in self.layers},
            layers=self.layers,
            later=written if self.patch == "from_layer" else None,
        )
        yield Ends(hidden[:, 0], clean)

    def plain(self, rows: list[int]) -> Iterator[Tensor]:
        ids, positions = [self.input_ids[row] for row in rows], [self.positions[row] for row in rows]
        written = self.prompts.written(rows, self.mapping)
        yield torch.stack(
            [run_patched(self.model, ids, positions, self.writes(layer, written)) for layer in self.layers]
        )


def check_lens_inputs(prompts: PatchedPrompts, groups: Groups, reference: Tensor | None, batch_size: int) -> None:
    """Raises InterpError on what does not fit the examples of a lens."""
    expected = (len(prompts), prompts.model.hidden_size)
    if reference is not None and tuple(reference.shape) != expected:
        raise InterpError(
            f"reference: expected shape (example, hidden_size) = {expected}, got {tuple(reference.shape)}."
        )
    check_number("groups", groups, len(prompts))
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")


def read_baseline(model: StandardizedTransformer, clean: Tensor, groups: TokenGroups) -> Floats:
    """(row, group), log-probability of the groups after the unpatched target prompts.

    Rows of one target prompt, which stand in memory once (`expand`), are read once, with the groups of them all.
    """
    if not len(clean):
        return np.empty(groups.ids.shape[:2], dtype=np.float32)
    shape = groups.ids.shape
    if clean.stride(0) == 0:
        width = shape[2]
        clean = clean[:1]
        groups = TokenGroups(groups.ids.reshape(1, -1, width), groups.valid.reshape(1, -1, width))
    return reduce_hidden(model, clean, groups, 1).log_prob.view(shape[:2]).cpu().numpy()
