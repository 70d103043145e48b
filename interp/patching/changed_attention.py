"""Attention that is changed in windows of layers: it may not look at some positions, or receives other vectors.

Edges from some positions to others are cut before the softmax; or what attention receives is replaced, while the MLP
keeps what it receives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor, nn

from interp import passes
from interp.attention.interface import hidden_score
from interp.errors import InterpError
from interp.forward.rope import forget_lengths
from interp.matmul import faster_products
from interp.model.image_inputs import inputs_of_prompts
from interp.model.resolve import sublayer_of
from interp.model.verdicts import Pair, once, sample_ids
from interp.patching.fits import fits
from interp.patching.patched_runs import CleanRun, run_patched, walk_windows
from interp.prompts import Media
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "Cut",
    "CutHeads",
    "blocking_fits",
    "check_something_is_left",
    "heads_in",
    "receiving_fits",
    "run_blocked",
    "seen_keys",
    "walk_blocked",
    "walk_receiving",
]


_NAME, _NAME_OF_HEADS = "attention that is cut", "attention that is cut in some heads"

CutHeads = Mapping[int, Sequence[int]]
"""Layer -> the heads in which edges are cut there; in a layer that is not named, none."""


@dataclass(frozen=True)
class Cut:
    """Every edge from some positions of a prompt to others, counted from its first token.

    Arguments:
        queries: the positions that may not look.
        keys: the positions that they may not look at.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]

    def mask(self, length: int, *, start: int = 0, padding: int = 0) -> Tensor:
        """(position, key) bool, True where an edge is cut.

        Arguments:
            length: tokens of the prompt.
            start: the first position of the axis `position`; keys are counted from the beginning.
            padding: columns before the prompt's first token, on both axes.
        """
        mask = torch.zeros(padding + length - start, padding + length, dtype=torch.bool, device="cpu")
        queries = torch.tensor(self.queries, device="cpu") - start + padding
        mask[queries[:, None], torch.tensor(self.keys, device="cpu")[None] + padding] = True
        return mask


@torch.no_grad()
def walk_blocked(clean: CleanRun, windows: Sequence[range], blocked: Tensor, heads: CutHeads | None = None) -> Tensor:
    """Cut edges in windows of layers, by a walk up the layers.

    Arguments:
        clean: the prompts.
        windows: the layers of each entry, ascending by the first of them.
        blocked: (entry, prompt, position, key) bool, the edges that are cut; positions from the clean run's first on.
        heads: in which heads; None: in all.

    Returns:
        (entry, prompt, hidden), the residual stream after the last layer at the last token.
    """
    cutting = [[layer in window for window in windows] for layer in range(clean.model.num_layers)]
    is_cutting = torch.tensor(cutting, device=blocked.device)  # (layer, entry); one copy to the device

    among = {layer: _among(heads_in(clean.model, layer), own, blocked.device) for layer, own in (heads or {}).items()}

    def inside(layer: int, hidden: Tensor, _: list[int]) -> Tensor:
        joined = len(hidden) // blocked.shape[1]
        if heads is not None and layer not in heads:
            return clean.through(layer, hidden)
        here = (blocked[:joined] & is_cutting[layer, :joined, None, None, None]).flatten(0, 1)[:, None]
        if heads is not None:
            here = here & among[layer]
        return clean.through(layer, hidden, blocked=here)

    return walk_windows(clean, windows, inside)


