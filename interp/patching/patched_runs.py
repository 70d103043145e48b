"""Runs of prompts with something written into them: the plain way, and the walk up the layers that gives the same.

The plain way (`run_patched`) is one traced forward pass of whole prompts for each entry. In the walk, rows join at the
layer that they are patched at. A patch at layer l and position p leaves everything before p, and all layers up to l, as
they were. So the positions before p are computed once and frozen, layers up to l are those of the clean prompt
(`CleanRun`), and a patchscope over L layers costs about L / 2 passes over the positions from p on, in place of L passes
over the whole prompt. Where something is done in windows of layers (`walk_windows`), rows join before their window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor, nn

from interp import passes
from interp.forward.layers import by_name, run_layers
from interp.forward.prefix import FrozenPrefix
from interp.forward.rope import first_changed, forget_lengths
from interp.forward.shared_attention import sharing
from interp.matmul import faster_products
from interp.model.image_inputs import inputs_of_prompts
from interp.model.verdicts import verdicts_of
from interp.prompts import Media
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "WALKERS_READ_ONE_PREFIX",
    "Call",
    "CleanRun",
    "calls_of",
    "run_patched",
    "walk",
    "walk_up",
    "walk_windows",
    "walking",
]

WALKERS_READ_ONE_PREFIX = "walking rows read one prefix"  # of `verdicts_of`, found out by `walk_fits`


def walking(model: StandardizedTransformer, part: nn.Module | None = None) -> AbstractContextManager[None]:
    """What walking rows go through a model in: where the family shares, all read the one prefix; else each has a copy.

    Arguments:
        model: the model.
        part: the one module of it that is run; None: all of it.
    """
    shares = verdicts_of(model).get(WALKERS_READ_ONE_PREFIX)
    return sharing(model._module, part=part) if shares else nullcontext()


@torch.no_grad()
def walk(
    model: StandardizedTransformer,
    target_ids: Tensor,
    positions: Sequence[int],
    latents: Mapping[int, Tensor],
    *,
    layers: Sequence[int],
    later: Mapping[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Write latents into target prompts, a layer at a time, and give what the last layer makes of each.

    Arguments:
        model: the model.
        target_ids: (row, length), target prompts, all equally long; or (1, length), one for all rows.
        positions: the tokens of them that are written, all at once, counted from 0.
        latents: layer -> (variant, row, position, hidden), what is written after it. Every variant is a run of its own:
            the lens has one, a grid has one for each source layer.
        layers: the layers that are patched, ascending.
        later: layer -> (row, position, hidden), what is written there into runs that were patched at an earlier layer;
            None: nothing.

    Returns:
        (layer, variant, row, hidden), the residual stream after the last layer at the last token, for a patch at each
        of `layers`; and (row, hidden), the same of the unpatched prompts.
    """
    clean = CleanRun.of(model, target_ids, min(positions))
    variants, rows = latents[layers[0]].shape[:2]
    walked = walk_up(clean, [position - clean.start for position in positions], latents, layers=layers, later=later)
    return walked[:, -1].unflatten(0, (len(layers), variants, rows)), clean.ends(rows)


