"""Read a config section from `params.yaml`, typed and bounded, and tell a user what is wrong with it."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Iterator
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from interp.errors import InterpError, nearest

__all__ = [
    "LARGEST_COUNT", "LARGEST_SEED", "MISSING", "ConfigError", "Kinds", "bounded", "check_text", "chosen", "close",
    "load", "load_section", "nearest", "passage", "section_from",
]  # fmt: skip

Schema = TypeVar("Schema")
Value = TypeVar("Value")
LARGEST_SEED = 2**32 - 1  # what every generator of random numbers that a stage uses can begin with
LARGEST_COUNT = 10**9  # of prompts, tokens and steps: more than any run has, and far from what integers overflow at
SPELLED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class ConfigError(InterpError):
    """A config that cannot be run. The message says what was expected, what came and what to do."""


def bounded(default: Value, least: float, most: float, *, above: bool = False, below: bool = False) -> Value:
    """A field of a section that is a number, with its bounds; every number has some.

    Arguments:
        default: the field's default.
        least, most: the smallest and the largest value.
        above: leave out `least` itself.
        below: leave out `most` itself.
    """
    described: Value = field(default=default, metadata={"least": least, "most": most, "above": above, "below": below})
    return described


def chosen(default: Value, *choices: Value) -> Value:
    """A field of a section that is one of some values, of which `default` need not be the first.

    Arguments:
        default: the field's default.
        choices: all that it may be.
    """
    described: Value = field(default=default, metadata={"choices": choices})
    return described


def passage(default: Value) -> Value:
    """A field of a section whose text may have several lines, such as a prompt; all other texts have one."""
    described: Value = field(default=default, metadata={"lines": True})
    return described


class Kinds:
    """A section whose `kind` selects its schema: a subclass is known as soon as the module that defines it is imported.

    Attributes:
        section: the section's name.
        noun: what messages call one of the kinds.
        kinds: `kind` -> its schema, of every subclass that has a `kind` of its own.
    """

    section: ClassVar[str]
    noun: ClassVar[str]
    kinds: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if Kinds in cls.__bases__:
            cls.kinds = {}
            return
        kind = cls.__dict__.get("kind")
        if not isinstance(kind, str):
            return  # what several kinds share
        known = cls.kinds.setdefault(kind, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"{cls.__module__}.{cls.__qualname__}: there is a {cls.noun} of kind {kind!r} already, "
                f"{known.__module__}.{known.__qualname__}. Give it another kind."
            )
        cls.kinds[kind] = cls

    @classmethod
    def schema_of(cls, values: dict[str, Any], where: str) -> Any:
        """The schema that a section's `kind` selects.

        Arguments:
            values: the section as plain containers.
            where: its path in the config, for messages.

        Raises:
            ConfigError: no kind, or an unknown one.
        """
        kind = values.get("kind")
        if kind is None:
            group, _, name = where.rpartition(".")
            raise ConfigError(
                f"{where}: {', '.join(sorted(values)) or 'nothing'} set for a {cls.noun} that is not chosen. Choose it "
                f"too ({group or name}=[..., {name}]); an experiment sets values of its own choices, so leave them be, "
                f"or give {where}.kind for one of your own."
            )
        if kind not in cls.kinds:
            raise ConfigError(f"{where}.kind: unknown {cls.noun} {kind!r}.{nearest(str(kind), list(cls.kinds))}")
        return cls.kinds[kind]


def section_from(schema: type[Schema], values: dict[str, Any], where: str) -> Schema:
    """Turn plain values into one config section, typed and complete.

    Arguments:
        schema: the dataclass of the section; of a base of several kinds (`Kinds`), the one that `kind` selects.
        values: the section as plain containers (no interpolation left).
        where: the section's path in the config, for messages (`task`, `lens.patchscope`).

    Returns:
        An instance of the dataclass.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a wrong type, a missing value (`???`), a number out of
            its bounds, a value that is none of its choices, a text with control characters.
    """
    if issubclass(schema, Kinds) and "kind" not in schema.__dict__:
        schema = schema.schema_of(values, where)
    known = [described.name for described in fields(schema)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}.{nearest(key, known)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{where}: no value for {', '.join(missing)}. Set it, e.g. {where}.{missing[0]}=VALUE")
        section = OmegaConf.to_object(merged)
    except (ConfigAttributeError, ConfigKeyError) as error:  # a key of a section inside this one
        inner, _, unknown = str(error.full_key).rpartition(".")
        possible = [key.name for key in fields(error.object_type)] if is_dataclass(error.object_type) else []
        raise ConfigError(f"{where}.{inner}: unknown key {unknown!r}.{nearest(unknown, possible)}") from None
    except ValidationError as error:
        raise ConfigError(_wrong_type(schema, values, where, str(error.full_key))) from None
    except OverflowError as error:  # a whole number of hundreds of digits for a field that is a float
        first = str(error).split("\n", 1)[0]
        raise ConfigError(f"{where}: {first}. Write a smaller number.") from None
    except OmegaConfBaseException as error:
        at = getattr(error, "full_key", None) or getattr(error, "key", None)
        first = str(error).split("\n", 1)[0]
        raise ConfigError(f"{where}{f'.{at}' if at else ''}: {first}") from None
    assert isinstance(section, schema)
    for key in known:  # omegaconf lets a list or a mapping stand where an element should be
        value = getattr(section, key)
        for index, element in enumerate(value if isinstance(value, list) else ()):
            if isinstance(element, list | dict):
                raise ConfigError(_wrong_type(schema, values, where, f"{key}[{index}]"))
    _check_fields(section, where)
    return section


def _check_fields(section: Any, where: str) -> None:
    """Check each field's own rules: a number's bounds, a value's choices, the characters of a text."""
    for described in fields(section):
        value, path = getattr(section, described.name), f"{where}.{described.name}"
        if is_dataclass(value):
            _check_fields(value, path)
        elif "least" in described.metadata and value is not None:
            _check_bounds(value, path, described.default, **described.metadata)
        for at, text in _texts(value, path):
            check_text(at, text, lines=described.metadata.get("lines", False))
        allowed = described.metadata.get("choices", (value,))
        if value not in allowed:
            raise ConfigError(f"{path}: expected one of {', '.join(allowed)}, got {value!r}.{close(value, allowed)}")


