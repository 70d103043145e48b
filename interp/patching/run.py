"""Run what a plan writes into prompts: does the fast way fit? Make batches; take the fast way, or the plain one.

A plan is data: prompts, and what is written into them where. It knows four things: whether the fast way `fits` the
model and the prompts, which prompts go together on it (`batches`), and the two ways themselves, `fast` and `slow`,
which give the same. Prompts with images take the slow way. `run` does the rest, the same for all:

    for rows, (hidden, clean) in run(plan, batch_size=64):
        ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from interp.batching import batches_alike
from interp.errors import InterpError
from interp.forward import whole_batches
from interp.model.image_inputs import batches_images
from interp.patching.patched_runs import run_patched
from interp.prompts import Media

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Ends", "EndsPlan", "Plan", "run", "run_unpatched"]

Found = TypeVar("Found")


class Plan(ABC, Generic[Found]):
    """Prompts, and what is written into them where.

    Attributes:
        model: the model that runs them.
        input_ids: token ids of each prompt, unpadded.
        media: what each is fed beside them, or None.
        positions: of each prompt, the tokens that anything is written at, or the first of them.
        num_runs: how many runs each prompt has, which go through the model together on the fast way.
        new_tokens: how many tokens each run goes on for.
        budget: tokens of all runs of a batch at most on the fast way; None: `interp.batching.WALKING_TOKENS`.
    """

    @property
    @abstractmethod
    def model(self) -> StandardizedTransformer: ...

    @property
    @abstractmethod
    def input_ids(self) -> Sequence[Sequence[int]]: ...

    @property
    @abstractmethod
    def positions(self) -> Sequence[tuple[int, ...] | int]: ...

    @property
    @abstractmethod
    def num_runs(self) -> int: ...

    @property
    def media(self) -> Sequence[Media | None]:
        return [None] * len(self.input_ids)

    @property
    def new_tokens(self) -> int:
        return 0

    @property
    def budget(self) -> int | None:
        return None

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt without images, new ones included."""
        blind = (len(ids) for ids, one in zip(self.input_ids, self.media, strict=True) if one is None)
        return max(blind, default=0) + self.new_tokens

    @abstractmethod
    def fits(self) -> bool:
        """Whether the fast way gives what the slow one gives, for this model and these prompts."""

    def batches(self, rows: Sequence[int], batch_size: int) -> list[list[int]]:
        """Prompts that go together on the fast way: of one length, changed at the same tokens, equal ones together.

        Arguments:
            rows: which prompts.
            batch_size: prompts in a batch at most.
        """
        positions = self.positions
        batches = batches_alike(
            [self.input_ids[row] for row in rows], [positions[row] for row in rows], batch_size, self.num_runs,
            new_tokens=self.new_tokens, budget=self.budget,
        )  # fmt: skip
        return [[rows[index] for index in batch] for batch in batches]

    @abstractmethod
    def fast(self, rows: list[int]) -> Iterator[Found]:
        """What a batch of `batches` gives, in one part or, where that would not fit into memory, in several."""

    @abstractmethod
    def slow(self, rows: list[int]) -> Iterator[Found]:
        """What any prompts give, in any family, by plain forward passes of whole prompts."""

    @abstractmethod
    def nothing(self) -> Found:
        """What no prompts give: results of length 0."""


def run(plan: Plan[Found], batch_size: int) -> Iterator[tuple[list[int], Found]]:
    """Carry a plan out, some prompts at a time: memory does not depend on how many there are.

    Arguments:
        plan: the plan.
        batch_size: prompts in a forward pass at most.

    Yields:
        The prompts of a batch, by number, and what they give; a batch may come in several parts, one after the other.

    Raises:
        InterpError: no prompt in a batch.
    """
    if batch_size < 1:
        raise InterpError(f"batch_size: expected at least 1, got {batch_size}.")
    if not len(plan.input_ids):
        yield [], plan.nothing()
        return
    media = plan.media
    for sees in (False, True):
        rows = [row for row, one in enumerate(media) if (one is not None) is sees]
        if rows and not sees and plan.fits():
            batches, way = plan.batches(rows, batch_size), plan.fast
        else:
            lengths = [len(plan.input_ids[row]) for row in rows]
            size = 1 if sees and not batches_images(plan.model) else batch_size
            found = whole_batches(plan.model, lengths, size, plan.new_tokens) if rows else []
            batches, way = [[rows[index] for index in batch] for batch in found], plan.slow
        for batch in batches:
            for part in way(batch):
                yield batch, part


class Ends(NamedTuple):
    """What prompts end with.

    Arguments:
        hidden: (entry, ..., row, hidden), the residual stream after the last layer at each prompt's last token, for
            each entry of the plan.
        clean: (row, hidden), the same of the prompts as they are.
    """

    hidden: Tensor
    clean: Tensor


class EndsPlan(Plan[Ends]):
    """A plan whose runs end with the prompt; the slow way runs the prompts as they are too, each once."""

    @property
    @abstractmethod
    def entries(self) -> tuple[int, ...]:
        """The leading axes of `Ends.hidden`."""

    @property
    def num_runs(self) -> int:
        """How many runs each prompt has: one for each entry."""
        return int(torch.Size(self.entries).numel())

    @abstractmethod
    def plain(self, rows: list[int]) -> Iterator[Tensor]:
        """The slow way, without the prompts as they are: (entry, ..., row, hidden) by part."""

    def slow(self, rows: list[int]) -> Iterator[Ends]:
        media = self.media
        clean = run_unpatched(self.model, [self.input_ids[row] for row in rows], [media[row] for row in rows])
        return (Ends(hidden, clean) for hidden in self.plain(rows))

    def nothing(self) -> Ends:
        width = self.model.hidden_size
        return Ends(
            torch.empty(*self.entries, 0, width, dtype=torch.float32, device="cpu"),
            torch.empty(0, width, dtype=torch.float32, device="cpu"),
        )


def run_unpatched(
    model: StandardizedTransformer, ids: Sequence[Sequence[int]], media: Sequence[Media | None]
) -> Tensor:
    """(row, hidden), what prompts end with that nothing is written into, each run once; all with images, or none."""
    if any(one is not None for one in media):  # their ids do not tell them apart
        return run_patched(model, ids, [[0]] * len(ids), [], media)
    distinct = list(dict.fromkeys(tuple(row) for row in ids))
    place = {row: index for index, row in enumerate(distinct)}
    return run_patched(model, distinct, [[0]] * len(distinct), [])[[place[tuple(row)] for row in ids]]
