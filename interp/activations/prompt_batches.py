"""Prompts as a model is fed them: token ids, positions resolved in each, padded batches that say where tokens are."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from interp.batching import Budget, left_padded, right_padded
from interp.errors import InterpError, nearest
from interp.forward.batch import Feed
from interp.forward.prefix import FrozenPrefix
from interp.forward.rope import whole_batches
from interp.interventions.edits import Window
from interp.matmul import faster_products
from interp.model.fed import check_fed, first_position
from interp.model.image_inputs import batches_images, encoded_prompt, with_media
from interp.positions import Position
from interp.prompts import Encoded, Media
from interp.prompts.given import is_ids, listed

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "PaddingSide",
    "Pass",
    "PromptBatch",
    "check_side",
    "checked_size",
    "encoded_prompts",
    "products",
    "prompt_batches",
    "resolved",
]

PaddingSide = Literal["left", "right"]


def encoded_prompts(
    model: StandardizedTransformer, prompts: Any, *, name: str = "prompts", more: int = 0
) -> list[Encoded]:
    """Token ids and spans of prompts, checked against the model's vocabulary and positions.

    Arguments:
        model: the model, whose tokenizer is used.
        prompts: one text or `Prompt`, or several, or lists of token ids, or an encoding, padded on either side
            (`interp.prompts.given`).
        name: what the caller calls the prompts, for messages.
        more: tokens that are written behind each.

    Raises:
        InterpError: no prompt, something else among them, ids that are not the model's, a prompt that is too long.
    """
    several = listed(prompts, name)
    if not several or is_ids(several):
        raise InterpError(f"{name}: expected texts, Prompts or lists of token ids, at least one; e.g. [[1, 17, 33]].")
    encoded = [encoded_prompt(model, prompt, name) for prompt in several]
    check_fed(model, [one.input_ids for one in encoded], name, more, [one.media for one in encoded])
    return encoded


def resolved(positions: Sequence[Position], encoded: Sequence[Encoded]) -> tuple[list[list[int]], list[str]]:
    """Per prompt a token for each label, -1 where it has fewer than another prompt; and the labels.

    Arguments:
        positions: of the vocabulary in `interp.positions`.
        encoded: the prompts.

    Raises:
        InterpError: a prompt that has no such position.
    """
    slots: list[list[int]] = [[] for _ in encoded]
    labels: list[str] = []
    for position in positions:
        found = [position.resolve(len(one.input_ids), one.spans) for one in encoded]
        width = max(map(len, found))
        labels += position.labels(width)
        for row, tokens in zip(slots, found, strict=True):
            row += [*tokens, *[-1] * (width - len(tokens))]
    return slots, labels


@dataclass(frozen=True)
class PromptBatch:
    """Prompts side by side, as one forward pass is fed them.

    Arguments:
        rows: which prompts, by number.
        lengths: (row,), tokens of each.
        before: (row,), columns of padding before each prompt's first token.
        inputs: keywords of the forward pass: `input_ids`, and `attention_mask` and `position_ids` where the model takes
            them, each (row, column), on the model's device; with images what these are fed as.
    """

    rows: list[int]
    lengths: Tensor
    before: Tensor
    inputs: dict[str, Tensor]

    @property
    def width(self) -> int:
        """Columns of the batch."""
        return self.inputs["input_ids"].shape[1]

    def columns(self, positions: Tensor) -> Tensor:
        """Where tokens are, (row, position): each prompt's own tokens, counted from 0; -1, none, stays -1."""
        return torch.where(positions < 0, positions, positions + self.before[:, None])

    @property
    def own(self) -> Tensor:
        """(row, column), True where a column is a token of the prompt."""
        columns = torch.arange(self.width, device="cpu")
        return (columns >= self.before[:, None]) & (columns < (self.before + self.lengths)[:, None])


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

    @property
    def inputs(self) -> dict[str, Any]:
        """Keywords of the forward pass."""
        return {"use_cache": self.prefix is not None, **self.batch.inputs}

    def window(self, lengths: Sequence[int], examples: list[int] | None = None, grown: int = 0) -> Window:
        """What it is fed, for interventions.

        Arguments:
            lengths: of every example, its tokens and those of its prefix.
            examples: of each row; None: the batch's rows are examples.
            grown: how many new tokens stand behind each.
        """
        rows = self.batch.rows if examples is None else examples
        stop = self.before + self.batch.width
        return Window(rows, self.batch.before.tolist(), lengths, grown, self.before, stop, self.before)

    @classmethod
    def behind(
        cls, model: StandardizedTransformer, rows: list[int], input_ids: Sequence[Sequence[int]], prefix: FrozenPrefix
    ) -> Pass:
        """What follows a prefix, padded on the right.

        Arguments:
            model: the model.
            rows: which prompts, by number.
            input_ids: what follows, of each of them.
            prefix: what they go on from, of one row or one for each of them.
        """
        counts = torch.tensor([len(ids) for ids in input_ids], device="cpu")
        fed = Feed.of(model, right_padded(input_ids), prefix)
        return cls(PromptBatch(rows, counts, torch.zeros_like(counts), fed.inputs), prefix)