@torch.no_grad()
def run_blocked(
    model: StandardizedTransformer,
    input_ids: Sequence[Sequence[int]],
    cuts: Sequence[Cut],
    layers: Sequence[int],
    *,
    heads: CutHeads | None = None,
    examples: Sequence[int] | None = None,
    media: Sequence[Media | None] | None = None,
) -> Tensor:
    """Cut edges in some layers the plain way: one traced forward pass of whole prompts, in which scores are written.

    Arguments:
        model: the model.
        input_ids: token ids of each row, unpadded.
        cuts: the edges that are cut in each row.
        layers: in which layers, ascending.
        heads: in which heads of each; None: in all.
        examples: what the rows are called in a message; None: by their number.
        media: what each row is fed beside its ids, all or none of them.

    Returns:
        (row, hidden), the residual stream after the last layer at each prompt's last token.

    Raises:
        InterpError: a layer's scores are not available, or a position has nothing left to look at.
    """
    forget_lengths(model)
    inputs = inputs_of_prompts(model, input_ids, media)
    longest = inputs["input_ids"].shape[1]
    masks = [cut.mask(len(ids), padding=longest - len(ids)) for ids, cut in zip(input_ids, cuts, strict=True)]
    blocked = torch.stack(masks).to(model.device)
    last = Site("resid_post", model.num_layers - 1)
    seen: list[Tensor] = []
    final: Tensor
    fed = inputs["input_ids"].numel()
    products = faster_products(fed, model.hidden_size, model.dtype, model.device)
    with products, model.trace(**inputs, use_cache=False) as tracer:
        for layer in layers:
            scores = model.read(Site("scores", layer))
            lowest = hidden_score(scores.dtype)  # what the models' own masks write
            seen.append((scores > lowest / 2).any(1))
            here = blocked[:, None]
            if heads is not None:
                here = here & _among(_counted(model, layer, scores), heads[layer], here.device)
            model.write(Site("scores", layer), scores.masked_fill(here, lowest))
        final = nnsight.save(model.read(last)[:, -1].clone())
        tracer.stop()
    for layer, keys in zip(layers, seen, strict=True):
        check_something_is_left(model, layer, keys, blocked, examples or range(len(blocked)))
    return final


def heads_in(model: StandardizedTransformer, layer: int) -> int:
    """How many query heads the attention of a layer has."""
    by_layer = model.spec.num_heads_by_layer
    own = None if by_layer is None else by_layer[layer]
    return model.num_heads if own is None else own


def _counted(model: StandardizedTransformer, layer: int, scores: Tensor) -> int:
    """The number of heads, which is that of the scores (row, head, query, key).

    Raises:
        InterpError: it is not, so that nobody can say which head is which.
    """
    count = heads_in(model, layer)
    if scores.shape[1] != count:
        raise InterpError(
            f"heads: layer {layer} of {type(model._module).__name__} has scores of {scores.shape[1]} heads, and "
            f"{count} by its config, so heads cannot be told apart. Leave `heads` out to cut all of them."
        )
    return count


def _among(count: int, chosen: Sequence[int], device: torch.device) -> Tensor:
    """(head, 1, 1) bool, True for the heads that are chosen."""
    mask = torch.zeros(count, 1, 1, dtype=torch.bool, device="cpu")
    mask[list(chosen)] = True
    return mask.to(device)


def check_something_is_left(
    model: StandardizedTransformer, layer: int, seen: Tensor, blocked: Tensor, examples: Sequence[int]
) -> None:
    """Refuse a softmax over nothing.

    Arguments:
        model: the model.
        layer: the layer in which edges are cut.
        seen: (1 or row, position, key) bool, the keys that each position looks at in this layer.
        blocked: (..., row, position, key) bool, the edges that are cut.
        examples: what the rows are called.

    Raises:
        InterpError: a position has none left, and the layer has no attention sink to look at in their place.
    """
    blocked = blocked.to(seen.device)
    empty = blocked.any(-1) & ~(seen & ~blocked).any(-1)  # (..., row, position)
    if bool(empty.any()) and not _has_sink(model, layer):
        row, position = empty.nonzero()[0, -2:].tolist()
        raise InterpError(
            f"blocks: example {examples[row]} blocks everything that its token {position - empty.shape[-1]} sees in "
            f"layer {layer}, and a softmax over nothing is not defined. Leave one of the keys; a layer with a sliding "
            "window sees the last few only."
        )


