"""The sections of the real stages: what a change in this repository recomputes, and that what runs is in them."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from pipeline.fingerprints import changed_modules, of_stages

REPOSITORY = Path(__file__).resolve().parents[3]
STAGES = ("tokenize", "collect", "tune", "lens", "evaluate", "report")
Sections = dict[str, dict[str, str]]

# Libraries that stages import and whose version changes no number: locks, progress, settings, nnsight's switching.
IDLE = {"filelock", "greenlet", "omegaconf", "pyyaml", "tqdm"}
DRAWS = {"jinja2", "matplotlib", "pandas", "plotly"}  # of results' own tables and figures, which no stage but one makes


def module_of(definition: str, below: str = "interp") -> str:
    """The module that holds a definition, wherever it has moved to."""
    homes = [
        p for p in (REPOSITORY / below).rglob("*.py") if re.search(rf"^{definition}\b", p.read_text(), re.MULTILINE)
    ]
    assert len(homes) == 1, (definition, homes)
    return homes[0].relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")


def file_of(module: str) -> Path:
    base = REPOSITORY.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def copied(to: Path) -> Path:
    """A copy of the code."""
    for name in ("interp", "pipeline"):
        shutil.copytree(REPOSITORY / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copyfile(REPOSITORY / "dvc.yaml", to / "dvc.yaml")
    return to


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="module")
def sections(copy: Path) -> Sections:
    return of_stages(root=copy)


@pytest.fixture
def edit(copy: Path) -> Iterator[Callable[[str, str], None]]:
    """`edit(file, text)`: write a file of the copy, until the test is over."""
    former: dict[Path, bytes] = {}

    def write(file: str, text: str) -> None:
        former.setdefault(copy / file, (copy / file).read_bytes())
        (copy / file).write_text(text, encoding="utf-8")

    yield write
    for path, content in former.items():
        path.write_bytes(content)


def _other_hint(hint: ast.expr | None) -> ast.expr:
    return ast.Constant("int | None") if hint is None else ast.BinOp(hint, ast.BitOr(), ast.Constant(None))


class _Retold(ast.NodeTransformer):
    """Other docstrings and hints."""

    def _tell(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        if ast.get_docstring(node) is not None:  # type: ignore[arg-type]
            node.body[0] = ast.Expr(ast.Constant("Other words."))  # type: ignore[attr-defined]
        else:
            node.body.insert(0, ast.Expr(ast.Constant("Words.")))  # type: ignore[attr-defined]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if not node.decorator_list:
            for argument in (*node.args.args, *node.args.kwonlyargs):
                argument.annotation = _other_hint(argument.annotation)
            node.returns = _other_hint(node.returns)
        return self._tell(node)

    visit_ClassDef = visit_Module = _tell  # type: ignore[assignment]


def test_words_and_hints_and_formatting_change_nothing_anywhere(sections: Sections, tmp_path: Path) -> None:
    """In every file at once: other docstrings, hints and comments, another formatting."""
    retold = copied(tmp_path)
    for path in (*(retold / "interp").rglob("*.py"), *(retold / "pipeline").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        futures = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        tree.body = [node for node in tree.body if node not in futures]
        other = ast.unparse(_Retold().visit(tree))
        path.write_text(f"# a comment\n{other}\n", encoding="utf-8")
        assert path.read_text(encoding="utf-8") != text
    assert of_stages(root=retold) == sections


@pytest.mark.parametrize(
    ("definition", "below", "stages"),
    [
        # how ranks break ties. `tune` too: it measures how often a lens's best token is the model's, by the same order
        (r"def keys_of", "interp", {"tune", "lens", "report"}),
        (r"def walk", "interp", {"lens", "report"}),
        (r"class Block", "interp/activations", {"collect", "lens", "report"}),
        (r"def logit_lens", "interp/lenses", {"lens", "report"}),
        (r"def train_tuned_lens", "interp/translators", {"tune", "report"}),
        (r"def figure_of", "interp/plots", {"report"}),
        (r"def bootstrap_interval", "pipeline/stages", {"evaluate", "report"}),
        (r"class TranslationConfig", "pipeline/tasks", {"tokenize", "report"}),
        (r"def resume_command", "pipeline", set()),
    ],
)
def test_a_change_concerns_the_stages_that_use_it(
    copy: Path, sections: Sections, edit: Callable[[str, str], None], definition: str, below: str, stages: set[str]
) -> None:
    module = module_of(f"(?:{definition})", below)
    file = file_of(module).relative_to(REPOSITORY)
    edit(str(file), (copy / file).read_text(encoding="utf-8") + "\nADDED = 1\n")
    now = of_stages(root=copy)
    changed = {stage: changed_modules(sections[stage], now[stage]) for stage in STAGES}
    assert changed == {stage: [module] if stage in stages else [] for stage in STAGES}


def test_files_that_modules_name(copy: Path, sections: Sections, edit: Callable[[str, str], None]) -> None:
    named = {name for section in sections.values() for name in section if "/" in name}
    templates = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "pipeline").rglob("*.j2")}
    assert templates and templates <= named & set(sections["report"])
    assert "pipeline/demo/lexicon.json" in sections["tokenize"]
    assert all((REPOSITORY / name).is_file() for name in named)
    for template in sorted(templates):
        edit(template, (copy / template).read_text(encoding="utf-8") + " ")
    now = of_stages(["lens", "report"], root=copy)
    assert now["lens"] == sections["lens"]
    assert changed_modules(sections["report"], now["report"]) == sorted(templates)


def test_the_report_alone_depends_on_how_figures_look(sections: Sections) -> None:
    drawing = {name: [m for m in section if m.startswith("interp.plots")] for name, section in sections.items()}
    assert {name for name, modules in drawing.items() if modules} == {"report"}
    assert {"interp.plots.curves", "interp.plots.figure", "interp.plots.heat_map"} <= set(drawing["report"])


def test_a_stages_own_modules(sections: Sections) -> None:
    """The report is of all code, since its page says which code made the run; the others are of theirs alone."""
    assert set(sections) == set(STAGES)
    for stage, section in sections.items():
        assert {f"pipeline.stages.{stage}", f"pipeline.stages.{stage}.__main__"} & set(section)
    assert set(sections["report"]) >= set().union(*sections.values())
    for stage in ("tokenize", "collect", "evaluate"):
        assert not [name for name in sections[stage] if name.startswith(("interp.lenses", "interp.translators"))]


# Against what Python loads and runs

# Run stages in a run folder; tell of each which functions of ours ran, and which module was being loaded meanwhile.
# Each function of ours says so itself, by a call at its beginning: a profiler would hear of all calls of all libraries.
TRACED = """
import ast, builtins, json, os, runpy, sys, threading
from importlib.machinery import SourceFileLoader
from pathlib import Path

