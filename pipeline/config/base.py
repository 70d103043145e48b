"""What every config section shares: the error that a user reads, and reading a section from `params.yaml`."""

from __future__ import annotations

import types
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from interp.errors import InterpError, nearest

__all__ = ["MISSING", "ConfigError", "load_section", "nearest", "section_from"]

Schema = TypeVar("Schema")
SPELLED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class ConfigError(InterpError):
    """A config that cannot be run. The message says what was expected, what came and what to do."""


def section_from(schema: type[Schema], values: dict[str, Any], where: str) -> Schema:
    """Turn plain values into one config section, typed and complete.

    Arguments:
        schema: the dataclass of the section.
        values: the section as plain containers (no interpolation left).
        where: the section's path in the config, for messages (`task`, `lens.patchscope`).

    Returns:
        An instance of the dataclass.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a wrong type or a missing value (`???`).
    """
    fields = list(schema.__dataclass_fields__)  # type: ignore[attr-defined]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}.{nearest(key, fields)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{where}: no value for {', '.join(missing)}. Set it, e.g. {where}.{missing[0]}=VALUE")
        section = OmegaConf.to_object(merged)
    except (ConfigAttributeError, ConfigKeyError) as error:  # a key of a section inside this one
        inner, _, unknown = str(error.full_key).rpartition(".")
        known = getattr(error.object_type, "__dataclass_fields__", {})
        raise ConfigError(f"{where}.{inner}: unknown key {unknown!r}.{nearest(unknown, known)}") from None
    except ValidationError as error:
        raise ConfigError(_wrong_type(schema, values, where, str(error.full_key))) from None
    except OmegaConfBaseException as error:
        at = getattr(error, "full_key", None) or getattr(error, "key", None)
        first = str(error).split("\n", 1)[0]
        raise ConfigError(f"{where}{f'.{at}' if at else ''}: {first}") from None
    assert isinstance(section, schema)
    for key in fields:  # omegaconf lets a list or a mapping stand where an element should be
        value = getattr(section, key)
        for index, element in enumerate(value if isinstance(value, list) else ()):
            if isinstance(element, list | dict):
                raise ConfigError(_wrong_type(schema, values, where, f"{key}[{index}]"))
    return section


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
