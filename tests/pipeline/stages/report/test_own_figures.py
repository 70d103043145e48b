"""Figures of the user's own: how they are registered, drawn and shown; and whose words describe a lens of his."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure

from pipeline.config.lens import LogitLensConfig
from pipeline.stages.report import own_figures
from pipeline.stages.report.own_figures import draw_own_figures, figure
from pipeline.stages.report.sections import Source


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_figures, "FIGURES", {})


def other_module(draw: Callable[..., Any]) -> Callable[..., Any]:
    draw.__module__ = "somebody.elses"
    return draw


def test_each_name_is_one_figure() -> None:
    with pytest.raises(ValueError, match="letters, digits, '_' and '-' alone, got 'a/b'"):
        figure("a/b", title="")
    figure("a", title="first")(lambda lenses: None)
    figure("a", title="loaded again")(lambda lenses: None)
    assert own_figures.FIGURES["a"].title == "loaded again"
    with pytest.raises(ValueError, match=r"figure 'a' is there twice: in .* and somebody\.elses"):
        figure("a", title="another")(other_module(lambda lenses: None))


@pytest.mark.parametrize(("suffix", "begins"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_figures_are_the_same_bytes_each_time(suffix: str, begins: bytes, tmp_path: Path) -> None:
    def draw(lenses: Sequence[Source]) -> Figure:
        drawn = Figure()
        drawn.subplots().plot([len(lenses), 2], label="$x$")
        return drawn

    figure("drawn", title="Drawn", note="A line.")(draw)
    figure("none", title="None")(lambda lenses: None)
    (first,), (second,) = draw_own_figures([], suffix), draw_own_figures([], suffix)
    assert first == second and first.content.startswith(begins)
    assert first.address.startswith("data:image/svg+xml;base64,") and first.svg.startswith(b"<?xml")
    first.write(tmp_path / "own")
    assert (tmp_path / f"own/drawn.{suffix}").read_bytes() == first.content
    assert (first.title, first.note) == ("Drawn", "A line.")


def test_a_lens_of_ones_own_says_what_it_does() -> None:
    """Also one that is a subclass of ours, for which `words` has a sentence."""

    @dataclass(frozen=True)
    class Own(LogitLensConfig):
        def describe(self) -> str:
            return "In my words."

    pairs: Any = SimpleNamespace(pairs=[])
    store: Any = SimpleNamespace(attributes={})
    source = Source("own", Own(), store, [], [], pairs, "normal", 1.0, 1)
    assert source.method == "In my words."
