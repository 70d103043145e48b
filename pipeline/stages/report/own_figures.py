"""Figures of the user's own: a function that draws from a run's lenses, in a module that `plugins:` names.

    @figure("spread", title="Spread", note="What it shows, in a sentence.")
    def spread(lenses: Sequence[Source]) -> Figure | None:
        ...                                   # a matplotlib figure, or None: not of these lenses

The page shows them after its lenses; each is a file `report/figures/own/NAME.svg` too. Plugins import this where a
config is checked, so nothing here imports matplotlib before something is drawn.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.stages.report.sections import Source

__all__ = ["FIGURES", "Drawn", "OwnFigure", "draw_own_figures", "figure"]

NAME = re.compile(r"[A-Za-z0-9][\w-]*")  # of a file
UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
Draw = Callable[["Sequence[Source]"], "Figure | None"]


@dataclass(frozen=True)
class OwnFigure:
    """A figure that a plugin has registered.

    Arguments:
        name: of its file.
        title, note: beside it on the page.
        draw: gives it, from the lenses of a run.
    """

    name: str
    title: str
    note: str
    draw: Draw


@dataclass(frozen=True)
class Drawn:
    """A figure of a run.

    Arguments:
        file: its name in `figures/own/`.
        title, note: beside it on the page.
        content: of the file.
        svg: what the page shows.
    """

    file: str
    title: str
    note: str
    content: bytes
    svg: bytes

    @property
    def address(self) -> str:
        """The figure as an address that holds it, so that the page loads nothing."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode('ascii')}"

    def write(self, folder: Path) -> None:
        """Write the file into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file).write_bytes(self.content)


FIGURES: dict[str, OwnFigure] = {}
"""Name -> figure, in the order of the page."""


def figure(name: str, *, title: str, note: str = "") -> Callable[[Draw], Draw]:
    """Register a figure by the function that draws it.

    Arguments:
        name: of its file: letters, digits, `_` and `-`.
        title, note: for people.

    Raises:
        ValueError: no file can have the name, or another module draws a figure of this name.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"expected the name of a figure to have letters, digits, '_' and '-' alone, got {name!r}.")

    def register(draw: Draw) -> Draw:
        known = FIGURES.get(name)
        if known is not None and known.draw.__module__ != draw.__module__:
            raise ValueError(f"figure {name!r} is there twice: in {known.draw.__module__} and {draw.__module__}.")
        FIGURES[name] = OwnFigure(name, title, note, draw)
        return draw

    return register


def draw_own_figures(lenses: Sequence[Source], suffix: str) -> list[Drawn]:
    """Draw the figures that plugins have registered, each the same bytes for the same numbers.

    Arguments:
        lenses: of the run.
        suffix: `svg`, `pdf` or `png`, of the files.

    Returns:
        Those that there are of these lenses.
    """
    if not FIGURES:
        return []
    import matplotlib

    found = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own are
        matplotlib.rcParams.update({"svg.hashsalt": "interpipe", "pdf.fonttype": 42})
        for own in FIGURES.values():
            if (drawn := own.draw(lenses)) is None:
                continue
            content = {kind: _written(drawn, kind) for kind in {"svg", suffix}}
            found.append(Drawn(f"{own.name}.{suffix}", own.title, own.note, content[suffix], content["svg"]))
    return found


def _written(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=200, metadata=UNDATED[kind])
    return stream.getvalue()
