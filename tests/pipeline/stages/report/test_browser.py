"""The page in a real browser: it shows, it is styled, it runs nothing, it asks for nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from pipeline.stages.evaluate import __main__ as evaluate
from pipeline.stages.report import __main__ as report
from tests.pipeline.stages.finished_run import LENSES, NUM_LAYERS, SCRIPT, make_run

TOP_K, EXAMPLES = 5, 3


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run."""
    folder = make_run(tmp_path_factory.mktemp("browser") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        evaluate.run()
        report.run()
    return folder / "report/index.html"


@pytest.fixture
def page(browser: webdriver.Chrome, index: Path) -> webdriver.Chrome:
    """The browser with the page freshly loaded, at the width of a desktop, in light mode."""
    show(browser, 1200, "light")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what came before is not this page's
    browser.get(index.as_uri())
    return browser


def show(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    """Take a width in pixels and a colour scheme."""
    screen = {"width": width, "height": 1600, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def find(page: webdriver.Chrome, selector: str) -> list[WebElement]:
    return page.find_elements(By.CSS_SELECTOR, selector)


def test_it_shows_every_lens(page: webdriver.Chrome) -> None:
    sections = find(page, "section.lens")
    assert [s.find_element(By.TAG_NAME, "h2").text for s in sections] == [
        name.replace("_", " ").capitalize() for name in LENSES
    ]
    for section in sections:
        chart = section.find_element(By.CSS_SELECTOR, "svg.wide")
        assert chart.is_displayed()
        assert chart.size["width"] > 900
        assert not section.find_element(By.CSS_SELECTOR, "svg.compact").is_displayed()
        strips = section.find_elements(By.CSS_SELECTOR, "svg.strip")
        assert len(strips) >= 3
        assert all(strip.is_displayed() for strip in strips)
    names = [label.text for label in find(page, "#lens-2 svg.wide text.name")]
    assert "target concept in the target language (es)" in " ".join(" ".join(names).split())
    assert len(find(page, "table.heat td")) == len(LENSES) * EXAMPLES * NUM_LAYERS * TOP_K


def test_names_beside_the_curves_neither_overlap_nor_leave_the_page(page: webdriver.Chrome) -> None:
    for number in range(1, len(LENSES) + 1):
        boxes = [label.rect for label in find(page, f"#lens-{number} svg.wide text.name")]
        assert all(box["x"] + box["width"] <= 1200 for box in boxes)
        boxes.sort(key=lambda box: box["y"])
        for above, below in pairwise(boxes):
            assert above["y"] + above["height"] <= below["y"] + 2


def test_scripts_in_data_are_shown_and_do_not_run(page: webdriver.Chrome) -> None:
    with pytest.raises(NoAlertPresentException):
        page.switch_to.alert.accept()
    assert page.execute_script("return document.querySelectorAll('script').length") == 0
    assert SCRIPT in page.find_element(By.TAG_NAME, "h1").text
    assert page.title.endswith(SCRIPT)
    assert any(SCRIPT in pre.text for pre in find(page, "#lens-1 pre"))
    cell = next(c for c in find(page, "table.heat td") if c.get_attribute("textContent").strip().startswith(SCRIPT))
    assert SCRIPT in cell.find_element(By.CSS_SELECTOR, ".tip b").get_attribute("textContent")


def test_the_policy_stops_a_script_that_gets_in(page: webdriver.Chrome) -> None:
    ran = page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.head.append(s);"
        "return window.ran === true"
    )
    assert ran is False


def test_it_asks_for_nothing_and_complains_of_nothing(page: webdriver.Chrome, index: Path) -> None:
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requested = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert index.as_uri() in requested
    assert {url for url in requested if not url.startswith("data:")} == {index.as_uri()}
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("how", ["hover", "focus"])
def test_a_cell_tells_its_token_and_numbers(page: webdriver.Chrome, how: str) -> None:
    cell = find(page, "#lens-2 table.heat td")[1]
    tip = cell.find_element(By.CSS_SELECTOR, ".tip")
    assert not tip.is_displayed()
    if how == "hover":
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
        ActionChains(page).move_to_element(cell).perform()
    else:
        page.execute_script("arguments[0].focus()", cell)
    assert tip.is_displayed()
    for part in ("token ", "layer 11", "probability 0.", "log-probability −", "nats"):
        assert part in tip.text
    left, width = tip.rect["x"], tip.rect["width"]
    assert left >= 0
    assert left + width <= 1200


def test_cells_are_coloured_by_probability(page: webdriver.Chrome) -> None:
    first_row = find(page, "#lens-2 table.heat tbody tr")[0].find_elements(By.TAG_NAME, "td")
    shade = [page.execute_script("return getComputedStyle(arguments[0]).backgroundColor", cell) for cell in first_row]
    assert shade[0] != shade[-1]
    assert "hot" in (first_row[0].get_attribute("class") or "")


def test_examples_fold(page: webdriver.Chrome) -> None:
    boxes = find(page, "#lens-2 details.example-box")
    assert [box.get_attribute("open") is not None for box in boxes] == [True, False, False]
    table = boxes[1].find_element(By.CSS_SELECTOR, "table.heat")
    assert not table.is_displayed()
    boxes[1].find_element(By.TAG_NAME, "summary").click()
    assert table.is_displayed()


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_it_fits_the_screen(page: webdriver.Chrome, width: int) -> None:
    show(page, width, "light")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    compact = find(page, "#lens-1 svg.compact")[0].is_displayed()
    assert compact == (width <= 760)
    assert find(page, "#lens-1 .legend")[0].is_displayed() == compact


def luminance(color: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2)."""
    parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark(page: webdriver.Chrome, scheme: str) -> None:
    show(page, 1200, scheme)
    style = "return getComputedStyle(document.querySelectorAll(arguments[0])[arguments[2] || 0])[arguments[1]]"
    paper = luminance(page.execute_script(style, "body", "backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")

    def contrast(selector: str, name: str, index: int = 0) -> float:
        ink = luminance(page.execute_script(style, selector, name, index))
        return (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)

    assert contrast("body", "color") > 7
    assert contrast("figcaption", "color") > 4.5
    assert contrast("#lens-1 a", "color") > 4.5
    for color in range(6):
        assert contrast("#lens-2 svg.wide path.line", "stroke", color) > 3, color
