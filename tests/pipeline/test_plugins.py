"""Plugins: how they are named, found, imported, and which stages use them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from interp.errors import InterpError
from pipeline import plugins
from pipeline.plugins import described, load, localized, of_run, resolve, roots, used
from pipeline.project import MARKER
from pipeline.validate import localize, validate


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with a package, a file and a broken one; what is imported from it is forgotten."""
    (tmp_path / MARKER).touch()
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/__init__.py").touch()
    (tmp_path / "my_lab/lenses.py").write_text("class Kind:\n    stage = 'my_lab.stage:Kind'\n")
    (tmp_path / "my_lab/stage.py").write_text("class Kind:\n    pass\n")
    (tmp_path / "my_lab/stale.py").write_text("from pipeline.plugins import gone\n")
    (tmp_path / "mine.py").write_text("VALUE = 3\ndef measure(): pass\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), sys.path[:]
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("my_lab", "mine", "broken"):
            del sys.modules[name]


def test_names_hold_in_every_run_folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (home / "deep").mkdir()
    outside = tmp_path_factory.mktemp("outside") / "far.py"
    outside.touch()
    asked = ["my_lab.lenses", "../mine.py", str(outside), "my_lab.lenses"]
    assert localized(asked, home / "deep") == ["my_lab.lenses", "mine.py", str(outside)]
    assert localize({"plugins": ["mine.py"]}, home / "deep") == {"plugins": ["mine.py"]}, "a file of the project"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("mine.py", "plugins: expected a list of modules and Python files, got 'mine.py'"),
        ([3], "plugins: expected a list of modules and Python files"),
        (["my-lab"], "plugins: expected a module of yours, as my_lab.lenses, or a file, as mine.py, got 'my-lab'"),
        (["interp"], "plugins: expected a module of yours"),
        (["mein.py"], "mein.py, found none. Did you mean 'mine.py'"),
        (["my_lap"], "plugins: expected a module 'my_lap' in "),
        (["my_lap"], "Did you mean 'my_lab'?"),
        (["my_lab.lensez"], "plugins: expected a module 'my_lab.lensez' in "),
        (["broken"], "plugins: broken cannot be imported (ZeroDivisionError: division by zero)"),
        (["my_lab.stale"], "plugins: my_lab.stale cannot be imported (ImportError: cannot import name 'gone' from "),
    ],
)
def test_a_plugin_that_cannot_be(asked: object, message: str, home: Path) -> None:
    with pytest.raises(InterpError) as told:
        validate(localize({"plugins": asked}, home))
    assert message in str(told.value)


def test_missing_libraries_and_taken_names(home: Path) -> None:
    (home / "mine.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(InterpError, match=r"mine\.py imports not_installed_anywhere, which is not installed"):
        load(["mine.py"])
    (home / "json.py").touch()
    with pytest.raises(InterpError, match=r"there is another module 'json' \(.*\)\. Rename yours"):
        load(["json.py"])
    with pytest.raises(InterpError, match=r"json: expected .*json\.py, got .*, which has the same name"):
        load(["json"])


def test_what_is_imported(home: Path) -> None:
    (home / "params.yaml").write_text("plugins: [my_lab.lenses, mine.py]\nmodel: {}\n")
    lenses, mine = load(of_run())
    assert mine.VALUE == 3 and load(["mine.py"]) == [mine], "once"
    assert roots(of_run()) == {"my_lab": home / "my_lab", "mine": home / "mine.py"}
    assert resolve("my_lab.stage:Kind").__module__ == "my_lab.stage"
    with pytest.raises(InterpError, match=r"to name a class as package\.module:Name"):
        resolve("my_lab.stage:Kin")
    (home / "params.yaml").write_text("model: {}\n")
    assert of_run() == of_run(home / "no.yaml") == []
    chosen = {"lens": [lenses.Kind], "tokenize": [dict], "evaluate": [load, mine.measure]}
    assert used(["my_lab.lenses", "mine.py"], chosen) == {
        "lens": ["my_lab.lenses", "my_lab.stage"],
        "evaluate": ["mine"],
        "report": ["mine", "my_lab.lenses"],
    }


def test_the_record_tells_one_code_from_another(home: Path) -> None:
    first = described(["my_lab.lenses", "mine.py"])
    assert set(first) == {"my_lab.lenses", "mine.py"}
    (home / "my_lab/stage.py").write_text("class Kind:\n    other = True\n")
    second = described(["my_lab.lenses", "mine.py"])
    assert second["mine.py"] == first["mine.py"] and second["my_lab.lenses"] != first["my_lab.lenses"]


def test_an_installed_package_is_a_plugin(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("lab", "my_lab.lenses", plugins.GROUP)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [point] if group == plugins.GROUP else [])
    assert localized(["mine.py"], home) == ["mine.py", "my_lab.lenses"]
    assert localized(["my_lab.lenses"], home) == ["my_lab.lenses"]
