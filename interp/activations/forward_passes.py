"""How prompts go through a model: whole or behind a frozen prefix, from one layer to another, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.behind_prefix import following, passes_behind
from interp.activations.prompt_batches import (
    PaddingSide,
    Pass,
    PromptBatch,
    check_side,
    encoded_prompts,
    products,
    prompt_batches,
)
from interp.errors import InterpError
from interp.forward.batch import Feed
from interp.forward.layers import check_ready
from interp.forward.prefix import FrozenPrefix
from interp.forward.rope import forget_lengths
from interp.interventions.edits import Window
from interp.model.hooks import hooks_aside
from interp.model.resolve import place_of
from interp.model.verdicts import holds, sample_ids
from interp.model.visits import Visit, run_visiting
from interp.passes import turn
from interp.prompts import Encoded, Media, with_images
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["ForwardPasses"]


@dataclass(frozen=True)
class ForwardPasses:
    """Prompts, and how they go through a model.

    Arguments:
        model: the model.
        encoded: the prompts; behind a prefix, what follows it.
        passes: in the order in which they are run.
        start: the first layer that runs.
        stop: the layer that does not run any more; None: all do, and the head.
    """

    model: StandardizedTransformer
    encoded: list[Encoded]
    passes: list[Pass]
    start: int = 0
    stop: int | None = None

    @classmethod
    def of(
        cls,
        model: StandardizedTransformer,
        prompts: Any,
        *,
        images: Any = None,
        prefix: FrozenPrefix | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        batch_size: int | None = None,
        padding_side: PaddingSide = "left",
        more: int | None = None,
    ) -> ForwardPasses:
        """Check everything, and plan the passes.

        Arguments:
            model: the model.
            prompts: texts, `Prompt`s, token ids or an encoding; with `prefix`, what follows it; with `start_at_layer`,
                the residual stream (example, position, hidden), NaN where an example is shorter than another.
            images: of the prompts, as `interp.prompts.with_images` takes them.
            prefix: what the prompts go on from.
            stop_at_layer: the layer at which the pass ends, before it runs; from the end where negative.
            start_at_layer: the layer that `prompts` enter.
            batch_size: prompts in a pass at most; None: as many as suit the device.
            padding_side: where shorter prompts are padded; behind a prefix they are on the right.
            more: tokens that are fed behind each prompt in passes of their own: then what follows a prefix is not
                padded at all. None: there is one pass.

        Raises:
            InterpError: prompts, layers or a prefix that the model cannot run.
        """
        check_ready(model)
        if images is not None and start_at_layer is not None:
            raise InterpError("images: of prompts, not of the residual streams of start_at_layer.")
        prompts = with_images(prompts, images)
        layers = model.num_layers
        stop = None if stop_at_layer is None else _layer(stop_at_layer, layers, "stop_at_layer", last=layers)
        start = 0 if start_at_layer is None else _layer(start_at_layer, layers, "start_at_layer", last=layers - 1)
        if stop is not None and stop < start:
            raise InterpError(f"stop_at_layer: expected a layer from start_at_layer={start} on, got {stop_at_layer}.")
        if start_at_layer is not None:
            if prefix is not None:
                raise InterpError("start_at_layer: a prefix goes through all layers. Leave one of the two out.")
            encoded, residual = _residual_stream(model, prompts)
            _check_starts(model, start)
            batches = _batches(model, encoded, batch_size, padding_side)
            return cls(model, encoded, [Pass(one, residual=_in_columns(residual, one)) for one in batches], start, stop)
        if prefix is not None:
            check_side(padding_side)  # though it makes no difference
            encoded = following(model, prompts, prefix, more or 0)
            return cls(model, encoded, passes_behind(model, encoded, prefix, batch_size, more), start, stop)
        encoded = encoded_prompts(model, prompts, more=more or 0)
        return replace(cls.whole(model, encoded, batch_size, padding_side, more or 0), stop=stop)

    @classmethod
    def whole(
        cls,
        model: StandardizedTransformer,
        encoded: list[Encoded],
        batch_size: int | None,
        padding_side: PaddingSide,
        more: int = 0,
    ) -> ForwardPasses:
        """Plan the passes of whole prompts; arguments as of `of`."""
        return cls(model, encoded, [Pass(one) for one in _batches(model, encoded, batch_size, padding_side, more)])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, without those of a prefix."""
        return [len(one.input_ids) for one in self.encoded]

    @property
    def before(self) -> int:
        """Tokens before each prompt."""
        return self.passes[0].before

    @property
    def media(self) -> list[Media | None]:
        """What each prompt is fed beside its token ids."""
        return [one.media for one in self.encoded]

    @property
    def whole_prompts(self) -> list[Encoded]:
        """Each prompt with what is before it in its prefix, whose spans are not known."""
        if not self.before:
            return self.encoded
        whole = list(self.encoded)
        for one in self.passes:
            prefix = one.prefix
            assert prefix is not None and prefix.input_ids is not None
            before = prefix.input_ids.tolist()
            for index, row in enumerate(one.batch.rows):
                ids = self.encoded[row].input_ids
                own = prefix.media[index % len(before)] if prefix.media else None
                media = None if own is None else own.followed(len(ids))
                whole[row] = Encoded([*before[index % len(before)], *ids], {}, media=media)
        return whole

    @property
    def input_ids(self) -> list[list[int]]:
        """Token ids of each prompt, those of its prefix included."""
        return [one.input_ids for one in self.whole_prompts]

    def window(self, one: Pass) -> Window:
        """What a pass is fed, for interventions; tokens of a prompt count those of its prefix."""
        return one.window([one.before + length for length in self.lengths])

    def check_runs(self, site: Site) -> None:
        """Refuse a site that these passes do not come by.

        Raises:
            InterpError: it is in a layer that does not run.
        """
        if self.start and site.depth < Site("resid_pre", self.start).depth:
            raise InterpError(f"site {site}: the pass begins at layer {self.start} (start_at_layer).")
        if self.stop is not None and site.depth > self._last.depth:
            raise InterpError(f"site {site}: the pass ends before layer {self.stop} (stop_at_layer).")

    @property
    def _last(self) -> Site:
        """Where a pass that does not go through the head ends."""
        assert self.stop is not None
        return Site("resid_pre", self.stop) if self.stop < self.model.num_layers else Site("resid_post", self.stop - 1)

    def run(self, visits: Callable[[Pass], Sequence[Visit]], *, inside_attention: bool = False) -> Tensor:
        """Run the prompts, under the caller's grad mode.

        Arguments:
            visits: what is done in a pass.
            inside_attention: whether a visit is there: then each row behind a prefix has keys of its own.

        Returns:
            (example, position, vocabulary) logits, or (example, position, hidden), the residual stream that enters the
            layer at which the passes end; each prompt's own tokens from the first on, NaN behind its last.
        """
        width, examples = max(self.lengths), len(self.encoded)
        outputs: list[Tensor] = []
        whole: Tensor | None = None
        with turn(self.model._module):
            for one in self.passes:
                forget_lengths(self.model)
                output = _aligned(self._run(one, list(visits(one)), inside_attention), one.batch, width)
                if one.batch.rows == list(range(examples)):
                    return output
                if torch.is_grad_enabled():
                    outputs.append(output)
                    continue
                if whole is None:
                    whole = output.new_empty(examples, *output.shape[1:])
                whole[one.batch.rows] = output
                del output  # before the next pass makes its own
        if whole is not None:
            return whole
        order = [row for one in self.passes for row in one.batch.rows]
        return torch.cat(outputs)[torch.tensor(order, device="cpu").argsort().to(outputs[0].device)]

    def read(self, visits: Callable[[Pass], Sequence[Visit]]) -> None:
        """Run whole prompts for what is visited alone: each pass ends with its last visit, and gives no output.

        Arguments:
            visits: what is done in a pass; where it is nothing, the pass is not run.
        """
        with turn(self.model._module):
            for one in self.passes:
                forget_lengths(self.model)
                made = list(visits(one))
                if made:
                    with products(self.model, one.inputs["input_ids"].numel()):
                        run_visiting(self.model, made, stop=True, **one.inputs)

    def _run(self, one: Pass, visits: list[Visit], inside_attention: bool) -> Tensor:
        model, found = self.model, []
        if one.residual is not None:
            residual = one.residual
            entry = _Entry(model, self.start, residual)
            visits.insert(0, Visit(f"start_at_layer={self.start}", entry, lambda _: residual))
        if self.stop is not None:
            place = place_of(model, self._last)  # a copy: others may hold the tensor itself
            visits.append(Visit(f"stop_at_layer={self.stop}", place, lambda live: found.append(live.clone())))
        with products(model, one.inputs["input_ids"].numel()), self.sharing(one, inside_attention=inside_attention):
            output = run_visiting(model, visits, stop=self.stop is not None, **one.inputs)
        return output.logits if self.stop is None else found[0]

    def sharing(self, one: Pass, *, inside_attention: bool) -> AbstractContextManager[None]:
        """Where nobody looks inside attention, all rows read one prefix; elsewhere each has a copy of its keys."""
        if inside_attention or one.prefix is None or torch.is_grad_enabled() or self.model._edits:
            return nullcontext()
        return Feed(dict(one.batch.inputs), one.prefix).sharing(self.model)


