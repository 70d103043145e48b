"""What one file means: what leaves it as it is, what does not, and that every version of Python agrees."""

from __future__ import annotations

import pytest

from pipeline.fingerprints.meaning import meaning_of

PLAIN = """
import os
from interp.a import given


def read(path, size=3):
    found = os.path.join(path, "x")
    if size:
        return given(found)
    return None


class Kept:
    limit = 3

    def run(self):
        return self.limit
"""
# what is replaced, once, by what
SAME: dict[str, list[tuple[str, str]]] = {
    "comments": [("limit = 3", "limit = 3  # three")],
    "docstrings": [("size=3):\n", 'size=3):\n    """Read.\n\n    More."""\n'), ("\nimport", '"""M."""\nimport')],
    "formatting": [("if size:", "if (\n        size\n    ):"), ('"x"', "'x'"), ("\n\n\n", "\n")],
    "hints": [("(path, size=3)", "(path: str, size: 'int' = 3) -> str | None"), ("limit =", "limit: int =")],
    "local hints": [("    found = os", "    later: Path\n    found: Path = os")],
    "imports for hints": [("import os\n", "import os\nfrom abc import ABC\n"), ("read(path,", "read(path: ABC,")],
    "imports for quoted hints": [
        ("import os\n", "import os\nfrom abc import ABC\n"),
        ("read(path,", "read(path: 'ABC',"),
    ],
    "type checking": [
        ("import os\n", "from typing import TYPE_CHECKING\nimport os\nif TYPE_CHECKING:\n    import abc\n")
    ],
    "future": [("\nimport os", "from __future__ import annotations\nimport os")],
    "order of imports": [("import os\nfrom interp.a import given\n", "from interp.a import given\nimport os\n")],
    "public names": [("\n\n\ndef", "\nfrom interp.b import other\n\n__all__ = ['other', 'read']\n\n\ndef")],
    "overloads": [("\n\n\ndef", "\nfrom typing import overload\n@overload\ndef read(path: int) -> int: ...\ndef")],
    "pass": [("limit = 3\n", "limit = 3\n    pass\n")],
}
OTHER = {
    "a number": PLAIN.replace("limit = 3", "limit = 4"),
    "its type": PLAIN.replace("limit = 3", "limit = 3.0"),
    "a default": PLAIN.replace("size=3", "size=4"),
    "a text": PLAIN.replace('"x"', '"y"'),
    "an operation": PLAIN.replace("if size:", "if not size:"),
    "a name": PLAIN.replace("limit", "bound"),
    "an import": PLAIN.replace("import os\n", "import os\nimport atexit\n"),
    "a decorator": PLAIN.replace("    def run", "    @property\n    def run"),
    "order of statements": PLAIN.replace("    limit = 3\n", "").replace(
        "self.limit\n", "self.limit\n\n    limit = 3\n"
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_meaning(name: str) -> None:
    text = PLAIN
    for old, new in SAME[name]:
        assert old in text
        text = text.replace(old, new, 1)
    assert meaning_of(text).digest == meaning_of(PLAIN).digest


@pytest.mark.parametrize("name", OTHER)
def test_another_meaning(name: str) -> None:
    assert meaning_of(OTHER[name]).digest != meaning_of(PLAIN).digest


@pytest.mark.parametrize(
    "text",
    [
        "@dataclass\nclass Section:\n    size: {} = 3\n",  # a field, whose type a config is checked by
        "class Section(Base):\n    size: {}\n",
        "@dispatch.register\ndef read(value: {}): return 1\n",  # `functools.singledispatch` asks for the hint
    ],
)
def test_hints_that_are_read(text: str) -> None:
    assert meaning_of(text.format("int")).digest != meaning_of(text.format("str")).digest


def test_every_version_of_python_agrees() -> None:
    """Trees differ from version to version, in f-strings, type parameters and empty fields: the digest does not."""
    text = (
        "def f(a, *, b=1):\n"
        '    return f"{a!r:>{b}} x" "y" f"{a=}" f"{b:}" f"" "z", -1, 1_000, 1e3, b"a", "é\\n", 0x10\n'
    )
    assert meaning_of(text).digest == "60cdaac803d50cd537f19acc11c53a1277113d52bc8d2303921e02db8fb69cf4"


def test_what_a_file_asks_for() -> None:
    found = meaning_of(
        "import a.b\nimport c.d as e\nfrom . import f\nfrom .g import h as i\nimport registers\n"
        "def run(x):\n    import j\n    return a.b.deep(x), e.y.z, f, i.k(j.l), 'page.html.j2'\n"
        "import importlib\nimportlib.import_module('m.n'), importlib.import_module(f'm.{x}')\n"
        "importlib.import_module(x)\n"
    )
    assert found.uses == {
        "a": ["b.deep"], "e": ["y.z"], "f": [""], "i": ["k"], "j": ["l"], "importlib": ["import_module"],
    }  # fmt: skip
    assert {entry.bound: (entry.level, entry.source, entry.name) for entry in found.imports} == {
        "a": (0, "a.b", ""), "e": (0, "c.d", ""), "f": (1, "", "f"), "i": (1, "g", "h"), "j": (0, "j", ""),
        "registers": (0, "registers", ""), "importlib": (0, "importlib", ""),
    }  # fmt: skip
    assert found.unused == []  # `registers` is imported for what that does
    assert sorted(found.dynamic) == ["*", "m.*", "m.n"]
    assert found.texts == ["m.n", "page.html.j2"]