root, told = sys.argv[1], sys.argv[2]
sys.path.insert(0, root)  # not by the links of the run folder
ours = (os.path.join(root, "interp") + os.sep, os.path.join(root, "pipeline") + os.sep)
ran = set()
here = threading.local()

def began(file, name):
    loading = here.__dict__.get("loading")
    ran.add((file, name, loading[-1] if loading else None))

builtins.__began__ = began

class Telling(ast.NodeTransformer):
    def __init__(self, file):
        self.file, self.names = file, []

    def called(self):
        name = ".".join(self.names)
        return ast.Call(ast.Name("__began__", ast.Load()), [ast.Constant(self.file), ast.Constant(name)], [])

    def inside(self, node, name):
        self.names.append(name)
        self.generic_visit(node)
        call = self.called()
        self.names.pop()
        return call

    def visit_ClassDef(self, node):
        self.inside(node, node.name)
        return node

    def visit_FunctionDef(self, node):
        call = ast.Expr(self.inside(node, node.name))
        told = ast.get_docstring(node, clean=False) is not None
        node.body.insert(told, ast.copy_location(call, node.body[-1 if told and len(node.body) == 1 else told]))
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node):
        both = ast.Tuple([self.inside(node, "<lambda>"), node.body], ast.Load())
        node.body = ast.copy_location(ast.Subscript(both, ast.Constant(1), ast.Load()), node.body)
        return node

get_code, exec_module = SourceFileLoader.get_code, SourceFileLoader.exec_module

def telling(loader, name):
    file = loader.get_filename(name)
    if not file.startswith(ours):
        return get_code(loader, name)
    tree = Telling(file).visit(ast.parse(loader.get_data(file), file))
    return compile(ast.fix_missing_locations(tree), file, "exec", dont_inherit=True)

def loaded(loader, module):
    if not module.__file__.startswith(ours):
        return exec_module(loader, module)
    loading = here.__dict__.setdefault("loading", [])
    loading.append(module.__file__)
    try:
        exec_module(loader, module)
    finally:
        loading.pop()

SourceFileLoader.get_code, SourceFileLoader.exec_module = telling, loaded
found = {}
for stage in sys.argv[3:]:
    ran.clear()
    runpy.run_module(f"pipeline.stages.{stage}", run_name="__main__")
    found[stage] = sorted(ran, key=str)
