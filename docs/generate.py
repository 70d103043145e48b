"""Write what these pages take from the code: the picture of the layers, the table of the config.

    python docs/generate.py            # rewrites docs/images/architecture.svg and docs/pipeline.md
    python docs/generate.py --check    # says which of them is out of date, and exits with status 1

The picture comes from the import contract in `pyproject.toml`; the table from the dataclasses of `pipeline.config`
(keys, types, bounds, docstrings) and from `conf/` (defaults).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import tomllib
import types
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
REFERENCE = ROOT / "docs" / "pipeline.md"
BEGIN, END = "<!-- the config, by docs/generate.py -->", "<!-- end of the config -->"
# The order of the sections; where a section has several choices without a kind, the one whose values are the defaults.
SECTIONS = ("model", "task", "collect", "tune", "lens", "evaluate", "report", "store", "cache", "tracking")
DEFAULT_CHOICE = {"model": "demo"}


# -- the picture


def layers_of(package: str) -> list[list[str]]:
    """The rooms of a package by layer, from the top, as the import contract orders them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (contract,) = (c for c in contracts if c["type"] == "layers" and c["containers"] == [package])
    return [[room.strip(" ()") for room in layer.split("|")] for layer in contract["layers"]]


BOX_HEIGHT, GAP, LETTER, WIDTH, SIDE = 30, 10, 8.2, 900, 20


def picture() -> str:
    """The layers of both packages as SVG: a box a room, a line a layer; whatever imports, imports downwards."""
    parts: list[str] = []
    bottom = 16.0
    for package, what in (("pipeline", "the workflow"), ("interp", "the science; imports nothing of pipeline")):
        title = bottom + 16
        parts.append(f'<text class="title" x="{SIDE + 16}" y="{title + 6:g}">{package}: {what}</text>')
        start = top = title + 20
        for layer in layers_of(package):
            for line in _lines(layer):
                parts += _boxes(line, top)
                top += BOX_HEIGHT + GAP
            parts.append(f'<line x1="{SIDE}" x2="{WIDTH - SIDE}" y1="{top - GAP / 2:g}" y2="{top - GAP / 2:g}"/>')
        parts.pop()  # no line below the last layer
        height = top - start + 42
        frame = f'x="{SIDE}" y="{bottom:g}" width="{WIDTH - 2 * SIDE}" height="{height:g}" rx="10"'
        parts.append(f'<rect class="{package}" {frame}/>')
        bottom += height + (44 if package == "pipeline" else 16)
        if package == "pipeline":
            arrow = bottom - 42
            parts.append(f'<path class="arrow" d="M{WIDTH / 2:g},{arrow:g} v34 m-7,-9 l7,9 l7,-9"/>')
            parts.append(f'<text class="note" x="{WIDTH / 2 + 18:g}" y="{arrow + 22:g}">imports</text>')
    style = (
        "text{font-family:sans-serif;font-size:14px;fill:#1b1f24;text-anchor:middle}"
        ".title{font-size:15px;font-weight:bold;text-anchor:start}.note{text-anchor:start;fill:#57606a}"
        "rect{fill:#fff;stroke:#57606a}rect.pipeline,rect.interp{fill:none;stroke:#8c959f}"
        ".arrow{fill:none;stroke:#57606a;stroke-width:2}line{stroke:#d0d7de;stroke-dasharray:3 4}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom:g}" role="img">\n'
        "<title>The rooms of pipeline and interp by layer; a room imports from those below it</title>\n"
        f"<style>{style}</style>\n"
        f'<rect x="0" y="0" width="{WIDTH}" height="{bottom:g}" style="stroke:none"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _lines(rooms: list[str]) -> Iterator[list[str]]:
    """A layer's rooms, on as many lines as its names need."""
    line: list[str] = []
    for room in rooms:
        if line and sum(map(_width, [*line, room])) + GAP * len(line) > WIDTH - 2 * SIDE - 32:
            yield line
            line = []
        line.append(room)
    yield line


def _width(room: str) -> float:
    return max(70.0, len(room) * LETTER + 24)


def _boxes(rooms: list[str], top: float) -> Iterator[str]:
    left = (WIDTH - sum(map(_width, rooms)) - GAP * (len(rooms) - 1)) / 2
    for room in rooms:
        width = _width(room)
        yield f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{BOX_HEIGHT}" rx="5"/>'
        yield f'<text x="{left + width / 2:g}" y="{top + 20:g}">{escape(room)}</text>'
        left += width + GAP


# -- the config


def schemas() -> dict[str, list[type[Any]]]:
    """The dataclasses of each section, as they are written down; of a section of several kinds, these."""
    found: dict[str, list[type[Any]]] = {}
    importlib.import_module("pipeline.tasks")  # whose kinds are known then
    package = importlib.import_module("pipeline.config")
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"pipeline.config.{info.name}")
        for schema in vars(module).values():
            if not dataclasses.is_dataclass(schema) or schema.__module__ != module.__name__:
                continue
            section = getattr(schema, "section", None)
            if hasattr(schema, "kinds"):
                found[schema.section] = list(schema.kinds.values())
            elif section in SECTIONS:
                found.setdefault(section, []).append(schema)
            elif info.name in SECTIONS:  # a part of the section of the module's name
                found.setdefault(info.name, []).append(schema)
    others = set(found) ^ set(SECTIONS)
    if others:
        raise SystemExit(f"sections of pipeline.config and of this page differ: {', '.join(sorted(others))}")
    return found


