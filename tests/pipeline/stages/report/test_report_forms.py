"""The report on grids, generated texts and knock-outs: what the page and the figures show is what was measured."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from interp.plots import number
from pipeline.stages.evaluate import __main__ as evaluate
from pipeline.stages.evaluate.tables import CurveRow, GridRow, read_curves, read_grids
from pipeline.stages.report import __main__ as report
from pipeline.stages.report.words import percent
from pipeline.store import open_store
from tests.pipeline.stages.finished_forms import BLOCKS, FORMS, LAYERS, SOURCES, TARGETS, TEXTS, make_run_of_forms
from tests.pipeline.stages.finished_run import GROUP_LABELS, PAIR_GROUPS, VOCABULARY
from tests.pipeline.stages.page import Element, parse

MEANS = 4.5  # contrast that small text needs (WCAG 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a finished report."""
    folder = make_run_of_forms(tmp_path_factory.mktemp("forms") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        evaluate.run()
        report.run()
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Element:
    return parse(run / "report/index.html")


def lens(page: Element, name: str) -> Element:
    return page.all("section", "lens")[["logit_lens", *FORMS].index(name)]


def grid_rows(run: Path, metric: str, group: str = "") -> list[GridRow]:
    return [row for row in read_grids(run / "grids.parquet") if (row.metric, row.group) == (metric, group)]


def curve(run: Path, name: str, metric: str, group: str = "", block: str = "") -> list[CurveRow]:
    wanted = (name, metric, group, block)
    return [r for r in read_curves(run / "curves.parquet") if (r.lens, r.metric, r.group, r.block) == wanted]


def test_a_grid_has_a_map_for_each_group_and_metric(run: Path, page: Element) -> None:
    figures = lens(page, "grid").all("div", "maps")[0].all("figure")
    titles = [figure.all("p", "panel-title")[0].text.strip() for figure in figures]
    assert titles == [
        *(GROUP_LABELS[group] for group in PAIR_GROUPS),
        "Entropy (bits)", "KL divergence (nats)", "Precision@1", "Surprisal (nats)",
    ]  # fmt: skip
    for figure, key in zip(figures, PAIR_GROUPS, strict=False):
        tiles = figure.all("path", "tile")
        said = [tile.all("title")[0].text for tile in tiles]
        assert said == [
            f"source layer {row.source_layer} into layer {row.target_layer}: {number(row.mean)} "
            f"[{number(row.normal_low)}, {number(row.normal_high)}], n = 40"
            for row in grid_rows(run, "probability", key)
        ]
        shares = [float(re.findall(r"([\d.]+)%", tile.attributes["style"] or "")[0]) / 100 for tile in tiles]
        assert shares == pytest.approx([row.mean for row in grid_rows(run, "probability", key)], abs=1 / 80 + 1e-9)


def test_tiles_lie_where_their_layers_are(page: Element) -> None:
    (svg, *_) = lens(page, "grid").all("svg", "grid-map")
    corners = {}
    for tile in svg.all("path", "tile"):
        source, target = map(int, re.findall(r"layer (\d+)", tile.all("title")[0].text))
        x, y = map(float, re.findall(r"[\d.]+", tile.attributes["d"] or "")[:2])
        corners[source, target] = (x, y)
    assert sorted(SOURCES, key=lambda layer: -corners[layer, 0][1]) == SOURCES, "the first source layer is lowest"
    assert sorted(TARGETS, key=lambda layer: corners[0, layer][0]) == TARGETS


def test_the_best_cell_of_a_group_is_told(run: Path, page: Element) -> None:
    key = "source_concept_target_language"
    best = max(grid_rows(run, "probability", key), key=lambda row: row.mean or 0)
    glance = " ".join(page.all("dl", "glance")[0].text.split())
    assert f"{GROUP_LABELS[key]} up to {number(best.mean)}, from layer 5 into layer 5" in glance
    rows = lens(page, "grid").all("table", "summary")[0].all("tbody")[0].all("tr")
    cells = [cell.text for cell in rows[PAIR_GROUPS.index(key)].all("td")]
    assert cells[:4] == ["40", number(best.mean), "5", "5"]
    assert cells[-1] == number(0.25), "the unpatched target prompt"


def test_examples_of_a_grid_show_the_top_token_of_each_cell(run: Path, page: Element) -> None:
    ids = open_store(run / "lens.zarr/grid").read("top_ids", example=0, top=0)
    table = lens(page, "grid").all("table", "heat")[0]
    heads = [th.text for th in table.all("thead")[0].all("th")]
    assert heads == ["from", *(f"into {layer}" for layer in TARGETS)]
    for row, at in zip(table.all("tbody")[0].all("tr"), reversed(range(len(SOURCES))), strict=True):
        assert row.all("th")[0].text == str(SOURCES[at])
        for cell, token, target in zip(row.all("td"), ids[at], TARGETS, strict=True):
            assert f"token {token} · source layer {SOURCES[at]} into layer {target}" in cell.all("span", "tip")[0].text


def test_generated_texts_are_shown_with_the_answers_they_hold(run: Path, page: Element) -> None:
    store = open_store(run / "lens.zarr/generate")
    tables = lens(page, "generate").all("table", "texts")
    assert len(tables) == 3
    for table, example in zip(tables, (0, 8, 15), strict=True):
        found = store.read("answer_found", example=example)
        for row, at in zip(table.all("tbody")[0].all("tr"), reversed(range(len(LAYERS))), strict=True):
            assert row.all("th")[0].text == str(LAYERS[at])
            text, tokens = row.all("td")
            shown = TEXTS[(example + at) % len(TEXTS)].replace("\u202e", "\\u202e")
            assert text.all("bdi")[0].text == shown
            assert [dot.attributes["class"] for dot in text.all("i", "dot")] == [
                f"dot c{group} d0" for group in range(2) if found[at, group] == 1
            ]
            assert tokens.text == str(store.read("num_tokens", example=example)[at])
    main = lens(page, "generate").all("svg", "wide")[0]
    points = [title.text for title in main.all("title")]
    for row in curve(run, "generate", "generation_accuracy", "answer"):
        assert any(f"layer {row.layer}: {row.mean:.3g} " in point for point in points)


def test_a_knock_out_has_a_line_for_each_block(run: Path, page: Element) -> None:
    section = lens(page, "knockout")
    main = section.all("svg", "wide")[0]
    assert len(main.all("path", "line")) == len(BLOCKS)
    assert [t.text for t in main.all("text", "rule-name")] == ["nothing blocked"]
    names = [" ".join(label.text.split()) for label in main.all("text", "name")]
    assert set(names) == {
        "without the first token", "without every token of “query”", "without the tokens before “query”",
    }  # fmt: skip
    assert any(text.text == "First layer of the window" for text in main.all("text"))
    titles = [title.text for title in main.all("title")]
    for block, name in zip(
        BLOCKS, ("the first token", "every token of “query”", "the tokens before “query”"), strict=True
    ):
        points = curve(run, "knockout", "relative_probability", "answer", block)
        assert all(any(f"without {name}, layer {r.layer}: {r.mean:.3g} " in title for title in titles) for r in points)
        worst = min(points, key=lambda row: row.mean or 0)
        said = f"without {name} leaves {percent(worst.mean or 0)} of {GROUP_LABELS['answer']}, from layer {worst.layer}"
        assert said in " ".join(page.all("dl", "glance")[0].text.split())


def test_examples_of_a_knock_out_show_the_top_token_without_each_block(run: Path, page: Element) -> None:
    ids = open_store(run / "lens.zarr/knockout").read("top_ids", example=0, top=0)
    table = lens(page, "knockout").all("table", "heat")[0]
    assert [th.text for th in table.all("thead")[0].all("th")][1:] == [f"without {block}" for block in BLOCKS]
    for row, at in zip(table.all("tbody")[0].all("tr"), reversed(range(len(LAYERS))), strict=True):
        for cell, token in zip(row.all("td"), ids[at], strict=True):
            text = VOCABULARY[token].replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
            text = text.replace("\u202e", "\\u202e").replace("\x00", "\\x00") or "∅"
            assert cell.all("bdi")[0].text == text


@pytest.mark.parametrize("figure_format", ["svg", "png"])
def test_two_folders_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure_format: str) -> None:
    written = []
    for name in ("one", "another"):
        folder = make_run_of_forms(tmp_path / name, lenses=(), figure_format=figure_format)
        monkeypatch.chdir(folder)
        evaluate.run()
        report.run()
        files = {p.relative_to(folder).as_posix(): p for p in (folder / "report").rglob("*") if p.is_file()}
        written.append({file: path.read_bytes() for file, path in files.items()})
    assert written[0] == written[1]
    assert set(written[0]) == {"report/index.html", *(f"report/figures/{form}.{figure_format}" for form in FORMS)}


