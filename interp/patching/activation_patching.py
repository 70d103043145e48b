"""Activation patching: where in the model is what makes the answer right?

Of two prompts that differ in one thing (the clean and the corrupted one), the value of a site in the one run is written
into the other run, at one layer, position or head at a time. Denoising (clean values into the corrupted run) asks which
values are enough to bring the answer back; noising (corrupted values into the clean run) asks which are needed. The two
answers differ: a component with a stand-in is not needed, and an OR of two is found by denoising, an AND by noising. In
plain nnsight:

    with model.trace(clean):
        value = model.read("resid_pre.3").clone().save()
    with model.trace(corrupted):
        hidden = model.read("resid_pre.3").clone()
        hidden[:, position] = value[:, position]
        model.write("resid_pre.3", hidden)
        logits = model.logits[:, -1].save()

Pitfalls: prompts have to match token by token where they are patched; a value from another prompt is in distribution,
zeros and means are not; a normalised recovery blows up where the two runs hardly differ (look at the effect too).

Vig et al. 2020 (arXiv 2004.12265), Meng et al. 2022 (2202.05262), Zhang and Nanda 2024 (2309.16042, on metrics),
Heimersheim and Nanda 2024 (2404.15255, on how to read the results).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from interp.activations.prompt_batches import encoded_prompts
from interp.errors import InterpError, nearest
from interp.forward import check_ready
from interp.model.resolve import why_missing
from interp.passes import in_turn
from interp.patching.cells import Cell, Positions, heads_of
from interp.patching.effects import Answers, Metric, Metrics
from interp.patching.grid import GridPlan
from interp.patching.run import run
from interp.positions import check_positions
from interp.prompts import Encoded, with_images
from interp.results import Coordinate, Direction, PatchingResult
from interp.sites import HEAD_KINDS, LAYER_KINDS, MAP_KINDS, Site
from interp.sites.parsing import check_lens_layers

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "Pairs",
    "Places",
    "PositionSets",
    "Spellings",
    "activation_patching",
    "asked_axes",
    "cells_of",
    "heads_among",
    "kinds_of",
    "layers_of",
    "measure",
    "tokens_of",
]

Spellings = str | int | Sequence[str | int]
PositionSets = Spellings | Mapping[str, Spellings] | None
"""One or several of the vocabulary in `interp.positions`, each token by itself; or name -> one or several, whose tokens
are written at once; None: all tokens at once."""


@in_turn
@torch.no_grad()
def activation_patching(
    model: StandardizedTransformer,
    clean: Any,
    corrupted: Any,
    sites: str | Sequence[str] = "resid_pre",
    positions: PositionSets = "all",
    *,
    images: Any = None,
    corrupted_images: Any = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = None,
    direction: Direction = "denoising",
    metric: Metric | Sequence[Metric] | Mapping[str, Metric] = "logit_difference",
    answers: Answers | None = None,
    batch_size: int = 64,
) -> PatchingResult:
    """Patch every cell of a grid of sites, layers, positions and heads, over pairs of prompts.

    Arguments:
        model: the model.
        clean, corrupted: the pairs: texts, `Prompt`s or lists of token ids, equally many of both. Where positions are
            named (from the end, in spans), the two prompts of a pair may have different lengths, and so may pairs.
        sites: one or several kinds of site that layers have, such as `resid_pre`, `attn_out`, `mlp_post`, `z`, `q`,
            `pattern`. Of maps (`scores`, `pattern`) positions are the queries, each with all its keys.
        positions: one or several of the vocabulary in `interp.positions` (`all`, `last`, `subject.last`, `-3:`), each
            token a cell; or name -> one or several of these, written at once, a cell a name; None: whole prompts.
        images: of both prompts of each pair, as of `model.run`: an entry a pair. Pairs with images run by plain forward
            passes of whole prompts, a pass a cell.
        corrupted_images: of the corrupted prompts, where these are others: of one text, say, with another image.
        layers: which, ascending; None: all that have the site.
        heads: heads that are written one at a time, counted from 0, or `all` for each of them; None: all at once. Keys
            and values have the heads that queries share.
        direction: `denoising`: values of the clean run into the corrupted run; `noising`: the other way.
        metric: what is measured at the prompts' last token: `logit_difference`, `probability`, `log_probability`, `kl`
            (from the clean run), a function of logits (row, vocabulary) that gives one number a row, or several of
            these; see `interp.patching.Metrics`.
        answers: per pair: the right answer, or (right, wrong), each a text of one token or a token id.
        batch_size: pairs in a batch at most; memory does not depend on how many there are, but for the result.

    Returns:
        The metric of every patched run over `(example, [site,] layer, [position,] [head])`: axes without brackets
        always; `site` where several were asked for, the others where they were given.

    Raises:
        InterpError: prompts that do not pair, positions of which two prompts have unequally many, a site, layer, head
            or token that is not there, an unknown metric or direction.
    """
    check_ready(model)
    base, source = Pairs.of(model, clean, corrupted, images, corrupted_images).directed(direction)
    kinds = kinds_of(sites)
    places = Places.of(positions, base, source, whole=any(kind in MAP_KINDS for kind in kinds))
    by_kind = {kind: layers_of(model, kind, layers) for kind in kinds}
    every = sorted({layer for there in by_kind.values() for layer in there})
    chosen = heads_among(model, heads, by_kind)
    metrics = Metrics.of(model, metric, answers, len(base))
    shape = (len(base), len(kinds), len(every), len(places.labels), len(chosen), len(metrics.names))
    patched = np.full(shape, np.nan, dtype=np.float32)
    of_runs: dict[str, NDArray[np.float32]] = {}
    for index, (kind, there) in enumerate(by_kind.items()):
        cells = cells_of(model, kind, there, len(places.labels), chosen)
        into, of = ([one.input_ids for one in prompts] for prompts in (base, source))
        media = [[one.media for one in prompts] for prompts in (base, source)]
        plan = GridPlan(model, kind, into, of, places.base, places.source, cells, *media)
        values, of_runs = measure(plan, metrics, direction, batch_size)
        for cell, of_cell in zip(cells, values, strict=True):
            patched[:, index, every.index(cell.layer), cell.place, chosen.index(cell.head)] = of_cell
    axes: dict[str, Sequence[Coordinate]] = {
        "example": range(len(base)), "site": kinds, "layer": every, "position": places.labels,
        "head": [head for head in chosen if head is not None],
    }  # fmt: skip
    asked = {"site": not isinstance(sites, str), "position": positions is not None, "head": heads is not None}
    coordinates, patched = asked_axes(axes, patched, asked)
    return PatchingResult(
        coordinates,
        patched=patched,
        **of_runs,
        token_ids=places.token_ids(base),
        direction=direction,
        group_names=metrics.names,
    )


def asked_axes(
    axes: Mapping[str, Sequence[Coordinate]], values: NDArray[np.float32], asked: Mapping[str, bool]
) -> tuple[dict[str, Sequence[Coordinate]], NDArray[np.float32]]:
    """A grid over all its axes, without those that nobody asked for.

    Arguments:
        axes: what stands along each axis.
        values: (axis, ..., metric).
        asked: axis -> whether it was asked for; others stay.
    """
    dropped = [axis for axis, is_asked in asked.items() if not is_asked]
    kept = {axis: along for axis, along in axes.items() if axis not in dropped}
    return kept, values.squeeze(tuple(list(axes).index(axis) for axis in dropped))


def cells_of(
    model: StandardizedTransformer, kind: str, layers: Sequence[int], places: int, heads: Sequence[int | None]
) -> list[Cell]:
    """The cells of a grid that there are: in some families layers have different numbers of heads."""
    return [
        Cell(layer, place, head)
        for layer in layers
        for place in range(places)
        for head in heads
        if head is None or head < heads_of(model, kind, layer)
    ]


def measure(
    plan: GridPlan, metrics: Metrics, direction: Direction, batch_size: int
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Run a plan, and measure what its runs end with.

    Returns:
        (cell, example, metric), NaN where an example has no such cell; and `clean` and `corrupted`, (example, metric).
    """
    examples = len(plan.base_ids)
    patched = np.full((len(plan.cells), examples, len(metrics.names)), np.nan, dtype=np.float32)
    base, source = np.full((2, examples, len(metrics.names)), np.nan, dtype=np.float32)
    for _, found in run(plan, batch_size):
        rows = torch.tensor(found.rows, device="cpu")
        of_clean = found.source if direction == "denoising" else found.base
        if np.isnan(base[found.rows]).all():
            base[found.rows] = metrics.of_hidden(found.base, rows, of_clean).numpy()
            source[found.rows] = metrics.of_hidden(found.source, rows, of_clean).numpy()
        where = np.ix_(found.cells, found.rows)
        if not found.changed:
            patched[where] = base[found.rows]
        else:
            copies = len(found.cells)
            compared = of_clean.repeat(copies, 1) if metrics.compares else None
            values = metrics.of_hidden(found.hidden.flatten(0, 1), rows.repeat(copies), compared)
            patched[where] = values.unflatten(0, (copies, -1)).numpy()
    clean, corrupted = (source, base) if direction == "denoising" else (base, source)
    return patched, {"clean": clean, "corrupted": corrupted}


