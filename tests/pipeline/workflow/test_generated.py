"""The code that `dvc.yaml` lists for each stage, against what the text says and against what Python really imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from interp.errors import InterpError
from pipeline.workflow.generated import _running, closure, differences, stage_code, write
from tests.pipeline.workflow.miniature import REPOSITORY

# For each stage: the files of this repository that importing the stage's module imports.
WHAT_IS_IMPORTED = """
import importlib, json, sys
from pathlib import Path

root = Path.cwd()
imported = {}
for stage in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("interp", "pipeline")]:
        del sys.modules[name]
    name = f"pipeline.stages.{stage}"
    importlib.import_module(f"{name}.__main__" if (root / name.replace(".", "/")).is_dir() else name)
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in ("interp", "pipeline")]
    imported[stage] = sorted(Path(module.__file__).relative_to(root).as_posix() for module in ours)
print(json.dumps(imported))
"""


# Libraries that stages import and whose version changes no number: locks, progress, settings, nnsight's switching.
IDLE = {"filelock", "greenlet", "omegaconf", "pyyaml", "tqdm"}
DRAWS = {"jinja2", "matplotlib", "pandas", "plotly"}  # of results' own tables and figures, which no stage but one makes


def third_party(file: Path) -> set[str]:
    """The modules of other projects that a file imports when it runs."""
    names: set[str] = set()
    for node in _running(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module))
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"interp", "pipeline"}


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write source files; returns the root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_dvc_yaml_lists_each_stages_code() -> None:
    assert differences() == [], "run `python -m pipeline.workflow dependencies --write`"


def test_no_stage_depends_on_how_notebooks_draw() -> None:
    for name, files in stage_code().items():
        assert not [file for file in files if file.startswith("interp/plots/")], name
    assert "interp/plots/lens.py" in closure("interp.compat.nnterp.display")  # who imports it depends on it


def test_what_python_imports_is_listed() -> None:
    stages = ["tokenize", "collect", "tune", "lens", "evaluate", "report"]
    ran = subprocess.run(
        [sys.executable, "-c", WHAT_IS_IMPORTED, *stages], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    imported, listed = json.loads(ran.stdout), stage_code()
    for stage in stages:
        assert "pipeline/stages/common.py" in imported[stage]
        assert set(imported[stage]) <= set(listed[stage]), stage


def test_a_stage_depends_on_its_own_sections_and_on_nothing_else() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    versions = stages.pop("versions")
    assert versions["always_changed"] is True
    sections = {name: stage["params"] for name, stage in stages.items()}
    assert {name: listed.pop() for name, listed in sections.items()} == {
        name: {"versions.json": [name]} for name in stages
    }
    assert sections == {
        "tokenize": ["model", "task"],
        "collect": ["collect", "model", "store"],
        "tune": ["model", "tune"],
        "lens": ["lens", "model", "store"],
        "evaluate": ["evaluate"],
        "report": ["collect", "evaluate", "lens", "model", "report", "task", "tune"],
    }
    tokens = ["tokens/manifest.json", "tokens/pairs", "tokens/prompts", "tokens/targets"]
    files = {
        name: [d for d in stage["deps"] if not d.startswith(("interp/", "pipeline/"))] for name, stage in stages.items()
    }
    assert files == {
        "tokenize": ["${task.depends_on}", "${model.depends_on}"],
        "collect": ["${model.depends_on}", "tokens/prompts"],
        "tune": ["${model.depends_on}", "${tune.depends_on}"],
        "lens": ["${model.depends_on}", "activations.zarr", *tokens, "tuned_lens"],
        "evaluate": ["lens.zarr"],
        "report": ["activations.zarr", "curves.parquet", "grids.parquet", "lens.zarr", *tokens],
    }
    # what a stage leaves besides its outputs would not be there when the stage comes from the cache
    assert all(f"versions/{name}.json" in stage["outs"] for name, stage in stages.items())
    assert stages["evaluate"]["outs"][:-1] == ["curves.csv", "curves.parquet", "grids.csv", "grids.parquet"]
    assert stages["evaluate"]["metrics"] == ["metrics.json"]
    code = stage_code()
    assert set(code["report"]) >= set().union(*code.values())
    assert "interp/activations/collecting.py" not in code["tokenize"]
    assert not any(file.startswith("interp/lenses") for file in code["collect"] + code["tokenize"] + code["evaluate"])
    assert "pipeline/stages/report/page.html.j2" in code["report"]


def test_a_stage_depends_on_the_libraries_that_its_numbers_come_from() -> None:
    """Every library that a stage's code imports is listed for the stage, or named here as one that computes nothing."""
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    distributions = packages_distributions()
    for name, stage in stages.items():
        code = closure(f"pipeline.stages.{name}")
        imported = set().union(*(third_party(REPOSITORY / file) for file in code if file.endswith(".py")))
        found = {distributions[module][0].lower() for module in imported} - IDLE
        drawn = DRAWS if name not in ("report", "versions") else set()
        listed = set(stage.get("meta", {}).get("libraries", []))
        if name == "report":  # it reads what the stages before it computed, and shares code with them
            assert listed == {"jinja2", "matplotlib", "numpy", "pyarrow", "zarr"}
            continue
        assert found - drawn <= listed, name
        assert listed <= found | {"tokenizers"}, name  # transformers' tokenizers are those of `tokenizers`