def test_figures_are_well_formed(run: Path) -> None:
    for name in FORMS:
        root = ElementTree.parse(run / f"report/figures/{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not list(root.iter("{http://www.w3.org/2000/svg}image")), "sharp at any size"


@pytest.fixture
def shown(browser: webdriver.Chrome, run: Path) -> webdriver.Chrome:
    browser.get((run / "report/index.html").as_uri())
    return browser


def resize(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    screen = {"width": width, "height": 1600, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_it_fits_the_screen(shown: webdriver.Chrome, width: int) -> None:
    resize(shown, width, "light")
    assert shown.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_in_tiles_can_be_read(shown: webdriver.Chrome, scheme: str) -> None:
    resize(shown, 1200, scheme)
    tiles = shown.find_elements(By.CSS_SELECTOR, "svg.grid-map path.tile")
    texts = shown.find_elements(By.CSS_SELECTOR, "svg.grid-map text.tile-text")
    assert tiles and len(tiles) == len(texts)
    colors = shown.execute_script(
        "const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});"
        "const rgb = color => { c.fillStyle = color; c.fillRect(0, 0, 1, 1);"
        " return [...c.getImageData(0, 0, 1, 1).data]; };"
        "return arguments[0].map((t, i) => [getComputedStyle(t).fill,"
        " getComputedStyle(arguments[1][i]).fill].map(rgb))",
        tiles,
        texts,
    )
    assert len({tuple(ground) for ground, _ in colors}) > 20, "shades differ"
    for ground, ink in colors:
        bright, dark = sorted((luminance(ground), luminance(ink)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) > MEANS, (ground, ink)


def luminance(color: list[int]) -> float:
    """Relative luminance of red, green, blue (WCAG 2)."""
    parts = [part / 255 for part in color[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_notes_say_what_a_metric_compares_with(run: Path, page: Element) -> None:
    logit, grid = lens(page, "logit_lens").text, lens(page, "grid").text
    last = open_store(run / "lens.zarr/logit_lens").attributes["layers"][-1]
    assert f"from the distribution at layer {last} to this layer’s" in logit
    assert "share of examples whose top token is the model’s own" in logit
    assert "share of examples whose top token is what the model itself says after the source token" in grid
    assert "of the model’s own probability, after the source token, of the top token" in grid
