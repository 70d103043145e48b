"""Figures made of panels: matplotlib's, with values on hover, and the same bytes for the same numbers.

A page and a notebook show one as SVG in which every point and tile says its numbers (`Figure.markup`, no script); a
paper takes it as a file (`save_figure`: SVG, PDF or PNG).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import matplotlib
import matplotlib.figure
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text

from interp.plots.markup import COLORS, NAMED_COLORS, Mark, Markup

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

__all__ = [
    "Figure",
    "Frame",
    "Group",
    "Panel",
    "figure_of",
    "named_dash",
    "number",
    "save_figure",
    "shortened",
    "styled",
    "wrapped",
]

PAPER, SOFT, INK, RULE = (NAMED_COLORS[name] for name in ("--paper", "--soft", "--ink", "--rule"))
DASHES: tuple[Any, ...] = ("-", (0, (3.5, 2)), (0, (0.75, 2)))
STYLE: dict[RcKeyType, Any] = {
    "svg.hashsalt": "interpipe",
    "svg.fonttype": "path",  # in a file: looks the same wherever it is opened
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.major.size": 0,
}
FONT = 13.0  # points of the letters that frames are made for
LINE_HEIGHT = 1.2
LETTER = 0.6  # width of a letter, on average, in font sizes


@dataclass(frozen=True)
class Group:
    """What a colour stands for, a group of answers, a block or a lens: its key, its label for people, its colour."""

    key: str
    label: str
    color: int

    @property
    def hue(self) -> str:
        """Its colour; a ninth group starts over with another dash."""
        return COLORS[self.color % len(COLORS)]


def named_dash(group: Group) -> Any:
    """The dash of a group's line."""
    return DASHES[group.color // len(COLORS) % len(DASHES)]


@dataclass(frozen=True)
class Frame:
    """Size of a panel and the margins around its plot, in points at letters of `font` points.

    Arguments:
        width, height: of all.
        left, right, top, bottom: margins.
        labelled: whether the curves are named at their right ends.
        x_ticks, y_ticks: how many ticks at most, about how many intervals.
        font: of the letters.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    labelled: bool = False
    x_ticks: int = 7
    y_ticks: int = 2
    font: float = FONT

    @property
    def plot(self) -> tuple[float, float]:
        """Width and height of the plot."""
        return self.width - self.left - self.right, self.height - self.top - self.bottom

    def below(self, title: str) -> Frame:
        """The same with a right margin that makes it as wide as a title above it."""
        more = max(0.0, 14 * LETTER * len(title) - self.width)
        return replace(self, width=self.width + more, right=self.right + more)

    @property
    def unit(self) -> float:
        """Points in what is a point at letters of `FONT`."""
        return self.font / FONT

    def scaled(self, by: float) -> Frame:
        """Larger or smaller, letters included."""
        lengths = {
            name: by * getattr(self, name) for name in ("width", "height", "left", "right", "top", "bottom", "font")
        }
        return replace(self, **lengths)


class Panel(Protocol):
    """What draws itself into axes and says itself in words; one of your own needs these five."""

    @property
    def heading(self) -> str:
        """Above it, in a figure with headings."""

    @property
    def alt(self) -> str:
        """It in words, for those who do not see it."""

    @property
    def groups(self) -> Sequence[Group]:
        """What its colours stand for."""

    def names(self, frame: Frame) -> bool:
        """Whether it names them itself, so that a figure needs no legend of them."""

    def draw(self, axes: Axes, frame: Frame) -> None:
        """Draw it."""


class Figure(matplotlib.figure.Figure):
    """matplotlib's figure, shown in a notebook as SVG with values on hover; `savefig` and the axes are matplotlib's."""

    def __init__(self, width: float, height: float, alt: str = "") -> None:
        super().__init__(figsize=(width / 72, height / 72))
        self.alt = alt
        self.marks: dict[str, Mark] = {}

    def mark(self, artist: Artist, kind: str, tips: Sequence[str | None] = ()) -> None:
        """Name an artist, and say what each of its parts says on hover.

        Arguments:
            artist: of this figure; it is drawn whole, also where it leaves the axes.
            kind: its class in the SVG: `line`, `point`, `tile`, ...
            tips: a text for each point, tile or bar, in their order; None: this one is not there.
        """
        gid = f"{kind}.{len(self.marks)}"
        artist.set_gid(gid)
        artist.set_clip_on(False)
        self.marks[gid] = (kind, artist, tips)

    def drawn(self, kind: str) -> list[Any]:
        """The artists of a kind, in the order in which they were drawn."""
        return [artist for found, artist, _ in self.marks.values() if found == kind]

    def tips(self, kind: str) -> list[str]:
        """What the parts of a kind say on hover, in their order."""
        return [tip for found, _, tips in self.marks.values() if found == kind for tip in tips if tip is not None]

    def markup(self, kind: str = "", *, tips: bool = True) -> str:
        """The figure as an `svg` element for a page: text as text, no ids, no script, values as `title` elements.

        Arguments:
            kind: classes of the element, beside `chart`.
            tips: with values on hover.
        """
        texts = [text for text in self.findobj(Text) if text.get_path_effects()]
        effects = [text.get_path_effects() for text in texts]
        stream = io.StringIO()
        with styled(), matplotlib.rc_context({"svg.fonttype": "none"}):
            try:
                self.patch.set_visible(False)
                for text in texts:
                    text.set_path_effects([])  # they would draw it as a path
                self.savefig(stream, format="svg", metadata={"Date": None})
            finally:
                self.patch.set_visible(True)
                for text, effect in zip(texts, effects, strict=True):
                    text.set_path_effects(effect)
        return Markup(stream.getvalue(), self.marks, tips).text(f"chart {kind}".strip(), self.alt)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f'<div style="max-width: {self.get_figwidth() * 72:g}px">{self.markup()}</div>'


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """matplotlib's defaults, whatever the user's own are, and the figures' style."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # What the font lacks (other scripts) a file shows as boxes, which is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def save_figure(figure: matplotlib.figure.Figure, path: str | Path) -> None:
    """Write a figure to a file, the same bytes for the same numbers.

    Arguments:
        figure: what is drawn.
        path: its suffix is the format: `.svg`, `.pdf` or `.png`; missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    undated: dict[str, dict[str, Any]] = {
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None},
        ".png": {"Software": None},
    }
    with styled():
        figure.savefig(path, dpi=200, metadata=undated.get(path.suffix, {}))


def figure_of(
    rows: Sequence[Sequence[tuple[Panel, Frame]]], *, scale: float = 1.0, title: str | None = None, note: str = ""
) -> Figure:
    """Panels in rows.

    Arguments:
        rows: (panel, its frame) of each row, from the top.
        scale: of everything, letters included; 1: letters of about 13 points, as a screen has them.
        title: above all; then each panel has its heading, and a legend has the groups that no panel names. None: none
            of these.
        note: below all.

    Returns:
        The figure; one panel without title or note is as large as its frame.
    """
    unit = scale
    scaled = [[(panel, frame.scaled(scale)) for panel, frame in row] for row in rows]
    headings = [
        [wrapped(p.heading, int(f.width / (LETTER * f.font))) if title is not None else [] for p, f in row]
        for row in scaled
    ]
    tops = [max(LINE_HEIGHT * row[0][1].font * len(lines) for lines in head) + (10 * unit if any(head) else 0)
            for row, head in zip(scaled, headings, strict=True)]  # fmt: skip
    heights = [top + max(frame.height for _, frame in row) for row, top in zip(scaled, tops, strict=True)]
    width = max(sum(frame.width for _, frame in row) for row in scaled)
    titled = 26 * unit if title else 0.0
    named = {group for row in scaled for panel, frame in row if panel.names(frame) for group in panel.groups}
    found = {group: None for row in scaled for panel, frame in row if not panel.names(frame) for group in panel.groups}
    groups = [group for group in found if group not in named] if title is not None else []
    letters = width / unit / (11 * LETTER)
    columns = 3 if all(len(group.label) < letters / 3 - 6 for group in groups) else 2
    below = (24 * unit if note else 0.0) + (18 * unit * -(-len(groups) // columns) + 10 * unit if groups else 0.0)
    whole = titled + sum(heights) + below
    with styled():
        figure = Figure(width, whole, " ".join(panel.alt for row in scaled for panel, _ in row))

        def write(x: float, y: float, text: str, size: float, **look: Any) -> None:
            figure.text(x / width, 1 - y / whole, text, fontsize=size * unit, va="top", ha="left", **look)

        if title:
            write(4 * unit, 4 * unit, title, 14)
        at = titled
        for row, head, top, height in zip(scaled, headings, tops, heights, strict=True):
            x = 0.0
            for (panel, frame), lines in zip(row, head, strict=True):
                write(x + 4 * unit, at + 2 * unit, "\n".join(lines), 12, linespacing=LINE_HEIGHT)
                low = 1 - (at + top + frame.height - frame.bottom) / whole
                sizes = (frame.plot[0] / width, frame.plot[1] / whole)
                panel.draw(figure.add_axes(((x + frame.left) / width, low, *sizes)), frame)
                x += frame.width
            at += height
        for index, group in enumerate(groups):
            x, y = 4 * unit + index % columns * width / columns, at + (10 + 18 * (index // columns)) * unit
            line = Line2D([x / width, (x + 20 * unit) / width], [1 - (y + 8 * unit) / whole] * 2, color=group.hue,
                          linestyle=named_dash(group), linewidth=2 * unit)  # fmt: skip
            figure.add_artist(line)
            write(x + 26 * unit, y, shortened(group.label, int(letters / columns - 5)), 11)
        if note:
            write(4 * unit, whole - 20 * unit, note, 11, color=SOFT)
    return figure


def shortened(text: str, width: int) -> str:
    """Text of at most `width` characters; the rest becomes an ellipsis."""
    return text if len(text) <= width else text[: width - 1] + "…"


def wrapped(text: str, width: int) -> list[str]:
    """Text on at most two lines of at most `width` characters, of about equal length; the rest becomes an ellipsis."""
    if len(text) <= width:
        return [text]
    fitting = [i for i, c in enumerate(text) if c == " " and i <= width and len(text) - i - 1 <= width]
    if fitting:
        cut = min(fitting, key=lambda i: abs(2 * i - len(text)))
        return [text[:cut], text[cut + 1 :]]
    cut = text.rfind(" ", 0, width + 1)
    cut = cut if cut > 0 else width
    rest = text[cut:].lstrip()
    return [text[:cut], shortened(rest, width)]


def number(value: float | None) -> str:
    """Three decimals, scientific where they would show only zeros, a dash for what is not known."""
    if value is None or value != value:
        return "—"
    if value and abs(value) < 0.0005:
        return f"{value:.1e}".replace("-", "−").replace("e−0", "e−")
    return f"{value:.3f}".replace("-", "−")
