"""The proof at load: that the names mean on this very model what the vocabulary says they mean.

On a few random tokens, at every layer (the sites are those of `interp.sites`):

* `resid_pre[0] == embed` and `resid_pre[i + 1] == resid_post[i]`;
* `resid_mid == resid_pre + attn_out` and `resid_post == resid_mid + mlp_out`; in parallel layers
  `resid_post == resid_pre + attn_out + mlp_out`;
* `readout(resid_post[-1]) == logits`;
* a written `resid_mid` reaches `resid_post`: `resid_post == written + mlp_out`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["prove"]

_TOKENS = 5
# Sums are done again in float64, so they differ from the model's by the roundings of its own dtype.
_ROUNDINGS = 2


@torch.no_grad()
def prove(model: StandardizedTransformer) -> None:
    """Check the identities of the sites on a loaded model.

    Arguments:
        model: the model; two forward passes over one prompt of five tokens.

    Raises:
        InterpError: the first identity that does not hold, with the layer and the numbers.
    """
    input_ids = _random_prompt(model)
    values = _read_everything(model, input_ids)
    for layer in range(model.num_layers):
        before, after = values[f"resid_pre.{layer}"], values[f"resid_post.{layer}"]
        added = values[f"attn_out.{layer}"], values[f"mlp_out.{layer}"]
        if layer == 0:
            _same(model, "resid_pre == embed", layer, [values["embed"]], before)
        else:
            _same(
                model, "resid_pre == resid_post of the layer before", layer, [values[f"resid_post.{layer - 1}"]], before
            )
        if model.parallel:
            _same(model, "resid_post == resid_pre + attn_out + mlp_out", layer, [before, *added], after)
        else:
            middle = values[f"resid_mid.{layer}"]
            _same(model, "resid_mid == resid_pre + attn_out", layer, [before, added[0]], middle)
            _same(model, "resid_post == resid_mid + mlp_out", layer, [middle, added[1]], after)
    last = model.num_layers - 1
    logits = model.readout(values[f"resid_post.{last}"])
    _same(model, "readout(resid_post) == logits", last, [logits], values["logits"])
    if not model.parallel:
        for layer, (written, added_after, after) in enumerate(_write_middles(model, input_ids)):
            _same(model, "resid_post == written resid_mid + mlp_out", layer, [written, added_after], after)


def _read_everything(model: StandardizedTransformer, input_ids: Tensor) -> dict[str, Tensor]:
    kinds = ["resid_pre", "attn_out", *([] if model.parallel else ["resid_mid"]), "mlp_out", "resid_post"]
    sites = ["embed", *(f"{kind}.{layer}" for layer in range(model.num_layers) for kind in kinds), "logits"]
    values: dict[str, Tensor] = {}
    with model.trace(input_ids=input_ids, use_cache=False):
        for site in sites:
            values[site] = model.read(site).clone()
    return values


def _write_middles(model: StandardizedTransformer, input_ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Write another `resid_mid` in every layer; for each, what was written, what the MLP added, what came out."""
    triples: list[tuple[Tensor, Tensor, Tensor]] = []
    with model.trace(input_ids=input_ids, use_cache=False):
        for layer in range(model.num_layers):
            written = model.read(f"resid_mid.{layer}").flip(1) * 0.5
            model.write(f"resid_mid.{layer}", written)
            added = model.read(f"mlp_out.{layer}").clone()
            triples.append((written, added, model.read(f"resid_post.{layer}").clone()))
    return triples


def _random_prompt(model: StandardizedTransformer) -> Tensor:
    """One prompt (1, 5) of ordinary tokens: a special one may call for an image, or be masked."""
    special = set(model.tokenizer.all_special_ids)
    usable = min(model.vocab_size, len(model.tokenizer))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(usable, (16 * _TOKENS,), generator=generator).tolist()
    ordinary = [token for token in drawn if token not in special] or [0]
    return torch.tensor([(ordinary * _TOKENS)[:_TOKENS]])


def _same(model: StandardizedTransformer, identity: str, layer: int, terms: list[Tensor], value: Tensor) -> None:
    """Refuse a value that is not the sum of the terms, up to the roundings of the model's dtype.

    Element by element: a residual stream holds a few numbers thousands of times as large as the rest, and a bound by
    the largest would let everything pass.
    """
    wide = [term.double().cpu() for term in terms]
    expected, got = torch.stack(wide).sum(0), value.double().cpu()
    magnitude = torch.stack([term.abs() for term in wide]).sum(0)
    if len(terms) == 1:  # logits near zero are differences of large products
        magnitude = magnitude.max().expand_as(magnitude)
    allowed = _ROUNDINGS * torch.finfo(model.dtype).eps * magnitude
    difference = torch.where(expected == got, 0.0, (expected - got).abs())  # equal infinities are equal
    if bool((difference <= allowed).all()):
        return
    worst = int((difference - allowed).nan_to_num(nan=float("inf")).argmax())
    raise InterpError(
        f"{type(model._module).__name__} (family {model.architecture.family!r}, {model.dtype}) fails the proof of its "
        f"names: {identity} does not hold at layer {layer}: expected {expected.flatten()[worst]:.6g}, got "
        f"{got.flatten()[worst]:.6g}, allowed difference {allowed.flatten()[worst]:.2g}. Either numbers overflow in "
        "this dtype, or the record in interp.architectures is wrong for this model."
    )