def reference() -> str:
    """The table of the config: a heading a section, below it one for each kind of task or lens."""
    lines = [
        "A default of `???` has to be given; `null` is nothing, or what the last column says. A default `${.key}` is",
        "the value of that key.",
    ]
    known = schemas()
    for section in SECTIONS:
        classes = known[section]
        lines += ["", f"### {section}", "", _paragraph(_owner(section, classes))]
        nested = {kept for c in classes for kept in _types(c).values() if kept in classes}
        for schema in classes:
            kinded = "kind" in _defaults(schema) and _kind(schema) is not None
            if schema in nested or (len(classes) > 1 and not kinded):
                continue  # part of another schema, or what several share
            if kinded:
                lines += ["", f"#### {section} kind: {_kind(schema)}", "", _paragraph(schema)]
            lines += ["", "| key | type | default | may be | what |", "|---|---|---|---|---|"]
            rows = _rows(schema, _composed(section, schema, kinded), section)
            lines += [row for row in rows if not (kinded and row.startswith("| `kind` "))]
    return "\n".join(lines) + "\n"


def _owner(section: str, classes: list[type[Any]]) -> Any:
    """Whose docstring says what a section is: the base of its kinds, its class, or its module if that is its own."""
    bases = [c for c in classes[0].__mro__ if hasattr(c, "kinds") and "kinds" in vars(c)]
    if bases:  # what all its kinds are
        return bases[0]
    module = sys.modules[classes[0].__module__]
    return module if module.__name__.endswith(f".{section}") else classes[0]


def _kind(schema: type[Any]) -> str | None:
    """Which `kind` chooses a schema; None: the section has one schema, whose `kind` is a choice among others."""
    known = getattr(schema, "kinds", {})
    return next((kind for kind, cls in known.items() if cls is schema), None)


def _defaults(schema: type[Any]) -> dict[str, Any]:
    """The default of each field, as the dataclass has it."""
    return {
        f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        for f in dataclasses.fields(schema)
    }


def _types(schema: type[Any]) -> dict[str, Any]:
    """The type of each field, without its `None`."""
    return {f.name: _without_none(get_type_hints(schema)[f.name])[0] for f in dataclasses.fields(schema)}


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    kept = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kept[0] if len(kept) == 1 else annotation, len(kept) < len(get_args(annotation))


def _composed(section: str, schema: type[Any], kinded: bool) -> Mapping[str, Any]:
    """The values that `conf/` gives a section: the choice named as its kind, or the section's default."""
    folder = ROOT / "conf" / section
    choice = _kind(schema) if kinded else DEFAULT_CHOICE.get(section, "default")
    path = folder / f"{choice}.yaml"
    if not path.is_file():  # a kind without a choice of its own name
        paths = (p for p in sorted(folder.glob("*.yaml")) if f"kind: {choice}\n" in p.read_text(encoding="utf-8"))
        path = next(paths)
    values: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in (section, path.stem):  # a choice that sets keys of several groups names its own
        values = values[key] if isinstance(values.get(key), dict) else values
    return values


