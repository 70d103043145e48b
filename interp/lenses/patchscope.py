"""The patchscope lens: what is in a hidden state, as the model says it itself in another prompt?

The state is written over a token of a target prompt, at the same layer, and the model goes on from there. What it says
is what it can make of the state in that prompt: a reading depends on the target prompt, and a state that says nothing
there need not be empty. Early layers of a target prompt that names the answer find it without any state: `baseline`
tells. In plain nnsight, for latents (layer, hidden_size):

    log_prob = {}
    for layer in layers:
        with model.trace(target_prompt):
            model.layers_output[layer][:, position] = latents[layer]
            log_prob[layer] = model.logits[:, -1].log_softmax(-1)

Ghandeharioun et al., "Patchscopes" (2024), arXiv 2401.06102. With target prompts that translate, and with patching from
a layer onwards: Dumas et al., "Separating Tongue from Thought" (2025), arXiv 2411.08745.

Latents written after layers go through one walk up the layers (`interp.patching`). Other sites, and families that the
walk does not fit, are served the plain way, one traced forward pass of the whole target prompts for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.patchscope_inputs import Part, PatchscopeInputs, TargetPositions, TargetPrompts
from interp.lenses.reading import Positions, Targets, read_layers
from interp.lenses.remote import patch_elsewhere
from interp.lenses.sources import Latents, SourcePrompts
from interp.passes import in_turn
from interp.patching import LayersPlan, Patch, PatchedPrompts, check_number
from interp.patching.plan import check_patch, held_layers
from interp.patching.run import run
from interp.readout import Groups, TokenGroups, reduce_hidden
from interp.results import Floats, LensResult
from interp.translators.affine_maps import LatentMap

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["check_lens_inputs", "patchscope_lens", "read_baseline"]


@torch.no_grad()
def patchscope_lens(
    model: StandardizedTransformer,
    source: SourcePrompts | Latents,
    target_prompts: TargetPrompts,
    target_positions: TargetPositions | None = None,
    targets: Targets | None = None,
    *,
    images: Any = None,
    source_positions: Positions = "last",
    source_model: StandardizedTransformer | None = None,
    layers: Sequence[int] | None = None,
    patch: Patch = "one_layer",
    site: str = "resid_post",
    mapping: LatentMap | None = None,
    policy: str = "first_token",
    top_k: int = 5,
    batch_size: int = 64,
    batch_tokens: int | None = None,
    remote: bool | str = False,
) -> LensResult:
    """Patchscope lens (Ghandeharioun et al. 2024): write latents into target prompts, read the next token.

    For each layer j the target prompt is run once, with the source's latent written over the target's own at one token:
    at layer j only (`one_layer`), or at j and every later layer, each with the latent of that same layer (`from_layer`,
    Dumas et al. 2025). What the model then predicts after the target prompt's last token is the reading of layer j.

        patchscope_lens(model, ["The capital of France", "..."], "cat")
        patchscope_lens(model, Latents(hidden, layers=[3, 5]), "cat")

    Source prompts are read some hundred at a time and written before the next are: memory does not depend on how many
    there are, but for the result.

    Arguments:
        model: the model that runs the target prompts.
        source: source prompts: a text, `Prompt` or list of token ids; or one for each example; or for an example a list
            of them, whose mean is written (Dumas et al. 2025). Or `Latents`, which are written as they are. One stands
            for all target prompts.
        target_prompts: one for all examples, or one each: texts, `Prompt`s, `TargetPrompt`s, lists of token ids, or
            names of `interp.prompts.TARGET_NAMES` (`cat`, `description`, `country_currency`, `chat`).
        target_positions: the token that is written over, in the vocabulary of `interp.positions`; or several, as many
            as are read, all at once; or for each target prompt a list of its own, counted from 0. None: the placeholder
            of the target prompt, or its last token.
        targets: the groups whose probability is read: name -> words (or token ids), for all examples or a mapping for
            each; or per example, per group: token ids. None: the targets of the target prompts that are `Prompt`s, or
            where none has any, of the source prompts.
        images: of the source prompts, an entry for each (of an example with several, an entry each in that); target
            prompts are texts.
        source_positions: the token of a source prompt that is read, in the vocabulary of `interp.positions`; or
            several, which are written at once.
        source_model: the model that runs the source prompts; None: `model`. One of another width needs a `mapping`.
        layers: the layers j, ascending; None: all that there are latents of, or that both models have. `one_layer`
            needs latents of these, `from_layer` of every layer from the first of them to the model's last.
        patch: `one_layer` or `from_layer`.
        site: kind of site that is read and written, a hidden state that each layer has (`interp.sites.HIDDEN_KINDS`).
        mapping: turns the latents into what is written (`interp.translators`); latents of a model of another width need
            one. None: they are written as they are.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.
        top_k: how many top tokens are kept.
        batch_size: target prompts in a forward pass at most; memory does not depend on the number of examples.
        batch_tokens: tokens of source prompts in a forward pass at most; see `interp.activations.collect`.
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
    check_patch(patch, site)
    given = PatchscopeInputs.of(
        model, source, target_prompts, target_positions, images=images, source_positions=source_positions,
        source_model=source_model, targets=targets, policy=policy, batch_tokens=batch_tokens,
    )  # fmt: skip
    if remote and given.source.reader is not None:
        raise InterpError(
            "remote: source prompts are read here. Collect their states with `collect(..., remote=...)`, and give them "
            "as `Latents`."
        )
    chosen = asked_layers(given, layers)
    lens = partial(
        _of_part, model, layers=chosen, patch=patch, site=site, mapping=mapping, top_k=top_k, batch_size=batch_size,
        remote=remote,
    )  # fmt: skip
    return given.results(site, needed_layers(chosen, patch, model), lens)