@torch.no_grad()
def walk_up(
    clean: CleanRun,
    columns: Sequence[int],
    latents: Mapping[int, Tensor],
    *,
    layers: Sequence[int],
    later: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """The walk itself, from target prompts that have been run as they are.

    Arguments:
        clean: the prompts.
        columns: the tokens that are written, counted from the first that is.
        latents, layers, later: as in `walk`.

    Returns:
        (layer and variant and row, position, hidden), the residual stream after the last layer from the first written
        token on.
    """
    walking: Tensor | None = None
    for index in range(clean.model.num_layers):
        if walking is not None:
            walking = clean.through(index, walking)
            if later is not None:
                _write(walking.unflatten(0, (-1, later[index].shape[0])), columns, later[index])
        if index in layers:
            variants, rows = latents[index].shape[:2]
            joining = clean.hidden(index)  # (prompt, position, hidden)
            joining = joining.expand(variants, rows, *joining.shape[1:]).clone()
            _write(joining, columns, latents[index])
            joining = joining.flatten(0, 1)
            walking = joining if walking is None else torch.cat([walking, joining])
    assert walking is not None  # there is at least one layer
    return walking


def _write(hidden: Tensor, columns: Sequence[int], latents: Tensor) -> None:
    """Write (..., written position, hidden) over columns of (..., position, hidden), wherever either lies."""
    for place, column in enumerate(columns):
        hidden[..., column, :] = latents[..., place, :]


@dataclass(frozen=True)
class CleanRun:
    """Prompts of one length, run as they are up to the last layer, ready for rows that leave them at some layer.

    What such a row changes lies at position `start` or later. So the tokens before it are computed once and frozen, and
    a row needs only the layers that it goes through itself.

    Arguments:
        model: the model.
        prefix: the tokens before `start`.
        calls: how each layer was called for the tokens from `start` on, and what that gave.
    """

    model: StandardizedTransformer
    prefix: FrozenPrefix
    calls: list[Call]

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: StandardizedTransformer, input_ids: Tensor, changed: int, media: Sequence[Media | None] = ()
    ) -> CleanRun:
        """Run some prompts.

        They are run as a whole, from position 0 on, where they are so long that the rotation depends on their length:
        what lies before the change, run alone, would be rotated otherwise.

        Arguments:
            model: the model.
            input_ids: (row, length), without padding.
            changed: the first position that anything is changed at, counted from 0.
            media: what each row is fed beside its ids, all or none of them; then anything may change, from 0 on.
        """
        assert not (changed and any(media))
        forget_lengths(model)
        start = first_changed(model, input_ids.shape[1], changed)
        prefix = FrozenPrefix.of(model, input_ids[:, :start])
        return cls(model, prefix, calls_of(model, prefix, input_ids[:, start:], media))

    @property
    def start(self) -> int:
        """The first position that rows have."""
        return self.prefix.length

    def ends(self, rows: int) -> Tensor:
        """(row, hidden), the residual stream after the last layer at the last token, of one prompt a row or for all."""
        return self.hidden(self.model.num_layers - 1)[:, -1].expand(rows, -1)

    def hidden(self, layer: int) -> Tensor:
        """(row, position, hidden), the residual stream after a layer, from position `start` on; -1: before layer 0."""
        return self.calls[layer].output if layer >= 0 else self.calls[0].input

    @torch.no_grad()
    def through(self, layer: int, hidden: Tensor, blocked: Tensor | None = None, *, shares: bool = True) -> Tensor:
        """Let rows go through one layer.

        Arguments:
            layer: which.
            hidden: (multiple of the prompts, position, hidden), the residual stream before it from position `start` on;
                row i goes on from prompt i modulo the number of prompts.
            blocked: (1 or row, 1 or head, position, key), True where a position's attention must not look; keys are
                counted from the beginning of the prompt. None: it looks as the model does.
            shares: whether rows may read one prefix, where the family allows it; else each has a copy.

        Returns:
            The same after the layer.
        """
        call = self.calls[layer]
        keywords = call.keywords
        if blocked is not None:
            if "attention_mask" not in keywords:
                raise NotImplementedError("layers of this family are not given an attention mask")
            keywords = keywords | {"attention_mask": self._without(keywords["attention_mask"], blocked, hidden.dtype)}
        model, part = self.model, self.model.layer(layer)._module
        products = faster_products(hidden.shape[0] * hidden.shape[1], model.hidden_size, model.dtype, model.device)
        with walking(model, part) if shares else nullcontext(), products:
            output: Any = part(hidden, **keywords)
        return output if isinstance(output, Tensor) else output[0]

    def _without(self, mask: Tensor | None, blocked: Tensor, dtype: torch.dtype) -> Tensor:
        """A mask (row, 1 or head, position, key) of the kind that the model made, which also hides what is blocked."""
        seen = ~blocked
        positions, keys = blocked.shape[-2:]
        if mask is None:
            causal = torch.ones(positions, keys, dtype=torch.bool, device=blocked.device).tril(keys - positions)
            allowed = seen & causal
            if self.model.config._attn_implementation != "eager":
                return allowed
            mask = torch.zeros((), dtype=dtype, device=blocked.device)
            return mask.masked_fill(~allowed, torch.finfo(dtype).min)
        if mask.dtype == torch.bool:
            # A token sees itself: what the mask has there is what it says of keys that are seen (MPT's says False).
            is_seen = mask[..., -1:, -1:]
            return ((mask == is_seen) & seen) == is_seen
        return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


Inside = Callable[[int, Tensor, list[int]], Tensor]
"""Layer, rows before it, and which entries are inside their window there -> the rows after it."""


@torch.no_grad()
def walk_windows(clean: CleanRun, windows: Sequence[range], inside: Inside) -> Tensor:
    """Let the prompts join once for each window, and give what the last layer makes of each.

    Below its window an entry is the clean run, which has been computed. Above it, the entry goes on as any prompt does,
    from what the window has made of it.

    Arguments:
        clean: the prompts.
        windows: layers of each entry, ascending by the first of them; none is empty.
        inside: takes the walking rows, (entry x prompt, position, hidden), through one layer.

    Returns:
        (entry, prompt, hidden), the residual stream after the last layer at the last token.
    """
    assert all(first.start <= second.start for first, second in pairwise(windows))
    last = clean.model.num_layers - 1
    prompts = len(clean.hidden(-1))
    walking, joined = clean.hidden(-1)[:0], 0
    for layer in range(windows[0].start, last + 1):
        joining = sum(window.start == layer for window in windows)
        if joining:
            walking = torch.cat([walking, clean.hidden(layer - 1).repeat(joining, 1, 1)])
            joined += joining
        active = [entry for entry in range(joined) if layer in windows[entry]]
        walking = inside(layer, walking, active) if active else clean.through(layer, walking)
    return walking[:, -1].unflatten(0, (-1, prompts))


