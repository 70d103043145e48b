"""The documentation site: `make docs` builds it without a warning, and it asks nothing of the network."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Links that a reader may follow; what a page loads by itself comes from the site.
LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=\"?(https?://[^\" >]+)")
BLOCKS = (r"<link rel=\"?(?:canonical|prev|next|icon)\"?[^>]*>",)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_page_is_in_it(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file()
    assert "Contributing" in (site / "contributing.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("room", ["lenses", "prompts", "readout", "results", "sites"])
def test_a_room_shows_its_face(site: Path, room: str) -> None:
    text = (site / "api" / f"{room}.html").read_text(encoding="utf-8")
    for name in importlib.import_module(f"interp.{room}").__all__:
        value = getattr(importlib.import_module(f"interp.{room}"), name)
        if callable(value) and getattr(value, "__doc__", None) and value.__module__.startswith("interp."):
            assert re.search(rf'id="interp\.{room}\.[\w.]*\b{name}"', text), name


def test_arguments_that_share_a_line_each_have_one(site: Path) -> None:
    text = (site / "api" / "sites.html").read_text(encoding="utf-8")
    assert re.search(r"<code>num_heads</code>", text)
    assert re.search(r"<code>num_kv_heads</code>", text)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for block in BLOCKS:
            text = re.sub(block, "", text)
        assert not LOADED.findall(text), page.name
    styles = "".join(style.read_text(encoding="utf-8") for style in site.rglob("*.css"))
    assert not re.search(r"url\(\"?https?:", styles)
