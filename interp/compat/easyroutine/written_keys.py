"""What a key of a cache is in the model, so that it can be written: `resid_out_3`, `pattern_L0H2`, `values_3`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.activations.forward_passes import ForwardPasses
from interp.compat.easyroutine.projections import heads_of, projection_of
from interp.errors import InterpError, nearest
from interp.interventions.shapes import site_shapes
from interp.model.places import ModulePlace
from interp.model.places_inside import ProjectedPlace
from interp.model.resolve import place_of
from interp.model.visits import Visit, run_visiting
from interp.prompts import Encoded
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["WrittenKey", "written_key"]

_STREAM = {
    "resid_in": "resid_pre", "resid_mid": "resid_mid", "resid_out": "resid_post", "attn_in": "attn_in",
    "resid_in_post_layernorm": "attn_in", "attn_out": "attn_out", "mlp_out": "mlp_out",
}  # fmt: skip
_PACKED = {"values": "v", "keys": "k", "queries": "q"}
_OF_A_HEAD = {
    "head_values": "v", "head_keys": "k", "head_queries": "q", "head_out": "head_out", "pattern": "pattern",
    "projected_value": "pattern",
}  # fmt: skip
_ROTATED = ("k", "q")
_KEY = re.compile(r"([a-z_]+)_L?(\d+)(?:H(\d+))?")
_SPELLINGS = (
    *(f"{name}_0" for name in _STREAM), *(f"{name}_L0" for name in _PACKED), *(f"{name}_L0H0" for name in _OF_A_HEAD),
    "input_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class WrittenKey:
    """One key of a cache, in a model.

    Arguments:
        key: as it was given.
        name: what it begins with: `resid_out`, `head_values`.
        site: the site that is written, with a head where the key names one; values and keys of a head are those of its
            group.
        model: the model.
    """

    key: str
    name: str
    site: Site
    model: StandardizedTransformer

    @property
    def is_packed(self) -> bool:
        """Whether its last axis holds all heads, one behind the other."""
        return self.name in _PACKED

    def heads_apart(self, value: Tensor) -> Tensor:
        """Give (example, position, heads times head_dim), or what broadcasts to it, the site's axis of heads."""
        if not self.is_packed:
            return value
        count = site_shapes(self.model, [self.site])[self.site].heads
        assert count is not None
        if value.shape[-1] % count:
            raise InterpError(f"{self.key}: expected numbers of {count} heads, got {value.shape[-1]} in all.")
        return value.unflatten(-1, (count, -1)).transpose(-2, -3)

    @property
    def is_rotated(self) -> bool:
        """Whether attention receives it in another form than the key has it: queries and keys are before rotation."""
        return self.site.kind in _ROTATED

    def received(self, value: Tensor, encoded: list[Encoded], tokens: list[list[int]]) -> Tensor:
        """Queries or keys as attention receives them, from what the projection would have given: normed and rotated.

        Arguments:
            value: (example, position, [head,] head_dim), as the projection gives it at these tokens; heads of the site.
            encoded: the examples.
            tokens: where.

        Returns:
            The same shape.
        """
        model, site = self.model, Site(self.site.kind, self.site.layer)
        assert site.layer is not None
        part = projection_of(model, site.layer, site.kind)
        projection = ModulePlace(model.layer(site.layer).get(part.path), "output", self.key)
        place = ProjectedPlace(projection, part.columns, part.heads)
        made = value.clone()
        for row, (example, there) in enumerate(zip(encoded, tokens, strict=True)):
            if not there:
                continue
            [alone] = ForwardPasses.whole(model, [example], 1, "left").passes

            def write(live: Tensor, row: int = row, there: list[int] = there) -> Tensor:
                new = live.clone()  # (1, position, head, head_dim)
                own = value[row, : len(there)].to(new)
                heads = slice(None) if self.site.head is None else self.site.head
                new[0, there, heads] = own
                return new

            def read(live: Tensor, row: int = row, there: list[int] = there) -> None:
                heads = slice(None) if self.site.head is None else self.site.head
                made[row, : len(there)] = live[0, heads].movedim(-2, 0)[there].to(made)

            visits = [Visit(self.key, place, write), Visit(str(site), place_of(model, site), read)]
            with torch.no_grad():
                run_visiting(model, visits, stop=True, **alone.inputs)
        return made


def written_key(key: str, model: StandardizedTransformer, name: str) -> WrittenKey:
    """Read a key.

    Arguments:
        key: `resid_out_3`, `values_3`, `values_L3`, `pattern_L3H1`, ...
        model: the model.
        name: what messages call it.

    Raises:
        InterpError: no such key, a layer or head that the model lacks, or a head that is missing or too much.
    """
    if key == "input_embeddings":
        return WrittenKey(key, key, Site("embed"), model)
    match = _KEY.fullmatch(str(key))
    kinds = {**_STREAM, **_PACKED, **_OF_A_HEAD}
    if match is None or match[1] not in kinds:
        raise InterpError(
            f"{name}: {key!r} is not the key of an activation that can be written.{nearest(str(key), _SPELLINGS)}"
        )
    word, layer, head = match[1], int(match[2]), None if match[3] is None else int(match[3])
    if layer >= model.num_layers:
        raise InterpError(f"{name}: {key!r}: the model has layers 0 to {model.num_layers - 1}.")
    if (head is not None) != (word in _OF_A_HEAD):
        wanted = f"{word}_L{layer}H0" if word in _OF_A_HEAD else f"{word}_{layer}"
        raise InterpError(f"{name}: {key!r}: expected e.g. {wanted!r}.")
    if head is not None and head >= heads_of(model, layer):
        raise InterpError(f"{name}: {key!r}: the layer has heads 0 to {heads_of(model, layer) - 1}.")
    site = Site(kinds[word], layer, head)
    if head is not None and site.kind in ("k", "v"):
        count = site_shapes(model, [Site(site.kind, layer)])[Site(site.kind, layer)].heads
        assert count is not None
        site = Site(site.kind, layer, head * count // heads_of(model, layer))
    return WrittenKey(str(key), word, site, model)
