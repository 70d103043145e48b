"""How the site reads this project's docstrings, which say more in one line than mkdocstrings' parser takes.

num_heads, num_kv_heads: of the model.      one description of several arguments; the parser wants an entry each
ids: [example][layer], the token ids.       axes, which Markdown takes for a link
Arguments: of a `NamedTuple`                its fields are no parameters to the parser; they are attributes
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"^( +)(\w+(?:,\s+\w+)+): ", re.MULTILINE)
AXES = re.compile(r"(?<=\])\[(?=\w+\])")


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe with every module, class, function and attribute that it has read."""
        if obj.docstring is None or "Arguments:\n" not in obj.docstring.value:
            return
        before, arguments, rest = obj.docstring.value.partition("Arguments:\n")
        block = re.match(r"(?:[ ]+.*\n?|\n(?= ))*", rest)
        entries = block[0] if block else ""
        if obj.is_class and any(str(base).endswith("NamedTuple") for base in getattr(obj, "bases", ())):
            arguments = "Attributes:\n"
        obj.docstring.value = before + arguments + AXES.sub(r"\\[", _apart(entries)) + rest[len(entries) :]


def _apart(entries: str) -> str:
    """Entries of several names as one entry a name."""
    lines: list[str] = []
    for entry in re.split(r"\n(?=    \S)", entries):
        names = ENTRY.match(entry)
        if names is None:
            lines.append(entry)
        else:
            lines += [f"    {name.strip()}: {entry[names.end() :].rstrip()}" for name in names[2].split(",")]
    return "\n".join(lines)
