"""Direct logit attribution: which parts of a model write the answer, and how much does each add to its logit?

The residual stream at the end is a sum of what the embedding, every attention, mixer and MLP have added, and the
readout tail is linear once the final norm's scale is held at what it is for the whole sum. So every logit is a sum too.
A part that adds little may still matter, through the parts that read it; and one that adds much may be undone by a
later one. In plain nnsight, with a root-mean-square norm (eps its own):

    contribution = {}
    with model.trace(prompt):
        for layer in range(model.num_layers):
            contribution[layer] = model.attentions_output[layer][:, -1]
        final = model.layers_output[-1][:, -1]
        scale = (final.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        for layer, part in contribution.items():
            contribution[layer] = (part / scale * model.ln_final.weight) @ model.lm_head.weight[token]

Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021); nostalgebraist's logit lens reads partial
sums of it; `apply_ln_to_stack` of TransformerLens is the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    lens_sites,
    states_of_prompts,
)
from interp.readout import TokenGroups
from interp.readout.linear_tail import mean_logits, residual_scales, scaled, tail_at
from interp.results import Attribution
from interp.sites import Site, Spelling

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["direct_logit_attribution"]


_ROLES = {"attn_out": "attention", "head_out": "attention", "mixer_out": "mixer", "mlp_out": "mlp"}
_PARTS = ("embed", *_ROLES)


@torch.no_grad()
def direct_logit_attribution(
    model: StandardizedTransformer,
    source: LensPrompt | Sequence[LensPrompt],
    targets: Targets | None = None,
    *,
    images: Any = None,
    sites: Spelling | Sequence[Spelling] | None = None,
    positions: Positions = "last",
    policy: str = "first_token",
    batch_tokens: int | None = None,
) -> Attribution:
    """Direct logit attribution (Elhage et al. 2021): what parts of a model add to the logits of some tokens.

    Each part goes through the final norm with the scale, and the mean, frozen at the model's own last residual stream,
    and through the head. The final softcap (Gemma 2) is no sum and is left out: contributions add up to what it caps.

    Arguments:
        model: the model.
        source: one text or `Prompt`, or several, or lists of token ids.
        targets: the groups: name -> words (or token ids), for all prompts or a mapping for each; or per prompt, per
            group: token ids. None: the targets of the prompts that are `Prompt`s.
        images: of the prompts, as of `model.run`: for one an image or several, for several an entry each. Prompts with
            images run whole.
        sites: the parts: `embed`, `attn_out`, `mixer_out`, `mlp_out`, `head_out` (each head; what the bias of its
            projection adds is left to the remainder). None: the embedding and whole attentions, mixers and MLPs.
        positions: where, one or several of the vocabulary in `interp.positions`.
        policy: which tokens count as a word; see `interp.prompts.answer_tokens`.
        batch_tokens: tokens in a forward pass at most; see `interp.activations.collect`. Memory does not depend on how
            many prompts there are, but for the result.

    Returns:
        Contributions in logits, and what is left.

    Raises:
        InterpError: the model is no sum of its parts (a norm after the sum, something curved before the head), no
            targets, parts of which one holds another, or a site or position that is not there.
    """
    scales = residual_scales(model)
    encoded = encode_prompts(model, source, positions, targets, policy, images=images, name="source")
    if not encoded.groups[0]:
        raise InterpError(
            "direct logit attribution: expected targets, whose logits are taken apart, e.g. {'it': ['cane']}."
        )
    chosen = lens_sites(model, _all_parts(model) if sites is None else sites, _PARTS)
    _check_apart(chosen)
    last = Site("resid_post", model.num_layers - 1)
    groups = TokenGroups.pad(encoded.groups, model.vocab_size)
    found: dict[str, list[Tensor]] = {"contribution": [], "logit": [], "remainder": []}
    constant = torch.full(
        (len(encoded.input_ids), len(encoded.groups[0])), torch.nan, dtype=torch.float32, device="cpu"
    )
    examples, slots = [], []
    for of_cell, slot, hidden in states_of_prompts(model, encoded, [*chosen, last], batch_tokens):
        norm, rows = tail_at(model, hidden[-1], groups.rows(of_cell))
        parts = [scaled(hidden[index].float(), scales[_stage_of(site)]) for index, site in enumerate(chosen)]
        read = norm(torch.stack(parts).to(norm.gain.device)).to(rows.weight.device)  # (site, cell, hidden)
        contribution = torch.einsum("sch,cgh->csg", read, rows.weight).float()  # whatever autocast makes of it
        fixed = (rows.bias + rows.weight @ norm.bias.to(rows.weight.device)).float()  # (cell, group)
        logit = mean_logits(model, hidden[-1], groups.rows(of_cell)).to(fixed.device)
        constant[of_cell] = fixed.cpu()
        found["contribution"].append(contribution.cpu())
        found["logit"].append(logit.cpu())
        found["remainder"].append((logit - contribution.sum(1) - fixed).cpu())
        examples.append(of_cell)
        slots.append(slot)
    arrays = {name: torch.cat(values).numpy() for name, values in found.items()}
    placed, leading = arranged(arrays, encoded, torch.cat(examples).numpy(), torch.cat(slots).numpy())
    coordinates = {**leading, "site": [str(site) for site in chosen]}
    return Attribution(coordinates, constant=constant.numpy(), group_names=encoded.group_names, **placed)


def _all_parts(model: StandardizedTransformer) -> list[Site]:
    layers = range(model.num_layers)
    parts = [Site(kind, layer) for layer in layers for kind in ("attn_out", "mixer_out", "mlp_out")]
    return [Site("embed"), *(site for site in parts if model.has(site))]


def _check_apart(sites: Sequence[Site]) -> None:
    whole = {site.layer for site in sites if site.kind == "attn_out"}
    for site in sites:
        if site.kind == "head_out" and site.layer in whole:
            raise InterpError(f"sites: {site} is a part of attn_out.{site.layer}. Ask for one or the other.")


def _stage_of(site: Site) -> tuple[int, str]:
    return (-1, "embed") if site.layer is None else (site.layer, _ROLES[site.kind])
