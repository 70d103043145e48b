"""Windows of layers that a lens goes through."""

from __future__ import annotations

from collections.abc import Sequence

from interp.errors import InterpError
from interp.sites.parsing import check_lens_layers

__all__ = ["windows_of"]


def windows_of(
    layers: Sequence[int] | None, window: int | None, num_layers: int, *, centred: bool = False
) -> dict[int, range]:
    """The windows of layers that a lens goes through.

    Arguments:
        layers: where the windows are, ascending; None: at every layer, or without a window's size at layer 0 alone.
        window: how many layers; None: up to the last.
        num_layers: the model's depth.
        centred: a window is [layer - window // 2, layer + (window + 1) // 2), as Geva et al. place theirs, in place of
            [layer, layer + window). Either is cut off at the ends of the model.

    Returns:
        Layer -> the layers of its window, in the order of `layers`.

    Raises:
        InterpError: layers that the model does not have or not in order, a window of no layer, or one that is centred
            without a size.
    """
    if window is None:
        if centred:
            raise InterpError("centred: expected a window of so many layers, got window=None (up to the last layer).")
        starts = check_lens_layers([0] if layers is None else layers, num_layers)
        return {start: range(start, num_layers) for start in starts}
    if window < 1:
        raise InterpError(f"window: expected at least 1 layer, or None for all up to the last, got {window}.")
    places = check_lens_layers(range(num_layers) if layers is None else layers, num_layers)
    shift = window // 2 if centred else 0
    return {place: range(max(0, place - shift), min(num_layers, place - shift + window)) for place in places}
