"""The pages in docs/: their blocks run, their tables are true, their links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from interp import StandardizedTransformer
from interp.positions import Position
from interp.prompts import POLICIES
from interp.sites import LAYER_KINDS, SHAPES, check_sites, parse_site
from interp.sites.spellings import EASYROUTINE, TRANSFORMER_LENS, System

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_CODE = [page for page in PAGES if "\n```python\n" in page.read_text(encoding="utf-8")]
LINKED = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def code_of(page: Path) -> str:
    """A page's Python blocks, each on the lines where it stands: an error names the line of the page."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines) + "\n"


def section(page: str, title: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(page: str, title: str) -> list[list[str]]:
    """Rows of the first table of a section, without its head."""
    found = re.search(r"^\|.*\n\|[-|]+\n((\|.*\n)+)", section(page, title) + "\n", flags=re.MULTILINE)
    assert found is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / f"{page.stem}.py"
    script.write_text(code_of(page), encoding="utf-8")  # nnsight reads the source of a trace from a file
    monkeypatch.chdir(ROOT)
    names = runpy.run_path(str(script))
    assert isinstance(names["model"], StandardizedTransformer)


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", page.read_text(encoding="utf-8")):
        path, anchor = target
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name}: {path}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor[1:] in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, anchor


def test_every_kind_is_in_the_table_with_its_shape() -> None:
    told = {}
    for kinds, shape, _ in table("sites.md", "Kinds"):
        for kind in re.findall(r"`(\w+)`", kinds):
            told[kind] = shape
    assert told == dict(SHAPES)


def test_positions_and_policies() -> None:
    for spellings, _ in table("sites.md", "Positions"):
        for spelling in re.findall(r"`([^`]+)`", spellings):
            assert str(Position.parse(spelling)) == spelling
    assert {re.findall(r"`(\w+)`", row[0])[0] for row in table("sites.md", "Answers")} == set(POLICIES)


@pytest.mark.parametrize(
    ("title", "system"), [("From TransformerLens", TRANSFORMER_LENS), ("From easyroutine", EASYROUTINE)]
)
def test_every_name_of_another_system_is_in_its_table_and_means_that(title: str, system: System) -> None:
    told: dict[str, str] = {}
    for names, site in table("migrating.md", title):
        for name in re.findall(r"`([^`]+)`", names):
            told[name] = site.strip("`")
            assert str(parse_site(name, num_layers=8, num_heads=4, num_kv_heads=4)) == told[name]
    known: dict[str, Any] = {
        name.format(layer=3, head=1): f"{kind}.3" if kind in LAYER_KINDS else kind
        for name, kind in system.meanings.items()
    }
    assert {name: site.removesuffix(".h1") for name, site in told.items()} == known


def test_names_that_are_refused_are_refused() -> None:
    refused = section("migrating.md", "From TransformerLens").split("says what to write instead:")[1].split("\n\n")[0]
    for name in re.findall(r"`([^`]+)`", refused):
        full = next(each for each in TRANSFORMER_LENS.refused if each.endswith(name))
        with pytest.raises(ValueError, match="Write "):
            check_sites(full.format(layer=3), 8)
