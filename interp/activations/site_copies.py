"""Copies what a pass computes at sites: of the positions that are asked for alone, straight to where it is to lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.prompt_batches import Pass
from interp.errors import InterpError
from interp.model.places import HeadOutPlace, Place
from interp.model.resolve import place_of
from interp.model.visits import Visit
from interp.sites import ATTENTION_KINDS, MAP_KINDS, Site

if TYPE_CHECKING:
    from interp.activations.cached_run import CacheRequest

__all__ = ["Kept", "SiteReader"]

STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_in", "mixer_in", "mlp_in")
"""Kinds that may be one tensor of the model with the kind before."""


@dataclass
class Kept:
    """What is kept, over all passes.

    Arguments:
        request: what is asked for.
        tensors: by site; of several passes, filled pass by pass.
        shared: the sites whose tensor is that of another.
    """

    request: CacheRequest
    tensors: dict[Site, Tensor] = field(default_factory=dict)
    shared: set[Site] = field(default_factory=set)

    def put(self, site: Site, one: Pass, value: Tensor) -> None:
        """Keep what a pass gave of a site, (row, ...)."""
        examples = len(self.request.table)
        if one.batch.rows == list(range(examples)):
            self.tensors[site] = value
            return
        if site not in self.tensors:
            shape = [examples, *value.shape[1:]]
            if site.kind in MAP_KINDS:
                shape[-1] = self.request.keys
            self.tensors[site] = value.new_full(shape, torch.nan)
        elif site in self.shared:  # in the passes before, and not in this one
            self.shared.remove(site)
            self.tensors[site] = self.tensors[site].clone()
        whole = self.tensors[site]
        rows = torch.tensor(one.batch.rows, device="cpu").to(whole.device)
        if site.kind in MAP_KINDS:
            whole[rows, ..., : value.shape[-1]] = value
        elif value.shape[1:] != whole.shape[1:]:
            raise InterpError(
                f"{site}: expected {tuple(whole.shape[1:])} of each prompt, got {tuple(value.shape[1:])}."
            )
        else:
            whole[rows] = value

    def share(self, site: Site, other: Site, one: Pass) -> None:
        """Keep for a site what the pass has given of another: one tensor for both, if it was so in every pass."""
        if site not in self.tensors and one is self.request.passes.passes[0]:
            self.tensors[site] = self.tensors[other]
            self.shared.add(site)
        elif self.tensors.get(site) is not self.tensors[other]:
            rows = torch.tensor(one.batch.rows, device="cpu").to(self.tensors[other].device)
            self.put(site, one, self.tensors[other][rows])


class SiteReader:
    """Copies what one pass gives at sites.

    Arguments:
        request: what is asked for.
        one: the pass.
        kept: where copies go.
    """

    def __init__(self, request: CacheRequest, one: Pass, kept: Kept) -> None:
        self.request, self.one, self.kept = request, one, kept
        rows = torch.tensor(one.batch.rows, device="cpu")
        table = request.table[rows]  # (row, position)
        self.missing = table < 0
        columns = one.batch.columns(table).clamp(min=0)
        self.even = bool((columns == columns[:1]).all())
        width = one.batch.width
        self.is_whole = self.even and columns.shape[1] == width and columns[0].tolist() == list(range(width))
        self.lacks = bool(self.missing.any())
        self.plain = self.is_whole and not self.lacks and request.device is None and request.dtype is None
        self.columns = columns
        self._last: tuple[Tensor, int | None, Site] | None = None
        self._indices: dict[Any, Tensor] = {}

    def visit(self, wholes: Mapping[Site, Sequence[Site]]) -> Visit:
        """One visit of many places, in the order of the forward pass: a worker each would cost more than the copies."""
        places = {site: place_of(self.request.passes.model, site) for site in wholes}
        return Visit("cache", _InOrder(self, wholes, places), lambda _: None)

    def take(
        self, site: Site, value: Tensor, asked: Sequence[Site], then: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Copy a value, and keep what of it is asked for.

        Arguments:
            site: whose it is.
            value: (row, column, ...), or the axes of the site.
            asked: that site, or heads of it, or both.
            then: what is done with what is taken of the value, before it is kept.
        """
        with torch.no_grad():
            value = value.detach()
            version = _version(value)
            plain = then is None and list(asked) == [site] and site.kind in STREAM
            if plain and self._last is not None:
                live, seen, other = self._last
                if version is not None and seen == version and _is_same(live, value):
                    self.kept.share(site, other, self.one)
                    return
            copy = self._copied(site, value, then)
            self._last = (value, version, site) if plain else self._last
            if list(asked) == [site]:
                self.kept.put(site, self.one, copy)
                return
            axis = {"z": 2, "head_out": 2}.get(site.kind, 1)
            for one in asked:
                if one.head is not None and one.head >= copy.shape[axis]:
                    raise InterpError(f"{one}: this layer has {copy.shape[axis]} heads, from 0.")
                self.kept.put(one, self.one, copy if one.head is None else copy.select(axis, one.head).clone())

    def _copied(self, site: Site, value: Tensor, then: Callable[[Tensor], Tensor] | None) -> Tensor:
        inside = site.kind in ATTENTION_KINDS and site.head is None
        if self.plain and not inside and then is None and site.kind not in ATTENTION_KINDS:
            return value.clone(memory_format=torch.contiguous_format)
        axis = 2 if inside else 1
        moved = self.one.before if site.kind in ("k", "v") else 0
        taken = value
        if not (self.is_whole and not moved and value.shape[axis] == self.columns.shape[1]):
            taken = self._at(value, axis, moved)
        if site.kind in MAP_KINDS:
            taken = self._own_keys(taken)
        if then is not None:
            taken = then(taken)
        request = self.request
        copy = taken.to(device=request.device or taken.device, dtype=request.dtype or taken.dtype)
        if copy.untyped_storage().data_ptr() == value.untyped_storage().data_ptr():
            copy = copy.clone(memory_format=torch.contiguous_format)
        if self.lacks:
            missing = self.missing.to(copy.device)
            view = [1] * copy.dim()
            view[0], view[axis] = missing.shape
            copy.masked_fill_(missing.view(view), torch.nan)
        return copy

    def _index(self, device: torch.device, moved: int) -> Tensor:
        key = (device, moved)
        if key not in self._indices:
            self._indices[key] = (self.columns + moved).to(device)
        return self._indices[key]

    def _at(self, value: Tensor, axis: int, moved: int) -> Tensor:
        """Of a value, the positions that are kept, along an axis."""
        columns = self._index(value.device, moved)
        if self.even:
            return value.index_select(axis, columns[0])
        view = [1] * value.dim()
        view[0], view[axis] = columns.shape
        shape = [*value.shape]
        shape[axis] = columns.shape[1]
        return value.gather(axis, columns.view(view).expand(shape))

    def _own_keys(self, value: Tensor) -> Tensor:
        """Of a map, keys from each prompt's own first token on; NaN behind its last."""
        batch = self.one.batch
        before, own = batch.before, batch.lengths + self.one.before
        longest = int(own.max())
        keys = torch.arange(longest, device="cpu").expand(len(own), -1)
        columns = (keys + before[:, None]).clamp(max=value.shape[-1] - 1).to(value.device)
        beyond = (keys >= own[:, None]).to(value.device)
        view = [len(own), *[1] * (value.dim() - 2), longest]
        taken = value.gather(-1, columns.view(view).expand(*value.shape[:-1], longest))
        return taken.masked_fill(beyond.view(view), torch.nan) if bool(beyond.any()) else taken


@dataclass
class _InOrder:
    """Many places that are read one after the other.

    Arguments:
        reader: takes what is read.
        wholes: site -> what of it is kept, in the order of the forward pass.
        places: where these are.
    """

    reader: SiteReader
    wholes: Mapping[Site, Sequence[Site]]
    places: Mapping[Site, Place]

    def read(self) -> Tensor:
        value = torch.empty(0)
        for site, asked in self.wholes.items():
            place = self.places[site]
            if isinstance(place, HeadOutPlace):  # heads are projected at the positions that are kept alone
                value = place.z.read()
                self.reader.take(site, value, asked, place.heads)
            else:
                value = place.read()
                self.reader.take(site, value, asked)
        return value

    def write(self, value: Tensor) -> None:
        raise AssertionError("a cache only reads")  # what its visit returns is None


def _version(value: Tensor) -> int | None:
    """How often a tensor was changed in place; None where torch does not count (inference mode)."""
    return None if value.is_inference() else value._version


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
