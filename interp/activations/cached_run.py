"""`run_with_cache`: one forward pass of each prompt, and copies of what it computes on the way.

The copies are made as the model arrives at each site: of the positions that are asked for alone, each once, straight to
where it is to lie. What the layer above takes is what the layer below gave, so `resid_post.3` and `resid_pre.4` share
one copy, unless a hook has changed the stream between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.activation_cache import ActivationCache, CachedModel
from interp.activations.chosen_sites import Sites, sites_of
from interp.activations.edited_pass import EditedPass, Read
from interp.activations.forward_passes import ForwardPasses
from interp.activations.prompt_batches import PaddingSide, Pass, resolved
from interp.activations.prompt_runs import planned_edits
from interp.activations.site_copies import Kept, SiteReader
from interp.errors import InterpError
from interp.forward.prefix import FrozenPrefix
from interp.interventions import Intervention
from interp.interventions.edits import Edit
from interp.model.resolve import place_of
from interp.model.visits import Visit
from interp.passes import check_gradients
from interp.positions import check_positions
from interp.sites import ATTENTION_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["CacheRequest", "run_with_cache"]

Positions = str | int | Sequence[str | int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class CacheRequest:
    """What is cached, of prompts that are planned.

    Arguments:
        passes: the prompts.
        sites: what is cached, in the order of the forward pass.
        gradients: whose gradients are cached.
        table: (example, position), the token at each place; -1: none.
        labels: names along its axis.
        keys: keys of maps, from each prompt's first token (of the prefix) on.
        device, dtype: of what is kept; None: as it is.
        edits: interventions, planned; they act before anything is kept.
    """

    passes: ForwardPasses
    sites: list[Site]
    gradients: list[Site]
    table: Tensor
    labels: list[str]
    keys: int
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    edits: Sequence[Edit] = ()

    @classmethod
    def of(
        cls,
        passes: ForwardPasses,
        sites: Sites | None,
        positions: Positions | None,
        gradients: Sites | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        interventions: Intervention | Iterable[Intervention] = (),
    ) -> CacheRequest:
        """Check what is asked for.

        Raises:
            InterpError: a site or position that is not there, or in no layer that runs.
        """
        model = passes.model
        chosen, of_gradients = sites_of(model, sites), [] if gradients is None else sites_of(model, gradients)
        if sites is None or sites == "all":
            chosen = [site for site in chosen if _runs(passes, site)]
        for site in (*chosen, *of_gradients):
            passes.check_runs(site)
        table, labels = _positions(passes, positions)
        keys = passes.before + max(passes.lengths)
        edits = planned_edits(passes, interventions)
        return cls(passes, chosen, of_gradients, table, labels, keys, _device(device), _checked(dtype), edits)

    def run(self, gradients_of: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, ActivationCache]:
        """Run the prompts.

        Arguments:
            gradients_of: the scalar whose gradients are cached, of the output.

        Returns:
            The output, and the cache.

        Raises:
            InterpError: what `gradients_of` gives is no finite number of this run.
        """
        kept, grads = Kept(self), Kept(self)
        live: list[tuple[Site, Pass, Tensor]] = []
        wants, wholes = bool(self.gradients), _wholes(self.sites)

        def visits(one: Pass) -> list[Visit]:
            reader = SiteReader(self, one, kept)
            made = [*self._changes(one), *([reader.visit(wholes)] if wholes else [])]
            for site in self.gradients:
                made.append(Visit(f"gradient of {site}", place_of(self.passes.model, site), _held(live, site, one)))
            return made

        with torch.enable_grad() if wants else torch.no_grad():
            changed = [edit.site for edit in self.edits]
            inside = any(site.kind in ATTENTION_KINDS for site in (*self.sites, *self.gradients, *changed))
            output = self.passes.run(visits, inside_attention=inside)
            if wants:
                assert gradients_of is not None
                scalar = _scalar(gradients_of(output), output)
                found = torch.autograd.grad(scalar, [value for *_, value in live], allow_unused=True)
        with torch.no_grad():
            for index, gradient in enumerate(found if wants else ()):
                site, one, value = live[index]
                live[index] = (site, one, value.new_empty(0))  # the graph is gone, and so should be what it held
                reader = SiteReader(self, one, grads)
                reader.take(site, torch.zeros_like(value) if gradient is None else gradient, [site])
            return output.detach(), self._cache(kept, grads)

    def _changes(self, one: Pass) -> list[Visit]:
        """The visits of interventions."""
        if not self.edits:
            return []
        read = Read.nothing(len(one.batch.rows))
        return EditedPass(self.passes.model, self.passes.window(one), self.edits, read).visits()

    def _cache(self, kept: Kept, grads: Kept) -> ActivationCache:
        passes = self.passes
        ids = None if any(one.residual is not None for one in passes.passes) else passes.input_ids
        return ActivationCache(
            tensors={site: kept.tensors[site] for site in self.sites},
            positions=self.table.tolist(),
            labels=self.labels,
            lengths=[length + passes.before for length in passes.lengths],
            input_ids=ids,
            about=CachedModel.of(passes.model),
            gradient_tensors={site: grads.tensors[site] for site in self.gradients},
        )


def run_with_cache(
    model: StandardizedTransformer,
    prompts: Any,
    *,
    images: Any = None,
    sites: Sites | None = None,
    positions: Positions | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    gradients: Sites | None = None,
    gradients_of: Callable[[Tensor], Tensor] | None = None,
    stop_at_layer: int | None = None,
    start_at_layer: int | None = None,
    prefix: FrozenPrefix | None = None,
    interventions: Intervention | Iterable[Intervention] = (),
    batch_size: int | None = None,
    padding_side: PaddingSide = "left",
) -> tuple[Tensor, ActivationCache]:
    """See `StandardizedTransformer.run_with_cache`."""
    if (gradients is None) != (gradients_of is None):
        raise InterpError(
            "gradients and gradients_of: expected both, the sites and the scalar, e.g. gradients='resid_post.*', "
            "gradients_of=lambda logits: logits[0, -1, 17]."
        )
    if gradients is not None:
        check_gradients("gradients")
    passes = ForwardPasses.of(
        model, prompts, images=images, prefix=prefix, stop_at_layer=stop_at_layer, start_at_layer=start_at_layer,
        batch_size=ALL_AT_ONCE if batch_size is None else batch_size, padding_side=padding_side,
    )  # fmt: skip
    return CacheRequest.of(passes, sites, positions, gradients, device, dtype, interventions).run(gradients_of)


ALL_AT_ONCE = 1 << 40


def _runs(passes: ForwardPasses, site: Site) -> bool:
    try:
        passes.check_runs(site)
    except InterpError:
        return False
    return True


def _device(device: torch.device | str | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise InterpError(f"device: expected one of torch, e.g. 'cpu' or 'cuda:0', got {device!r}.") from None


def _checked(dtype: torch.dtype | None) -> torch.dtype | None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InterpError(f"dtype: expected a floating-point dtype of torch, e.g. torch.bfloat16, got {dtype!r}.")
    return dtype


def _positions(passes: ForwardPasses, positions: Positions | None) -> tuple[Tensor, list[str]]:
    """(example, position), the token at each place, and the names along the axis."""
    lengths = passes.lengths
    if positions is None:
        positions = "all"
    if isinstance(positions, Sequence) and not isinstance(positions, str) and _per_example(positions):
        rows: list[Any] = list(positions)
        if len(rows) != len(lengths):
            raise InterpError(f"positions: expected those of {len(lengths)} prompts, got {len(rows)} lists.")
        width = max(map(len, rows))
        slots = []
        for row, (given, length) in enumerate(zip(rows, lengths, strict=True)):
            bad = [at for at in given if not -length <= at < length]
            if bad:
                raise InterpError(f"positions: prompt {row} has {length} tokens, position {bad[0]} is none of them.")
            slots.append([*(at % length for at in given), *[-1] * (width - len(given))])
        labels = [str(index) for index in range(width)]
    else:
        several = [positions] if isinstance(positions, str | int) else list(positions)
        slots, labels = resolved(check_positions([str(one) for one in several]), passes.encoded)
    table = torch.tensor(slots, dtype=torch.long, device="cpu")
    if not table.numel() or not bool((table >= 0).any()):
        raise InterpError("positions: expected at least one position in one prompt, got none.")
    return table, labels


def _per_example(positions: Sequence[Any]) -> bool:
    return bool(positions) and all(isinstance(row, Sequence) and not isinstance(row, str) for row in positions)


def _scalar(value: Any, output: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        came = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise InterpError(
            f"gradients_of: expected one number of the output {tuple(output.shape)} (example, position, ...), with its "
            f"gradient, got {came:.120}. Sum over the examples."
        )
    if not bool(torch.isfinite(value.detach())):
        raise InterpError(
            f"gradients_of: expected a finite number, got {float(value.detach())}. The output is NaN behind the last "
            "token of a prompt that is shorter than another: take each prompt's own positions."
        )
    return value.reshape(())


def _wholes(sites: Sequence[Site]) -> dict[Site, list[Site]]:
    """Each site with all its heads, and what of it is kept: one visit, whichever heads these are."""
    found: dict[Site, list[Site]] = {}
    for site in sites:
        found.setdefault(site if site.head is None else replace(site, head=None), []).append(site)
    return found


def _held(live: list[tuple[Site, Pass, Tensor]], site: Site, one: Pass) -> Callable[[Tensor], Tensor]:
    """What goes on in place of the value, and whose gradient is asked for afterwards."""

    def hold(value: Tensor) -> Tensor:
        on_its_way = value.clone()
        if not on_its_way.requires_grad:  # the first of them, in a model whose weights are frozen
            on_its_way.requires_grad_()
        live.append((site, one, on_its_way))
        return on_its_way

    return hold
