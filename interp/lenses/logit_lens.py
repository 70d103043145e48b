"""The logit lens: the model's own readout, applied to the residual stream after every layer, or to a part of it.

nostalgebraist, "interpreting GPT: the logit lens" (2020),
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.lenses.on_prompts import LensPrompt, Targets, arranged, encode_prompts, lens_sites, states_of_prompts
from interp.lenses.reading import read_layers
from interp.lenses.remote import read_out_elsewhere
from interp.readout import Groups, TokenGroups
from interp.results import Coordinate, LensResult
from interp.sites import Site, Spelling
from interp.sites.parsing import check_lens_layers

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["logit_lens", "logit_lens_on_prompts"]

READABLE_KINDS = (
    "embed", "resid_pre", "resid_mid", "resid_post", "final_norm", "attn_out", "mixer_out", "mlp_out", "head_out",
)  # fmt: skip


@torch.no_grad()
def logit_lens(
    model: StandardizedTransformer,
    hidden: Tensor,
    groups: Groups,
    *,
    layers: Sequence[int],
    top_k: int = 5,
    batch_size: int = 256,
    reference: Tensor | None = None,
    inverted: bool = False,
    remote: bool | str = False,
) -> LensResult:
    """Logit lens (nostalgebraist 2020): read hidden states of inner layers out as if they were the last layer's.

    The readout is the model's own tail, so the last layer gives the model's own prediction, also where that has a
    softcap (Gemma 2) or a scale (Cohere, Granite).

    Arguments:
        model: the model.
        hidden: (layer, example, hidden_size), residual streams, one token an example; any device and float dtype.
        groups: per example, per group: token ids whose probability is summed.
        layers: what the axis `layer` of `hidden` stands for, ascending.
        top_k: how many top tokens are kept.
        batch_size: examples that are read out at once.
        reference: (example, hidden_size), the residual stream after the model's last layer at the same token, which
            gives `surprisal` and `model_top_id`; None: not known.
        inverted: negate `hidden` after the final norm: the tokens that it lowers.
        remote: True: read out on NDIF, in one session; `local`: packed as for a server, and run here; or an address.

    Returns:
        The lens over all examples, axes `example` and `layer`; logarithms in nats, `kl` from the last of `layers`.

    Raises:
        InterpError: shapes that do not fit, layers that the model does not have, token ids outside its vocabulary.
    """
    layers = check_lens_layers(layers, model.num_layers)
    examples = len(groups)
    expected = (len(layers), examples, model.hidden_size)
    if tuple(hidden.shape) != expected:
        raise InterpError(
            f"hidden: expected shape (layer, example, hidden_size) = {expected}, got {tuple(hidden.shape)}."
        )
    if reference is not None and tuple(reference.shape) != expected[1:]:
        raise InterpError(
            f"reference: expected shape (example, hidden_size) = {expected[1:]}, got {tuple(reference.shape)}."
        )
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    padded = TokenGroups.pad(groups, model.vocab_size)
    if remote and examples:
        given: dict[str, Any] = dict(layers=layers, top_k=top_k, batch_size=batch_size, remote=remote)
        return read_out_elsewhere(model, hidden, padded, **given, reference=reference, inverted=inverted)
    parts = []
    for start in range(0, max(examples, 1), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(
            read_layers(
                model,
                hidden[:, rows],
                padded.rows(rows),
                layers=layers,
                top_k=top_k,
                reference=None if reference is None else reference[rows],
                inverted=inverted,
            )
        )
    return LensResult.concatenate(parts)


@torch.no_grad()
def logit_lens_on_prompts(
    model: StandardizedTransformer,
    prompts: LensPrompt | Sequence[LensPrompt],
    *,
    sites: Spelling | Sequence[Spelling] = "resid_post.*",
    positions: str | int | Sequence[str | int] = "last",
    targets: Targets | Sequence[Targets] | None = None,
    policy: str = "first_token",
    top_k: int = 5,
    inverted: bool = False,
    batch_tokens: int | None = None,
    reference: bool = True,
) -> LensResult:
    """Logit lens (nostalgebraist 2020) on prompts: run them, and read sites out through the model's own tail.

    Prompts run as `interp.activations.collect` runs them, some hundreds are read out before the next run: memory does
    not depend on how many there are, but for the result. A contribution (`attn_out`, `mlp_out`, `head_out`) is read as
    if it were the whole residual stream, so the final norm gives it a size that it has not in the sum; contributions
    that add up to the logits are those of `direct_logit_attribution`.

    Arguments:
        model: the model.
        prompts: one text or `Prompt`, or several, or lists of token ids.
        sites: what is read: `embed`, `resid_pre`, `resid_mid`, `resid_post`, `final_norm` (by the head alone),
            `attn_out`, `mixer_out`, `mlp_out`, `head_out` (each head); any spelling of `interp.sites`, or several.
        positions: where, one or several of the vocabulary in `interp.positions`.
        targets: the groups: name -> words (or token ids), for all prompts or a mapping for each; None: the targets of
            the prompts that are `Prompt`s.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.
        top_k: how many top tokens are kept.
        inverted: negate after the final norm: the tokens that a state lowers.
        batch_tokens: tokens in a forward pass at most; see `interp.activations.collect`.
        reference: also read what the model itself says at each position, for `surprisal` and `model_top_id`.

    Returns:
        The lens, logarithms in nats. Axes `example`, then `position` unless one single position is asked for, then
        `layer` where all sites are of one kind that layers have, or else `site`. `kl` is from the lens at the model's
        last layer.

    Raises:
        InterpError: a site that cannot be read out or that the model has not, a position that a prompt has not,
            targets without tokens, `top_k` out of range.
    """
    encoded = encode_prompts(model, prompts, positions, targets, policy)
    chosen = lens_sites(model, sites, READABLE_KINDS)
    last = Site("resid_post", model.num_layers - 1)
    # The final norm of the last residual stream is what the head reads: both are one reading.
    read = [last if site.kind == "final_norm" else site for site in chosen]
    asked = list(dict.fromkeys([*read, last]))
    where = torch.tensor([asked.index(site) for site in [*read, *([] if read[-1] == last else [last])]], device="cpu")
    groups = TokenGroups.pad(encoded.groups, model.vocab_size)
    parts, examples, slots = [], [], []
    for of_cell, slot, hidden in states_of_prompts(model, encoded, asked, batch_tokens):
        examples.append(of_cell)
        slots.append(slot)
        parts.append(
            read_layers(
                model,
                hidden[where],
                groups.rows(of_cell),
                layers=tuple(range(len(where))),
                top_k=top_k,
                reference=hidden[-1] if reference else None,
                inverted=inverted,
            )
        )
    cells = LensResult.concatenate(parts).select(layer=range(len(read)))
    arrays, leading = arranged(cells.arrays(), encoded, torch.cat(examples).numpy(), torch.cat(slots).numpy())
    coordinates = {**leading, **_site_axis(chosen)}
    return LensResult(coordinates=coordinates, group_names=encoded.group_names, **arrays)


def _site_axis(sites: Sequence[Site]) -> dict[str, list[Coordinate]]:
    """The axis along which sites stand: their layers, where that is all that tells them apart."""
    if len({site.kind for site in sites}) == 1 and all(site.layer is not None and site.head is None for site in sites):
        return {"layer": [site.layer for site in sites if site.layer is not None]}
    return {"site": [str(site) for site in sites]}
