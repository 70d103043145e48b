"""Values in the middle of a module's forward pass, in the order in which nnsight meets them.

nnsight serves a value where the model calls `Interleaver.handle(location, value)`; what a trace's body reads or writes
is a location. Modules and `source` operations have theirs. The points of attention get locations beside them, named
`<attention's path>.<kind>`: no module is added to the model, so its tree, state dict and copies stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from interp.tracing import check_not_passed

__all__ = ["KINDS", "Points", "await_location", "calls"]

# In the order in which a forward pass meets them.
KINDS = ("q", "k", "v", "scores", "pattern")


@dataclass(frozen=True)
class Points:
    """The points of one attention module.

    Arguments:
        interleaver: nnsight's, of the model that is traced.
        path: the module's, as nnsight spells it.
    """

    interleaver: Any
    path: str

    def location(self, kind: str) -> str:
        """Where the trace's body finds a point."""
        return f"{self.path}.{kind}"

    def read(self, kind: str) -> Tensor:
        """The value at a point, inside a trace's body."""
        self._await(kind)
        return Mediator.value(self.location(kind))

    def write(self, kind: str, value: Tensor) -> None:
        """Replace the value at a point, inside a trace's body."""
        self._await(kind)
        Mediator.swap(self.location(kind), value)

    def _await(self, kind: str) -> None:
        await_location(self.interleaver, self.path, self.location(kind))
        check_not_passed(self.location(kind), self.location(kind))

    # The model's side ---------------------------------------------------------------------------------------------

    def open(self) -> bool:
        """Whether a trace runs that this call of the module belongs to; if so its points can be served."""
        if not (self.interleaver.interleaving and self.interleaver.mediators):
            return False
        for kind in KINDS:
            _catch_up(self.interleaver.mediators[0], self.interleaver, self.path, self.location(kind))
        return True

    def awaited(self, *kinds: str) -> bool:
        """Whether the trace's body, or an edit, waits for one of these points in this call of the module."""
        parked = self.interleaver.parked
        locations = {location for kind in kinds if (location := self.location(kind)) in parked}
        return bool(locations) and any(
            (pending := mediator.pending) is not None
            and pending.provider in locations
            and pending.iteration == mediator.occurrence(pending.provider)
            for mediator in self.interleaver.mediators
        )

    def serve(self, kind: str, value: Tensor) -> Tensor:
        """Hand a value to whoever waits for it; the value with which the model goes on."""
        return self.interleaver.handle(self.location(kind), value)


def calls(mediator: Any, interleaver: Any, location: str) -> int:
    """How often a location has been visited since a trace's body began."""
    return interleaver.counts.get(location, 0) - mediator.counts_at_start.get(location, 0)


def await_location(interleaver: Any, path: str, location: str) -> None:
    """Count the visits of a location inside a module as those of the module are counted.

    nnsight counts a location whenever it is handled. One that is served only once somebody has asked would lag behind,
    and step 3 of `tracer.iter` would be another step there than at the modules around it.

    Arguments:
        interleaver: nnsight's.
        path: the module's.
        location: inside that module.

    Raises:
        ValueError: outside a trace (nnsight's).
    """
    _catch_up(Mediator.current(location), interleaver, path, location)


def _catch_up(mediator: Any, interleaver: Any, path: str, location: str) -> None:
    missed = calls(mediator, interleaver, f"{path}.output") - calls(mediator, interleaver, location)
    if missed > 0:
        interleaver.counts[location] = interleaver.counts.get(location, 0) + missed