Path(told).write_text(json.dumps(found))
"""


def test_every_function_that_runs_is_in_its_stages_section(tmp_path: Path) -> None:
    """One tiny run with several lenses, watched: what ran lies in a module of the stage's section.

    All stages but `report`, whose section has the modules of all.
    """
    from dvc.utils.hydra import compose_and_dump

    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("interp", "pipeline"):
        (folder / name).symlink_to(REPOSITORY / name)
    lenses = "[logit_lens,patchscope,patchscope_generate,attention_object,knockout,tuned_lens]"
    overrides = [
        f"lens={lenses}", "tune=text", "tune.source=pipeline/demo/text.jsonl", "tune.sequence_length=64", "debug=tiny",
        "task.source_languages=[de]", "task.max_concepts=4", "task.pairs=2", "tune.depends_on=pipeline/demo/text.jsonl",
    ]  # fmt: skip
    compose_and_dump(str(folder / "params.yaml"), str(REPOSITORY / "conf"), None, "config", str(REPOSITORY), overrides)
    told, watched = tmp_path / "told.json", [stage for stage in STAGES if stage != "report"]
    done = subprocess.run(
        [sys.executable, "-c", TRACED, str(REPOSITORY), str(told), *watched],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, sections = json.loads(told.read_text()), of_stages()
    for stage in watched:
        files = {str(file_of(name)) for name in sections[stage] if "/" not in name}
        # a face that finds a name when it is asked for hands it on; where that leads is digested with whoever asks
        strange = {(file, function) for file, function, loading in found[stage]
                   if file not in files and (loading is None or loading in files)
                   and not (file.endswith("__init__.py") and function == "__getattr__")}  # fmt: skip
        assert strange == set(), stage
        own = file_of(f"pipeline.stages.{stage}")
        mains = {str(own), str(own.with_name("__main__.py"))}
        assert mains & {file for file, *_ in found[stage]}
    assert len({file for file, *_ in found["lens"]}) > 60  # it does watch


def test_nothing_is_listed_that_no_import_leads_to(sections: Sections) -> None:
    """A section lies within what following every import of every file leads to, names or not."""

    def imported(module: str) -> set[str]:
        path = file_of(module)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, path
                names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                names.add(str(node.args[0].value))  # import_module("...")
        names |= {name.rpartition(".")[0] for name in (*names, module)}
        return {name for name in names if name.split(".")[0] in ("interp", "pipeline") and file_of(name).is_file()}

    for stage in STAGES:
        closure: set[str] = set()
        waiting = {f"pipeline.stages.{name}" for name in (STAGES if stage == "report" else [stage])}
        waiting |= {main for name in waiting if file_of(main := f"{name}.__main__").is_file()}
        while waiting:
            closure |= waiting
            waiting = set().union(*map(imported, waiting)) - closure
        modules = {name for name in sections[stage] if "/" not in name}
        assert modules <= closure and len(modules) < len(closure), stage


# What dvc.yaml says besides


def test_a_stage_depends_on_its_own_sections_and_on_nothing_else() -> None:
    text = (REPOSITORY / "dvc.yaml").read_text()
    assert len(text.splitlines()) < 200
    stages = yaml.safe_load(text)["stages"]
    code = stages.pop("code")
    assert code["always_changed"] is True and code["deps"] == ["interp", "pipeline"]
    sections = {name: stage["params"] for name, stage in stages.items()}
    assert {name: [listed.pop(), listed.pop()] for name, listed in sections.items()} == {
        name: [{"versions.json": [name]}, {f"code/{name}.json": None}] for name in stages
    }
    assert sections == {
        "tokenize": ["model", "task"],
        "collect": ["collect", "model", "store"],
        "tune": ["model", "tune"],
        "lens": ["lens", "model", "store"],
        "evaluate": ["evaluate"],
        "report": ["collect", "evaluate", "lens", "model", "report", "task", "tune"],
    }
    tokens = ["tokens/images", "tokens/manifest.json", "tokens/pairs", "tokens/prompts", "tokens/targets"]
    assert {name: stage["deps"] for name, stage in stages.items()} == {
        "tokenize": ["${task.depends_on}", "${model.depends_on}"],
        "collect": ["${model.depends_on}", "tokens/images", "tokens/prompts"],
        "tune": ["${model.depends_on}", "${tune.depends_on}"],
        "lens": ["${model.depends_on}", "activations.zarr", *tokens, "tuned_lens"],
        "evaluate": ["lens.zarr"],
        "report": ["activations.zarr", "curves.parquet", "grids.parquet", "lens.zarr", *tokens],
    }
    # what a stage leaves besides its outputs would not be there when the stage comes from the cache
    assert all(f"versions/{name}.json" in stage["outs"] for name, stage in stages.items())
    assert stages["evaluate"]["outs"][:-1] == ["curves.csv", "curves.parquet", "grids.csv", "grids.parquet"]
    assert stages["evaluate"]["metrics"] == ["metrics.json"]


def third_party(file: Path) -> set[str]:
    """The modules of other projects that a file imports when it runs."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in hidden:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node not in hidden:
            names.add(str(node.module))
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"interp", "pipeline"}


def test_a_stage_depends_on_the_libraries_that_its_numbers_come_from(sections: Sections) -> None:
    """Every library that a stage's code imports is listed for the stage, or named here as one that computes nothing."""
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    distributions = packages_distributions()
    for name, section in sections.items():
        imported = set().union(*(third_party(file_of(module)) for module in section if "/" not in module))
        found = {distributions[module][0].lower() for module in imported} - IDLE
        listed = set(stages[name]["meta"]["libraries"])
        if name == "report":  # it reads what the stages before it computed, and shares code with them
            assert listed == {"jinja2", "matplotlib", "numpy", "pillow", "pyarrow", "zarr"}
            continue
        assert found - DRAWS <= listed, name
        assert listed <= found | {"tokenizers"}, name  # transformers' tokenizers are those of `tokenizers`
