"""Figures as markup and as files: text is text, nothing runs, the same bytes for the same numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from interp.plots import NAMED_COLORS, WIDE, Baseline, Curves, Figure, Group, Series, figure_of, number, save_figure

SCRIPT = "<script>a()</script> & $\\frac{ 日本"


def curves(label: str = SCRIPT) -> Curves:
    series = Series(Group("a", label, 0), [0, 1, 2], [0.1, 0.5, 0.9], [0.0, 0.4, 0.8], [0.2, 0.6, 1.0], [9, 9, 9])
    return Curves("probability", "Probability", "", "", 1.0, [series], [Baseline("unpatched", None, 0.4)])


def draw(label: str = SCRIPT) -> Figure:
    return figure_of([[(curves(label), WIDE)]])


def test_markup_is_one_element_with_text_as_text() -> None:
    svg = ElementTree.fromstring(draw().markup("wide"))
    assert (svg.tag, svg.get("class"), svg.get("role")) == ("svg", "chart wide", "img")
    assert SCRIPT in svg.attrib["aria-label"]
    kinds = {element.get("class") for element in svg.iter()} - {None}
    assert {"grid", "band", "line", "point", "rule", "rule-name", "leader", "name"} <= kinds
    assert not {"script", "style", "use", "defs", "image", "metadata"} & {element.tag for element in svg.iter()}
    assert not any(name == "id" or "href" in name or name == "clip-path" for e in svg.iter() for name in e.attrib)
    assert [text.text for text in svg.iter("text") if text.get("class") == "name"] == [SCRIPT]
    assert [text.text for text in svg.iter("text") if text.get("class") is None] == [
        "0", "1", "2", "Layer", "0", "0.25", "0.5", "0.75", "1",
    ]  # fmt: skip


def test_every_point_says_its_numbers() -> None:
    svg = ElementTree.fromstring(draw("answer").markup())
    circles = list(svg.iter("circle"))
    assert [circle.findtext("title") for circle in circles] == [
        "answer, layer 0: 0.1 [0, 0.2], n = 9", "answer, layer 1: 0.5 [0.4, 0.6], n = 9",
        "answer, layer 2: 0.9 [0.8, 1], n = 9",
    ]  # fmt: skip
    line = next(path for path in svg.iter("path") if path.get("class") == "line")
    ends = [tuple(map(float, end.split())) for end in line.attrib["d"].removeprefix("M").split("L")]
    for end, circle in zip(ends, circles, strict=True):
        assert end == pytest.approx((float(circle.attrib["cx"]), float(circle.attrib["cy"])), abs=0.01)
    silent = ElementTree.fromstring(draw("answer").markup(tips=False))
    assert not list(silent.iter("title")) and len(list(silent.iter("circle"))) == 3


def test_a_page_may_give_the_colours_others() -> None:
    svg = ElementTree.fromstring(draw().markup())
    styles = {element.get("class"): element.get("style", "") for element in svg.iter()}
    assert "stroke: var(--c0, #0072b2)" in styles["line"] and "fill: var(--c0, #0072b2)" in styles["name"]
    assert "stroke: var(--rule, " in styles["grid"] and "stroke: var(--paper, #ffffff)" in styles["point"]
    assert "background: var(--paper, #ffffff)" in svg.attrib["style"]
    assert len(set(NAMED_COLORS.values())) == len(NAMED_COLORS), "a colour that is another's has no name"


def test_a_notebook_shows_what_a_user_added() -> None:
    figure = draw()
    axes = figure.axes[0]
    axes.scatter([0, 1], [0.5, 0.5], marker="x")
    axes.plot([-9, 9], [-9, 9], color="#123456")
    axes.set_ylim(0, 1)
    svg = ElementTree.fromstring(figure._repr_html_())
    lines = [path for path in svg.iter("path") if "#123456" in path.get("style", "")]
    assert len(lines) == 1
    clips = {f"url(#{clip.attrib['id']})" for clip in svg.iter("clipPath")}
    assert lines[0].attrib["clip-path"] in clips, "what leaves the axes is cut"
    assert len([path for path in svg.iter("path") if path.get("transform", "").startswith("translate")]) >= 2


def test_text_that_the_font_lacks_or_that_looks_like_a_formula_is_no_fault(tmp_path: Path) -> None:
    for suffix in (".svg", ".pdf", ".png"):
        save_figure(draw(), tmp_path / "figures" / f"figure{suffix}")
    root = ElementTree.parse(tmp_path / "figures/figure.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    assert (tmp_path / "figures/figure.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_numbers_give_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib; matplotlib.rcParams['font.size'] = float(sys.argv[2])\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path; from interp.plots import save_figure\n"
        "from tests.interp.plots.test_figure import draw\n"
        "figure = draw(); folder = Path(sys.argv[1])\n"
        "for suffix in ('svg', 'pdf', 'png'): save_figure(figure, folder / f'f.{suffix}')\n"
        "(folder / 'f.html').write_text(figure.markup(), encoding='utf-8')"
    )
    written = []
    for name, size in (("one", "10"), ("other", "17")):
        command = [sys.executable, "-c", code, str(tmp_path / name), size, str(Path(__file__).parents[3])]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": size, "PATH": ""})
        written.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())})
    assert written[0] == written[1] and set(written[0]) == {"f.svg", "f.pdf", "f.png", "f.html"}


def test_drawing_leaves_the_users_settings_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    save_figure(draw(), tmp_path / "f.svg")
    draw().markup()
    assert dict(matplotlib.rcParams) == before


def test_numbers_for_people() -> None:
    assert [number(x) for x in (None, float("nan"), 0.0, 0.5, 12.3456, 0.0004, -3.9994, 1e-12)] == [
        "—", "—", "0.000", "0.500", "12.346", "4.0e−4", "−3.999", "1.0e−12",
    ]  # fmt: skip


def test_importing_the_lenses_imports_no_matplotlib() -> None:
    code = "import sys, interp.lenses; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout.strip() == "False"


def test_drawing_imports_no_torch() -> None:
    code = (
        "import sys, numpy as np; from interp.results import GenerationResult\n"
        "GenerationResult((0,), (((1,),),), (('a',),)).plot().markup()\n"
        "print(sorted({'torch', 'transformers', 'pipeline', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout.strip() == "[]"
