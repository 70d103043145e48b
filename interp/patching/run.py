"""Run what a plan writes into prompts: does the fast way fit? Make batches; take the fast way, or the plain one.

A plan is data: prompts, and what is written into them where. It knows four things: whether the fast way `fits` the
model and the prompts, which prompts go together on it (`batches`), and the two ways themselves, `fast` and `slow`,
which give the same. `run` does the rest, the same for all:

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
from interp.patching.patched_runs import run_patched

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["Ends", "EndsPlan", "Plan", "run", "run_unpatched"]

Found = TypeVar("Found")


class Plan(ABC, Generic[Found]):
    """Prompts, and what is written into them where.

    Attributes:
        model: the model that runs them.
        input_ids: token ids of each prompt, unpadded.
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
    def new_tokens(self) -> int:
        return 0

    @property
    def budget(self) -> int | None:
        return None

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, new ones included."""
        return max(map(len, self.input_ids), default=0) + self.new_tokens

    @abstractmethod
    def fits(self) -> bool:
        """Whether the fast way gives what the slow one gives, for this model and these prompts."""

    def batches(self, batch_size: int) -> list[list[int]]:
        """Prompts that go together on the fast way: of one length, changed at the same tokens, equal ones together.

        Arguments:
            batch_size: prompts in a batch at most.
        """
        return batches_alike(
            self.input_ids, self.positions, batch_size, self.num_runs, new_tokens=self.new_tokens, budget=self.budget
        )

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
    if plan.fits():
        batches, way = plan.batches(batch_size), plan.fast
    else:
        lengths = [len(ids) for ids in plan.input_ids]
        batches, way = whole_batches(plan.model, lengths, batch_size, plan.new_tokens), plan.slow
    for rows in batches:
        for found in way(rows):
            yield rows, found


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
        clean = run_unpatched(self.model, [self.input_ids[row] for row in rows])
        return (Ends(hidden, clean) for hidden in self.plain(rows))

    def nothing(self) -> Ends:
        width = self.model.hidden_size
        return Ends(
            torch.empty(*self.entries, 0, width, dtype=torch.float32, device="cpu"),
            torch.empty(0, width, dtype=torch.float32, device="cpu"),
        )


def run_unpatched(model: StandardizedTransformer, ids: Sequence[Sequence[int]]) -> Tensor:
    """(row, hidden), what prompts end with that nothing is written into, each run once."""
    distinct = list(dict.fromkeys(tuple(row) for row in ids))
    place = {row: index for index, row in enumerate(distinct)}
    return run_patched(model, distinct, [[0]] * len(distinct), [])[[place[tuple(row)] for row in ids]]
