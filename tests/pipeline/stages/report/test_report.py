"""The stage `report` on a run folder: the page as parsed, and the figures beside it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

import interp
from interp.errors import InterpError
from interp.plots import SMALL, Curves, Frame, Panel, Series, number
from interp.prompts.patchscopes import IDENTITY_PROMPTS
from pipeline.config.section import ConfigError
from pipeline.metrics import FIGURES, METRICS, Floats, Measured, Metric
from pipeline.stages.evaluate import __main__ as evaluate
from pipeline.stages.evaluate.tables import read_curves
from pipeline.stages.report import __main__ as report
from pipeline.stages.report.source import Source
from pipeline.stages.report.words import rank
from pipeline.store import open_store
from tests.pipeline.stages.finished_run import (
    GROUP_LABELS,
    LENSES,
    NUM_LAYERS,
    PAIR_GROUPS,
    SCRIPT,
    VOCABULARY,
    make_run,
    pairs,
)  # fmt: skip
from tests.pipeline.stages.page import Element, parse

NOT_OF_READINGS = {"relative_probability", "entropy_nats", "generation_accuracy", "generated_tokens"}
ROOT = Path(report.__file__).parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a finished report."""
    folder = make_run(tmp_path_factory.mktemp("report") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        evaluate.run()
        report.run()
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Element:
    return parse(run / "report/index.html")


def lens(page: Element, name: str) -> Element:
    return page.all("section", "lens")[list(LENSES).index(name)]


def test_the_page_is_self_contained_and_runs_nothing(run: Path, page: Element) -> None:
    assert not page.all("script")
    assert not page.all("img")
    assert not [e for e in page.walk() for name in e.attributes if name.startswith("on") or name == "src"]
    policy = next(e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy.attributes["content"] or "")
    assert "script" not in (policy.attributes["content"] or "")
    ids = {e.attributes["id"] for e in page.walk() if "id" in e.attributes}
    assert len(ids) == sum("id" in e.attributes for e in page.walk())
    for element in page.walk():
        target = element.attributes.get("href")
        if target is None or target == "data:,":
            continue
        assert target[1:] in ids if target.startswith("#") else (run / "report" / target).is_file(), target
    assert "url(" not in page.all("style")[0].text
    assert "@import" not in page.all("style")[0].text
    assert (run / "report/index.html").stat().st_size < 2_000_000


def test_scripts_in_data_are_text(page: Element) -> None:
    assert SCRIPT in page.all("h1")[0].text
    assert SCRIPT in page.all("title")[0].text
    assert any(SCRIPT in e.text for e in page.all("pre"))
    assert any(e.text == SCRIPT for e in page.all("bdi"))
    assert any(SCRIPT in (e.attributes.get("aria-label") or "") for e in page.all("svg"))


def test_headings_are_in_order_and_each_lens_has_its_section(page: Element) -> None:
    levels = [int(e.tag[1]) for e in page.walk() if re.fullmatch(r"h[1-6]", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    titles = [section.all("h2")[0].text for section in page.all("section", "lens")]
    assert titles == ["Logit lens", "Patchscope", "Patchscope query mean", "Patchscope identity"]


def test_every_table_and_chart_is_named(page: Element) -> None:
    for table in page.all("table"):
        assert table.all("caption")[0].text.strip()
        assert table.all("th")
        assert all(th.attributes.get("scope") in ("row", "col") for th in table.all("th"))
    assert all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in page.all("svg"))


def test_heat_map_shows_what_the_store_holds(run: Path, page: Element) -> None:
    store = open_store(run / "lens.zarr/patchscope")
    for table, example in zip(lens(page, "patchscope").all("table", "heat"), (0, 20, 39), strict=True):
        ids, log_probs = store.read("top_ids", example=example), store.read("top_log_prob", example=example)
        rows = table.all("tbody")[0].all("tr")
        assert [row.all("th")[0].text for row in rows] == [str(i) for i in reversed(range(NUM_LAYERS))]
        for row, layer in zip(rows, reversed(range(NUM_LAYERS)), strict=True):
            for cell, token, log_prob in zip(row.all("td"), ids[layer], log_probs[layer], strict=True):
                text, tip = cell.all("bdi")[0].text, cell.all("span", "tip")[0].text
                assert text == (VOCABULARY[token].replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
                                .replace("\u202e", "\\u202e").replace("\x00", "\\x00") or "∅")  # fmt: skip
                assert cell.attributes["tabindex"] == "0"
                assert text in tip
                assert f"token {token} · layer {layer}" in tip
                assert f"probability {number(math.exp(log_prob))}, log-probability {number(log_prob)} nats" in tip
                assert cell.attributes["style"] == f"--p:{math.exp(log_prob):.3f}"


def test_answers_are_marked_in_their_groups_colour(run: Path, page: Element) -> None:
    source, target = pairs()[0]
    table = lens(page, "patchscope").all("table", "heat")[0]
    marked = {
        (cell.all("bdi")[0].text, dot.attributes["class"]) for cell in table.all("td") for dot in cell.all("i", "dot")
    }
    assert (source, target) == (0, 1)
    assert ("perro", "dot c0 d0") in marked  # target concept in the target language
    assert ("␣libro", "dot c2 d0") in marked  # source concept in the source's output language
    assert not any(text in ("casa", "↵") for text, _ in marked)


def test_examples_show_what_the_model_was_fed(page: Element) -> None:
    def prompts(name: str, index: int) -> list[tuple[str, str]]:
        box = lens(page, name).all("details", "example-box")[index]
        captions = [h.text for h in box.all("h4") if h.text != "Answers"]
        return list(zip(captions, [pre.text.replace("↵", "").strip("\n") for pre in box.all("pre")], strict=True))

    (one,) = prompts("logit_lens", 1)
    assert one[0] == "Prompt"
    assert one[1].endswith('de: "TREE" - Italiano: "')
    source, target = prompts("patchscope", 0)
    assert source[1].startswith(f"{SCRIPT}Deutsch: ")
    assert target == ("Target prompt", 'Français: "dog" - Español: "')
    first, second, _ = prompts("patchscope_query_mean", 0)
    assert (first[0], second[0]) == ("Source prompt 1 of 2", "Source prompt 2 of 2")
    assert second[1].endswith('nl: "BOOK" - Italiano: "')
    identity = prompts("patchscope_identity", 0)[1]
    assert identity == ("Target prompt (identity)", IDENTITY_PROMPTS["cat"])


def test_the_numbers_are_those_of_the_curves(run: Path, page: Element) -> None:
    curves = [r for r in read_curves(run / "curves.parquet") if r.lens == "patchscope"]
    for row in lens(page, "patchscope").all("table", "summary")[0].all("tbody")[0].all("tr"):
        label, cells = row.all("th")[0].text, [cell.text for cell in row.all("td")]
        group = next(
            g
            for g, text in open_store(run / "lens.zarr/patchscope").attributes["group_labels"].items()
            if text == label
        )
        points = [r for r in curves if r.metric == "probability" and r.group == group]
        peak = max(points, key=lambda r: r.mean or 0)
        at_peak = {r.metric: r.mean for r in curves if r.group == group and r.layer == peak.layer}
        base = {r.metric: r.mean for r in curves if r.group == group and r.layer == -1}
        assert cells == [
            "40", number(points[0].mean), number(peak.mean), str(peak.layer), number(at_peak["top1_accuracy"]),
            rank(at_peak["rank"]), number(points[-1].mean), number(base["baseline_target_probability"]),
            number(base["baseline_source_probability"]),
        ]  # fmt: skip
    table = lens(page, "patchscope").all("details", "curve-table")[0]
    entropy = [r for r in curves if r.metric == "entropy_bits"]
    index = [th.text for th in table.all("th")].index("Entropy (bits)") - 1
    for row, point in zip(table.all("tbody")[0].all("tr"), entropy, strict=True):
        interval = f"{number(point.normal_low)} to {number(point.normal_high)}"
        assert row.all("td")[index].text == number(point.mean) + interval


def test_the_glance_tells_who_leads_where(run: Path, page: Element) -> None:
    text = " ".join(page.all("dl", "glance")[0].text.split())
    crossing = json.loads((run / "metrics.json").read_text())["patchscope"]["crossing_layer"]
    first, second = sorted(crossing.values())
    assert (
        "target concept in the target language (es) layers 0–4 "
        f"target concept in the source's output language (it) layers 5–7, overtakes at {first:.1f} "
        f"source concept in the source's output language (it) layers 8–11, overtakes at {second:.1f}"
    ) in text


def test_charts_draw_every_group_in_both_sizes(page: Element) -> None:
    section = lens(page, "patchscope")
    for size in ("wide", "compact"):
        (svg,) = section.all("svg", size)
        assert len(svg.all("path", "line")) == 6
        assert len(svg.all("path", "band")) == 6
        assert len(svg.all("circle")) == 6 * NUM_LAYERS
        assert [t.text for t in svg.all("text", "rule-name")] == ["unpatched target prompt", "unpatched source prompt"]
    names = " ".join(text.text for text in section.all("svg", "wide")[0].all("text", "name"))
    assert all(GROUP_LABELS[group] in names for group in PAIR_GROUPS)
    assert "n = 40 pairs" in section.all("figcaption")[0].text
    assert "95\N{NO-BREAK SPACE}% normal intervals" in section.all("figcaption")[0].text
    assert "n = 15–16 prompts" in lens(page, "logit_lens").all("figcaption")[0].text
    titles = [p.text for p in section.all("p", "panel-title")]
    assert {"Entropy (bits)", "KL divergence (nats)", "Precision@1", "Surprisal (nats)"} <= set(titles)
    unknown = [p.text for p in lens(page, "patchscope_query_mean").all("p", "panel-title")]
    assert "Precision@1" not in unknown


def test_what_was_run(page: Element) -> None:
    text = " ".join(page.all("section")[-1].text.split())
    for part in (
        "pipeline/demo/model",
        "float32",
        "pairs dropped shared tokens",
        "Noted in the data",
        "prompts that end in a space",
        "2; prompt 3",
        "b" * 64,
        "c" * 64,
        "d" * 64,
    ):
        assert part in text
    assert "secret" not in text
    assert interp.__version__ in page.all("footer")[0].text
    digests = [code.text for code in page.all("table", "digests")[0].all("code")]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests)
    assert len(digests) == 5


def test_the_command_composes_the_same_config(run: Path, page: Element, tmp_path: Path) -> None:
    """What the page says is enough: its config in a folder, and its command in the repository."""
    config = page.all("details")[-1].all("pre")[0].text
    (tmp_path / "params.yaml").write_text(config, encoding="utf-8")
    command = page.all("pre", "command")[1].text.strip()
    assert command.startswith("python -m pipeline ")
    arguments = command.replace("FOLDER", str(tmp_path)).split()[1:]
    done = subprocess.run(
        [sys.executable, *arguments, "--cfg", "job"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    composed, original = yaml.safe_load(done.stdout), OmegaConf.to_container(OmegaConf.load(run / "params.yaml"))
    assert isinstance(original, dict)
    assert {name: composed[name] for name in report.SECTIONS} == {name: original[name] for name in report.SECTIONS}
    assert {"store", "tracking"} <= set(composed)
    done = subprocess.run(
        [sys.executable, *arguments, "--cfg", "hydra"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(done.stdout)["hydra"]["job"]["name"] == "interpipe"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("figure_format", ["svg", "pdf", "png"])
def test_two_folders_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure_format: str) -> None:
    written = []
    for name in ("one", "another"):
        folder = make_run(tmp_path / name, lenses=("patchscope",), figure_format=figure_format)
        monkeypatch.chdir(folder)
        evaluate.run()
        report.run()
        written.append(files(folder / "report"))
    assert written[0] == written[1]
    assert set(written[0]) == {"index.html", f"figures/patchscope.{figure_format}"}
    assert str(tmp_path).encode() not in b"".join(written[0].values())


def test_figures_are_well_formed(run: Path) -> None:
    for name in LENSES:
        root = ElementTree.parse(run / f"report/figures/{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not list(root.iter("{http://www.w3.org/2000/svg}script"))


def test_a_second_run_replaces_the_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    before = files(run / "report")
    (run / "report/stale.txt").write_text("old")
    report.run()
    assert files(run / "report") == before


def test_a_task_without_answers_and_no_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(
        tmp_path / "run",
        lenses=("logit_lens",),
        script=False,
        prompt_groups={},
        examples=0,
        interval="bootstrap",
        title="日本 $x$",
    )
    monkeypatch.chdir(folder)
    evaluate.run()
    report.run()
    page = parse(folder / "report/index.html")
    section = page.all("section", "lens")[0]
    assert not section.all("table", "heat")
    assert not section.all("svg", "wide")
    assert [p.text for p in section.all("p", "panel-title")][:1] == ["Entropy (bits)"]
    assert "The task names no answers" in page.all("section")[0].text
    assert page.all("h1")[0].text == "日本 $x$"
    assert (folder / "report/figures/logit_lens.svg").is_file()


def test_without_a_lens_the_page_shows_what_was_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", lenses=(), script=False)
    (folder / "lens.zarr").mkdir()
    monkeypatch.chdir(folder)
    evaluate.run()
    report.run()
    assert (folder / "metrics.json").read_text() == "{}\n" and read_curves() == []
    page = parse(folder / "report/index.html")
    assert [section.attributes["id"] for section in page.all("section")] == ["run"]
    assert "no lens was asked for" in page.all("p", "lede")[0].text
    assert page.all("a", "skip")[0].attributes["href"] == "#run"
    (collected,) = [div.text for div in page.all("div") if div.text.startswith("Collected") and div.all("table")]
    assert f"layers 0–{NUM_LAYERS - 1}; {NUM_LAYERS} layer × 4 prompt × 2 position × 8 hidden; float32" in collected
    assert "last, query.last" in collected


def test_labels_may_hold_any_script_or_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures' font lacks these letters, and a dollar is no formula: neither fails, nor warns."""
    labels = {"answer": "日本 $\\frac{", "latent_en": "\x00 & <b> 𐍈"}
    folder = make_run(tmp_path / "run", lenses=("logit_lens",), labels=labels)
    monkeypatch.chdir(folder)
    evaluate.run()
    report.run()
    ElementTree.parse(folder / "report/figures/logit_lens.svg")
    names = [t.text for t in parse(folder / "report/index.html").all("svg", "wide")[0].all("text", "name")]
    assert set(names) == {"日本 $\\frac{", "\\x00 & <b> 𐍈"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": "bootstrapped"}, "Did you mean 'bootstrap'"),
        ({"figure_format": "gif"}, "expected one of svg, pdf, png, got .gif."),
        ({"examples": -1}, "0 or more"),
    ],
)
def test_a_bad_config_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    OmegaConf.save({"report": changes, "evaluate": {}}, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        report.run()


def test_curves_of_another_config_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", lenses=("logit_lens",))
    for table in ("curves.parquet", "grids.parquet"):
        (folder / table).write_bytes((run / table).read_bytes())
    params = OmegaConf.load(folder / "params.yaml")
    params.lens = {"logit_lenz": LENSES["logit_lens"]}
    OmegaConf.save(params, folder / "params.yaml")
    (folder / "lens.zarr/logit_lens").rename(folder / "lens.zarr/logit_lenz")
    monkeypatch.chdir(folder)
    with pytest.raises(InterpError, match=r"no lens 'logit_lenz'. Did you mean 'logit_lens'"):
        report.run()


def test_the_stage_imports_nothing_heavy() -> None:
    code = (
        "import pipeline.stages.report.__main__, sys;"
        "assert not {'torch', 'transformers', 'datasets', 'pandas', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_lenses_of_the_same_token_stand_beside_each_other(run: Path, page: Element) -> None:
    """What is compared speaks of one token of the same examples; its numbers are those of the tables."""
    section = next(e for e in page.all("section") if e.attributes.get("id") == "compared")
    rows = read_curves(run / "curves.parquet")
    legends = [[item.text for item in legend.all("li")] for legend in section.all("ul", "legend")]
    assert legends == [["Logit lens", "Patchscope identity"]]
    charts = section.all("svg", "strip")
    metrics = ("precision_at_1", "surprisal_nats")
    names = ("logit_lens", "patchscope_identity")
    for chart, metric in zip(charts, metrics, strict=True):
        titles = [e.text for e in chart.all("title")]
        assert len(titles) == 2 * NUM_LAYERS
        for name, legend in zip(names, legends[0], strict=True):
            means = [row.mean for row in rows if (row.lens, row.metric) == (name, metric)]
            said = [title for title in titles if title.startswith(f"{legend}, layer ")]
            assert [title.partition(": ")[2].split(" ")[0].rstrip(",") for title in said] == [f"{m:.3g}" for m in means]
    table = section.all("table")[0]
    cells = [[cell.text for cell in line.all("td")] for line in table.all("tr")[1:]]
    by_curve = [[row.mean for row in rows if (row.lens, row.metric) == (n, m)] for m in metrics for n in names]
    assert cells == [[number(curve[layer]) for curve in by_curve] for layer in range(NUM_LAYERS)]
    links = [e.attributes["href"] for e in section.all("a")]
    assert links == ["figures/compared/1.svg"]
    assert "n = 16 prompts" in section.text
    drawn = (run / "report" / str(links[0])).read_text(encoding="utf-8")
    ElementTree.fromstring(drawn)


def test_a_metric_and_a_figure_of_ones_own_have_their_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function each, and nothing else: the page, its tables and the file show them."""

    def top_probability(lens: Measured) -> Floats | None:
        return np.exp(lens.read("top_log_prob", top=0)) if lens.has("top_log_prob") else None

    def numbers_of_examples(source: Source) -> list[tuple[Panel, Frame]]:
        rows = source.curve("top_probability")
        counts, unknown = [row.n for row in rows], [math.nan] * len(rows)
        series = Series(None, [row.layer for row in rows], [float(n) for n in counts], unknown, unknown, counts)
        return [(Curves("n", "Examples <b>", "", "", None, [series]), SMALL)]

    own = Metric("top_probability", "Top probability", "", "of the top token", top_probability, is_share=True)
    monkeypatch.setitem(METRICS, "top_probability", own)
    monkeypatch.setitem(FIGURES, "numbers_of_examples", numbers_of_examples)
    folder = make_run(tmp_path / "run", lenses=("logit_lens",))
    monkeypatch.chdir(folder)
    evaluate.run()
    report.run()
    section = lens(parse(folder / "report/index.html"), "logit_lens")
    titles = [title.text for title in section.all("p", "panel-title")]
    assert "Top probability" in titles and "Examples <b>" in titles
    assert "of the top token" in [caption.text for caption in section.all("figcaption")]
    chart = section.all("svg", "own")[0]
    assert [title.text.partition(": ")[2] for title in chart.all("title")] == ["16, n = 16"] * NUM_LAYERS
    assert "Top probability" in [th.text for th in section.all("details", "curve-table")[0].all("th")]


def test_every_metric_that_is_drawn_has_its_panel(page: Element) -> None:
    titles = {title.text.strip() for title in lens(page, "patchscope").all("p", "panel-title")}
    wanted = [m for m in METRICS.values() if m.is_drawn and not m.is_baseline and m.name not in NOT_OF_READINGS]
    assert {f"{m.title} ({m.unit})" if m.unit else m.title for m in wanted} - {"Probability"} <= titles
    assert "Rank" not in titles, "it stands in the table of numbers alone"


def test_one_lens_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", lenses=("logit_lens", "patchscope"))
    monkeypatch.chdir(folder)
    evaluate.run()
    report.run()
    assert not [e for e in parse(folder / "report/index.html").all("section") if e.attributes.get("id") == "compared"]
    assert not (folder / "report/figures/compared").exists()