@in_turn
def _of_part(
    model: StandardizedTransformer,
    part: Part,
    *,
    layers: tuple[int, ...],
    patch: Patch,
    site: str,
    mapping: LatentMap | None,
    top_k: int,
    batch_size: int,
    remote: bool | str,
) -> LensResult:
    """The lens of examples whose latents are there."""
    held_layers(layers, part.layers, patch, site, model.num_layers)
    prompts = part.prompts(model, mapped=mapping is not None)
    check_lens_inputs(prompts, part.groups, part.reference, batch_size)
    padded = TokenGroups.pad(part.groups, model.vocab_size)
    plan = LayersPlan(prompts, site, patch, layers, mapping)
    if remote and len(prompts):
        if mapping is not None:
            raise InterpError("mapping: latents go to a remote model as they are. Map them first, or leave it out.")
        writes = [plan.writes(layer, prompts.latents.cpu()) for layer in layers]
        given: dict[str, Any] = dict(layers=layers, top_k=top_k, batch_size=batch_size, remote=remote)
        return patch_elsewhere(
            model, prompts.input_ids, prompts.positions, writes, padded, **given, reference=part.reference
        )
    parts, order = [], []
    for chosen, (hidden, clean) in run(plan, batch_size):
        rows = torch.tensor(chosen, dtype=torch.long, device="cpu")
        order += chosen
        groups = padded.rows(rows)
        parts.append(
            read_layers(
                model,
                hidden,
                groups,
                layers=layers,
                top_k=top_k,
                reference=part.known(rows),
                baseline=read_baseline(model, clean, groups),
            )
        )
    return LensResult.concatenate(parts, order=order)


def asked_layers(given: PatchscopeInputs, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers that a patchscope goes through.

    Arguments:
        given: what it is given.
        layers: as the user names them; None: all.

    Raises:
        InterpError: there is none.
    """
    chosen = given.source.all_layers(given.model.num_layers) if layers is None else tuple(int(each) for each in layers)
    if not chosen:
        raise InterpError("layers: expected at least one, got none.")
    return chosen


def needed_layers(layers: Sequence[int], patch: Patch, model: StandardizedTransformer) -> Sequence[int]:
    """The layers that latents are needed of: each of those asked for, or every one from the first of them on."""
    return layers if patch == "one_layer" else range(min(layers), model.num_layers)


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
