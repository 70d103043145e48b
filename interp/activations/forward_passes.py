"""How prompts go through a model: whole or behind a frozen prefix, from one layer to another, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations.prompt_batches import PaddingSide, PromptBatch, encoded_prompts, prompt_batches
from interp.batching import batches_by_length, right_padded
from interp.errors import InterpError
from interp.forward.batch import Feed, check_prefix
from interp.forward.layers import check_ready
from interp.forward.packing import sent
from interp.forward.prefix import FrozenPrefix
from interp.forward.rope import forget_lengths
from interp.model.fed import check_fed
from interp.model.hooks import hooks_aside
from interp.model.resolve import place_of
from interp.model.verdicts import holds, is_changed, sample_ids
from interp.model.visits import Visit, run_visiting
from interp.passes import turn
from interp.prompts import Encoded, Prompt, encode
from interp.prompts.given import is_ids, listed
from interp.sites import Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["ForwardPasses", "Pass", "freeze_prefix"]


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Arguments:
        batch: the prompts, padded; behind a prefix the tokens that follow it.
        prefix: what they go on from.
        residual: (row, column, hidden), the residual stream that enters the first layer that runs; None: the
            embedding's.
    """

    batch: PromptBatch
    prefix: FrozenPrefix | None = None
    residual: Tensor | None = None

    @property
    def before(self) -> int:
        """Tokens before the batch."""
        return 0 if self.prefix is None else self.prefix.length


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
        prefix: FrozenPrefix | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        batch_size: int | None = None,
        padding_side: PaddingSide = "left",
    ) -> ForwardPasses:
        """Check everything, and plan the passes.

        Arguments:
            model: the model.
            prompts: texts, `Prompt`s, token ids or an encoding; with `prefix`, what follows it; with `start_at_layer`,
                the residual stream (example, position, hidden), NaN where an example is shorter than another.
            prefix: what the prompts go on from.
            stop_at_layer: the layer at which the pass ends, before it runs; from the end where negative.
            start_at_layer: the layer that `prompts` enter.
            batch_size: prompts in a pass at most; None: as many as suit the device.
            padding_side: where shorter prompts are padded.

        Raises:
            InterpError: prompts, layers or a prefix that the model cannot run.
        """
        check_ready(model)
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
            ids = [one.input_ids for one in encoded]
            batches = _batches(model, ids, batch_size, padding_side)
            return cls(model, encoded, [Pass(one, residual=_in_columns(residual, one)) for one in batches], start, stop)
        if prefix is not None:
            encoded = _following(model, prompts, prefix)
            return cls(model, encoded, _behind(model, encoded, prefix, batch_size), start, stop)
        encoded = encoded_prompts(model, prompts)
        ids = [one.input_ids for one in encoded]
        batches = _batches(model, ids, batch_size, padding_side)
        return cls(model, encoded, [Pass(batch) for batch in batches], start, stop)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, without those of a prefix."""
        return [len(one.input_ids) for one in self.encoded]

    @property
    def before(self) -> int:
        """Tokens before each prompt."""
        return self.passes[0].before

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

    def _run(self, one: Pass, visits: list[Visit], inside_attention: bool) -> Tensor:
        model, found = self.model, []
        if one.residual is not None:
            residual = one.residual
            entry = _Entry(model, self.start, residual)
            visits.insert(0, Visit(f"start_at_layer={self.start}", entry, lambda _: residual))
        if self.stop is not None:
            place = place_of(model, self._last)  # a copy: others may hold the tensor itself
            visits.append(Visit(f"stop_at_layer={self.stop}", place, lambda live: found.append(live.clone())))
        inputs = {"use_cache": one.prefix is not None, **one.batch.inputs}
        with nullcontext() if inside_attention else self._sharing(one):
            output = run_visiting(model, visits, stop=self.stop is not None, **inputs)
        return output.logits if self.stop is None else found[0]

    def _sharing(self, one: Pass) -> AbstractContextManager[None]:
        """Where nobody looks inside attention, all rows read one prefix; elsewhere each has a copy of its keys."""
        if one.prefix is None or torch.is_grad_enabled() or self.model._edits:
            return nullcontext()
        return Feed(dict(one.batch.inputs), one.prefix).sharing(self.model)


def _batches(
    model: StandardizedTransformer, ids: Sequence[Sequence[int]], batch_size: int | None, side: PaddingSide
) -> list[PromptBatch]:
    """Batches of prompts, each in the order in which these were given: one batch of all needs no other order then."""
    batches = []
    for batch in prompt_batches(model, ids, batch_size=batch_size, padding_side=side):
        order = sorted(range(len(batch.rows)), key=batch.rows.__getitem__)
        inputs = {name: value[order] for name, value in batch.inputs.items()}
        batches.append(PromptBatch(sorted(batch.rows), batch.lengths[order], batch.before[order], inputs))
    return batches


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


# Behind a prefix ------------------------------------------------------------------------------------------------------


def freeze_prefix(model: StandardizedTransformer, prompts: Any) -> FrozenPrefix:
    """Compute the keys and values of a prefix once, for any number of continuations (`prefix=`).

    Hooks and interventions act on what follows, the prefix is what the model computes without them.

    Arguments:
        model: the model.
        prompts: one prefix, or several of one length: texts, `Prompt`s, token ids or an encoding.

    Raises:
        InterpError: prefixes of several lengths, or a model in which whole prompts give something else (state-space
            and other recurrent layers, rotations by length).
    """
    check_ready(model)
    encoded = encoded_prompts(model, prompts, more=1)
    ids = [one.input_ids for one in encoded]
    lengths = sorted({len(row) for row in ids})
    if len(lengths) > 1:
        raise InterpError(
            f"freeze_prefix: expected prefixes of one length, got {lengths} tokens. Freeze each by itself."
        )
    more = sample_ids(model, 1, min(4, (model.position_limit or lengths[0] + 4) - lengths[0]))[0].tolist()
    with turn(model._module):
        check_prefix(model, [ids[0] + more], lengths[0])
        return FrozenPrefix.of(model, sent(torch.tensor(ids, device="cpu"), model.device))


def _following(model: StandardizedTransformer, prompts: Any, prefix: FrozenPrefix) -> list[Encoded]:
    """What follows a prefix, without the tokenizer's start token."""
    if prefix.input_ids is None:
        raise InterpError("prefix: expected what model.freeze_prefix gives.")
    if prefix.layers[0].module is not model._module:
        raise InterpError("prefix: it was computed by another model. Freeze it anew with this one.")
    several = listed(prompts)
    if is_ids(several):
        raise InterpError("prompts: expected texts, Prompts or lists of token ids, e.g. [[17, 33]].")
    plain = []
    for prompt in several:
        if isinstance(prompt, Prompt):
            plain.append(replace(prompt, add_special_tokens=False).encode(model.tokenizer))
        elif isinstance(prompt, str):
            plain.append(encode(model.tokenizer, prompt, add_special_tokens=False))
        else:
            plain += encoded_prompts(model, [prompt])
    if not plain or len(plain) % len(prefix):
        raise InterpError(
            f"prefix: it has {len(prefix)} rows, so expected a multiple of {len(prefix)} prompts, got {len(plain)}: "
            "prompt i goes on from row i modulo the prefix's rows."
        )
    check_fed(model, [one.input_ids for one in plain], "prompts", prefix.length)
    return plain


def _behind(
    model: StandardizedTransformer, encoded: Sequence[Encoded], prefix: FrozenPrefix, batch_size: int | None
) -> list[Pass]:
    """Passes of what follows a prefix; padded on the right, where no hook counts tokens from the end."""
    assert prefix.input_ids is not None
    own = prefix.input_ids.tolist()
    ids = [one.input_ids for one in encoded]
    with turn(model._module):
        check_prefix(model, [own[row % len(own)] + ids[row] for row in range(len(ids))], prefix.length)
    lengths = [len(one) for one in ids]
    groups = [list(range(len(ids)))]
    if len(set(lengths)) > 1 and is_changed(model):
        groups = [[row for row, count in enumerate(lengths) if count == length] for length in sorted(set(lengths))]
    passes = []
    for group in groups:
        for batch in batches_by_length([lengths[row] for row in group], batch_size or len(group)):
            rows = sorted(group[index] for index in batch)
            chosen = prefix.of_rows(rows)
            fed = Feed.of(model, right_padded([ids[row] for row in rows]), chosen)
            counts = torch.tensor([lengths[row] for row in rows], device="cpu")
            passes.append(Pass(PromptBatch(rows, counts, torch.zeros_like(counts), fed.inputs), chosen))
    return passes


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
