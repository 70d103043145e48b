"""Nested values with tensors among them as one safetensors file: the tensors, and in its header what holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.tensor_files import read_tensors, write_tensors

__all__ = ["ValueWithInfo", "described", "read_values", "write_values"]

_HEADER = "values"


class ValueWithInfo(Tensor):
    """A tensor with a text about it: `value()` is the tensor alone, `info()` the text. What is computed of it has
    none."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment] # results are plain
    _info: str

    @classmethod
    def of(cls, value: Tensor, info: str) -> ValueWithInfo:
        """Put a text beside a tensor, whose memory is shared."""
        made: ValueWithInfo = Tensor._make_subclass(cls, value)
        made._info = info
        return made

    def info(self) -> str:
        """The text."""
        return self._info

    def value(self) -> Tensor:
        """The tensor alone."""
        return self.detach()


def described(value: Any) -> Any:
    """Plain data for what was asked of a model: records of a table, the fields of a dataclass; else its text."""
    if hasattr(value, "columns") and callable(getattr(value, "to_dict", None)):
        return described(value.to_dict("records"))
    if isinstance(value, Mapping):
        return {described(key): described(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(described(each) for each in value)
    if value is None or isinstance(value, str | int | float | Tensor):
        return value
    if is_dataclass(value):
        return {field.name: described(getattr(value, field.name)) for field in fields(value)}
    return repr(value)


def write_values(path: str | Path, values: Any) -> None:
    """Write values into a file.

    Arguments:
        path: of the file; its folder has to exist.
        values: tensors, numbers, texts, None, and lists, tuples and dictionaries of these.

    Raises:
        InterpError: something else among them.
    """
    tensors: dict[str, Tensor] = {}
    header = _plain(values, tensors)
    write_tensors(path, tensors, {_HEADER: json.dumps(header)})


def read_values(path: str | Path) -> Any:
    """What `write_values` wrote; tensors on the CPU.

    Raises:
        InterpError: no such file, or not one of these.
    """
    tensors, header = read_tensors(path)
    if _HEADER not in header:
        raise InterpError(f"{str(path)!r} holds tensors, but no cache that `save` wrote.")
    return _held(json.loads(header[_HEADER]), tensors)


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, ValueWithInfo):
        return {"info": [value.info(), _plain(value.value(), tensors)]}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone()  # a file takes no two tensors with one memory
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_plain(key, tensors), _plain(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_plain(each, tensors) for each in value]}
    if value is None or isinstance(value, str | int | float):
        return value
    raise InterpError(
        f"save: expected tensors, numbers, texts, and lists, tuples and dictionaries of them, got {value!r:.80} among "
        "them. Take it out of the cache first."
    )


def _held(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "info":
        return ValueWithInfo.of(_held(held[1], tensors), held[0])
    if kind == "dict":
        return {_held(key, tensors): _held(each, tensors) for key, each in held}
    return [_held(each, tensors) for each in held] if kind == "list" else tuple(_held(each, tensors) for each in held)