def _batches(
    model: StandardizedTransformer,
    encoded: Sequence[Encoded],
    batch_size: int | None,
    side: PaddingSide,
    more: int = 0,
) -> list[PromptBatch]:
    ids, media = [one.input_ids for one in encoded], [one.media for one in encoded]
    return prompt_batches(model, ids, media=media, batch_size=batch_size, padding_side=side, more=more)


def _layer(layer: int, num_layers: int, name: str, *, last: int) -> int:
    if isinstance(layer, bool) or not isinstance(layer, int) or not -num_layers <= layer <= last:
        raise InterpError(
            f"{name}: expected a layer of the model, 0 to {last} or {-num_layers} to -1 from the end, got {layer!r}."
        )
    return layer + num_layers if layer < 0 else layer


def _aligned(value: Tensor, batch: PromptBatch, width: int) -> Tensor:
    """(row, column, ...) as (row, position, ...): a prompt's own tokens from the first on, then NaN up to a width."""
    if not int(batch.before.max()) and int(batch.lengths.min()) == width == value.shape[1]:
        return value
    if not torch.is_grad_enabled() and width <= value.shape[1]:
        # In place: nobody else holds it, for where a hook or an edit could, prompts of one length run together.
        for row, (before, length) in enumerate(zip(batch.before.tolist(), batch.lengths.tolist(), strict=True)):
            if before:
                value[row, :length] = value[row, before : before + length].clone()
            value[row, length:] = torch.nan
        return value[:, :width]
    positions = torch.arange(width, device="cpu").expand(len(batch.rows), -1)
    there = positions < batch.lengths[:, None]
    columns = batch.columns(positions).clamp(max=value.shape[1] - 1).to(value.device)
    shape = (*columns.shape, *value.shape[2:])
    taken = value.gather(1, columns.view(*columns.shape, *[1] * (value.dim() - 2)).expand(shape))
    there = there.view(*there.shape, *[1] * (value.dim() - 2)).to(value.device)
    return torch.where(there, taken, torch.nan)


