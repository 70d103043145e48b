"""Which files a stage's code is: the static import closure of its module, as `dvc.yaml` lists it.

    python -m pipeline.workflow dependencies            # what dvc.yaml lacks or has too much
    python -m pipeline.workflow dependencies --write    # mend it

Imports inside functions count, those under `if TYPE_CHECKING:` do not, for they never run. A page template counts where
a module or another template names it. Imports that cannot be read off the text are an error. What a result is drawn by
in a notebook (`interp.results.drawing`) is left out, for no stage draws by it: an import contract holds that.
"""

from __future__ import annotations

import ast
import io
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from interp.errors import InterpError
from pipeline.files import write_text
from pipeline.project import CODE, LINKED

__all__ = ["closure", "default_params", "differences", "stage_code", "write"]


NAMED_TEMPLATE = re.compile(r"""["']([\w.-]+\.j2)["']""")
FOR_NOTEBOOKS = "interp.plots"  # named at run time by `result.plot()` alone
PRINTS_ALL_CODE = "report"  # the page says which code made the run, so it is of that code


def closure(module: str, root: Path = CODE) -> set[str]:
    """The files that running a module may read as code.

    Arguments:
        module: dotted name of a module or package under `interp` or `pipeline`; a package's `__main__` is included.
        root: the repository.

    Returns:
        Paths relative to the root.

    Raises:
        InterpError: there is no such module, or an import cannot be followed.
    """
    files: set[Path] = set()
    waiting = [module, f"{module}.__main__"] if (root / module.replace(".", "/")).is_dir() else [module]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _file(name, root)
        if path is None:
            raise InterpError(f"expected a module {name} in {root}, found none.")
        files.add(path)
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # importing a module runs the packages above it
        waiting.extend(_imports(path, name, root))
        files |= _templates(path)
    return {file.relative_to(root).as_posix() for file in files}


def _file(module: str, root: Path) -> Path | None:
    """A module's file, None where there is no such module."""
    base = root.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that can run: not what stands under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from _running(other)
            continue
        yield node
        yield from _running(node)


def _imports(path: Path, module: str, root: Path) -> Iterator[str]:
    """The modules of this repository that a file imports."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _running(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        where = f"{path.relative_to(root)}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            if _is_ours(source):
                yield source
                for alias in node.names:
                    yield from _imported_name(source, alias.name, root, where)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            yield from _dynamic(node, path, where)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in LINKED


def _imported_name(source: str, name: str, root: Path, where: str) -> Iterator[str]:
    """What `from source import name` brings besides `source`: the submodule of that name, if it is one.

    Raises:
        InterpError: the package has neither: a name that `__getattr__` finds, whose module the text does not tell.
    """
    if name == "*":
        raise InterpError(f"{where}: `from {source} import *` hides what a stage depends on. Name what you import.")
    if _file(f"{source}.{name}", root) is not None:
        yield f"{source}.{name}"
        return
    home = _file(source, root)
    if home is not None and home.name == "__init__.py" and name not in _bound(home):
        raise InterpError(
            f"{where}: {source} finds {name!r} only when it is asked for, so what a stage depends on cannot be read. "
            f"Import {name!r} from the module that defines it."
        )


def _bound(path: Path) -> set[str]:
    """The names that a file binds when it runs."""
    names: set[str] = set()
    for node in _running(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _dynamic(call: ast.Call, path: Path, where: str) -> Iterator[str]:
    """The module of `import_module("...")`.

    A package's `__getattr__` may look its modules up, since `_imported_name` refuses to import through it.

    Raises:
        InterpError: the name is computed.
    """
    argument = call.args[0] if call.args else None
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        if _is_ours(argument.value) and argument.value != FOR_NOTEBOOKS:
            yield argument.value
    elif path.name != "__init__.py":
        raise InterpError(f"{where}: a computed import hides what a stage depends on. Name the module.")


def _templates(path: Path) -> set[Path]:
    """The page templates beside a module or a template that it names, with those that they name in turn."""
    text = path.read_text(encoding="utf-8")
    found = {path.with_name(name) for name in NAMED_TEMPLATE.findall(text)}
    found = {template for template in found if template.is_file() and template != path}
    return found.union(*(_templates(template) for template in found))


def stage_code(root: Path = CODE) -> dict[str, list[str]]:
    """For each stage of `dvc.yaml`, the code files that it depends on, sorted.

    Arguments:
        root: the repository.

    Raises:
        InterpError: a stage's command is not `python -m MODULE`, or an import cannot be followed.
    """
    code = {}
    for name, stage in _load(root)[1]["stages"].items():
        command = str(stage["cmd"]).split()
        if command[:2] != ["python", "-m"] or len(command) != 3:
            raise InterpError(f"dvc.yaml, stage {name}: expected `python -m MODULE`, got {stage['cmd']!r}.")
        code[name] = closure(command[2], root)
    if PRINTS_ALL_CODE in code:
        code[PRINTS_ALL_CODE] = set().union(*code.values())
    return {name: sorted(files) for name, files in code.items()}


def _load(root: Path) -> tuple[YAML, dict]:
    yaml = YAML()  # keeps comments and order
    yaml.width = 120
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml, yaml.load((root / "dvc.yaml").read_text(encoding="utf-8"))


def _is_code(dependency: str) -> bool:
    return _is_ours(dependency.replace("/", "."))


def differences(root: Path = CODE) -> list[str]:
    """What `dvc.yaml` lacks of each stage's code, or has too much; empty where it is right.

    Arguments:
        root: the repository.
    """
    lines = []
    stages = _load(root)[1]["stages"]
    for name, files in stage_code(root).items():
        listed = {str(dependency) for dependency in stages[name]["deps"] if _is_code(str(dependency))}
        lines += [f"{name}: lacks {file}" for file in files if file not in listed]
        lines += [f"{name}: has {file}, which it does not use" for file in sorted(listed - set(files))]
    return lines


def write(root: Path = CODE) -> None:
    """Write each stage's code into `dvc.yaml`, after its other dependencies.

    Arguments:
        root: the repository.
    """
    code = stage_code(root)
    yaml, content = _load(root)
    for name, stage in content["stages"].items():
        others = [dependency for dependency in stage["deps"] if not _is_code(str(dependency))]
        stage["deps"] = CommentedSeq([*others, *code[name]])
    stream = io.StringIO()
    yaml.dump(content, stream)
    write_text(root / "dvc.yaml", stream.getvalue())


def default_params() -> str:
    """The text of `params.yaml` as `dvc exp run` writes it: by DVC's own function, so that the two cannot part."""
    from dvc.utils.hydra import compose_and_dump

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        compose_and_dump(str(path), str(CODE / "conf"), None, "config", str(CODE), [])
        return path.read_text(encoding="utf-8")
