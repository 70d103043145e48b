"""Refuses sites that are asked for out of the order in which the model computes them.

nnsight refuses it in a plain trace. Under `tracer.iter`, from the second step on, it would give the next step's value.
"""

from __future__ import annotations

from nnsight.intervention.interleaver import Mediator

from interp.errors import InterpError

__all__ = ["check_not_passed"]


def check_not_passed(location: str, name: str) -> None:
    """Refuse a site that the forward pass has passed already.

    Arguments:
        location: as nnsight spells it: the module's path, and `input`, `output` or another point in it.
        name: what the user called the site, for messages.

    Raises:
        InterpError: the forward pass that runs is past it.
        ValueError: outside a trace (nnsight's).
    """
    mediator, root = Mediator.current(location), location.partition(".")[0]
    passed = mediator.occurrence(location)
    if mediator.iteration is not None:  # pinned to a step
        is_past = passed > mediator.iteration
    else:
        begun, done = mediator.occurrence(f"{root}.input"), mediator.occurrence(f"{root}.output")
        is_past = passed >= begun > done
    if is_past:
        raise InterpError(
            f"{name}: the forward pass is past it. Ask for sites in the order in which the model computes them; "
            "model.in_order(sites) sorts them."
        )