def _rows(schema: type[Any], values: Mapping[str, Any], section: str, prefix: str = "") -> Iterator[str]:
    told, hints = _arguments(schema), get_type_hints(schema)
    for f in dataclasses.fields(schema):
        kind, optional = _without_none(hints[f.name])
        value = values[f.name] if f.name in values else _defaults(schema)[f.name]
        what = told.get(f.name, "")
        if dataclasses.is_dataclass(kind):
            yield _row(prefix + f.name, "mapping" + (" or null" if optional else ""), "", "", what)
            yield from _rows(kind, value if isinstance(value, dict) else {}, section, f"{prefix}{f.name}.")
            continue
        spelled = _spelled(kind) + (" or null" if optional else "")
        yield _row(prefix + f.name, spelled, f"`{_shown(value)}`", _allowed(f.metadata), what)


def _row(*cells: str) -> str:
    key, *others = (cell.replace("|", "\\|") for cell in cells)
    return f"| `{key}` | " + " | ".join(others) + " |"


def _spelled(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"list of {_spelled(get_args(kind)[0])}s"
    if get_origin(kind) is dict:
        return "mapping"
    return {int: "integer", float: "number", bool: "true or false", str: "text"}.get(kind, str(kind))


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | dict):
        return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000).strip()
    return str(value)


def _allowed(metadata: Mapping[str, Any]) -> str:
    """The choices or bounds of a field."""
    if choices := metadata.get("choices"):
        return ", ".join(f"`{choice}`" for choice in choices)
    if "least" not in metadata:
        return ""
    least, most = metadata["least"], metadata["most"]
    if metadata.get("above") and metadata.get("below"):
        return f"between {least} and {most}"
    return f"{'above ' if metadata.get('above') else ''}{least} {'to below' if metadata.get('below') else 'to'} {most}"


def _paragraph(owner: Any) -> str:
    """The first paragraph of a docstring."""
    text = " ".join((inspect.getdoc(owner) or "").split("\n\n")[0].split())
    text = re.sub(r"^Section `\w+`: ", "", text)
    return _by_kind(text[:1].upper() + text[1:])


def _arguments(schema: type[Any]) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each argument."""
    told: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        text = owner.__doc__ or ""
        block = re.search(
            r"Arguments:\n((?: {8}.*\n|\n)+)", inspect.cleandoc(text).replace("\n    ", "\n        ") + "\n"
        )
        if "Arguments:" not in text or block is None:
            continue
        for entry in re.split(r"\n(?= {8}\w[\w, ]*: )", "\n" + block[1]):
            names, _, what = entry.strip().partition(": ")
            for name in map(str.strip, names.split(",")):
                reference = re.match(r"see `\w+`[.;] ?", what)  # to a base, which has said it
                what_here = (
                    f"{told[name][:-1]}; {what[reference.end() :]}".rstrip("; ") if reference and name in told else what
                )
                told[name] = _by_kind(" ".join(what_here.split()))
    return told


def _by_kind(text: str) -> str:
    """A docstring's text with the kinds of schemas in place of their classes: a reader of the page knows no class."""
    kinds = {c.__name__: _kind(c) for classes in schemas().values() for c in classes}
    text = re.sub(r" \(`[A-Z_]+`\)", "", text)  # a table of the code, which the column of choices shows
    return re.sub(r"`(\w+Config)`", lambda found: f"`{kinds.get(found[1]) or found[1]}`", text)


# -- writing


def pages() -> dict[Path, str]:
    """What is generated: file -> its text."""
    before, _, rest = REFERENCE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return {PICTURE: picture(), REFERENCE: f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"}


def main() -> int:
    """Write the files, or with `--check` compare them; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say what is out of date")
    check = parser.parse_args().check
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        name = path.relative_to(ROOT)
        if check:
            print(f"{name} is out of date: run `python docs/generate.py`")
        else:
            path.write_text(pages()[path], encoding="utf-8")
            print(f"wrote {name}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
