"""The walk of a grid of patches: prompts recorded once, cells that start at one position go up the layers together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from interp import passes
from interp.forward import FrozenPrefix, LastLayer, first_changed, forget_lengths
from interp.forward.batch import Feed
from interp.forward.layers import by_name
from interp.forward.prefix import FrozenLayer
from interp.matmul import faster_products
from interp.model.resolve import place_of
from interp.model.verdicts import verdicts_of
from interp.model.visits import Visit, visit_part
from interp.patching.cells import Cell, Written
from interp.patching.patched_runs import Call, CleanRun, calls_of
from interp.sites import ATTENTION_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["LAST_TOKEN", "RecordedRun", "through", "visiting", "walk_cells"]

# Tokens of rows that go through a layer at once: on a processor few enough for what it makes to stay in the caches; on
# an accelerator, where something is written in it, few enough for memory.
_PIECE, _ACCELERATOR_PIECE = 2048, 1 << 14
LAST_TOKEN = "walking rows end with their last token"  # of `verdicts_of`: whether the last layer runs at it alone


@dataclass(frozen=True)
class RecordedRun:
    """Prompts of one length, run once as they are: keys and values of all their tokens, and every residual stream.

    Arguments:
        model: the model.
        input_ids: (prompt, position).
        cache: keys and values of all tokens.
        hidden: before each layer, and after the last: (prompt, position, hidden).
    """

    model: StandardizedTransformer
    input_ids: Tensor
    cache: DynamicCache
    hidden: list[Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, model: StandardizedTransformer, input_ids: Tensor) -> RecordedRun:
        """Run prompts.

        Arguments:
            model: the model.
            input_ids: (prompt, position), without padding.
        """
        forget_lengths(model)
        hidden: list[Tensor] = []

        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden.append(next(iter(by_name(layer, args, kwargs).values())))

        def after(_: nn.Module, args: Any, output: Any) -> None:
            hidden.append(output if isinstance(output, Tensor) else output[0])

        layers = [model.layer(index)._module for index in range(model.num_layers)]
        hooks = [*(passes.before(layer, before) for layer in layers), passes.after(layers[-1], after)]
        try:
            prefix = FrozenPrefix.of(model, input_ids)
        finally:
            for hook in hooks:
                hook.remove()
        return cls(model, input_ids, prefix.cache, hidden)

    @torch.no_grad()
    def at(self, changed: int) -> CleanRun:
        """The same run, ready for rows that leave it at some position or later.

        How layers are called from there on is found out by one prompt; without padding it is the same for all.

        Arguments:
            changed: the first position that is changed.
        """
        start = first_changed(self.model, self.input_ids.shape[1], changed)
        whole, one = self._prefix(slice(None), start), self._prefix(slice(1), start)
        calls = [
            Call(_with_cache(call.keywords, one, whole), before[:, start:], after[:, start:])
            for call, before, after in zip(
                calls_of(self.model, one, self.input_ids[:1, start:]), self.hidden[:-1], self.hidden[1:], strict=True
            )
        ]
        return CleanRun(self.model, whole, calls)

    def _prefix(self, prompts: slice, length: int) -> FrozenPrefix:
        """The first tokens of some of the prompts."""
        cache = DynamicCache()
        cache.layers = []
        for layer in self.cache.layers:
            own = FrozenLayer()
            if length:
                keys, values = layer.keys[prompts, ..., :length, :], layer.values[prompts, ..., :length, :]
                own.lazy_initialization(keys, values)
                own.keys, own.values = keys, values
            own.module = self.model._module
            cache.layers.append(own)
        return FrozenPrefix(cache, length)


def _with_cache(keywords: dict[str, Any], one: FrozenPrefix, whole: FrozenPrefix) -> dict[str, Any]:
    return {name: whole.cache if value is one.cache else value for name, value in keywords.items()}


def walk_cells(clean: CleanRun, cells: Sequence[Cell], written: Written) -> Tensor:
    """(cell and prompt, hidden), after the last layer at the last token; cells ascend by layer."""
    model, kind = clean.model, written.kind
    prompts = len(clean.hidden(-1))
    pieces: list[Tensor] = []
    for layer in range(cells[0].layer, model.num_layers):
        joining = [cell for cell in cells if cell.layer == layer]
        entering = clean.hidden(layer - 1).repeat(len(joining), 1, 1)  # (cell and prompt, position, hidden)
        if joining and kind == "resid_pre":
            _join(pieces, written.into(entering, layer, joining), prompts)
        pieces = [through(clean, layer, piece, prompts) for piece in pieces]
        if joining and kind != "resid_pre":
            if kind == "resid_post":
                joined = written.into(clean.hidden(layer).repeat(len(joining), 1, 1), layer, joining)
            else:
                joined = _inside(clean, layer, entering, joining, written)
            _join(pieces, joined[:, -pieces[-1].shape[1] :] if pieces else joined, prompts)
    return torch.cat([piece[:, -1] for piece in pieces])


def _join(pieces: list[Tensor], rows: Tensor, prompts: int) -> None:
    """Put rows behind those that walk: into the last piece, where there is room, then into pieces of their own."""
    size = _rows_at_once(rows, prompts)
    room = size - len(pieces[-1]) if pieces else 0
    if room > 0:
        pieces[-1] = torch.cat([pieces[-1], rows[:room]])
        rows = rows[room:]
    pieces.extend(rows.split(size) if len(rows) else ())


def _rows_at_once(rows: Tensor, prompts: int) -> int:
    """How many rows go through a layer at once: a power of two for each prompt, which oneDNN multiplies unpadded."""
    if rows.device.type != "cpu":
        return sys.maxsize
    copies = max(1, _PIECE // (prompts * rows.shape[1]))
    return prompts << (copies.bit_length() - 1)


def _inside(clean: CleanRun, layer: int, entering: Tensor, cells: Sequence[Cell], written: Written) -> Tensor:
    """Let the rows of some cells through the layer in which their site is."""
    model, site = clean.model, Site(written.kind, layer)
    prompts = len(entering) // len(cells)
    tokens = _PIECE if entering.device.type == "cpu" else _ACCELERATOR_PIECE
    if written.kind == "head_out":  # each head's share of the residual stream
        tokens //= model.num_heads
    size = max(1, tokens // (prompts * entering.shape[1]))
    found = []
    for start in range(0, len(cells), size):
        some = cells[start : start + size]
        rows = entering[start * prompts : (start + len(some)) * prompts]
        visit = Visit(str(site), place_of(model, site), partial(written.into, layer=layer, cells=some))
        found.append(visiting(clean, layer, rows, [visit], [site]))
    return torch.cat(found)


def visiting(clean: CleanRun, layer: int, rows: Tensor, visits: Sequence[Visit], sites: Sequence[Site]) -> Tensor:
    """Let rows through a layer with visits.

    Arguments:
        clean: the prompts.
        layer: the layer.
        rows: (multiple of the prompts, position, hidden), before it.
        visits: what is done at places of it.
        sites: which places these are.
    """
    # Attention's own values are there for all keys of a row, so each has a copy of the prefix.
    shares = not any(site.kind in ATTENTION_KINDS for site in sites)
    part = partial(clean.through, layer, rows, shares=shares)
    return visit_part(clean.model, visits, part, (rows.shape[0], rows.shape[1]))


def through(clean: CleanRun, layer: int, walking: Tensor, prompts: int) -> Tensor:
    """Let walking rows through a layer, some at a time; through the last one at their last token alone."""
    model = clean.model
    last = layer == model.num_layers - 1 and bool(verdicts_of(model).get(LAST_TOKEN))
    if not len(walking):
        return walking[:, -1:] if last else walking
    size = _rows_at_once(walking, prompts)
    go = _last_token if last else CleanRun.through
    pieces = [go(clean, layer, piece) for piece in walking.split(size)]
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _last_token(clean: CleanRun, layer: int, hidden: Tensor) -> Tensor:
    """(row, 1, hidden), what a layer gives at the last token of each row; of the others it needs keys and values."""
    model = clean.model
    part = LastLayer(model, layer)
    part.take(model.layer(layer)._module, (hidden,), clean.calls[layer].keywords)
    feed = Feed({}, clean.prefix if clean.prefix.length else None)
    rows = torch.arange(len(hidden), device=hidden.device)
    products = faster_products(hidden.shape[0] * hidden.shape[1], model.hidden_size, model.dtype, model.device)
    with products:
        return part.at(rows, torch.full_like(rows, hidden.shape[1] - 1), feed)[:, None]
