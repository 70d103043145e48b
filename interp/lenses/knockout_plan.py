"""What a knock-out cuts: blocks of positions, in windows of layers, in all heads or in some; checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.errors import InterpError
from interp.forward import Cut, CutHeads, heads_in
from interp.model.fed import check_fed
from interp.model.resolve import sublayer_of, why_missing
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Blocks", "Heads", "KnockoutPlan", "attends", "check_attention", "cut_heads", "cuts_of"]

Blocks = Sequence[Mapping[str, Sequence[int]]]
"""Per example: name of each block -> its positions."""
Heads = Sequence[int] | Mapping[int, Sequence[int]]
"""Heads that are cut in every layer; or layer -> its heads, and none in other layers."""


@dataclass(frozen=True)
class KnockoutPlan:
    """What is cut where.

    Arguments:
        input_ids: token ids of each prompt.
        cuts: the edges of each block, by example.
        windows: the layers of each window, ascending by the first of them.
        heads: in which heads of which layers; None: in all.
    """

    input_ids: Sequence[Sequence[int]]
    cuts: list[list[Cut]]
    windows: list[range]
    heads: CutHeads | None

    @property
    def num_blocks(self) -> int:
        return len(self.cuts[0]) if self.cuts else 0

    def cut_in(self, window: range) -> list[int]:
        """The layers of a window in which something is cut."""
        return [layer for layer in window if self.heads is None or layer in self.heads]

    def starts(self) -> list[int]:
        """The first position of each prompt that anything changes at."""
        return [min((min(cut.queries) for cut in cuts), default=0) for cuts in self.cuts]


def attends(model: StandardizedTransformer, layer: int) -> bool:
    """Whether a layer has attention."""
    return sublayer_of(model, "attention", layer) is not None


def check_attention(model: StandardizedTransformer, windows: Mapping[int, range]) -> None:
    """Whether there is attention to cut in each window (place -> its layers).

    Raises:
        InterpError: there is none, or its scores cannot be had.
    """
    attending = [layer for layer in range(model.num_layers) if attends(model, layer)]
    for place, window in windows.items():
        if not any(layer in window for layer in attending):
            there = f"Layers with attention: {attending}." if attending else "No layer of this model has any."
            raise InterpError(
                f"layers: the window of layer {place} (layers {window.start} to {window.stop - 1}) has no attention. "
                f"{there} Choose `layers` whose windows hold one of them."
            )
    for layer in attending:
        reason = why_missing(model, Site("scores", layer))
        if reason is not None:
            raise InterpError(f"attention cannot be cut in {type(model._module).__name__}: layer {layer}: {reason}")


def cut_heads(
    model: StandardizedTransformer, heads: Heads | None, windows: Mapping[int, range]
) -> dict[int, tuple[int, ...]] | None:
    """The heads that are cut in each layer, ascending; None: all.

    Arguments:
        model: the model, whose windows have attention.
        heads: as in `attention_knockout`.
        windows: place -> the layers of its window.

    Raises:
        InterpError: a layer without attention or outside the model, a head that a layer does not have, none at all, or
            a window in which none is cut.
    """
    if heads is None:
        return None
    attending = [layer for layer in range(model.num_layers) if attends(model, layer)]
    by_layer = heads if isinstance(heads, Mapping) else dict.fromkeys(attending, heads)
    found = {}
    for layer, given in sorted(by_layer.items()):
        if layer not in attending:
            raise InterpError(
                f"heads: layer {layer} has no attention to cut. Layers of this model that have: {attending}."
            )
        count = heads_in(model, layer)
        found[layer] = tuple(sorted({int(head) for head in given}))
        outside = [head for head in found[layer] if not 0 <= head < count]
        if outside or not found[layer]:
            got = f"head {outside[0]}" if outside else "none"
            raise InterpError(f"heads: layer {layer}: expected query heads 0 to {count - 1}, at least one, got {got}.")
    for place, window in windows.items():
        if not any(layer in window for layer in found):
            raise InterpError(
                f"heads: the window of layer {place} (layers {window.start} to {window.stop - 1}) has none of the "
                f"heads, which are in layers {list(found)}. Choose `layers` whose windows hold one of these."
            )
    return found


def cuts_of(
    model: StandardizedTransformer,
    input_ids: Sequence[Sequence[int]],
    blocks: Blocks,
    query_positions: Sequence[Sequence[int]] | None,
) -> tuple[list[str], list[list[Cut]]]:
    """Names of the blocks, and by example the edges of each.

    Arguments:
        model: the model.
        input_ids, blocks, query_positions: as in `attention_knockout`.

    Raises:
        InterpError: they do not fit each other, or a block has nothing that a query sees.
    """
    for name, given in (("blocks", blocks), ("query_positions", query_positions)):
        if given is not None and len(given) != len(input_ids):
            raise InterpError(f"{name}: expected one entry for each of {len(input_ids)} examples, got {len(given)}.")
    check_fed(model, input_ids, "input_ids")
    names = list(blocks[0]) if blocks else []
    cuts = []
    for example, (ids, positions) in enumerate(zip(input_ids, blocks, strict=True)):
        if set(positions) != set(names) or not names:
            raise InterpError(
                f"blocks: expected blocks {names or 'with names'} in each example, got {list(positions)} in example "
                f"{example}."
            )
        queries = (
            _inside("query_positions", example, query_positions[example], len(ids))
            if query_positions
            else (len(ids) - 1,)
        )
        cuts.append([Cut(queries, _inside(f"blocks: {name!r}:", example, positions[name], len(ids))) for name in names])
        for name, cut in zip(names, cuts[-1], strict=True):
            if min(cut.keys) > max(cut.queries):
                raise InterpError(
                    f"blocks: {name!r} of example {example} is {list(cut.keys)}, which none of the query positions "
                    f"{list(cut.queries)} sees: attention looks back."
                )
    return names, cuts


def _inside(what: str, example: int, positions: Sequence[int], length: int) -> tuple[int, ...]:
    if not len(positions) or min(positions) < 0 or max(positions) >= length:
        raise InterpError(
            f"{what} example {example} has {list(positions)}, expected at least one token of its prompt, 0 to "
            f"{length - 1}. `interp.positions` resolves positions that count from the end."
        )
    return tuple(int(position) for position in positions)