def kinds_of(sites: str | Sequence[str]) -> list[str]:
    """The kinds of site that a grid has, checked."""
    kinds = [sites] if isinstance(sites, str) else [str(site) for site in sites]
    for kind in kinds:
        if kind not in LAYER_KINDS:
            raise InterpError(
                f"sites: expected kinds of site that layers have, got {kind!r}.{nearest(kind, LAYER_KINDS)} Which "
                "layers and heads is said by `layers` and `heads`."
            )
    if not kinds or len(set(kinds)) < len(kinds):
        raise InterpError(f"sites: expected at least one kind of site, each once, got {kinds}.")
    return kinds


def layers_of(model: StandardizedTransformer, kind: str, layers: Sequence[int] | None) -> list[int]:
    """The layers that a grid has of a kind of site, checked."""
    if layers is None:
        found = [layer for layer in range(model.num_layers) if why_missing(model, Site(kind, layer)) is None]
        if found:
            return found
    wanted = check_lens_layers([0] if layers is None else layers, model.num_layers)
    for layer in wanted:
        reason = why_missing(model, Site(kind, layer))
        if reason is not None:
            raise InterpError(f"sites: {kind}.{layer} does not exist in {type(model._module).__name__}: {reason}")
    return list(wanted)


def heads_among(
    model: StandardizedTransformer, heads: Sequence[int] | str | None, by_kind: Mapping[str, Sequence[int]]
) -> list[int | None]:
    """The heads that a grid has, checked; None: all at once."""
    if heads is None:
        return [None]
    without = [kind for kind in by_kind if kind not in HEAD_KINDS]
    if without:
        raise InterpError(f"heads: {', '.join(without)} has no heads. Those that have: {', '.join(HEAD_KINDS)}.")
    counts = {kind: max(heads_of(model, kind, layer) for layer in there) for kind, there in by_kind.items()}
    if len(set(counts.values())) > 1:
        have = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        raise InterpError(
            f"heads: the sites have different numbers of heads ({have}). Patch them in calls of their own."
        )
    count = next(iter(counts.values()))
    if isinstance(heads, str):
        if heads != "all":
            raise InterpError(f"heads: expected 'all', numbers from 0, or None for all at once, got {heads!r}.")
        return list(range(count))
    chosen = [int(head) for head in heads]
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= head < count for head in chosen):
        raise InterpError(f"heads: expected some of 0 to {count - 1}, each once, got {chosen}.")
    return list(chosen)


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted prompts, tokenized.

    Arguments:
        clean, corrupted: an entry a pair.
    """

    clean: list[Encoded]
    corrupted: list[Encoded]

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        clean: Any,
        corrupted: Any,
        images: Any = None,
        corrupted_images: Any = None,
    ) -> Pairs:
        """The pairs, checked.

        Arguments:
            model: the model.
            clean, corrupted: the prompts.
            images: of both prompts of each pair.
            corrupted_images: of the corrupted ones, in their place.

        Raises:
            InterpError: no prompt, or not equally many of both.
        """
        others = images if corrupted_images is None else corrupted_images
        first = encoded_prompts(model, with_images(clean, images, "clean"), name="clean")
        second = encoded_prompts(model, with_images(corrupted, others, "corrupted"), name="corrupted")
        if len(first) != len(second):
            raise InterpError(f"expected pairs, got {len(first)} clean and {len(second)} corrupted prompts.")
        return cls(first, second)

    def directed(self, direction: Direction) -> tuple[list[Encoded], list[Encoded]]:
        """The prompts that are written into, and those that the values are of.

        Raises:
            InterpError: an unknown direction.
        """
        if direction not in get_args(Direction):
            raise InterpError(f"direction: unknown {direction!r}.{nearest(str(direction), get_args(Direction))}")
        return (self.corrupted, self.clean) if direction == "denoising" else (self.clean, self.corrupted)


@dataclass(frozen=True)
class Places:
    """The axis `position` of a grid: what stands along it, and which tokens that is in each pair.

    Arguments:
        labels: what stands along the axis.
        base, source: per pair, by label: the tokens that are written, and those that the values stand at.
        single: every place is one token at most.
    """

    labels: list[Coordinate]
    base: list[Positions]
    source: list[Positions]
    single: bool

    @classmethod
    def of(cls, positions: PositionSets, base: Sequence[Encoded], source: Sequence[Encoded], *, whole: bool) -> Places:
        """Resolve positions in both prompts of every pair.

        Arguments:
            positions: as a user gives them.
            base, source: the prompts that are written into, and those that the values are of.
            whole: whether the two prompts of a pair have to be equally long whatever is written (maps over keys).

        Raises:
            InterpError: two prompts of a pair that have unequally many of these tokens.
        """
        for pair, (into, of) in enumerate(zip(base, source, strict=True)):
            if (whole or positions is None) and len(into.input_ids) != len(of.input_ids):
                why = "maps from queries to keys" if positions is not None else "whole prompts"
                raise InterpError(
                    f"pair {pair} has {len(into.input_ids)} and {len(of.input_ids)} tokens, and {why} are written from "
                    "one prompt into the other. Make them equally long, or name positions and another site."
                )
        named = {"all": "all"} if positions is None else positions
        if isinstance(named, Mapping):
            sets = [
                ([tokens_of(given, one, name) for one in base], [tokens_of(given, one, name) for one in source])
                for name, given in named.items()
            ]
            for name, (written, given_by) in zip(named, sets, strict=True):
                _check_alike(str(name), written, given_by)
            return cls(
                [str(name) for name in named],
                [[written[pair] for written, _ in sets] for pair in range(len(base))],
                [[given_by[pair] for _, given_by in sets] for pair in range(len(base))],
                single=False,
            )
        labels: list[Coordinate] = []
        there: list[list[tuple[int, ...] | None]] = [[] for _ in base]
        given_at: list[list[tuple[int, ...] | None]] = [[] for _ in base]
        parsed = check_positions([str(each) for each in ([named] if isinstance(named, str | int) else named)])
        for position in parsed:
            written, given_by = (
                [tokens_of(position.text, one, position.text) for one in prompts] for prompts in (base, source)
            )
            _check_alike(position.text, written, given_by)
            width = max(map(len, written))
            labels += range(width) if [one.text for one in parsed] == ["all"] else position.labels(width)
            for pair in range(len(base)):
                empty = [None] * (width - len(written[pair]))
                there[pair] += [*((token,) for token in written[pair]), *empty]
                given_at[pair] += [*((token,) for token in given_by[pair]), *empty]
        return cls(labels, [*there], [*given_at], single=True)

    def token_ids(self, base: Sequence[Encoded]) -> Any:
        """(example, position), the tokens that are written over, -1: none; None where places hold several."""
        if not self.single:
            return None
        rows = [
            [-1 if at is None else one.input_ids[at[0]] for at in places]
            for one, places in zip(base, self.base, strict=True)
        ]
        return np.array(rows, dtype=np.int32)


def tokens_of(given: Spellings, prompt: Encoded, name: object) -> tuple[int, ...]:
    """The tokens of one prompt that some spellings name, ascending."""
    parsed = check_positions([str(each) for each in ([given] if isinstance(given, str | int) else given)])
    try:
        found = [token for one in parsed for token in one.resolve(len(prompt.input_ids), prompt.spans)]
    except InterpError as error:
        raise InterpError(f"positions: {error}") from None
    if len(set(found)) < len(found):
        raise InterpError(f"positions {name!r}: some tokens are named twice.")
    return tuple(sorted(found))


def _check_alike(name: str, base: Sequence[tuple[int, ...]], source: Sequence[tuple[int, ...]]) -> None:
    for pair, (into, of) in enumerate(zip(base, source, strict=True)):
        if len(into) != len(of):
            raise InterpError(
                f"positions {name!r}: pair {pair} has {len(into)} and {len(of)} such tokens in its two prompts, so "
                "nobody can say which value goes where. Name tokens that both have: from the end (-3:), or in spans of "
                "one length."
            )