@torch.no_grad()
def _has_sink(model: StandardizedTransformer, layer: int) -> bool:
    """Whether the pattern of a layer sums to less than 1, so that attention may look at no key at all."""

    def find() -> bool:
        with model.trace(input_ids=sample_ids(model), use_cache=False) as tracer:
            least = nnsight.save(model.read(Site("pattern", layer)).float().sum(-1).min())
            tracer.stop()
        return bool(least < 1 - 1e-2)

    return once(model, f"sink in layer {layer}", find)


def seen_keys(clean: CleanRun, layer: int) -> Tensor:
    """(1, position, key) bool: which keys the attention of a layer looks at, by the mask that the model gives it."""
    mask = clean.calls[layer].keywords["attention_mask"]
    if mask is None:
        positions = clean.hidden(-1).shape[1]
        keys = clean.prefix.length + positions
        device = clean.hidden(-1).device
        return torch.ones(1, positions, keys, dtype=torch.bool, device=device).tril(keys - positions)
    # A token sees itself: what a bool mask has there is what it says of keys that are seen.
    seen = mask == mask[..., -1:, -1:] if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen.any(1)


def blocking_fits(model: StandardizedTransformer, longest: int, *, heads: bool = False) -> bool:
    """Whether `walk_blocked` gives what `run_blocked` gives; one line of the log says where not.

    Arguments:
        model: the model, whose attention gives its scores.
        longest: tokens of the longest prompt.
        heads: in some heads only.
    """
    name = _NAME_OF_HEADS if heads else _NAME
    return fits(model, name, lambda length: _trial(model, length, heads=heads), longest=longest)