# From a layer on ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """Where a residual stream enters a layer, past the layers below it, which do not run."""

    model: StandardizedTransformer
    layer: int
    residual: Tensor

    def read(self) -> Tensor:
        return self.residual if self.layer else place_of(self.model, Site("resid_pre", 0)).read()

    def write(self, value: Tensor) -> None:
        if not self.layer:
            place_of(self.model, Site("resid_pre", 0)).write(value)
        for layer in range(self.layer):
            self.model.layer(layer).skip((value, None) if self.model.architecture.layer_returns_tuple else value)


def _residual_stream(model: StandardizedTransformer, given: Any) -> tuple[list[Encoded], Tensor]:
    """Prompts of which the residual stream alone is known, by ids that count for nothing; and that stream."""
    if not isinstance(given, Tensor) or given.dim() != 3 or given.shape[-1] != model.hidden_size or not given.numel():
        came = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"{given!r:.80}"
        raise InterpError(
            f"start_at_layer: expected residual streams (example, position, {model.hidden_size}), got {came}."
        )
    there = ~given.isnan().any(-1)  # (example, position)
    lengths = there.sum(1).tolist()
    if any(not count or not bool(row[:count].all()) for row, count in zip(there, lengths, strict=True)):
        raise InterpError("start_at_layer: expected the residual streams of one position or more, then NaN alone.")
    return [Encoded([0] * count, {}) for count in lengths], given.to(model.device, model.dtype)


def _in_columns(residual: Tensor, batch: PromptBatch) -> Tensor:
    """The residual stream of a batch's prompts, zero at its padding."""
    own = batch.own.to(residual.device)
    rows, columns = own.nonzero(as_tuple=True)
    numbers = torch.tensor(batch.rows, device="cpu").to(residual.device)
    fed = residual.new_zeros(len(batch.rows), batch.width, residual.shape[-1])
    return fed.index_put((rows, columns), residual[numbers[rows], columns - batch.before.to(own.device)[rows]])


@torch.no_grad()
def _check_starts(model: StandardizedTransformer, layer: int) -> None:
    """Raise unless the residual stream is all that a layer takes from those below it, as a small case shows."""
    consequence = f"a pass cannot start at layer {layer}, which"
    edits, model._edits = model._edits, []
    try:
        with hooks_aside(model._module):
            fits = holds(model, f"start at layer {layer}", lambda _: _start_trial(model, layer), consequence, longest=1)
    finally:
        model._edits = edits
    if not fits:
        raise InterpError(
            f"start_at_layer: {type(model._module).__name__} gives its layers more than the residual stream, so "
            f"starting at layer {layer} gives other numbers than a whole pass."
        )


def _start_trial(model: StandardizedTransformer, layer: int) -> list[tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    ids = sample_ids(model).tolist()

    def whole() -> Tensor:
        return ForwardPasses.of(model, ids, batch_size=len(ids)).run(lambda _: [])

    def started() -> Tensor:
        below = ForwardPasses.of(model, ids, stop_at_layer=layer, batch_size=len(ids)).run(lambda _: [])
        [batch] = prompt_batches(model, [[0] * below.shape[1]] * len(ids), batch_size=len(ids))
        again = ForwardPasses(model, [Encoded([0] * below.shape[1], {})] * len(ids), [Pass(batch, None, below)], layer)
        return again.run(lambda _: [])

    return [(started, whole)]
