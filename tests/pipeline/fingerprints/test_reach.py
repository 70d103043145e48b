"""Which modules are reached, in small trees that are written here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from interp.errors import InterpError
from pipeline.fingerprints import changed_modules, fingerprints

FACE = """
from importlib import import_module
from typing import TYPE_CHECKING
from lib.a import one
if TYPE_CHECKING:
    from lib.b import two
HOMES = {"two": "lib.b"}
__all__ = ["one", "two"]
def __getattr__(name): return getattr(import_module(HOMES[name]), name)
"""
TREE = {
    "lib/__init__.py": FACE,
    "lib/a.py": "from lib.deep import help\ndef one(): return help()\n",
    "lib/b.py": "def two(): return 2\n",
    "lib/deep.py": "def help(): return 1\n",
    "lib/base.py": "TABLE = {}\nclass Base:\n    def __init_subclass__(cls): TABLE[cls.__name__] = cls\n",
    "lib/kinds.py": "from lib.base import Base\nfrom lib.b import two\nclass Kind(Base): value = two()\n",
    "lib/tables.py": "from lib.base import TABLE\nTABLE['x'] = 1\n",
    "lib/filled.py": "from lib.base import TABLE\ndef fill(name): TABLE.setdefault(name, 1)\n",
    "lib/filling.py": "from lib.filled import fill\nVALUE = fill('x')\n",
    "lib/decorated.py": "from lib.registry import register\n@register\ndef f(): ...\n",
    "lib/registry.py": "KNOWN = []\ndef register(f):\n    KNOWN.append(f)\n    return f\n",
    "lib/wrapped.py": "from functools import wraps\nfrom lib.wrapping import turn\n@turn\ndef f(): ...\ndef g(): ...\n",
    "lib/wrapping.py": "from functools import wraps\ndef turn(f):\n    @wraps(f)\n    def run(): f()\n    return run\n",
    "lib/page.html.j2": "{% include 'style.css.j2' %}",
    "lib/style.css.j2": "p {}",
    "lib/rooms/__init__.py": "from lib.rooms.x import x\nfrom lib.rooms.y import y\n__all__ = ['x', 'y']\n",
    "lib/rooms/x.py": "def x(): ...\n",
    "lib/rooms/y.py": "from lib import deep\ndef y(): return deep.help()\n",
}


def reached(tmp_path: Path, text: str, **more: str) -> set[str]:
    """What a file reaches in the tree, itself apart."""
    files = TREE | {"own.py": text} | {f"lib/{name}.py": content for name, content in more.items()}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    roots = {"lib": tmp_path / "lib", "own": tmp_path / "own.py"}
    return set(fingerprints(["own"], roots)) - {"own"}


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("from lib import one\none()\n", "lib.a lib.deep"),  # through a face that hands it on
        ("from lib import two\ntwo()\n", "lib.b"),  # through one that finds it when it is asked for
        ("import lib\nlib.two()\n", "lib.b"),
        ("import lib.a\nlib.a.one()\n", "lib.a lib.deep"),
        ("import lib.rooms as r\nr.x()\n", "lib.rooms.x"),
        ("from lib import rooms\nrooms.y()\n", "lib.rooms.y lib.deep"),
        ("def run():\n    from lib.rooms import y\n    y()\n", "lib.rooms.y lib.deep"),
        ("from importlib import import_module\nimport_module('lib.rooms.x')\n", "lib.rooms.x"),
        ("from lib.b import two\nfrom lib.rooms import y\ndef f(a: y): two()\n", "lib.b"),  # a hint is no use
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lib import one\n", ""),
        ("from lib import __file__\nprint(__file__)\n", ""),
        # taken whole
        ("import lib.rooms as r\nprint(getattr(r, name))\n", "lib.rooms lib.rooms.x lib.rooms.y lib.deep"),
        ("from lib.rooms import *\n", "lib.rooms lib.rooms.x lib.rooms.y lib.deep"),
        ("from lib.rooms import z\nz()\n", "lib.rooms lib.rooms.x lib.rooms.y lib.deep"),
        ("from importlib import import_module\nimport_module(f'lib.rooms.{n}')\n",
         "lib.rooms lib.rooms.x lib.rooms.y lib.deep"),
        # loaded, and more than that
        ("import lib.kinds\n", "lib.kinds lib.base lib.b"),
        ("from lib.face import two\ntwo()\n", "lib.b"),
        ("from lib.acting import two\ntwo()\n", "lib.b lib.kinds lib.base lib.tables lib.filling lib.filled "
         "lib.decorated lib.registry"),
        ("PAGE = 'lib/page.html.j2'\n", ""),  # beside a module that is no package lies anything
        ("from lib.draw import draw\ndraw()\n", "lib.draw lib/page.html.j2 lib/style.css.j2"),
    ],
)  # fmt: skip
def test_what_is_reached(tmp_path: Path, text: str, modules: str) -> None:
    loads = ["kinds", "tables", "filling", "decorated", "wrapped"]
    acting = "from lib.b import two\n" + "".join(f"from lib import {name}\n" for name in loads)
    found = reached(
        tmp_path, text,
        draw="def draw(): return read('page.html.j2')\n",
        face="from lib.b import two\nfrom lib.rooms import y\nfrom lib.wrapped import g\n__all__ = ['two', 'y', 'g']\n",
        acting=f"{acting}__all__ = {['two', *loads]}\n",
    )  # fmt: skip
    assert found == set(modules.split())


def test_a_name_that_comes_from_elsewhere_is_another_meaning(tmp_path: Path) -> None:
    """Though both places are reached before and after, and the file that uses the name says the same."""
    text = "from lib.face import f\nfrom lib.rooms import x, y\nprint(f, x, y)\n"
    files = {name: f"from lib.rooms.{name} import {name} as f\n__all__ = ['f']\n" for name in "xy"}
    reached(tmp_path, text, face=files["x"])
    roots = {"lib": tmp_path / "lib", "own": tmp_path / "own.py"}
    before = fingerprints(["own"], roots)
    assert changed_modules(before, fingerprints(["own"], roots)) == []
    (tmp_path / "lib/face.py").write_text(files["y"])
    assert changed_modules(before, fingerprints(["own"], roots)) == ["own"]
    assert changed_modules({"a": "1", "b": "1"}, {"b": "2", "c": "1"}) == ["a", "b", "c"]


def test_what_is_kept_between_processes_is_never_stale(tmp_path: Path) -> None:
    reached(tmp_path, "from lib import two\ntwo()\n")
    roots, kept = {"lib": tmp_path / "lib", "own": tmp_path / "own.py"}, tmp_path / "kept/meanings.json"
    first = fingerprints(["own"], roots, kept)
    assert kept.is_file() and fingerprints(["own"], roots, kept) == first == fingerprints(["own"], roots)
    changed = tmp_path / "lib/b.py"
    times = changed.stat()
    changed.write_text("def two(): return 3\n")  # as many bytes
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert changed_modules(first, fingerprints(["own"], roots, kept)) == ["lib.b"]
    kept.write_text("{")
    assert fingerprints(["own"], roots, kept) == fingerprints(["own"], roots)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    reached(tmp_path, "from lib import two\ntwo()\n")
    roots = {"lib": tmp_path / "lib", "own": tmp_path / "own.py"}
    with pytest.raises(InterpError, match=r"expected a module lib\.none below lib, own, found none"):
        fingerprints(["lib.none"], roots)
    (tmp_path / "lib/b.py").write_text("x = = 1\n")
    with pytest.raises(InterpError, match=r"lib/b\.py, line 1: expected Python, found invalid syntax"):
        fingerprints(["own"], roots)
