"""Whether a model can be run here and now, and gives the same numbers each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.errors import InterpError
from interp.passes import check_not_open

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["check_ready"]


def check_ready(model: StandardizedTransformer) -> None:
    """Refuse to run a model whose numbers would be drawn at random, or that is in the middle of a run.

    Arguments:
        model: the model.

    Raises:
        InterpError: it is in training mode, or a trace of it is open.
    """
    if model._module.training:
        raise InterpError(
            f"{type(model._module).__name__} is in training mode, where dropout draws at random. It was in eval mode "
            "when it was loaded: call `.eval()` on it first, and `.train()` afterwards."
        )
    check_not_open(model)