def test_the_closure_of_a_module(tmp_path: Path) -> None:
    root = tree(tmp_path, {
        "interp/__init__.py": "import importlib\ndef __getattr__(n): return importlib.import_module(H[n])\n",
        "interp/a.py": "import os\nVALUE = 1\n",
        "interp/b/__init__.py": "from .c import deep\nfrom interp.a import VALUE as V\n",
        "interp/b/c.py": "def deep():\n    from . import d\n    import interp.e as e\n",
        "interp/b/d.py": "",
        "interp/e.py": "if t.TYPE_CHECKING:\n    from interp import f\nelse:\n    import interp.g\n",
        "interp/f.py": "",
        "interp/g.py": "",
        "interp/h.py": "import interp.f\n",
        "pipeline/__init__.py": "",
        "pipeline/stages/__init__.py": "",
        "pipeline/stages/s.py": "import interp.b\nfrom pipeline.stages import t\npage = read('page.html.j2')\n",
        "pipeline/stages/t.py": "import importlib as i\ni.import_module('pipeline.u')\ni.import_module('os')\n",
        "pipeline/stages/page.html.j2": "{% include 'style.css.j2' %} {% include 'none.j2' %}",
        "pipeline/stages/style.css.j2": "p {}",
        "pipeline/u.py": "",
        "pipeline/p/__init__.py": "",
        "pipeline/p/__main__.py": "from pipeline.stages import t\n",
    })  # fmt: skip
    packages = {"interp/__init__.py", "pipeline/__init__.py", "pipeline/stages/__init__.py"}
    b = {"interp/a.py", "interp/b/__init__.py", "interp/b/c.py", "interp/b/d.py", "interp/e.py", "interp/g.py"}
    t = {"pipeline/stages/t.py", "pipeline/u.py"}
    templates = {"pipeline/stages/page.html.j2", "pipeline/stages/style.css.j2"}
    assert closure("pipeline.stages.s", root) == packages | b | t | templates | {"pipeline/stages/s.py"}
    assert closure("pipeline.p", root) == (packages - {"interp/__init__.py"}) | t | {
        "pipeline/p/__init__.py", "pipeline/p/__main__.py",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from interp import Site\n", "line 1: interp finds 'Site' only when it is asked for"),
        ("\nfrom interp import *\n", r"line 2: `from interp import \*` hides"),
        ("import importlib\nimportlib.import_module('interp.' + name)\n", "line 2: a computed import hides"),
        ("import interp.none\n", "expected a module interp.none in"),
    ],
)
def test_imports_that_cannot_be_followed_are_refused(tmp_path: Path, text: str, message: str) -> None:
    files = {"interp/__init__.py": "def __getattr__(name): ...\n", "pipeline/__init__.py": "", "pipeline/s.py": text}
    with pytest.raises(InterpError, match=message):
        closure("pipeline.s", tree(tmp_path, files))


def test_writing_keeps_what_is_written_by_hand(tmp_path: Path) -> None:
    by_hand = """# a comment
stages:
  one:
    cmd: python -m pipeline.one
    deps:
      - ${task.depends_on} # another
      - data.txt
      - pipeline/gone.py
    outs:
      - one.txt
"""
    root = tree(tmp_path, {"dvc.yaml": by_hand, "pipeline/__init__.py": "", "pipeline/one.py": ""})
    assert differences(root) == [
        "one: lacks pipeline/__init__.py",
        "one: lacks pipeline/one.py",
        "one: has pipeline/gone.py, which it does not use",
    ]
    write(root)
    assert differences(root) == []
    text = (root / "dvc.yaml").read_text()
    assert text.startswith("# a comment\n")
    assert yaml.safe_load(text)["stages"]["one"] == {
        "cmd": "python -m pipeline.one",
        "deps": ["${task.depends_on}", "data.txt", "pipeline/__init__.py", "pipeline/one.py"],
        "outs": ["one.txt"],
    }
    write(root)
    assert (root / "dvc.yaml").read_text() == text
