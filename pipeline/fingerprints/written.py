"""Write an abstract syntax tree as text, the same in every version of Python, which `ast.dump` is not.

Versions differ in the fields that a node has, in whether empty ones are there, and in how they cut an f-string.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["written"]

LEFT_OUT = {"ctx", "kind", "type_comment", "type_ignores", "type_params", "lineno"}


def written(tree: ast.AST, unused: Iterable[str] = ()) -> str:
    """A tree as text.

    Arguments:
        tree: without what means nothing, see `pipeline.fingerprints.meaning`.
        unused: names of imports that are left out.
    """
    return "".join(_written(tree, frozenset(unused)))


def _written(node: object, unused: frozenset[str]) -> Iterator[str]:
    """A tree as text, the same in every version of Python."""
    if isinstance(node, ast.JoinedStr):
        yield "f("
        for value in _joined(node.values):
            yield from _written(value, unused)
        yield ")"
    elif isinstance(node, ast.Constant):
        yield f"{type(node.value).__name__}:{node.value!a};"
    elif isinstance(node, ast.AST):
        yield f"{type(node).__name__}("
        for name, value in ast.iter_fields(node):
            empty = value is None or value == [] or (isinstance(value, ast.JoinedStr) and not _joined(value.values))
            if name not in LEFT_OUT and not empty:
                yield f"{name}="
                yield from _written(value, unused)
        yield ")"
    elif isinstance(node, list):
        yield "["
        run: list[ast.Import | ast.ImportFrom] = []
        for child in node:
            if isinstance(child, ast.Import | ast.ImportFrom):
                run.append(child)
                continue
            yield from _written_imports(run, unused)
            run = []
            yield from _written(child, unused)
        yield from _written_imports(run, unused)
        yield "]"
    else:
        yield f"{node!r};"


def _joined(values: Sequence[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, with texts side by side in one; versions of Python cut them differently."""
    parts: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant):
            if value.value == "":
                continue
            if parts and isinstance(parts[-1], ast.Constant):
                parts[-1] = ast.Constant(str(parts[-1].value) + str(value.value))
                continue
        parts.append(value)
    return parts


def _written_imports(run: Iterable[ast.Import | ast.ImportFrom], unused: frozenset[str]) -> Iterator[str]:
    """Imports that follow each other, in no order but the names' own; where each leads is digested beside it."""
    names: list[str] = []
    for node in run:
        for alias in node.names:
            name = alias.name.partition(".")[0] if isinstance(node, ast.Import) else alias.name
            names.append(alias.asname or name)
    for name in sorted(names):
        if name not in unused:
            yield f"import {name};"