def _trial(model: StandardizedTransformer, length: int, *, heads: bool) -> list[Pair] | str:
    """Two prompts of a length, and what they end with, each way; or why it is not tried."""
    if "indexed" in (model.spec.attention_types or ()):
        return "would let attention choose other keys in place of those that are cut"
    ids = sample_ids(model, length=length)
    rows = len(ids)
    attending = [layer for layer in range(model.num_layers) if model.has(Site("scores", layer))]
    first, middle = attending[0], attending[len(attending) // 2]
    windows = [range(first, middle + 1), range(middle, middle + 1)]
    cuts = [Cut((length - 1,), (0, 2, length - 2)), Cut((length // 2, length - 1), (1, length // 2 - 1))]
    # The first head alone, and all but the first: in both, heads of one group of keys differ.
    some = {layer: range(1, heads_in(model, layer)) if index % 2 else [0] for index, layer in enumerate(attending)}
    chosen = some if heads else None

    def fast() -> Tensor:
        clean = CleanRun.of(model, ids, min(cuts[1].queries))
        masks = torch.stack([cut.mask(length, start=clean.start) for cut in cuts])
        blocked = masks[:, None].expand(-1, rows, -1, -1).to(ids.device)
        return walk_blocked(clean, windows, blocked, chosen)

    def slow() -> Tensor:
        return torch.stack(
            [
                run_blocked(
                    model, ids.tolist(), [cut] * rows, [layer for layer in window if layer in attending], heads=chosen
                )
                for window, cut in zip(windows, cuts, strict=True)
            ]
        )

    return [(fast, slow)]


# Attention that receives other vectors --------------------------------------------------------------------------------

_RECEIVING = "attention that receives other vectors"


@torch.no_grad()
def walk_receiving(
    clean: CleanRun, windows: Sequence[range], latents: Mapping[int, Tensor], columns: Sequence[int]
) -> Tensor:
    """Replace what attention receives at some positions, in windows of layers, by a walk up the layers.

    Arguments:
        clean: the prompts.
        windows: the layers of each entry, ascending by the first of them.
        latents: layer -> (row, position, hidden), `attn_in` of that layer; a layer without attention has none. Rows
            are as many as the prompts, or where the clean run has one prompt for all, any number.
        columns: the positions, all replaced at once, counted from the first that the clean run runs.

    Returns:
        (entry, row, hidden), the residual stream after the last layer at the last token.
    """
    prompts = len(clean.hidden(-1))
    copies = len(next(iter(latents.values()))) // prompts
    spread = [window for window in windows for _ in range(copies)]  # an entry is one for each copy of the prompts

    def inside(layer: int, hidden: Tensor, active: list[int]) -> Tensor:
        if layer not in latents:
            return clean.through(layer, hidden)
        held = latents[layer].unflatten(0, (copies, prompts))[[entry % copies for entry in active]]
        rows = torch.arange(len(hidden), device=hidden.device).unflatten(0, (-1, prompts))[active]
        with _receives(clean.model, layer, rows.flatten(), columns, held.flatten(0, 1), len(hidden)):
            return clean.through(layer, hidden)

    return walk_windows(clean, spread, inside).unflatten(0, (len(windows), copies)).flatten(1, 2)


@contextmanager
def _receives(
    model: StandardizedTransformer, layer: int, rows: Tensor, columns: Sequence[int], latents: Tensor, num_rows: int
) -> Iterator[None]:
    """For a while, the attention of a layer receives `latents` (row, position, hidden) at some columns of some rows."""
    sublayer = sublayer_of(model, "attention", layer)
    assert sublayer is not None  # the layer has latents
    written = False

    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal written
        written = True
        live: Tensor = args[0] if args else next(iter(kwargs.values()))
        patched = live.reshape(num_rows, -1, live.shape[-1]).clone()  # in parallel layers the MLP holds the same tensor
        for place, column in enumerate(columns):
            patched[rows, column] = latents[:, place]
        patched = patched.view(live.shape)
        # CTRL's attention takes its input three times, as values, keys and queries.
        args = tuple(patched if given is live else given for given in args)
        return args, {name: patched if given is live else given for name, given in kwargs.items()}

    hook = passes.before(model.layer(layer).get(sublayer.module)._module, replace)
    try:
        yield
    finally:
        hook.remove()
    if not written:
        raise InterpError(f"layer {layer} of {type(model._module).__name__} ran without calling {sublayer.module}.")


def receiving_fits(model: StandardizedTransformer, longest: int) -> bool:
    """Whether `walk_receiving` gives what whole traced forward passes give; one line of the log says where not.

    Arguments:
        model: the model, which has attention.
        longest: tokens of the longest prompt.
    """
    return fits(model, _RECEIVING, lambda length: _receiving_trial(model, length), longest=longest)


def _receiving_trial(model: StandardizedTransformer, length: int) -> list[Pair]:
    """Two prompts of a length, and what they end with, each way."""
    ids = sample_ids(model, length=length)
    attending = [layer for layer in range(model.num_layers) if model.has(Site("attn_in", layer))]
    first, middle = attending[0], attending[len(attending) // 2]
    windows = [range(first, middle + 1), range(middle, middle + 1)]
    positions = [length // 2, length // 2 + 2]

    # What attention receives for the other prompt, a token later: vectors of the size that it knows.
    latents: dict[int, Tensor] = {}
    with model.trace(input_ids=ids, use_cache=False) as tracer:
        for layer in attending:
            received = model.read(Site("attn_in", layer))
            latents[layer] = nnsight.save(received[:, [position + 1 for position in positions]].flip(0).clone())
        tracer.stop()

    def fast() -> Tensor:
        clean = CleanRun.of(model, ids, positions[0])
        return walk_receiving(clean, windows, latents, [position - clean.start for position in positions])

    def slow() -> Tensor:
        return torch.stack(
            [
                run_patched(
                    model,
                    ids.tolist(),
                    [positions] * len(ids),
                    [(Site("attn_in", layer), latents[layer]) for layer in window if layer in latents],
                )
                for window in windows
            ]
        )

    return [(fast, slow)]
