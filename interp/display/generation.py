"""What a model wrote after a patch at each layer, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from interp.display.plotly import FONT, graph_objects
from interp.display.text import escaped
from interp.errors import InterpError
from interp.lenses.generation import GenerationResult
from interp.text import visible

__all__ = ["generation_figure"]

_STRIPES = ("#ffffff", "#f3f5f8")


def generation_figure(result: GenerationResult, examples: Sequence[int] = (0,), *, title: str | None = None) -> Any:
    """A table of texts, a row for each layer and a column for each example; see `GenerationResult.plot`."""
    for example in examples:
        if not 0 <= example < len(result.texts):
            raise InterpError(f"examples: expected 0 to {len(result.texts) - 1}, got {example}.")
    # Line breaks are shown by their sign; other spaces stay, for the text to be broken at.
    texts = [[escaped(visible(text).replace("␣", " ")) for text in result.texts[example]] for example in examples]
    stripes = [color for color, _ in zip(cycle(_STRIPES), result.layers, strict=False)]
    figure = graph_objects().Figure(
        graph_objects().Table(
            header={
                "values": ["layer", *(f"example {example}" for example in examples)],
                "align": "left",
                "fill_color": "#dfe5ee",
                "font": FONT,
            },
            cells={
                "values": [list(result.layers), *texts],
                "align": ["right", *["left"] * len(texts)],
                "fill_color": [stripes],
                "font": FONT,
                "height": 26,
            },
            columnwidth=[60, *[480] * len(texts)],
        )
    )
    figure.update_layout(
        title={"text": title or "text generated after a patch at each layer", "font": {"size": 15}}, font=FONT
    )
    return figure
