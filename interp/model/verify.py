"""Proves at load that each name means on this model what the vocabulary of sites says.

On a few random tokens, at every layer (the sites are those of `interp.sites`):

* the chain: `resid_pre[0] == embed` and `resid_pre[i + 1] == resid_post[i]`;
* additivity: `resid_mid == resid_pre + attn_out` and `resid_post == resid_mid + mlp_out`; in parallel layers
  `resid_post == resid_pre + attn_out + mlp_out`, and `mlp_in` does not see `attn_out`. (With the mixer beside or in
  place of attention, and with the scales and norms that the family's record names.)
* `sum of head_out + bias == attn_out`;
* readout: `readout(resid_post[-1]) == logits`;
* a written `resid_mid` reaches `resid_post`; and an edit at each kind of site changes the logits
  (`interp.model.verify_writes`);
* for a model that sees, chain, additivity and readout again with an image in the prompt; the same chain in the layers
  of its vision tower, `vision.resid_pre[i + 1] == vision.resid_post[i]`; and an edit before its first layer changes
  the logits;
* where attention is asked for, the rows of `pattern` sum to one (with attention sinks, to at most one).

A projection that quantizes what it receives is not linear: there is no `head_out`, and what is proved of `z` is that
the projection makes `attn_out` of it. What cannot be decided on a model, because by its weights an edit has no effect,
is called undecided and is no failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.architectures import Sublayer, vision_layout
from interp.errors import InterpError
from interp.model.image_inputs import sample_with_image
from interp.model.places import HeadOutPlace
from interp.model.resolve import head_out_place, place_of
from interp.model.verify_writes import another, part_of, prove_writes
from interp.model.vision_sites import num_vision_layers
from interp.sites import VISION_KINDS, Site

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["Proof", "ProofTable", "failures", "never_reached", "prove"]

_TOKENS = 5
# Sums are done again in float64, so they differ from the model's by the roundings of its own dtype.
_ROUNDINGS = 2

# Identity -> what to put in a RenameConfig where it fails.
_REMEDIES = {
    "chain": "layers_name= (the list of layers)",
    "attention": "attn_added_name= (what attention adds may pass a norm first), middle_name= or parallel=True",
    "mlp": "mlp_added_name= (what the MLP adds may pass a norm first), middle_name= or parallel=True",
    "heads": "attn_projection_name= (the last linear map of attention) or attn_added_name=",
    "parallel": "parallel=False and middle_name= (the module whose input is the residual stream after attention)",
    "readout": "ln_final_name= and lm_head_name=",
    "write": "middle_name= (the module whose input is the residual stream between attention and MLP)",
    "pattern": "attn_prob_source=",
    "vision": "nothing: `interp.architectures.vision` says where its tower is; verify=False leaves this out",
}


@dataclass(frozen=True)
class Proof:
    """One identity, over all layers that it speaks of.

    Arguments:
        identity: what was checked, in the names of `interp.sites`.
        about: which part of the record it proves, a key of the remedies.
        layers: how many layers were checked.
        layer: the first layer that fails, or else the worst.
        difference: the largest difference there.
        allowed: the difference that roundings explain, at the same element.
        holds: whether it holds everywhere; None: on this model it cannot be decided.
        expected, got: the numbers at that element.
        why: why it cannot be decided.
    """

    identity: str
    about: str
    layers: int
    layer: int
    difference: float
    allowed: float
    holds: bool | None
    expected: float
    got: float
    why: str = ""

    def message(self, model: StandardizedTransformer) -> str:
        """What to tell the user of a failure."""
        return (
            f"{type(model._module).__name__} (family {model.architecture.family!r}, {model.dtype}) fails the proof of "
            f"its names: {self.identity} does not hold at layer {self.layer}: expected {self.expected:.6g}, got "
            f"{self.got:.6g}, allowed difference {self.allowed:.2g}. Either numbers overflow in this dtype, or the "
            f"record is wrong for this model: then give rename_config=RenameConfig(...) with "
            f"{_REMEDIES[self.about]}."
        )


def failures(proofs: list[Proof]) -> list[Proof]:
    """The proofs that failed, those of the lowest layers first: what goes wrong there goes wrong above."""
    return sorted((proof for proof in proofs if proof.holds is False), key=lambda proof: proof.layer)


def never_reached(model: StandardizedTransformer, error: Exception) -> str:
    """The message for a forward pass that never reaches a module which a name refers to."""
    place = str(error).split("'")[1] if "'" in str(error) else "a place"
    return (
        f"{type(model._module).__name__} (family {model.architecture.family!r}): its forward pass does not come by "
        f"{place!r}, or not in its turn. Every layer needs a module of its own, which runs: copy.deepcopy a layer that "
        "is to stand twice, set config.num_hidden_layers to their number; or give rename_config=RenameConfig(...)."
    )


@torch.no_grad()
def prove(model: StandardizedTransformer, *, attention: bool = False) -> list[Proof]:
    """Check the identities of the sites on a loaded model.

    Arguments:
        model: the model; three forward passes over prompts of five tokens, and two over an image where it has a
            processor.
        attention: also the attention pattern and the points q, k, v, scores; one forward pass more.

    Returns:
        A proof for each identity, whether it holds, does not, or cannot be decided.
    """
    input_ids = _random_prompt(model)
    values = _read_everything(model, {"input_ids": input_ids})
    table = ProofTable(model)
    for layer in range(model.num_layers):
        _prove_layer(model, layer, values, table)
    _prove_readout(model, values, table)
    has_middle = any(model.has(Site("resid_mid", layer)) for layer in range(model.num_layers))
    if has_middle and "mlp" not in unchecked(model):
        for layer, (written, added, after) in _write_middles(model, input_ids).items():
            _stage(
                model,
                table,
                layer,
                "resid_post == written resid_mid + mlp_out",
                "write",
                written,
                ["mlp"],
                added,
                after,
            )
    if not unchecked(model):
        _prove_parallel(model, input_ids, values, table)
    if failures(table.proofs()):
        return table.proofs()  # where the names are wrong, what writing does says nothing
    if attention and "attention" not in unchecked(model):
        _prove_patterns(model, input_ids, table)
    prove_writes(model, input_ids, table, attention=attention, without=unchecked(model))
    return [*table.proofs(), *_prove_images(model)]


def _prove_readout(model: StandardizedTransformer, values: dict[str, Tensor], table: ProofTable) -> None:
    last = model.num_layers - 1
    stream = values[f"resid_post.{last}"]
    table.compare("readout(resid_post) == logits", "readout", last, [model.readout(stream)], values["logits"])


def _prove_images(model: StandardizedTransformer) -> list[Proof]:
    """The same with an image in the prompt, and of the vision tower."""
    layout = vision_layout(model._module.config)
    if model.processor is None or layout is None:
        return []
    inputs, seen = sample_with_image(model)
    depth = num_vision_layers(model) or 0
    tower = [Site(kind, layer) for layer in range(depth) for kind in VISION_KINDS]
    try:
        values = _read_everything(model, inputs, tower)
    except (ValueError, RuntimeError, IndexError) as error:
        raise InterpError(
            f"{type(model._module).__name__} cannot run an image as its processor prepares it "
            f"({str(error).splitlines()[0]:.200}). Load model and processor from one checkpoint; a model in memory "
            "takes its own as processor=."
        ) from error
    table = ProofTable(model, beside=", with an image")
    for layer in range(model.num_layers):
        own = dict(values)
        if layer and layout.between_layers:  # where the tower adds to the stream between layers, they differ
            stream = values[f"resid_post.{layer - 1}"].clone()
            stream[:, seen] = values[f"resid_pre.{layer}"][:, seen]
            own[f"resid_post.{layer - 1}"] = stream
        _prove_layer(model, layer, own, table)
    _prove_readout(model, values, table)
    for layer in range(1, depth):
        before, after = values[f"vision.resid_post.{layer - 1}"], values[f"vision.resid_pre.{layer}"]
        table.compare("vision.resid_pre == vision.resid_post of the layer before", "vision", layer, [before], after)
    edited: list[Tensor] = []
    if depth and not failures(table.proofs()):
        with model.trace(**inputs, use_cache=False):
            live = model.read("vision.resid_pre.0")
            model.write("vision.resid_pre.0", live + another(live))
            edited.append(model.logits.clone())
        table.moved("vision.resid_pre", 0, values["logits"], edited[0])
    return table.proofs()


_ADDED = {"attention": "attn_out", "mixer": "mixer_out", "mlp": "mlp_out"}


def unchecked(model: StandardizedTransformer) -> set[str]:
    """The parts of layers that the user said not to check: `attention`, `mlp`."""
    given = model._given.rename_config
    if given is None:
        return set()
    return {part for part, ignored in (("attention", given.ignore_attn), ("mlp", given.ignore_mlp)) if ignored}


def _prove_layer(model: StandardizedTransformer, layer: int, values: dict[str, Tensor], table: ProofTable) -> None:
    before, after = values[f"resid_pre.{layer}"], values[f"resid_post.{layer}"]
    if layer == 0:
        table.compare("resid_pre == embed", "chain", layer, [values["embed"]], before)
    else:
        name = "resid_pre == resid_post of the layer before"
        table.compare(name, "chain", layer, [values[f"resid_post.{layer - 1}"]], before)
    added = {role: values[f"{kind}.{layer}"] for role, kind in _ADDED.items() if f"{kind}.{layer}" in values}
    mixing: list[str] = [role for role in ("attention", "mixer") if role in added]
    middle = values.get(f"resid_mid.{layer}")
    skipped = unchecked(model) & {role for role, _ in model.architecture.sublayers(model.layer(layer)._module)}
    if middle is None and skipped:
        return  # the part that is not checked is a term of the one sum
    if middle is None:
        sum_of = " + ".join(_ADDED[role] for role in added)
        about = "attention" if mixing else "mlp"
        _stage(model, table, layer, f"resid_post == resid_pre + {sum_of}", about, before, list(added), added, after)
    else:
        if "attention" not in skipped:
            name = "resid_mid == resid_pre + " + " + ".join(_ADDED[role] for role in mixing)
            _stage(model, table, layer, name, "attention", before, mixing, added, middle)
        if "mlp" not in skipped:
            _stage(model, table, layer, "resid_post == resid_mid + mlp_out", "mlp", middle, ["mlp"], added, after)
    if f"head_out.{layer}" in values:
        bias = values[f"bias.{layer}"]
        terms = [values[f"head_out.{layer}"].double().sum(dim=2), bias.double()]
        table.compare("sum of head_out + bias == attn_out", "heads", layer, terms, added["attention"], loose=True)
    elif f"projected.{layer}" in values:
        name = "projection of z == attn_out"
        table.compare(name, "heads", layer, [values[f"projected.{layer}"]], added["attention"], loose=True)


def _stage(
    model: StandardizedTransformer,
    table: ProofTable,
    layer: int,
    identity: str,
    about: str,
    before: Tensor,
    roles: list[str],
    added: dict[str, Tensor],
    after: Tensor,
) -> None:
    """One stage of a layer: before -> norm_after(residual_scale * residual_norm(before) + added)."""
    envoy = model.layer(layer)
    sublayers: list[Sublayer] = [part for role, part in model.architecture.sublayers(envoy._module) if role in roles]
    first = sublayers[0]
    stream = before
    if first.residual_norm is not None:
        stream = envoy._module.get_submodule(first.residual_norm)(stream)
    if first.residual_scale is not None:
        stream = stream * getattr(envoy._module, first.residual_scale)
    terms = [stream, *(added[role] for role in roles)]
    if first.norm_after is None:
        # Where several modules' outputs are added, their sum may be smaller than what rounds in it.
        table.compare(identity, about, layer, terms, after, loose=any(len(part.sources) > 1 for part in sublayers))
        return
    norm = envoy._module.get_submodule(first.norm_after)
    whole = torch.stack([term.double() for term in terms]).sum(0).to(before.dtype)
    table.compare(identity, about, layer, [norm(whole)], after)


def _read_everything(
    model: StandardizedTransformer, inputs: Mapping[str, Tensor], tower: Sequence[Site] = ()
) -> dict[str, Tensor]:
    kinds = ("resid_pre", "z", "head_out", "attn_out", "mixer_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
    left = [kind for kind in kinds if part_of(kind) not in unchecked(model)]
    layered = [Site(kind, layer) for layer in range(model.num_layers) for kind in left]
    sites = [*tower, Site("embed"), *layered, Site("logits")]
    values: dict[str, Tensor] = {}
    with model.trace(**inputs, use_cache=False):
        for site in model.in_order([site for site in sites if model.has(site)]):
            if site.kind == "z":
                assert site.layer is not None
                if not model.has(Site("head_out", site.layer)):
                    heads = head_out_place(model, site.layer, str(site))
                    values[f"projected.{site.layer}"] = heads.read_projected()
                continue
            place = place_of(model, site)
            values[str(site)] = place.read().clone()
            if isinstance(place, HeadOutPlace):
                values[f"bias.{site.layer}"] = place.read_bias()
    return values


def _write_middles(
    model: StandardizedTransformer, input_ids: Tensor
) -> dict[int, tuple[Tensor, dict[str, Tensor], Tensor]]:
    """Write another `resid_mid` in every layer; for each, what was written, what the MLP added, what came out."""
    layers = [layer for layer in range(model.num_layers) if model.has(Site("resid_mid", layer))]
    found: dict[int, tuple[Tensor, dict[str, Tensor], Tensor]] = {}
    with model.trace(input_ids=input_ids, use_cache=False):
        for layer in layers:
            written = model.read(f"resid_mid.{layer}").flip(1) * 0.5
            model.write(f"resid_mid.{layer}", written)
            added = model.read(f"mlp_out.{layer}").clone()
            found[layer] = (written, {"mlp": added}, model.read(f"resid_post.{layer}").clone())
    return found


def _prove_parallel(
    model: StandardizedTransformer, input_ids: Tensor, values: dict[str, Tensor], table: ProofTable
) -> None:
    """In parallel layers the MLP does not see what attention adds; in others it does, which `_write_middles` proves."""
    layers = [layer for layer in range(model.num_layers) if model.parallel and f"attn_out.{layer}" in values]
    if not layers:
        return
    seen: dict[int, Tensor] = {}
    with model.trace(input_ids=input_ids, use_cache=False):
        for layer in layers:
            model.write(f"resid_pre.{layer}", values[f"resid_pre.{layer}"])
            model.write(f"attn_out.{layer}", torch.zeros_like(values[f"attn_out.{layer}"]))
            seen[layer] = model.read(f"mlp_in.{layer}").clone()
    for layer, mlp_in in seen.items():
        table.compare("mlp_in does not see attn_out", "parallel", layer, [values[f"mlp_in.{layer}"]], mlp_in)


def _prove_patterns(model: StandardizedTransformer, input_ids: Tensor, table: ProofTable) -> None:
    layers = [layer for layer in range(model.num_layers) if model.has(Site("pattern", layer))]
    patterns: dict[int, Tensor] = {}
    with model.trace(input_ids=input_ids, use_cache=False):
        for layer in layers:
            patterns[layer] = model.read(Site("pattern", layer)).clone()
    for layer, pattern in patterns.items():
        sums = pattern.float().sum(-1)
        if any("sink" in name for name, _ in model.attentions[layer]._module.named_parameters()):
            sums = sums.clamp(min=1.0)  # a sink takes a part of each row
        table.compare("rows of pattern sum to 1", "pattern", layer, [torch.ones_like(sums)], sums, loose=True)


def _random_prompt(model: StandardizedTransformer) -> Tensor:
    """One prompt (1, 5) of ordinary tokens: a special one may call for an image, or be masked."""
    special = set(model.tokenizer.all_special_ids)
    usable = min(model.vocab_size, len(model.tokenizer))
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randint(usable, (16 * _TOKENS,), generator=generator, device="cpu").tolist()
    ordinary = [token for token in drawn if token not in special] or [0]
    return torch.tensor([(ordinary * _TOKENS)[:_TOKENS]], device="cpu")


def _edit_of(kind: str) -> str:
    return f"an edit of {kind} changes the logits"


class ProofTable:
    """Gathers comparisons by identity and keeps of each the first layer that fails, or else the worst."""

    def __init__(self, model: StandardizedTransformer, beside: str = "") -> None:
        self._beside = beside  # behind the name of each identity
        self._eps = torch.finfo(model.dtype).eps
        self._most = torch.finfo(model.dtype).max  # the size of logits of tokens that are never said
        self._proofs: dict[str, Proof] = {}
        self._edits: dict[str, Proof] = {}  # by kind of site

    def proofs(self) -> list[Proof]:
        return [*self._proofs.values(), *self._edits.values()]

    def compare(
        self, identity: str, about: str, layer: int, terms: list[Tensor], value: Tensor, *, loose: bool = False
    ) -> None:
        """Whether a value is the sum of the terms, up to the roundings of the model's dtype.

        Element by element: a residual stream holds a few numbers thousands of times as large as the rest, and a bound
        by the largest would let everything pass. `loose`: sums of many products, whose roundings go with the largest.
        """
        if any(term.shape[-1] != value.shape[-1] for term in terms):
            expected_width, width = float(value.shape[-1]), float(terms[0].shape[-1])
            self._keep(Proof(identity + " in width", about, 1, layer, inf, 0.0, False, expected_width, width))
            return
        wide = [term.double().cpu() for term in terms]
        expected, got = torch.stack(wide).sum(0), value.double().cpu()
        magnitude = torch.stack([term.abs() for term in wide]).sum(0)
        # A head may give minus infinity for rows of padding, or the lowest number: nothing but the same is allowed.
        magnitude = self._ordinary(magnitude)
        if len(terms) == 1 or loose:  # logits near zero are differences of large products
            magnitude = magnitude.max().expand_as(magnitude)
        # Norms compute in float32 whatever the model's dtype.
        eps = max(self._eps, torch.finfo(torch.float32).eps) if loose else self._eps
        allowed = _ROUNDINGS * (8 if loose else 1) * eps * magnitude
        difference = torch.where(expected == got, 0.0, (expected - got).abs())  # equal infinities are equal
        worst = int((difference - allowed).nan_to_num(nan=float("inf")).argmax())
        pick: Callable[[Tensor], float] = lambda tensor: float(tensor.flatten()[worst])  # noqa: E731
        holds = bool((difference <= allowed).all())
        self._keep(Proof(identity, about, 1, layer, pick(difference), pick(allowed), holds, pick(expected), pick(got)))

    def _ordinary(self, sizes: Tensor) -> Tensor:
        """Sizes of numbers, 0 for those that stand for minus infinity."""
        return sizes.nan_to_num(nan=0.0, posinf=0.0).masked_fill(sizes >= self._most, 0.0)

    def moved(self, kind: str, layer: int, before: Tensor, after: Tensor) -> bool:
        """Whether an edit of a site of this kind moved the logits by more than their roundings; kept where it did."""
        before, after = before.double().cpu(), after.double().cpu()
        difference = torch.where(before == after, 0.0, (after - before).abs())  # equal infinities are equal
        moved, size = float(difference.nan_to_num(nan=0.0).max()), self._ordinary(before.abs()).max()
        least = _ROUNDINGS * self._eps * float(size)
        name = _edit_of(kind) + self._beside
        self._edits[kind] = Proof(name, "write", 1, layer, moved, least, moved > least, least, moved)
        return moved > least

    def undecided(self, kind: str, why: str) -> None:
        """The edit of a kind that was tried last had no effect, and by right."""
        self._edits[kind] = replace(self._edits[kind], holds=None, why=why)

    def _keep(self, proof: Proof) -> None:
        proof = replace(proof, identity=proof.identity + self._beside)
        known = self._proofs.get(proof.identity)
        if known is not None:
            worse = proof.holds and proof.difference - proof.allowed > known.difference - known.allowed
            chosen = proof if known.holds and (worse or not proof.holds) else known
            proof = replace(chosen, layers=known.layers + 1)
        self._proofs[proof.identity] = proof
