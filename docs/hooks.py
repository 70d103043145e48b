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


def source(room: str) -> ast.Module:
    """The face of a room, parsed."""
    module = ROOT / "interp" / room / "__init__.py"
    text = (module if module.is_file() else ROOT / "interp" / f"{room}.py").read_text(encoding="utf-8")
    return ast.parse(text)


def rooms() -> dict[str, str]:
    """Rooms of `interp` that have something to show, from the top: name -> the first line of its docstring."""
    layers = runpy.run_path(str(ROOT / "docs" / "generate.py"))["layers_of"]("interp")
    found = {room: source(room) for layer in layers for room in layer if room != "__main__"}
    shown = ast.FunctionDef | ast.ClassDef | ast.ImportFrom
    return {
        room: (ast.get_docstring(tree) or "").split("\n")[0]
        for room, tree in found.items()
        if any(isinstance(node, shown) for node in tree.body)
    }


def page_of(room: str) -> str:
    """The page of a room: what its face says, then each name where it is defined.

    A function may have its file's name (`logit_lens`); asked for by the face, it would be taken for the file.
    """
    if not (ROOT / "interp" / room / "__init__.py").is_file():
        return f"# `interp.{room}`\n\n::: interp.{room}\n"
    imported = [node for node in ast.walk(source(room)) if isinstance(node, ast.ImportFrom)]
    homes = {name.name: node.module for node in imported for name in node.names if node.module != "__future__"}
    homes = {name: home for name, home in homes.items() if home and home.startswith(f"interp.{room}.")}
    options = "show_root_heading: true\n      show_root_toc_entry: true\n      show_root_full_path: false"
    parts = [f"# `interp.{room}`\n\n::: interp.{room}\n    options:\n      members: false\n"]
    parts += [f"::: {homes[name]}.{name}\n    options:\n      {options}\n" for name in sorted(homes)]
    return "\n".join(parts)


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
        files.append(File.generated(config, f"api/{room}.md", content=page_of(room)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links that leave the folder into what the site has: a page for CONTRIBUTING, else their text."""
    markdown = re.sub(r"\]\((?:\.\./)+CONTRIBUTING\.md", "](contributing.md", markdown)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?!\w+\.md|images/)[^)]*\)", r"\1", markdown)
