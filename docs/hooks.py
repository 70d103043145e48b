"""What the site has beside the pages of this folder: CONTRIBUTING, and a page of the API for each room of `interp`.

mkdocs calls these functions by their names (`hooks` in mkdocs.yml). The rooms are those of the import contract in
`pyproject.toml`, from the top, so that a new room has its page without anyone thinking of it. What a page shows is the
room's face: the names of its `__all__`, with their docstrings.
"""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent


def rooms() -> dict[str, str]:
    """Rooms of `interp` that have something to show, from the top: name -> the first line of its docstring."""
    layers = runpy.run_path(str(ROOT / "docs" / "generate.py"))["layers_of"]("interp")
    told = {}
    for room in (room for layer in layers for room in layer if room != "__main__"):
        module = ROOT / "interp" / room / "__init__.py"
        tree = ast.parse((module if module.is_file() else ROOT / "interp" / f"{room}.py").read_text(encoding="utf-8"))
        shown = any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ImportFrom) for node in tree.body)
        if shown:
            told[room] = (ast.get_docstring(tree) or "").split("\n")[0]
    return told


def on_config(config: Any) -> Any:
    """Name the pages in the navigation, and watch the code while the site is served."""
    pages = [{"interp": "api/index.md"}, *({f"interp.{room}": f"api/{room}.md"} for room in rooms())]
    for entry in config["nav"]:
        if isinstance(entry, dict) and "API" in entry:
            entry["API"] = pages
    config["watch"] = [*config["watch"], str(ROOT / "interp")]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Make the pages."""
    found = rooms()
    table = "\n".join(f"| [`interp.{room}`]({room}.md) | {what} |" for room, what in found.items())
    index = f"# The API of `interp`\n\n::: interp\n\n## Rooms\n\n| room | what |\n|---|---|\n{table}\n"
    files.append(File.generated(config, "api/index.md", content=index))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "contributing.md", content=contributing))
    for room in found:
        text = f"# `interp.{room}`\n\n::: interp.{room}\n"
        files.append(File.generated(config, f"api/{room}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links that leave the folder into what the site has: a page for CONTRIBUTING, else their text."""
    markdown = re.sub(r"\]\((?:\.\./)+CONTRIBUTING\.md", "](contributing.md", markdown)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?!\w+\.md|images/)[^)]*\)", r"\1", markdown)
