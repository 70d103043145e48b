"""Cells that hold a list as Python or JSON writes it: `['Buch', 'Band']`, `["book"]`, `[1735]`."""

from __future__ import annotations

import ast
import io
import json
import tokenize
import warnings

from interp.errors import InterpError

__all__ = ["listed_in"]


def listed_in(text: str, where: str) -> list[str] | None:
    """The words of a list that a text spells.

    Arguments:
        text: the cell's.
        where: the cell, for messages.

    Returns:
        Texts as they are, numbers and booleans by their source text, without what is `None` or `null`; None: the text
        spells no list of such.

    Raises:
        InterpError: texts follow one another without a comma, as an array of NumPy prints them: Python would join them.
    """
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        items = json.loads(text, parse_int=str, parse_float=str)
        if all(item is None or isinstance(item, str | bool) for item in items):
            return [_spelled(item) for item in items if item is not None]
        return None
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # a backslash in somebody's text
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(tree, ast.List):
        return None
    words: list[str] = []
    texts = 0
    for item in tree.elts:
        constant = item.operand if isinstance(item, ast.UnaryOp) and isinstance(item.op, ast.USub) else item
        if not isinstance(constant, ast.Constant) or isinstance(constant.value, bytes):
            return None
        if isinstance(constant.value, str):
            texts += 1
            words.append(constant.value)
        elif constant.value is not None:
            words.append(ast.get_source_segment(text, item) or "")
    spelled = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.STRING]
    if len(spelled) > texts:
        raise InterpError(
            f"{where}: expected commas between the texts of a list, got {text[:60]!r}, the way NumPy prints an array. "
            "Write `array.tolist()` into the file, or set task.list_cells=text to take the cell as one answer."
        )
    return words


def _spelled(item: str | bool) -> str:
    return item if isinstance(item, str) else "true" if item else "false"