def prompt_batches(
    model: StandardizedTransformer,
    input_ids: Sequence[Sequence[int]],
    *,
    media: Sequence[Media | None] | None = None,
    batch_size: int | None = None,
    padding_side: PaddingSide = "left",
    more: int = 0,
) -> list[PromptBatch]:
    """Prompts in batches, in which each has the numbers that it has alone.

    Prompts of different lengths share a batch where padding leaves the model's numbers as they are; prompts with images
    and prompts without do not.

    Arguments:
        model: the model.
        input_ids: token ids of each prompt, unpadded.
        media: what each is fed beside them; None: none is.
        batch_size: prompts in a batch at most; None: as many as suit the device.
        padding_side: where shorter prompts are padded: `left` or `right`.
        more: tokens that each goes on for.

    Returns:
        Batches, shortest prompts first; `PromptBatch.rows` says which prompts they are, in the order given.

    Raises:
        InterpError: no prompt in a batch, or another side.
    """
    lengths = [len(ids) for ids in input_ids]
    batch_size = checked_size(model, batch_size, max(lengths) + more)
    check_side(padding_side)
    media = [None] * len(lengths) if media is None else media
    batches = []
    for alike in (False, True):
        chosen = [row for row, one in enumerate(media) if (one is not None) is alike]
        size = 1 if alike and not batches_images(model) else batch_size
        for batch in whole_batches(model, [lengths[row] for row in chosen], size, more) if chosen else ():
            rows = sorted(chosen[index] for index in batch)
            padded = _padded(model, rows, [input_ids[row] for row in rows], padding_side)
            fed = with_media(model, padded.inputs, [media[row] for row in rows], padded.before.tolist())
            batches.append(replace(padded, inputs=fed))
    return batches


def check_side(padding_side: str) -> None:
    """Refuse another side than left or right."""
    sides = get_args(PaddingSide)
    if padding_side not in sides:
        raise InterpError(
            f"padding_side: expected {' or '.join(sides)}, got {padding_side!r}.{nearest(str(padding_side), sides)}"
        )


def checked_size(model: StandardizedTransformer, batch_size: int | None, longest: int) -> int:
    """Prompts in a batch at most.

    Arguments:
        model: the model.
        batch_size: what the user asks for; None: as many as suit the device.
        longest: tokens of the longest prompt, new ones included.

    Raises:
        InterpError: it is not positive.
    """
    if batch_size is None:
        return max(1, Budget.of(None, model.device).tokens // longest)
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    return batch_size


def _padded(
    model: StandardizedTransformer, rows: list[int], input_ids: list[Sequence[int]], side: PaddingSide
) -> PromptBatch:
    lengths = torch.tensor([len(ids) for ids in input_ids], device="cpu")
    longest = int(lengths.max())
    before = longest - lengths if side == "left" else torch.zeros_like(lengths)
    inputs = left_padded(input_ids, 0, model.device)  # 0 is in every vocabulary, a pad token may not be
    if side == "right":
        turned = (torch.arange(longest, device="cpu") - lengths[:, None]) % longest  # where a column is on the left
        inputs = {name: value.gather(1, turned.to(value.device)) for name, value in inputs.items()}
    inputs["position_ids"] += first_position(model)
    taken = inspect.signature(type(model._module).forward).parameters
    inputs = {name: value for name, value in inputs.items() if name == "input_ids" or name in taken}
    return PromptBatch(rows, lengths, before, inputs)


def products(model: StandardizedTransformer, tokens: int) -> AbstractContextManager[Any]:
    """The matrix products of collecting and lenses, so that their numbers and the cached ones are the same.

    Arguments:
        model: the model.
        tokens: of the pass, padding included.
    """
    if torch.is_grad_enabled():
        return nullcontext()
    return faster_products(tokens, model.hidden_size, model.dtype, model.device)