@torch.no_grad()
def run_patched(
    model: StandardizedTransformer,
    target_ids: Sequence[Sequence[int]],
    positions: Sequence[int] | Sequence[Sequence[int]],
    writes: Sequence[tuple[Site, Tensor]],
    media: Sequence[Media | None] | None = None,
) -> Tensor:
    """Run target prompts with latents written into them, up to the last layer and without the head.

    Arguments:
        model: the model.
        target_ids: token ids of each row's prompt, unpadded.
        positions: the token of each row that is written, counted without padding; or several, equally many in each.
        writes: sites in the order of a forward pass, and what is written there, (row, hidden_size); or (row, position,
            hidden_size) where several tokens are.
        media: what each row is fed beside its ids, all or none of them.

    Returns:
        (row, hidden_size), the residual stream after the last layer at each prompt's last token.
    """
    forget_lengths(model)
    inputs = inputs_of_prompts(model, target_ids, media)
    longest = inputs["input_ids"].shape[1]
    columns, rows = (
        torch.tensor(positions, device="cpu"),
        torch.arange(len(target_ids), device="cpu"),
    )  # (row,) or (row, position); (row,)
    padding = torch.tensor([longest - len(ids) for ids in target_ids], device="cpu")
    if columns.dim() == 2:
        rows, padding = rows[:, None], padding[:, None]
    columns += padding
    last = Site("resid_post", model.num_layers - 1)
    final: Tensor
    fed = inputs["input_ids"].numel()
    products = faster_products(fed, model.hidden_size, model.dtype, model.device)
    with products, model.trace(**inputs, use_cache=False) as tracer:
        for site, latent in writes:
            patched = model.read(site).clone()  # others may hold the tensor that the model made
            patched[rows.to(patched.device), columns.to(patched.device)] = latent.to(patched)
            model.write(site, patched)
        final = nnsight.save(model.read(last)[:, -1].clone())
        tracer.stop()
    return final


@dataclass(frozen=True)
class Call:
    """How the model calls one layer, and what that gives.

    Arguments:
        keywords: what it is given beside the residual stream, by name, good for any number of rows.
        input, output: (row, position, hidden), the residual stream before and after it.
    """

    keywords: dict[str, Any]
    input: Tensor
    output: Tensor


@torch.no_grad()
def calls_of(
    model: StandardizedTransformer, prefix: FrozenPrefix, input_ids: Tensor, media: Sequence[Media | None] = ()
) -> list[Call]:
    """Run what follows a prefix, and keep how each layer is called.

    Arguments:
        model: the model.
        prefix: of the same rows.
        input_ids: (row, position), the tokens that follow.
        media: what each row is fed beside them, all or none of them.

    Returns:
        A call for each layer.
    """
    given: list[tuple[dict[str, Any], Tensor]] = []
    outputs: list[Tensor] = []
    rows = input_ids.shape[0]
    known: dict[int, Tensor] = {}
    arguments: list[list[tuple[str, Any]]] = []

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (_, hidden), *rest = by_name(layer, args, kwargs).items()
        arguments.append(rest)  # a tensor that is let go could leave its id to another
        given.append((_for_any_rows(dict(rest), rows, known), hidden))

    def after(_: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    layers = [model.layer(index)._module for index in range(model.num_layers)]
    hooks = [passes.before(layer, before) for layer in layers]
    hooks += [passes.after(layer, after) for layer in layers]
    try:
        run_layers(model, input_ids, prefix.cache, prefix.length, media)
    finally:
        for hook in hooks:
            hook.remove()
    return [Call(*call, output) for call, output in zip(given, outputs, strict=True)]


def _for_any_rows(value: Any, rows: int, known: dict[int, Tensor]) -> Any:
    """Arguments of a layer as they are for one row: without padding all rows have the same, which broadcast.

    A first axis that is as long by chance, such as one of heads, does not hold the same throughout.

    Arguments:
        value: of an argument.
        rows: how many there are.
        known: by the `id` of a tensor, what it became: all layers are given the same few.
    """
    if isinstance(value, Tensor):
        if id(value) not in known:
            by_row = rows > 1 and value.dim() > 1 and value.shape[0] == rows
            known[id(value)] = value[:1] if by_row and bool((value == value[:1]).all()) else value
        return known[id(value)]
    if isinstance(value, tuple | list):
        return type(value)(_for_any_rows(item, rows, known) for item in value)
    if isinstance(value, dict):
        return {name: _for_any_rows(item, rows, known) for name, item in value.items()}
    return value
