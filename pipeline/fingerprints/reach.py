"""Find the modules that a module reaches: each name that it uses is followed to the module that defines it.

    code = Code({"interp": root / "interp", "pipeline": root / "pipeline", "my_lab": Path("/home/me/my_lab")})
    code.fingerprints(["pipeline.stages.lens", "my_lab.lenses"])  # {"interp.readout.ranks": "3f6c...", ...}

`from interp.forward import X` reaches the module in which X is defined, through whatever hands it on, also a lazy
`__getattr__` that an `if TYPE_CHECKING` block describes; not what else `interp.forward` imports. What cannot be
followed exactly is taken whole: a module that is passed around, a name that nobody binds, a computed import. A module
that is loaded, and that does something by being loaded (registers a class, fills a table of others), counts like one
that is used. A file that a module names counts by its bytes.

Code of a user's own: give its top-level package or module as one more root, and its modules beside the stage's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from pipeline.fingerprints.meaning import Import, Meaning, meaning_of

__all__ = ["Code", "Module"]

# Named at run time by `result.plot()` alone, which no stage calls; `report` draws by importing it, and reaches it.
NEVER_REACHED = frozenset({"interp.plots"})
NAMED_TEMPLATE = re.compile(r"""["']([\w.-]+\.j2)["']""")
OF_ANY_MODULE = frozenset({"__file__", "__name__", "__package__", "__path__", "__spec__", "__doc__"})


@dataclass(frozen=True)
class Module:
    """A module of one of the roots.

    Arguments:
        name: dotted.
        path: its file.
        meaning: what its file means.
    """

    name: str
    path: Path
    meaning: Meaning

    @property
    def package(self) -> str:
        """The package that its relative imports start from."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def source(self, entry: Import) -> str:
        """The module that an import names, absolute."""
        if not entry.level:
            return entry.source
        parts = self.package.split(".")
        above = parts[: len(parts) - entry.level + 1]
        return ".".join([*above, *([entry.source] if entry.source else [])])

    @cached_property
    def bound(self) -> dict[str, list[Import]]:
        """The imports of the module that bind a name in it."""
        found: dict[str, list[Import]] = {}
        for entry in self.meaning.imports:
            if entry.at_load:
                found.setdefault(entry.bound, []).append(entry)
        return found


READ: dict[str, Meaning] = {}  # what files mean that this process has read, by the digest of their bytes


class Kept:
    """Reads files; keeps what they mean under the digest of their bytes, so that nothing stale is ever taken.

    Arguments:
        place: the file that it is kept in; None: nowhere. One that cannot be read or written is as good as none.
    """

    def __init__(self, place: Path | None) -> None:
        self.place = place
        rules = [Path(__file__).with_name(name).read_bytes() for name in ("meaning.py", "written.py")]
        self.rules = hashlib.sha256(b"".join(rules)).hexdigest()
        self.known: dict[str, dict[str, Any]] = {}
        self.asked: dict[str, Meaning] = {}
        if place is not None:
            with contextlib.suppress(OSError, ValueError):
                found = json.loads(place.read_bytes())
                if found["rules"] == self.rules:
                    self.known = found["meanings"]

    def meaning(self, path: Path) -> Meaning:
        """What a file means.

        Raises:
            SyntaxError: it is not Python.
        """
        content = path.read_bytes()
        key = hashlib.sha256(content).hexdigest()
        if key not in self.asked:
            if key in self.known:
                self.asked[key] = restored(self.known[key])
            else:
                if key not in READ:
                    READ[key] = meaning_of(content, str(path))
                self.asked[key] = READ[key]
        return self.asked[key]

    def write(self, whole: bool = False) -> None:
        """Keep what was asked for, for the next process.

        Arguments:
            whole: nothing else is of use any more; the meanings of other files, of former states, are forgotten.
        """
        if self.place is None or (
            self.asked.keys() == self.known.keys() if whole else self.asked.keys() <= self.known.keys()
        ):
            return
        kept = {key: self.known.get(key) or kept_as(meaning) for key, meaning in self.asked.items()}
        if not whole:
            kept = self.known | kept
        staged = self.place.with_name(f".{self.place.name}.{os.getpid()}")  # others may write at the same time
        with contextlib.suppress(OSError):
            staged.parent.mkdir(parents=True, exist_ok=True)
            staged.write_text(json.dumps({"rules": self.rules, "meanings": kept}, separators=(",", ":")))
            os.replace(staged, self.place)


def kept_as(meaning: Meaning) -> dict[str, Any]:
    """The plain values of a meaning, for JSON; they are its own, not copies."""
    return {
        **vars(meaning),
        **{name: [vars(entry) for entry in getattr(meaning, name)] for name in ("imports", "typing")},
    }


def restored(values: Mapping[str, Any]) -> Meaning:
    """A meaning from the plain values that it was kept as."""
    imports, typing = ([Import(**entry) for entry in values[name]] for name in ("imports", "typing"))
    return Meaning(**{**values, "imports": imports, "typing": typing})


Found = tuple[str, str]  # a module, and the name in it; no name: the module itself, whole


class Code:
    """The modules below some roots, and what they reach.

    Arguments:
        roots: top-level name -> its folder, or the file of a module that is no package.
        kept: where the meanings of files are kept between processes; None: nowhere.
    """

    def __init__(self, roots: Mapping[str, Path], kept: Path | None = None) -> None:
        self.roots = dict(roots)
        self.kept = Kept(kept)
        self._modules: dict[str, Module | None] = {}
        self._edges: dict[tuple[str, bool], set[Found]] = {}
        self._fingerprints: dict[str, str] = {}

    def fingerprints(self, modules: Iterable[str]) -> dict[str, str]:
        """The fingerprint of each module that some modules reach, themselves included, and of each file that one names.

        Arguments:
            modules: dotted names below the roots; a package's `__main__` is another module.

        Returns:
            Dotted name of a module, or path of a file from the folder of its root, -> fingerprint; sorted.

        Raises:
            InterpError: there is no such module.
            SyntaxError: a file is not Python.
        """
        found: dict[str, str] = {}
        for name in self.reach(modules):
            found[name] = self._fingerprint(name)
            found |= self._files(name)
        return dict(sorted(found.items()))

    def reach(self, modules: Iterable[str]) -> set[str]:
        """The modules that some modules reach, themselves included.

        Arguments, Raises:
            As `fingerprints`.
        """
        used: dict[str, bool] = {}  # module -> taken whole
        waiting: list[tuple[str, bool]] = []
        for name in modules:
            if self.module(name) is None:
                raise InterpError(f"expected a module {name} below {', '.join(self.roots)}, found none.")
            waiting.append((name, False))
        loaded: set[str] = set()
        while waiting:
            while waiting:
                name, whole = waiting.pop()
                if name in used and used[name] >= whole:
                    continue
                used[name] = whole
                waiting += [(home, not attribute) for home, attribute in self._asked(name, whole)]
            self._load(used, loaded)
            waiting += [(name, False) for name in loaded - set(used) if self._acts(name)]
        return set(used)

    # Modules

    def module(self, name: str) -> Module | None:
        """A module below the roots, None where there is none."""
        if name not in self._modules:
            path = self._path(name)
            self._modules[name] = None if path is None else Module(name, path, self.kept.meaning(path))
        return self._modules[name]

    def _path(self, name: str) -> Path | None:
        top, *parts = name.split(".")
        if top not in self.roots:
            return None
        base = self.roots[top]
        if base.is_file():
            return None if parts else base
        base = base.joinpath(*parts)
        return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)

    def _below(self, package: str) -> Iterator[str]:
        """All modules inside a package."""
        found = self.module(package)
        if found is None or not found.is_package:
            return
        for path in sorted(found.path.parent.rglob("*.py")):
            parts = path.relative_to(found.path.parent).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if parts:
                yield ".".join([package, *parts])

    # Names

    def _follow(self, name: str, attributes: Sequence[str], seen: frozenset[Found] = frozenset()) -> set[Found]:
        """Where `name.attribute.attribute` leads, for a module's name; nowhere for what lies outside the roots."""
        module = self.module(name)
        if module is None:
            return set()
        if not attributes:
            return {(name, "")}
        first, rest = attributes[0], attributes[1:]
        if (name, first) in seen:
            return set()
        seen |= {(name, first)}
        found: set[Found] = set()
        entries = module.bound.get(first, [])
        if first in module.meaning.own:
            found.add((name, first))
        elif not entries:
            if self.module(f"{name}.{first}") is not None and module.is_package:
                return self._follow(f"{name}.{first}", rest, seen)
            entries = [e for e in module.meaning.typing if e.bound == first] if module.meaning.lazy else []
            if not entries:
                return set() if first in OF_ANY_MODULE else {(name, "")}
        for entry in entries:
            found |= self._led(module, entry, rest, seen)
        return found

    def _led(self, module: Module, entry: Import, rest: Sequence[str], seen: frozenset[Found]) -> set[Found]:
        """Where a name that an import binds leads, and attributes of it."""
        source = module.source(entry)
        if not entry.name:
            return self._follow(entry.target, rest, seen)
        if entry.name == "*":
            return {(source, "")} if self.module(source) else set()
        return self._follow(source, [entry.name, *rest], seen)

    def _asked(self, name: str, whole: bool) -> set[Found]:
        """What a module that is used asks of others."""
        key = (name, whole)
        if key not in self._edges:
            module = self.module(name)
            self._edges[key] = set() if module is None else set(self._asks(module, whole))
        return self._edges[key]

    def _asks(self, module: Module, whole: bool) -> Iterator[Found]:
        meaning = module.meaning
        for entry in meaning.imports:
            if entry.name == "*":
                yield from self._led(module, entry, [], frozenset())
            elif entry.bound in meaning.uses:
                for chain in meaning.uses[entry.bound]:
                    yield from self._led(module, entry, chain.split(".") if chain else [], frozenset())
            elif entry.bound not in meaning.unused:  # imported for what that does
                source = module.source(entry)
                loads = [source, *([f"{source}.{entry.name}"] if entry.name else [])]
                yield from ((name, "import") for name in loads if self.module(name) is not None)
        for asked in meaning.dynamic:
            yield from self._dynamic(asked)
        if whole:  # whoever has the module may take anything from it
            for entry in (*meaning.imports, *(meaning.typing if meaning.lazy else [])):
                yield from self._led(module, entry, [], frozenset())
            for asked in meaning.lazy_dynamic:
                yield from self._dynamic(asked)
            yield from ((name, "") for name in self._below(module.name))

    def _dynamic(self, asked: str) -> Iterator[Found]:
        """What `import_module` may bring."""
        if asked in NEVER_REACHED:
            return
        if not asked.endswith("*"):
            yield from self._follow(asked, [])
            return
        for package in [asked.removesuffix(".*")] if asked != "*" else self.roots:
            yield from self._follow(package, [])
            yield from ((name, "") for name in self._below(package))

    # Loading

    def _load(self, used: Mapping[str, bool], loaded: set[str]) -> None:
        """Add what is loaded where some modules are used."""
        waiting = list(used)
        functions = set(used)  # whose functions may run, and import
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            module = self.module(name)
            if name in seen or module is None:
                continue
            seen.add(name)
            loaded.add(name)
            waiting.append(name.rpartition(".")[0])  # importing a module runs the packages above it
            for entry in module.meaning.imports:
                if entry.at_load or name in functions:
                    source = module.source(entry)
                    waiting.append(source)
                    bound = self.module(source)
                    if entry.name and bound is not None and entry.name not in (*bound.bound, *bound.meaning.own):
                        waiting.append(f"{source}.{entry.name}")

    def _acts(self, name: str) -> bool:
        """Whether loading a module does something besides binding its own names."""
        module = self.module(name)
        if module is None:
            return False
        meaning = module.meaning
        if meaning.acts or "*" in meaning.dynamic:
            return True
        if any(self._is_heard_of(module, base, set()) for bases in meaning.classes.values() for base in bases):
            return True
        for decorator in meaning.decorators:
            if not self._places(module, decorator):  # one from elsewhere, which may keep what it is given
                return True
        return any(self._changes(module, chain, set()) for chain in (*meaning.calls, *meaning.decorators))

    def _places(self, module: Module, chain: str) -> set[Found]:
        """Where a dotted name leads, as a module spells it."""
        name, *rest = chain.split(".")
        found = {(module.name, name)} if name in module.meaning.own else set()
        for entry in module.meaning.imports:
            if entry.bound == name:
                found |= self._led(module, entry, rest, frozenset())
        return found

    def _is_heard_of(self, module: Module, base: str, seen: set[Found]) -> bool:
        """Whether a class of ours hears of its subclasses, by itself or by a base of its own."""
        for home, name in self._places(module, base) - seen:
            seen.add((home, name))
            found = self.module(home)
            if found is None or name not in found.meaning.classes:
                continue
            if name in found.meaning.hooked:
                return True
            if any(self._is_heard_of(found, inner, seen) for inner in found.meaning.classes[name]):
                return True
        return False

    def _changes(self, module: Module, chain: str, seen: set[Found]) -> bool:
        """Whether a call may change what lies outside the function that it calls."""
        for home, name in self._places(module, chain) - seen:
            seen.add((home, name))
            found = self.module(home)
            if found is None or name not in found.meaning.functions:
                continue
            changes, calls = found.meaning.functions[name]
            if changes or any(self._changes(found, inner, seen) for inner in calls):
                return True
        return False

    # Fingerprints

    def _fingerprint(self, name: str) -> str:
        """Digest of what a module means, and of where each name that it imports leads."""
        if name not in self._fingerprints:
            module = self.module(name)
            assert module is not None
            meaning = module.meaning
            digest = hashlib.sha256(meaning.digest.encode())
            leads = []
            for entry in meaning.imports:
                if entry.bound in meaning.unused:
                    continue
                source = module.source(entry)
                if source.partition(".")[0] not in self.roots:
                    leads.append((entry.bound, f"{source}:{entry.name}"))
                    continue
                for chain in meaning.uses.get(entry.bound, [""]):
                    for home, attribute in self._led(module, entry, chain.split(".") if chain else [], frozenset()):
                        leads.append((f"{entry.bound}.{chain}", f"{home}:{attribute}"))
            for bound, place in sorted(leads, key=lambda lead: lead[0]):
                digest.update(f"\n{bound} {place}".encode())
            self._fingerprints[name] = digest.hexdigest()[:16]
        return self._fingerprints[name]

    def _files(self, name: str) -> dict[str, str]:
        """The files that are no Python and that a module names, or that one of those names in turn: path -> digest."""
        module = self.module(name)
        assert module is not None
        root = self.roots[name.partition(".")[0]]
        if root.is_file():  # what lies beside a module that is no package may be anything
            return {}
        top = root.parent
        found: dict[str, str] = {}
        waiting = [place / text for text in module.meaning.texts for place in (module.path.parent, top)]
        while waiting:
            path = Path(os.path.normpath(waiting.pop()))
            if path.suffix == ".py" or not path.is_relative_to(root) or not path.is_file():
                continue
            key = path.relative_to(top).as_posix()
            if key in found:
                continue
            content = path.read_bytes()
            found[key] = hashlib.sha256(content).hexdigest()[:16]
            if path.suffix == ".j2":
                waiting += [path.with_name(named) for named in NAMED_TEMPLATE.findall(content.decode("utf-8"))]
        return found
