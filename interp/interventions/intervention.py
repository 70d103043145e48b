"""`Intervention`: what is changed in a run, as data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any

import yaml
from torch import Tensor

from interp.errors import InterpError, nearest
from interp.interventions.perform import OPERATIONS
from interp.interventions.values import AnotherRun, SavedTensor, Value, as_value, finite, plain_value, same_value
from interp.interventions.where import as_where, plain_where
from interp.sites import KINDS, MAP_KINDS, canonical

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Intervention", "YamlLoader", "from_frame", "from_yaml", "to_frame", "to_yaml"]

STEPS = ("prompt", "every")
MEANS = ("prompts", "tokens")


@dataclass(frozen=True, eq=False, repr=False)
class Intervention:
    """One change at one site, or at one in each of several layers or heads. Frozen, and plain data.

        Intervention("resid_post.3", "last", "set", {"prompt": "The Colosseum is in"})
        Intervention("scores.2-5.h0,3", "last", "knockout", from_positions="subject.all")

    Arguments:
        site: any spelling of `interp.sites`; kept in the canonical one (`resid_post.3`, `z.2-5.h0`).
        positions: at which tokens: a spelling of `interp.positions`, an integer, several with spaces between, or a list
            with an entry for each example (None: none of its tokens). Of `scores` and `pattern`, the queries.
        operation: one of `OPERATIONS`.
        value: what the operation takes: a tensor, an array or numbers, which broadcast to the site's shape
            (`interp.sites.SHAPES`) with these positions in place of all, and without the head axis where the site names
            one head; `SavedTensor` or `{"file": ..., "name": ...}`; `AnotherRun` or `{"prompt": ..., "site": ...,
            "position": ...}`. Of projections: a direction (number,) or a subspace (direction, number).
        factor: of `add`, what the value is multiplied by.
        basis: of `rotate_set`, the subspace, (direction, number), as a tensor or in a file.
        std: of `noise`, its standard deviation.
        embedding_stds: of `noise`, the same as a multiple of the standard deviation of the token embeddings.
        seed: of `noise` and `resample`.
        mean_over: of `mean`: `prompts`, position by position; or `tokens`, one mean over all tokens of the reference.
        from_positions: of `knockout`, the keys that are cut from the queries, as `positions`; of `set`, `add`, `scale`
            and `zero` at `scores` and `pattern`, the keys that are changed (None: all).
        steps: in a generation, `prompt`: at these positions of the prompt alone; `every`: also at each new token.

    Raises:
        InterpError: something unknown, something that the operation needs and lacks, or takes no notice of.
    """

    site: str
    positions: Any  # what is given is kept as `Where`, a value as `Value`
    operation: str
    value: Any = None
    _: KW_ONLY
    factor: float = 1.0
    basis: Any = None
    std: float | None = None
    embedding_stds: float | None = None
    seed: int = 0
    mean_over: str = "prompts"
    from_positions: Any = None
    steps: str = "prompt"

    def __post_init__(self) -> None:
        self._set("site", canonical(self.site))
        self._set("positions", as_where(self.positions, "positions"))
        self._set("value", as_value(self.value))
        self._set("basis", as_value(self.basis, "basis"))
        if self.from_positions is not None:
            self._set("from_positions", as_where(self.from_positions, "from_positions"))
        if self.operation not in OPERATIONS:
            raise InterpError(f"operation {self.operation!r} is unknown.{nearest(str(self.operation), OPERATIONS)}")
        for name in ("factor", "std", "embedding_stds"):
            number = getattr(self, name)
            if number is not None:
                if not finite(number) or (name != "factor" and number <= 0):
                    kind = "a number" if name == "factor" else "a number above 0"
                    raise InterpError(f"{name}: expected {kind}, got {number!r}.")
                self._set(name, float(number))
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InterpError(f"seed: expected a whole number from 0, got {self.seed!r}.")
        for name, choices in (("steps", STEPS), ("mean_over", MEANS)):
            chosen = getattr(self, name)
            if chosen not in choices:
                words = " or ".join(choices)
                raise InterpError(f"{name}: expected {words}, got {chosen!r}.{nearest(str(chosen), choices)}")
        self._check_operation()

    def _check_operation(self) -> None:
        """Refuse a site, a value or a parameter that the operation does not take."""
        operation, name = OPERATIONS[self.operation], self.operation
        for kind in self.kinds:
            if kind not in operation.sites:
                raise InterpError(
                    f"{name} at {self.site}: {name} {operation.does}, which {kind} cannot take. It takes "
                    f"{', '.join(operation.sites)}; and {kind} takes {', '.join(_taken_by(kind))}."
                )
        for needed in operation.needs:
            if sum(getattr(self, field) is not None for field in needed) != 1:
                what = " or ".join(f"{field}=" for field in needed)
                raise InterpError(f"{name} {operation.does}: expected {what}{', one of them' * (len(needed) > 1)}.")
        given = [field.name for field in fields(self) if field.name in _DEFAULTS and self._is_given(field.name)]
        has_keys = set(self.kinds) <= set(MAP_KINDS)
        taken = [field for field in operation.parameters if has_keys or field != "from_positions"]
        for field in given:
            if field not in taken:
                takes = f"{name} takes {', '.join(taken)}" if taken else f"{name} has none"
                of = ", ".join(other for other, one in OPERATIONS.items() if field in one.parameters)
                where = f" at {' and '.join(MAP_KINDS)}" if field == "from_positions" else ""
                raise InterpError(f"{field} is a parameter of {of}{where}; {takes}.")
        if self.value is not None and _form(self.value) not in operation.takes:
            words = {"tensor": "numbers", "file": "a tensor in a file", "run": "another run"}
            known = " or ".join(words[form] for form in operation.takes) or "no value"
            raise InterpError(f"{name} {operation.does}: it takes {known}, got {words[_form(self.value)]}.")
        if isinstance(self.basis, AnotherRun):
            raise InterpError("basis: expected directions as numbers, or in a file; got another run.")

    def _is_given(self, field: str) -> bool:
        value, default = getattr(self, field), _DEFAULTS[field]
        return value is not default if default is None or isinstance(value, Tensor) else value != default

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def kinds(self) -> list[str]:
        """The kinds of its sites, as far as its spelling says."""
        kinds = [word.split(".")[0] for word in self.site.split()]
        return [kind for kind in dict.fromkeys(kinds) if kind in KINDS]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Intervention):
            return NotImplemented
        names = [field.name for field in fields(self) if field.name not in ("value", "basis")]
        if any(getattr(self, name) != getattr(other, name) for name in names):
            return False
        return same_value(self.value, other.value) and same_value(self.basis, other.basis)

    def __hash__(self) -> int:
        return hash((self.site, self.positions, self.operation))

    def __repr__(self) -> str:
        parts = [repr(self.site), repr(self.positions), repr(self.operation)]
        parts += [f"{name}={_shown(getattr(self, name))}" for name in ("value", *_DEFAULTS) if self._differs(name)]
        return f"Intervention({', '.join(parts)})"

    def _differs(self, name: str) -> bool:
        if name in _DEFAULTS:
            return self._is_given(name)
        return getattr(self, name) is not None if name == "value" else getattr(self, name) != "prompt"

    # As data ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Text, numbers, lists and mappings; parameters at their defaults are left out.

        Raises:
            InterpError: a tensor that is too large to be written out: save it in a file and name it.
        """
        whole = self._plain()
        kept = ("site", "positions", "operation")
        return {name: value for name, value in whole.items() if name in kept or self._differs(name)}

    def _plain(self) -> dict[str, Any]:
        whole = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("positions", "from_positions"):
            whole[name] = None if whole[name] is None else plain_where(whole[name])
        return {**whole, "value": plain_value(self.value), "basis": plain_value(self.basis)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Intervention:
        """Read what `to_dict` gave.

        Raises:
            InterpError: an unknown key, a missing one, or a value that does not fit.
        """
        if not isinstance(given, Mapping):
            raise InterpError(
                f"an intervention: expected a mapping with site, positions, operation, got {given!r:.80}."
            )
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise InterpError(f"an intervention has no {name!r}.{nearest(str(name), known)}")
        missing = [name for name in ("site", "positions", "operation") if name not in given]
        if missing:
            raise InterpError(
                f"an intervention needs {', '.join(missing)}; got {', '.join(map(str, given)) or 'none'}."
            )
        return cls(**given)

    def to_json(self) -> str:
        """JSON text of `to_dict`."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Intervention:
        """Read what `to_json` gave, or a hand wrote."""
        return cls.from_dict(json.loads(text))

    def to_row(self) -> dict[str, str | float | int | None]:
        """A row of a table, with every field: text, numbers or None; a list, or a value, is JSON text."""
        nested = {"value", "basis"}
        return {
            name: json.dumps(value, ensure_ascii=False)
            if isinstance(value, list) or (name in nested and value is not None)
            else value
            for name, value in self._plain().items()
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Intervention:
        """Read a row of `to_row`, also from a table on disk, where what is missing is empty or NaN."""
        given: dict[str, Any] = {}
        for name, value in row.items():
            if value is None or value == "" or value != value:
                continue
            is_text = isinstance(value, str)
            if (name in ("value", "basis") and is_text) or (is_text and value.startswith("[")):
                value = json.loads(value)
            if name in ("positions", "from_positions", "seed") and isinstance(value, float) and value.is_integer():
                value = int(value)  # a column with gaps was read as floats
            given[name] = int(value) if name == "seed" else value
        return cls.from_dict(given)


_DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for field in fields(Intervention)
    if field.name not in ("site", "positions", "operation", "value", "steps")
}


def _form(value: Value) -> str:
    return "file" if isinstance(value, SavedTensor) else "run" if isinstance(value, AnotherRun) else "tensor"


def _taken_by(kind: str) -> list[str]:
    return [name for name, operation in OPERATIONS.items() if kind in operation.sites]


def _shown(value: Any) -> str:
    return f"<tensor {tuple(value.shape)}>" if isinstance(value, Tensor) and value.numel() > 8 else repr(value)


# Several together -----------------------------------------------------------------------------------------------------


class YamlLoader(yaml.SafeLoader):
    """YAML 1.2's numbers: `2:5` is a slice, not 125 sixties, and 1e-5 is a number."""


YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
YamlLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def to_yaml(interventions: Intervention | Iterable[Intervention]) -> str:
    """YAML text of one intervention, or of a list of them."""
    single = isinstance(interventions, Intervention)
    given: Any = interventions.to_dict() if single else [one.to_dict() for one in interventions]  # type: ignore
    return yaml.safe_dump(given, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def from_yaml(text: str) -> list[Intervention]:
    """The interventions in YAML text, which holds one or a list of them.

    Raises:
        InterpError: text that is no YAML, or something else in it.
    """
    try:
        given = yaml.load(text, Loader=YamlLoader)
    except yaml.YAMLError as error:
        raise InterpError(f"interventions: expected YAML, got text that is none: {error}") from None
    return [Intervention.from_dict(one) for one in (given if isinstance(given, list) else [given])]


def to_frame(interventions: Iterable[Intervention]) -> pd.DataFrame:
    """A table with a row for each intervention (`Intervention.to_row`)."""
    import pandas as pd

    columns = [field.name for field in fields(Intervention)]
    return pd.DataFrame([one.to_row() for one in interventions], columns=columns)


def from_frame(frame: pd.DataFrame) -> list[Intervention]:
    """The interventions in a table of `to_frame`; also of one that was saved and read again."""
    return [
        Intervention.from_row({str(name): value for name, value in row.items()}) for row in frame.to_dict("records")
    ]
