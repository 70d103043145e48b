"""Runs lenses where a model's weights are: one nnsight session a call, on NDIF or in its simulation.

Every forward pass is a plain trace of left-padded prompts, and what is read is reduced over the vocabulary there, by a
few lines of torch: the fast ways switch transformers' own functions for a pass, which is not for a machine that others
use too. What a session runs is sent as source, so nothing here is decorated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.batching import left_padded
from interp.errors import InterpError
from interp.readout import TokenGroups
from interp.results import LensResult
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["patch_elsewhere", "read_out_elsewhere"]

Run = tuple[dict[str, Tensor], Tensor, Tensor, list[tuple[Site, Tensor]]]
"""A forward pass: what it is fed; rows and columns that are written, and at each site what is written there."""


def read_out_elsewhere(
    model: StandardizedTransformer,
    hidden: Tensor,
    groups: TokenGroups,
    *,
    layers: tuple[int, ...],
    top_k: int,
    batch_size: int,
    reference: Tensor | None,
    inverted: bool,
    remote: bool | str,
) -> LensResult:
    """The logit lens in a remote session; see `interp.lenses.logit_lens`."""
    batches = list(_cut(len(groups), batch_size))
    work: list[tuple[Tensor, list[Run]]] = [(hidden[:, rows], []) for rows in batches]
    found = _read(model, work, _given(batches, groups, reference), top_k, inverted, remote)
    return _joined(found, layers, with_baseline=False)


def patch_elsewhere(
    model: StandardizedTransformer,
    target_ids: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    writes: Sequence[Sequence[tuple[Site, Tensor]]],
    groups: TokenGroups,
    *,
    layers: tuple[int, ...],
    top_k: int,
    batch_size: int,
    reference: Tensor | None,
    remote: bool | str,
) -> LensResult:
    """The patchscope lens in a remote session; see `interp.lenses.patchscope_lens`.

    Arguments:
        target_ids: token ids of each example's target prompt, unpadded.
        positions: the tokens of each that are written, equally many.
        writes: for each of `layers`, sites in the order of the forward pass and what is written there, (example,
            position, hidden).
    """
    batches = list(_cut(len(groups), batch_size))
    work: list[tuple[Tensor, list[Run]]] = []
    for rows in batches:
        fed = _fed(model, target_ids[rows], positions[rows])
        runs = [[(site, latent[rows]) for site, latent in layer] for layer in [*writes, []]]
        work.append((torch.empty(0, dtype=torch.float32, device="cpu"), [(*fed, pairs) for pairs in runs]))
    found = _read(model, work, _given(batches, groups, reference), top_k, False, remote)
    return _joined(found, layers, with_baseline=True)


def _read(
    model: StandardizedTransformer,
    work: Sequence[tuple[Tensor, list[Run]]],
    given: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    top_k: int,
    inverted: bool,
    remote: bool | str,
) -> list[list[Tensor]]:
    """The one session: a server knows the source of one body a file.

    Arguments:
        work: for each batch, hidden states (layer, row, hidden); or nothing and the passes that end with them, the last
            of which gives the baseline.
        given: for each batch, ids and what is valid of them, as in `TokenGroups`, and the reference.

    Returns:
        For each batch what `read_plainly` gives, and behind it the baseline (row, group), where there is one.
    """
    last = Site("resid_post", model.num_layers - 1)
    found: Any = None
    with torch.no_grad(), model.session(remote=remote):
        found = []
        for (states, runs), (ids, valid, own) in zip(work, given, strict=True):
            ends = []
            for inputs, rows, columns, pairs in runs:
                with model.trace(**inputs) as tracer:
                    for site, latent in pairs:
                        patched = model.read(site).clone()
                        patched[rows.to(patched.device), columns.to(patched.device)] = latent.to(patched)
                        model.write(site, patched)
                    end = model.read(last)[:, -1].clone()
                    tracer.stop()
                ends.append(end)
            with model.trace(input_ids=torch.zeros(1, 1, dtype=torch.long, device="cpu")) as tracer:
                hidden = states if not ends else torch.stack(ends[:-1])
                read = read_plainly(model, hidden, ids, valid, top_k, own, inverted)
                if ends:
                    read.append(read_plainly(model, ends[-1][None], ids, valid, 1, None, False)[0][0])
                read = [value.cpu() for value in read]
                tracer.stop()
            found.append(read)
        found = nnsight.save(found)
    return found  # noqa: RET504  # a block hands out names, and no `return`


def read_plainly(
    model: StandardizedTransformer,
    hidden: Tensor,
    ids: Tensor,
    valid: Tensor,
    top_k: int,
    reference: Tensor | None,
    inverted: bool,
) -> list[Tensor]:
    """What a lens keeps of hidden states, by softmax and sort over the whole vocabulary.

    Arguments:
        model: the model.
        hidden: (layer, row, hidden).
        ids, valid: (row, group, width), as in `TokenGroups`.
        top_k: how many top tokens are kept.
        reference: (row, hidden), the residual stream after the model's last layer; None: not known.
        inverted: negate `hidden` after the final norm.

    Returns:
        `log_prob`, `rank` (layer, row, group), `top_ids`, `top_log_prob` (layer, row, k), `entropy`, `kl`, `surprisal`
        (layer, row), `model_top_id` (row,), as in `LensResult`.
    """
    logits = model.readout(hidden, negate=inverted).float()  # (layer, row, vocabulary)
    ids, valid = ids.to(logits.device), valid.to(logits.device)
    log_p = logits.log_softmax(-1)
    layers, rows, vocabulary = logits.shape
    flat = ids.flatten(1).expand(layers, -1, -1)
    masked = log_p.gather(-1, flat).unflatten(-1, ids.shape[1:]).masked_fill(~valid, -torch.inf)
    there = valid.any(-1)  # (row, group)
    log_prob = masked.logsumexp(-1).masked_fill(~there, torch.nan)

    own = logits.gather(-1, flat).unflatten(-1, ids.shape[1:]).masked_fill(~valid, -torch.inf)
    best = own.amax(-1, keepdim=True)  # (layer, row, group, 1)
    first = ids.expand_as(own).masked_fill(~valid | (own < best), vocabulary).amin(-1)  # equal logits: the lowest id
    every = torch.arange(vocabulary, device=logits.device)
    ranks = []
    for group in range(ids.shape[1]):
        most, lowest = best[:, :, group], first[:, :, group, None]
        ranks.append(((logits > most) | ((logits == most) & (every < lowest))).sum(-1))
    rank = torch.stack(ranks, dim=-1).masked_fill(~there, -1)

    top_ids = logits.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]  # equal logits: by id
    p = log_p.exp()
    kl = torch.where(p[-1:] > 0, p[-1:] * (log_p[-1:] - log_p), 0.0).sum(-1)
    surprisal = torch.full((layers, rows), torch.nan, dtype=torch.float32, device=logits.device)
    model_top = torch.full((rows,), -1, dtype=torch.long, device=logits.device)
    if reference is not None:
        says = model.readout(reference[None]).float()[0]
        model_top = says.sort(dim=-1, descending=True, stable=True).indices[:, 0]
        surprisal = -says.log_softmax(-1).gather(-1, top_ids[..., 0].T).T
    entropy = torch.special.entr(p).sum(-1)
    top_log_prob = log_p.gather(-1, top_ids)
    return [log_prob, rank, top_ids, top_log_prob, entropy, kl, surprisal, model_top]


def _fed(
    model: StandardizedTransformer, ids: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Target prompts as a trace is given them, and where they are written, each (row, position)."""
    inputs = left_padded(ids, 0, torch.device("cpu"))
    if not model.takes_position_ids:
        del inputs["position_ids"]
    padding = torch.tensor([inputs["input_ids"].shape[1] - len(own) for own in ids], device="cpu")
    columns = torch.tensor([list(own) for own in positions], device="cpu") + padding[:, None]
    return inputs, torch.arange(len(ids), device="cpu")[:, None], columns


