"""Contributions to logits as bars; the text that a model generated after a patch at each layer, as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from interp.errors import InterpError
from interp.plots.figure import INK, LINE_HEIGHT, RULE, SOFT, Figure, Frame, Group, figure_of
from interp.plots.lens import finite_mean
from interp.results import Attribution, Coordinate, GenerationResult
from interp.text import readable, visible

__all__ = ["attribution_figure", "generation_figure"]

LETTERS = 64  # of a line of a generated text


def attribution_figure(
    result: Attribution,
    *,
    groups: Sequence[str] | None = None,
    example: Coordinate | None = None,
    title: str | None = None,
) -> Figure:
    """Bars of the contribution of each site, by group; see `Attribution.plot`."""
    if result.axes != ("example", "site"):
        raise InterpError(
            "plot: bars are of one position. Select it first, e.g. result.select(position='last').plot(); this result "
            f"has {', '.join(map(str, result.along('position')))}."
        )
    if groups is not None:
        result = result.select(group=list(groups))
    if example is not None:
        result = result.select(example=example)
    mean, n = finite_mean(np.asarray(result.contribution, dtype=np.float64))  # (site, group)
    named = [Group(name, readable(name), index) for index, name in enumerate(result.group_names)]
    bars = _Bars([str(site) for site in result.along("site")], named, mean.T.tolist(), n.T.tolist())
    of = f"mean of {len(result.contribution)} examples"
    if len(result.contribution) == 1:
        of = f"example {result.coordinates['example'][0]}"
    width = max(640.0, 16.0 * len(bars.sites) * max(len(named), 1) + 120)
    frame = Frame(width, 420, 60, 20, 14, 110, font=12)
    return figure_of([[(bars, frame)]], scale=0.8, title=readable(title or f"Direct logit attribution: {of}"))


@dataclass(frozen=True)
class _Bars:
    """Bars of each group side by side, by site; `values` and `n` are [group][site]."""

    sites: Sequence[str]
    groups: Sequence[Group]
    values: Sequence[Sequence[float]]
    n: Sequence[Sequence[int]]
    heading: str = "Contribution (logits)"

    @property
    def alt(self) -> str:
        """The bars in words."""
        return f"{self.heading} of {', '.join(self.sites)} to {', '.join(group.label for group in self.groups)}."

    def names(self, frame: Frame) -> bool:
        """No: a legend does."""
        return False

    def draw(self, axes: Axes, frame: Frame) -> None:
        """Draw them."""
        figure = axes.figure
        assert isinstance(figure, Figure)
        axes.patch.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.axhline(0, color=SOFT, linewidth=frame.unit)
        axes.grid(axis="y", color=RULE, linewidth=frame.unit)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=frame.font, length=0)
        axes.set_xticks(range(len(self.sites)), self.sites, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.6, len(self.sites) - 0.4)
        width = 0.8 / max(len(self.groups), 1)
        for index, (group, values, n) in enumerate(zip(self.groups, self.values, self.n, strict=True)):
            places = [site - 0.4 + width * (index + 0.5) for site in range(len(self.sites))]
            for site, bar, value, count in zip(self.sites, axes.bar(places, values, width, color=group.hue), values, n,
                                               strict=True):  # fmt: skip
                figure.mark(bar, "bar", [f"{group.label}, {site}: {value:.3g} logits, n = {count}"])


def generation_figure(result: GenerationResult, examples: Sequence[int] = (0,), *, title: str | None = None) -> Figure:
    """A table of texts, a row for each layer and a column for each example; see `GenerationResult.plot`."""
    for example in examples:
        if not 0 <= example < len(result.texts):
            raise InterpError(f"examples: expected 0 to {len(result.texts) - 1}, got {example}.")
    texts = [[_broken(result.texts[example][row]) for example in examples] for row in range(len(result.layers))]
    table = _Texts(result.layers, [f"example {example}" for example in examples], texts)
    return figure_of(
        [[(table, table.frame)]], scale=0.8, title=readable(title or "Text generated after a patch at each layer")
    )


def _broken(text: str) -> list[str]:
    """A text in lines; line breaks are shown by their sign, other spaces stay, for the text to be broken at."""
    return textwrap.wrap(visible(text).replace("␣", " "), LETTERS, drop_whitespace=False) or [""]


@dataclass(frozen=True)
class _Texts:
    """A table: a row for each layer, its text in lines in each column."""

    layers: Sequence[int]
    columns: Sequence[str]
    texts: Sequence[Sequence[Sequence[str]]]
    heading: str = ""
    groups: Sequence[Group] = ()

    @property
    def alt(self) -> str:
        """The table in words."""
        return f"Generated texts of {', '.join(self.columns)} at layers {', '.join(map(str, self.layers))}."

    @property
    def heights(self) -> list[int]:
        """Lines of each row, the heading's first."""
        return [1, *(max(len(lines) for lines in row) for row in self.texts)]

    @property
    def frame(self) -> Frame:
        """Large enough for all lines."""
        return Frame(
            60 + 500 * len(self.columns), 16 * sum(self.heights) + 8 * len(self.heights) + 10, 8, 8, 4, 6, font=12
        )

    def names(self, frame: Frame) -> bool:
        """There is nothing to name."""
        return True

    def draw(self, axes: Axes, frame: Frame) -> None:
        """Draw it."""
        figure = axes.figure
        assert isinstance(figure, Figure)
        width, height = (length / frame.unit for length in frame.plot)
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        rows = [("layer", [[column] for column in self.columns]), *zip(map(str, self.layers), self.texts, strict=True)]
        y = 0.0
        for (layer, texts), lines in zip(rows, self.heights, strict=True):
            tall = 16 * lines + 8
            figure.mark(axes.hlines(y + tall, 0, width, colors=RULE, linewidth=frame.unit), "grid")
            for x, text in ((0, [layer]), *((52 + 500 * column, text) for column, text in enumerate(texts))):
                for index, line in enumerate(text):
                    color = SOFT if y == 0 or x == 0 else INK
                    written = axes.text(x, y + 17 + 16 * index, line, fontsize=frame.font, color=color,
                                        linespacing=LINE_HEIGHT)  # fmt: skip
                    figure.mark(written, "text")
            y += tall
