"""Call a function at places of a forward pass, in step with the model: caches, hooks and interventions are made of it.

nnsight runs the block of a trace in a greenlet that waits until the model arrives at what the block asks for. A
`Visitor` is such a worker that runs a function in place of a block. Each place has a worker of its own, so places can
be visited in any order, and one that a pass never reaches keeps no other from being visited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from nnsight.intervention.interleaver import EarlyStopException, Mediator, OutOfOrderError
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor

from interp.errors import InterpError
from interp.model.places import Place
from interp.passes import check_not_open, turn

if TYPE_CHECKING:
    from interp.model.transformer import StandardizedTransformer

__all__ = ["Visit", "Visitor", "generation", "run_visiting", "visit_part"]


@dataclass(frozen=True)
class Visit:
    """One place, and what is done there.

    Arguments:
        name: what messages call it.
        place: where.
        call: given the live value; what the model goes on with, None: the same. It must not change the value in place:
            others may hold it.
        every_step: in every forward pass of what runs, as in each step of a generation; else in the first alone.
    """

    name: str
    place: Place
    call: Callable[[Tensor], Tensor | None]
    every_step: bool = False


class Visitor(Mediator):
    """A worker that makes one visit, or one in each forward pass.

    Arguments:
        visit: the visit.
        done: called when a visit that is made once has been made.
        optional: a pass that does not reach the place is no error.
    """

    waits_alone = True  # what it does moves no other worker

    def __init__(self, visit: Visit, done: Callable[[], None] | None = None, *, optional: bool = False) -> None:
        super().__init__(None, {}, {})
        self.visit = visit
        self.done = done
        self.optional = optional

    def _run(self) -> None:
        step = 0
        try:
            while True:
                self.iteration = step
                value = self.visit.place.read()
                new = self.visit.call(value)
                if new is not None:
                    self.visit.place.write(new)
                if not self.visit.every_step:
                    break
                step += 1
        except OutOfOrderError:  # thrown by nnsight where it still waits when the model is done
            if step or self.optional:
                return
            raise InterpError(
                f"{self.visit.name}: the forward pass did not reach it. Was its layer skipped, or did the pass begin "
                "or end elsewhere?"
            ) from None
        if self.done is not None:
            self.done()

    def __getstate__(self) -> NoReturn:
        raise InterpError(
            f"{self.visit.name}: a function of this process and of this model, not sent to a server or copied with the "
            "model. Remove it first (reset_hooks), or write into the model inside the trace."
        )


class _Countdown:
    """Ends the forward pass with the last of so many visits."""

    def __init__(self, visits: int) -> None:
        self.left = visits

    def __call__(self) -> None:
        self.left -= 1
        if not self.left:
            raise EarlyStopException


def run_visiting(
    model: StandardizedTransformer,
    visits: Sequence[Visit],
    *,
    stop: bool = False,
    fn: Any = "__call__",
    **inputs: Any,
) -> Any:
    """Run a model, under the caller's grad mode, and make visits on the way; its hooks and edits act before them.

    Arguments:
        model: the model.
        visits: those at one place act in this order.
        stop: end the pass with the last visit; none of them then is one of every step.
        fn: what runs: the forward pass, or `generation(model)`.
        inputs: of the forward pass, or the generation.

    Returns:
        What the model returns; None where it was stopped.

    Raises:
        InterpError: a visit that the pass does not reach, or a trace of the model is open.
    """
    check_not_open(model)
    model.follow()
    done = _Countdown(len(visits)) if stop else None
    interleaver = model.interleaver
    interleaver.mediators = [Visitor(visit, done) for visit in visits]
    try:
        return model.interleave(fn, **inputs)
    finally:
        interleaver.cancel()


def generation(model: StandardizedTransformer) -> Any:
    """What `run_visiting` runs for a generation: `fn=generation(model)`, which returns prompts and new tokens."""
    generate: Any = TransformersModel.generate
    return generate.__wrapped__.__get__(model, type(model))


def visit_part(
    model: StandardizedTransformer, visits: Sequence[Visit], function: Callable[[], Any], shape: tuple[int, int]
) -> Any:
    """Run a part of a model by itself, such as one layer's module, and make visits on the way.

    Arguments:
        model: the model. Its hooks and edits, which are made in passes of the whole model, do not act.
        visits: those at one place act in this order.
        function: runs the part.
        shape: rows and positions that it is fed.

    Returns:
        What the function returns.

    Raises:
        InterpError: a visit that the part does not reach, or a trace of the model is open.
    """
    if not visits:
        return function()
    check_not_open(model)
    with turn(model._module), _alone(model, [Visitor(visit) for visit in visits], shape) as interleaver:
        with interleaver:
            result = function()
        interleaver.check_dangling_mediators()
    return result


@contextmanager
def _alone(model: StandardizedTransformer, visitors: list[Visitor], shape: tuple[int, int]) -> Iterator[Any]:
    interleaver = model.interleaver
    before, model.fed.shape = model.fed.shape, shape
    interleaver.mediators = visitors
    try:
        yield interleaver
    finally:
        interleaver.cancel()
        model.attention_access.release()
        model.trace_memory.values.clear()
        model.fed.shape = before