def close(value: object, allowed: Iterable[str]) -> str:
    """` Did you mean 'NAME'?`, where an allowed name is near; else nothing."""
    sentence = nearest(str(value), allowed)
    return sentence if sentence.startswith(" Did") else ""


def _check_bounds(value: float, where: str, default: Any, least: float, most: float, above: bool, below: bool) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {value}.")
    low, high = value < least or (above and value == least), value > most or (below and value == most)
    if not (low or high):
        return
    if above and below:
        expected = f"a number between {least} and {most}, such as {default}"
    elif below:
        expected = f"a number from {least} to {most}, {most} excluded"
    elif low:
        expected = f"a number above {least}" if above else f"{least} or more"
    else:
        expected = f"at most {most}"
    raise ConfigError(f"{where}: expected {expected}, got {_shown(value)}.")


def _shown(value: float) -> str:
    """A number, also one of more digits than Python prints."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"one of about {int(value.bit_length() * math.log10(2))} digits"
    return str(value)


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """(path, text) of each text in a field's value; of a mapping also the keys."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from _texts(element, f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, element in value.items():
            yield from _texts(key, f"{where}, key {str(key)!r}")
            yield from _texts(element, f"{where}.{key}")


def check_text(where: str, text: str, *, lines: bool = False) -> None:
    """Refuse characters that no name, path or prompt means: they are unseen, and end or change what is written.

    Arguments:
        where: key of the config, for messages.
        text: its value.
        lines: whether it may have several lines, and tabs.

    Raises:
        ConfigError: there is a control character, a line separator, or half of a surrogate pair (a byte that is no
            UTF-8).
    """
    for index, character in enumerate(text):
        if lines and character in "\n\t\r":
            continue
        code = ord(character)
        if code < 32 or 127 <= code < 160 or code in (0x2028, 0x2029) or 0xD800 <= code < 0xE000:
            what = "a text" if lines else "a text of one line"
            unseen = "without control characters" if code < 0xD800 or code > 0xE000 else "in UTF-8"
            raise ConfigError(
                f"{where}: expected {what} {unseen}, got {text[:80]!r} (character {index} is U+{code:04X}). "
                "Leave it out."
            )


def _wrong_type(schema: type[Any], values: Any, where: str, at: str) -> str:
    """What to say of a value that its field cannot hold.

    Arguments:
        schema: the dataclass of the section.
        values: the section.
        where: the section's path in the config.
        at: the field's path in the section (`layers`, `patch_into.source_language`, `sites[0]`).
    """
    expected: Any = schema
    for key in at.replace("[", ".").rstrip("]").split("."):
        expected, _ = _without_none(expected)
        if key.isdigit() and isinstance(values, list):
            expected, values = get_args(expected)[0], values[int(key)]
            continue
        expected = get_type_hints(expected)[key]
        values = values[key] if isinstance(values, dict) else values
    expected, optional = _without_none(expected)
    path = f"{where}.{at}"
    remedy = ""
    if get_origin(expected) is list:
        spelled, remedy = "a list", f" Write it in brackets: '{path}=[A,B]'."
    elif is_dataclass(expected):
        spelled = "a mapping"
    else:
        spelled = SPELLED[expected]
        if expected is str and isinstance(values, list) and len(values) > 1:
            joined = ",".join(map(str, values))
            remedy = f" A text with commas goes into quotes: \"{path}='{joined}'\"."
    came = "null" if values is None else repr(values)
    return f"{path}: expected {spelled}{' or null' if optional else ''}, got {came}.{remedy}"


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """A type without its `None`, and whether there was one."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    (kept,) = (kind for kind in get_args(annotation) if kind is not type(None))
    return kept, True


def load_section(name: str, params: str | Path = "params.yaml") -> dict[str, Any]:
    """Read one section of a run folder's `params.yaml` as plain containers.

    Arguments:
        name: the section (`task`, `model`, `collect`, ...).
        params: the file.

    Raises:
        ConfigError: there is no such file or no such section in it.
    """
    path = Path(params)
    if not path.is_file():
        raise ConfigError(
            f"expected {path} in {Path.cwd()}, found none. A stage runs in a run folder: cd into one of outputs/, "
            "or write the config with `python -m pipeline --cfg job > params.yaml`."
        )
    values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    if not isinstance(values, dict) or name not in values:
        known = list(values) if isinstance(values, dict) else []
        raise ConfigError(f"{path} has no section {name!r}.{nearest(name, [str(k) for k in known])}")
    section = values[name]
    return section if isinstance(section, dict) else {}


def load(schema: type[Schema], params: str | Path = "params.yaml") -> Schema:
    """Read one section of a run folder's `params.yaml`, typed and complete.

    Arguments:
        schema: the dataclass of the section, or the base of its kinds.
        params: the file.

    Raises:
        ConfigError: there is no such section, and all that `section_from` raises.
    """
    name: str = schema.section  # type: ignore[attr-defined]
    return section_from(schema, load_section(name, params), name)
