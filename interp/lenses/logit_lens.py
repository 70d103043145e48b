"""The logit lens: what would the model say if it stopped after this layer?

The model's own readout, final norm and head, is applied to the residual stream after every layer, or to a part of it.
Early layers need not write in the code that the head reads, so that an answer may be there before the lens shows it
(the tuned lens asks that); and a part read by itself gets a size from the final norm that it has not in the sum
(`direct_logit_attribution` keeps it). In plain nnsight:

    log_prob = {}
    with model.trace(prompt):
        for layer in range(model.num_layers):
            hidden = model.layers_output[layer][:, -1]
            log_prob[layer] = model.lm_head(model.ln_final(hidden)).log_softmax(-1)

nostalgebraist, "interpreting GPT: the logit lens" (2020),
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.reading import (
    LensPrompt,
    Positions,
    Targets,
    arranged,
    encode_prompts,
    groups_of,
    lens_sites,
    read_layers,
    states_of_prompts,
)
from interp.lenses.remote import read_out_elsewhere
from interp.lenses.sources import Latents, check_no_images_of_latents
from interp.readout import TokenGroups
from interp.results import Coordinate, LensResult
from interp.sites import Site, Spelling
from interp.sites.parsing import check_lens_layers

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Carry", "logit_lens", "read_carried"]

READABLE_KINDS = (
    "embed", "resid_pre", "resid_mid", "resid_post", "final_norm", "attn_out", "mixer_out", "mlp_out", "head_out",
)  # fmt: skip
Carry = Callable[[Tensor, tuple[int, ...]], Tensor]
"""What is read out in place of residual streams (layer, row, hidden) after some layers."""


@torch.no_grad()
def logit_lens(
    model: StandardizedTransformer,
    source: LensPrompt | Sequence[LensPrompt] | Latents,
    targets: Targets | None = None,
    *,
    images: Any = None,
    sites: Spelling | Sequence[Spelling] = "resid_post.*",
    positions: Positions = "last",
    policy: str = "first_token",
    top_k: int = 5,
    inverted: bool = False,
    surprisal: bool = True,
    batch_size: int = 256,
    batch_tokens: int | None = None,
    remote: bool | str = False,
) -> LensResult:
    """Logit lens (nostalgebraist 2020): read hidden states of inner layers out as if they were the last layer's.

    The readout is the model's own tail, so the last layer gives the model's own prediction, also where that has a
    softcap (Gemma 2) or a scale (Cohere, Granite).

        logit_lens(model, ["The capital of France is", "..."], {"capital": "Paris"})
        logit_lens(model, Latents(hidden, layers=[3, 5]), groups)

    Prompts run as `interp.activations.collect` runs them, some hundreds are read out before the next run: memory does
    not depend on how many there are, but for the result. A contribution (`attn_out`, `mlp_out`, `head_out`) is read as
    if it were the whole residual stream, so the final norm gives it a size that it has not in the sum; contributions
    that add up to the logits are those of `direct_logit_attribution`.

    Arguments:
        model: the model.
        source: one text or `Prompt`, or several, or lists of token ids; or `Latents` (layer, example, hidden_size),
            residual streams after layers, one token an example.
        targets: the groups whose probability is read: name -> words (or token ids), for all examples or a mapping for
            each; or per example, per group: token ids. None: the targets of the prompts that are `Prompt`s.
        images: of the prompts, as of `model.run`: for one an image or several, for several an entry each. Prompts with
            images run whole.
        sites: what is read of prompts: `embed`, `resid_pre`, `resid_mid`, `resid_post`, `final_norm` (by the head
            alone), `attn_out`, `mixer_out`, `mlp_out`, `head_out` (each head); any spelling of `interp.sites`, or
            several.
        positions: where in prompts, one or several of the vocabulary in `interp.positions`.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.
        top_k: how many top tokens are kept.
        inverted: negate after the final norm: the tokens that a state lowers.
        surprisal: also read what the model itself says at each position, for `surprisal` and `model_top_id`.
        batch_size: examples of `Latents` that are read out at once; of prompts, as many as fit.
        batch_tokens: tokens of prompts in a forward pass at most; see `interp.activations.collect`.
        remote: for `Latents`. True: read out on NDIF, in one session; `local`: packed as for a server, and run here; or
            an address.

    Returns:
        The lens, logarithms in nats. Axes `example`, then `position` where prompts are read at more than one single
        position, then `layer` where all sites are of one kind that layers have, or else `site`. `kl` is from the lens
        at the model's last layer, or at the last of the latents.

    Raises:
        InterpError: shapes that do not fit, layers that the model does not have, a site that cannot be read out or that
            the model has not, a position that a prompt has not, targets without tokens, token ids outside the
            vocabulary, `top_k` out of range.
    """
    if isinstance(source, Latents):
        check_no_images_of_latents(images)
        if sites != "resid_post.*" or positions != "last" or batch_tokens is not None:
            raise InterpError("sites, positions, batch_tokens: they say how prompts are read, and `Latents` are given.")
        return _of_latents(
            model, source, targets, policy, None, top_k=top_k, inverted=inverted, surprisal=surprisal,
            batch_size=batch_size, remote=remote,
        )  # fmt: skip
    if remote:
        raise InterpError(
            "remote: prompts are run here. Collect their states with `collect(..., remote=...)`, and give them as "
            "`Latents`."
        )
    chosen = lens_sites(model, sites, READABLE_KINDS)
    return _of_prompts(
        model, source, targets, policy, None, images=images, sites=chosen, positions=positions, top_k=top_k,
        inverted=inverted, surprisal=surprisal, batch_tokens=batch_tokens,
    )  # fmt: skip


@torch.no_grad()
def read_carried(
    model: StandardizedTransformer,
    source: LensPrompt | Sequence[LensPrompt] | Latents,
    targets: Targets | None,
    carry: Carry,
    *,
    images: Any,
    layers: Sequence[int],
    positions: Positions,
    policy: str,
    top_k: int,
    inverted: bool,
    batch_size: int,
    batch_tokens: int | None,
) -> LensResult:
    """The logit lens of what residual streams after layers are carried to: of a tuned lens, of a Jacobian lens.

    Arguments:
        carry: gives what is read out in their place, and leaves the model's last layer as it is.
        layers: the layers, ascending.
        model, source, targets, images, positions, policy, top_k, inverted, batch_size, batch_tokens: as in
            `logit_lens`.
    """
    if isinstance(source, Latents):
        check_no_images_of_latents(images)
        if positions != "last" or batch_tokens is not None:
            raise InterpError("positions, batch_tokens: they say how prompts are read, and `Latents` are given.")
        return _of_latents(
            model, source.at(layers), targets, policy, carry, top_k=top_k, inverted=inverted, surprisal=True,
            batch_size=batch_size, remote=False,
        )  # fmt: skip
    layers = check_lens_layers(layers, model.num_layers)
    return _of_prompts(
        model, source, targets, policy, carry, images=images, sites=[Site("resid_post", layer) for layer in layers],
        positions=positions, top_k=top_k, inverted=inverted, surprisal=True, batch_tokens=batch_tokens,
    )  # fmt: skip


def _of_latents(
    model: StandardizedTransformer,
    source: Latents,
    targets: Targets | None,
    policy: str,
    carry: Carry | None,
    *,
    top_k: int,
    inverted: bool,
    surprisal: bool,
    batch_size: int,
    remote: bool | str,
) -> LensResult:
    layers = check_lens_layers(source.all_layers(model.num_layers), model.num_layers)
    hidden, reference = source.tensor, source.reference if surprisal else None
    expected = (len(layers), len(source), model.hidden_size)
    if tuple(hidden.shape) != expected:
        raise InterpError(
            f"latents: expected shape (layer, example, hidden_size) = {expected}, got {tuple(hidden.shape)}."
        )
    if reference is not None and tuple(reference.shape) != expected[1:]:
        raise InterpError(
            f"reference: expected shape (example, hidden_size) = {expected[1:]}, got {tuple(reference.shape)}."
        )
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    groups, names = groups_of(model, [None] * len(source), targets, policy)
    padded = TokenGroups.pad(groups, model.vocab_size)
    if remote and len(source):
        given: dict[str, Any] = dict(layers=layers, top_k=top_k, batch_size=batch_size, remote=remote)
        found = read_out_elsewhere(model, hidden, padded, **given, reference=reference, inverted=inverted)
        return replace(found, group_names=names)
    parts = []
    for start in range(0, max(len(source), 1), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(
            read_layers(
                model,
                hidden[:, rows] if carry is None else carry(hidden[:, rows], layers),
                padded.rows(rows),
                layers=layers,
                top_k=top_k,
                reference=None if reference is None else reference[rows],
                inverted=inverted,
            )
        )
    return replace(LensResult.concatenate(parts), group_names=names)


def _of_prompts(
    model: StandardizedTransformer,
    prompts: LensPrompt | Sequence[LensPrompt],
    targets: Targets | None,
    policy: str,
    carry: Carry | None,
    *,
    images: Any,
    sites: Sequence[Site],
    positions: Positions,
    top_k: int,
    inverted: bool,
    surprisal: bool,
    batch_tokens: int | None,
) -> LensResult:
    encoded = encode_prompts(model, prompts, positions, targets, policy, images=images, name="source")
    last = Site("resid_post", model.num_layers - 1)
    # The final norm of the last residual stream is what the head reads: both are one reading.
    read = [last if site.kind == "final_norm" else site for site in sites]
    asked = list(dict.fromkeys([*read, last]))
    compared = [*read, *([] if read[-1] == last else [last])]  # the last is what `kl` compares with
    where = torch.tensor([asked.index(site) for site in compared], device="cpu")
    padded = TokenGroups.pad(encoded.groups, model.vocab_size)
    parts, examples, slots = [], [], []
    for of_cell, slot, hidden in states_of_prompts(model, encoded, asked, batch_tokens):
        examples.append(of_cell)
        slots.append(slot)
        states = hidden[where]
        if carry is not None:
            states = carry(states, tuple(site.layer for site in compared if site.layer is not None))
        parts.append(
            read_layers(
                model,
                states,
                padded.rows(of_cell),
                layers=tuple(range(len(where))),
                top_k=top_k,
                reference=hidden[-1] if surprisal else None,
                inverted=inverted,
            )
        )
    cells = LensResult.concatenate(parts).select(layer=range(len(read)))
    arrays, leading = arranged(cells.arrays(), encoded, torch.cat(examples).numpy(), torch.cat(slots).numpy())
    coordinates = {**leading, **_site_axis(sites)}
    return LensResult(coordinates=coordinates, group_names=encoded.group_names, **arrays)


def _site_axis(sites: Sequence[Site]) -> dict[str, list[Coordinate]]:
    """The axis along which sites stand: their layers, where that is all that tells them apart."""
    if len({site.kind for site in sites}) == 1 and all(site.layer is not None and site.head is None for site in sites):
        return {"layer": [site.layer for site in sites if site.layer is not None]}
    return {"site": [str(site) for site in sites]}