def _cut(examples: int, batch_size: int) -> Iterator[slice]:
    return (slice(start, start + batch_size) for start in range(0, examples, batch_size))


def _given(
    batches: Sequence[slice], groups: TokenGroups, reference: Tensor | None
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    return [(groups.ids[rows], groups.valid[rows], None if reference is None else reference[rows]) for rows in batches]


def _joined(found: Sequence[Sequence[Tensor]], layers: tuple[int, ...], *, with_baseline: bool) -> LensResult:
    """Batches one behind the other."""
    rows = (1,) * 7 + (0, 0)  # their axis: behind that of layers
    joined = [torch.cat(parts, dim=axis) for parts, axis in zip(zip(*found, strict=True), rows, strict=False)]
    by_layer, model_top, baseline = joined[:7], joined[7], joined[8] if with_baseline else None
    if not torch.isfinite(by_layer[4]).all():
        raise InterpError("the logits that came back hold NaN or infinity: the model overflows where it runs.")
    names = ("log_prob", "rank", "top_ids", "top_log_prob", "entropy", "kl", "surprisal")
    values = dict(zip(names, by_layer, strict=True))
    integers = ("rank", "top_ids")
    arrays: dict[str, Any] = {
        name: (value.int() if name in integers else value.float()).transpose(0, 1).contiguous().numpy()
        for name, value in values.items()
    }
    return LensResult(
        coordinates={"example": range(len(model_top)), "layer": layers},
        model_top_id=model_top.int().numpy(),
        baseline=None if baseline is None else baseline.numpy(),
        **arrays,
    )
