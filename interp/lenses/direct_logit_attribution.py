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
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.architectures import Sublayer
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
from interp.readout import TokenGroups, logits_of
from interp.results import Attribution
from interp.sites import Site, Spelling

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["FrozenNorm", "HeadRows", "direct_logit_attribution"]


_ROLES = {"attn_out": "attention", "head_out": "attention", "mixer_out": "mixer", "mlp_out": "mlp"}
_PARTS = ("embed", *_ROLES)
Scale = float | Tensor


@torch.no_grad()
def direct_logit_attribution(
    model: StandardizedTransformer,
    source: LensPrompt | Sequence[LensPrompt],
    targets: Targets | None = None,
    *,
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
    scales = _scales(model)
    encoded = encode_prompts(model, source, positions, targets, policy, name="source")
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
        norm, rows = _tail_at(model, hidden[-1], groups.rows(of_cell))
        parts = [_scaled(hidden[index].float(), scales[_stage_of(site)]) for index, site in enumerate(chosen)]
        read = norm(torch.stack(parts).to(norm.gain.device)).to(rows.weight.device)  # (site, cell, hidden)
        contribution = torch.einsum("sch,cgh->csg", read, rows.weight).float()  # whatever autocast makes of it
        fixed = (rows.bias + rows.weight @ norm.bias.to(rows.weight.device)).float()  # (cell, group)
        logit = _logits(model, hidden[-1], groups.rows(of_cell)).to(fixed.device)
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


def _scales(model: StandardizedTransformer) -> dict[tuple[int, str], Scale]:
    """What later layers multiply each part with, where they scale the residual stream itself; by layer and role.

    Raises:
        InterpError: a norm that the whole sum goes through: the last residual stream is no sum of the parts.
    """
    stages: list[list[tuple[tuple[int, str], Sublayer]]] = []
    for layer in range(model.num_layers):
        module = model.layer(layer)._module
        named = [((layer, role), part) for role, part in model.architecture.sublayers(module)]
        for (_, role), part in named:
            norm = part.norm_after or part.residual_norm
            if norm is not None:
                raise InterpError(
                    f"direct logit attribution: in {type(model._module).__name__} the residual stream itself goes "
                    f"through a norm ({norm} at {role} of layer {layer}), so the last one is no sum of what the parts "
                    "add, and contributions to logits are not defined. `logit_lens` reads each by itself."
                )
        if model.has(Site("resid_mid", layer)):
            stages.append([each for each in named if each[0][1] != "mlp"])
            stages.append([each for each in named if each[0][1] == "mlp"])
        else:
            stages.append(named)
    scales: dict[tuple[int, str], Scale] = {}
    later: Scale = 1.0
    for stage in reversed(stages):
        scales |= {key: later for key, _ in stage}
        (layer, _), first = stage[0]
        if first.residual_scale is not None:
            later = later * getattr(model.layer(layer)._module, first.residual_scale)
    return {**scales, (-1, "embed"): later}


def _scaled(part: Tensor, scale: Scale) -> Tensor:
    return part * (scale.to(part) if isinstance(scale, Tensor) else scale)


def _tail_at(model: StandardizedTransformer, hidden: Tensor, groups: TokenGroups) -> tuple[FrozenNorm, HeadRows]:
    norm = None if model.tail.norm is None else model._module.get_submodule(model.tail.norm)
    return FrozenNorm.at(norm, model.tail_input(hidden)), HeadRows.of(model, groups)


def _logits(model: StandardizedTransformer, hidden: Tensor, groups: TokenGroups) -> Tensor:
    """(cell, group), the mean over a group's tokens of the model's own logits before the softcap."""
    members = logits_of(model, hidden, groups.ids.flatten(1), softcap=False).view(groups.ids.shape)
    groups = groups.to(members.device)
    members = members * groups.valid
    return members.sum(-1) / groups.valid.sum(-1)


@dataclass(frozen=True)
class FrozenNorm:
    """norm(x) = gain * (x, centred or not) + bias, with the gain that the norm has at given residual streams.

    How a family stores weight and epsilon need not be known: the norm is asked for what it does to zeros, ones, an
    alternating vector and the residual streams, and is refused where it is no such norm.

    Arguments:
        gain: (row, hidden) float32.
        bias: (hidden,) float32.
        centred: the mean over the hidden axis is taken away first (layer norm).
    """

    gain: Tensor
    bias: Tensor
    centred: bool

    @classmethod
    def at(cls, norm: nn.Module | None, hidden: Tensor) -> FrozenNorm:
        """The norm at residual streams.

        Arguments:
            norm: the final norm; None: there is none.
            hidden: (row, hidden), on its device and in its dtype.

        Raises:
            InterpError: it is not linear once its scale is held.
        """
        if norm is None:
            return cls(torch.ones_like(hidden).float(), torch.zeros_like(hidden[0]).float(), centred=False)
        ones = torch.ones_like(hidden[:1])
        probe = _alternating(ones)
        bias = norm(torch.zeros_like(ones)).double()
        weight = (norm(probe).double() - bias) / probe.double()  # but for a factor
        centred = bool((norm(ones).double() - bias).abs().max() < 0.5 * weight.abs().max())
        shape = weight * _moved(hidden.double(), centred)
        normed = norm(hidden).double() - bias
        factor = (normed * shape).sum(-1, keepdim=True) / (shape * shape).sum(-1, keepdim=True)
        frozen = cls((weight * factor).float(), bias[0].float(), centred)
        wrong = float((frozen(hidden.float()) + frozen.bias - norm(hidden).float()).abs().max())
        if not wrong <= 16 * torch.finfo(hidden.dtype).eps * float(norm(hidden).abs().max()):
            raise InterpError(
                f"direct logit attribution: the final norm {type(norm).__name__} is not linear once its scale is held "
                f"(off by {wrong:.2g}), so contributions through it do not add up."
            )
        return frozen

    def __call__(self, part: Tensor) -> Tensor:
        """What a part of the residual streams gives, without the bias: (..., row, hidden) float32."""
        return self.gain * _moved(part, self.centred)


def _moved(hidden: Tensor, centred: bool) -> Tensor:
    return hidden - hidden.mean(-1, keepdim=True) if centred else hidden


def _alternating(ones: Tensor) -> Tensor:
    """A vector without mean and without zeros, nearly all of one size."""
    probe = ones.clone()
    probe[..., 1::2] = -1
    if probe.shape[-1] % 2:
        probe[..., -1] = -2
        probe[..., -2] = 1
    return probe


@dataclass(frozen=True)
class HeadRows:
    """What the head multiplies its input with for groups of tokens, the mean over a group's tokens.

    Arguments:
        weight: (row, group, hidden) float32, on the hidden axis of the residual stream; NaN: empty group.
        bias: (row, group) float32.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, model: StandardizedTransformer, groups: TokenGroups) -> HeadRows:
        """The rows of a model's head, with the linear maps before it, its scale and its divisor.

        Raises:
            InterpError: something before the head is not linear, or the weights are not in memory.
        """
        tail, module = model.tail, model._module
        *between, head = (module.get_submodule(path) for path in tail.paths[0 if tail.norm is None else 1 :])
        for part in (*between, head):
            if not isinstance(part, nn.Linear):
                raise InterpError(
                    f"direct logit attribution: {type(module).__name__} has {type(part).__name__} between its final "
                    "norm and its logits, which is not linear, so contributions do not add up to logits. "
                    "`logit_lens` reads each by itself."
                )
            if part.weight.is_meta:
                raise InterpError("direct logit attribution: the head's weights are offloaded; load them in memory.")
        groups = groups.to(head.weight.device)
        count = groups.valid.sum(-1)  # (row, group)
        weight = _mean(head.weight[groups.ids], groups, count)
        bias = torch.zeros_like(weight[..., 0])
        if head.bias is not None:
            bias = _mean(head.bias[groups.ids][..., None], groups, count)[..., 0]
        for part in reversed(between):
            if part.bias is not None:
                bias = bias + weight @ part.bias.float().to(weight.device)
            weight = weight @ part.weight.float().to(weight.device)
        scale = (1.0 if tail.scale is None else tail.scale) / (1.0 if tail.divisor is None else tail.divisor)
        return cls(weight * scale, bias * scale)


def _mean(rows: Tensor, groups: TokenGroups, count: Tensor) -> Tensor:
    """Mean over a group's tokens: (row, group, width, n) -> (row, group, n)."""
    return (rows.float() * groups.valid[..., None]).sum(2) / count[..., None]
