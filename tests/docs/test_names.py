"""What the pages name exists: files, modules, functions, config keys; and what they take from the code is current."""

from __future__ import annotations

import importlib
import re
import runpy
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OURS = ("interp", "pipeline", "conf", "tests", "docs", "examples", "benchmarks")
MAP = [
    *(ROOT / "docs" / f"{page}.md" for page in ("architecture", "pipeline", "extending", "glossary")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    ROOT / "CONTRIBUTING.md",
]
PAGES = sorted({*MAP, *(ROOT / "docs").glob("*.md"), ROOT / "README.md"})


def named(page: Path) -> Iterator[str]:
    """What a page has between backticks, outside its blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", text)


def is_file(name: str) -> bool:
    path = name.split("/")
    return path[0] in OURS and len(path) > 1 and not re.search(r"[A-Z]{4}|[*<{ ]", name)


def is_dotted(name: str) -> bool:
    return re.fullmatch(r"(interp|pipeline)(\.\w+)+", name) is not None and not re.search(r"\.[A-Z]{4,}|\.py$", name)


def exists(name: str) -> bool:
    """Whether a dotted name can be imported, or be had from what can be."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for part in parts[depth:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@cache
def words() -> set[str]:
    """Every word of the code and the config."""
    found: set[str] = set()
    for folder in ("interp", "pipeline", "conf"):
        for suffix in ("py", "yaml", "j2", "json"):
            for file in (ROOT / folder).rglob(f"*.{suffix}"):
                if file.stat().st_size < 200_000:
                    found |= set(re.findall(r"\w+", file.read_text(encoding="utf-8")))
                    found |= set(re.findall(r"\w+", file.stem))
    for name in ("dvc.yaml", "pyproject.toml"):
        found |= set(re.findall(r"\w+", (ROOT / name).read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_exist(page: Path) -> None:
    missing = {name for name in named(page) if is_file(name) and not (ROOT / name).exists()}
    missing |= {name for name in named(page) if is_dotted(name) and not exists(name)}
    assert not missing


@pytest.mark.parametrize("page", MAP, ids=lambda page: page.name)
def test_names_are_words_of_the_code(page: Path) -> None:
    told = {name for name in named(page) if re.fullmatch(r"[A-Za-z]+(_[A-Za-z]+)+|[a-z]+[A-Z]\w+", name)}
    assert not told - words()


def test_picture_and_config_reference_are_current() -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `python docs/generate.py`"


@pytest.mark.parametrize("package", ["interp", "pipeline"])
def test_every_room_of_the_contract_is_in_the_picture_and_in_a_table(package: str) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    (layers,) = (each["layers"] for each in contracts if each["type"] == "layers" and each["containers"] == [package])
    for room in (room.strip(" ()") for layer in layers for room in layer.split("|")):
        assert f">{room}<" in picture
        assert room in SMALL or f"`{package}.{room}`" in text, room


def test_every_config_key_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    for section in ("collect", "evaluate", "report", "store", "cache", "tracking"):
        values = yaml.safe_load((ROOT / "conf" / section / "default.yaml").read_text(encoding="utf-8"))
        table = re.split(r"\n#+ ", page.split(f"\n### {section}\n")[1])[0]
        assert set(values) == set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))
    for kind in ("logit_lens", "patchscope", "knockout"):
        values = yaml.safe_load((ROOT / "conf" / "lens" / f"{kind}.yaml").read_text(encoding="utf-8"))
        table = re.split(r"\n#+ ", page.split(f"\n#### lens kind: {kind}\n")[1])[0]
        lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
        rows = {line[0]: line for line in lines}
        assert {f"`{key}`" for key in values if key != "kind"} == set(rows)
        assert rows["`top_k`"][2:4] == [f"`{values['top_k']}`", "1 to 1000000"]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["authors"] == [{"name": "The Interpipe developers"}]


SMALL = {
    "__main__",
    "text",
    "errors",
    "passes",
    "tensor_files",
}  # beside the tables: what a reader of the map needs not


def test_no_file_name_stands_twice() -> None:
    """A search for a file has one answer; kinds lie in folders of their own, named as the config names them."""
    kinds = {ROOT / "pipeline/stages/lens/kinds", ROOT / "interp/compat/nnterp"}  # there, nnterp's own names
    for package in ("interp", "pipeline"):
        files = [path for path in (ROOT / package).rglob("*.py") if path.parent not in kinds]
        names = Counter(path.name for path in files if not path.name.startswith("__"))
        assert [name for name, count in names.items() if count > 1] == []
