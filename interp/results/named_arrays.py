"""Arrays over named axes with coordinates: the base of all results.

The axes that all of a result's arrays may share come first: `example`, then for instance `layer`, or `position` and
`layer`, or `source_layer` and `target_layer`. Behind them an array may have axes of its own: `group`, `top`.

On disk a result is one safetensors file: its arrays, and what describes them as JSON in its metadata. No pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from interp.errors import InterpError, nearest

__all__ = ["Coordinate", "Coordinates", "NamedArrays", "read_arrays", "write_arrays"]

Coordinate = int | str
Coordinates = Mapping[str, Sequence[Coordinate]]
_PROMPT_AXES = ("example", "position")
_KEY = "interpipe"  # one key alone: safetensors writes several in an order of chance
_VERSION = 1


class NamedArrays:
    """Base of immutable results. A subclass is a frozen dataclass (`eq=False, repr=False`) with these two fields too.

    Attributes:
        coordinates: the leading axes in order, `example` first -> what stands along each.
        group_names: the names along the axis `group`; left empty, they are numbers.
    """

    ARRAYS: ClassVar[Mapping[str, tuple[tuple[str, ...], type]]]
    """Field of an array -> its axes and its dtype. `...` stands for the leading axes, `prompt` for those of them that
    tell prompts and their positions apart."""

    FACTS: ClassVar[tuple[str, ...]] = ()
    """Fields that say something of the whole in a word or a number: alike in results that are put together."""

    coordinates: Mapping[str, tuple[Coordinate, ...]]
    group_names: tuple[str, ...]

    def __post_init__(self) -> None:
        self._set("coordinates", _checked_coordinates(self.coordinates))
        sizes = {axis: len(values) for axis, values in self.coordinates.items()}
        for name, (_, dtype) in self.ARRAYS.items():
            value = getattr(self, name)
            if value is not None:
                self._set(name, self._checked(name, value, dtype, sizes))
        groups = sizes.get("group", 0)
        names = tuple(map(str, self.group_names or range(groups)))
        if len(names) != groups or len(set(names)) != groups:
            raise InterpError(f"group_names: expected {groups} names, all different, got {list(names)}.")
        self._set("group_names", names)

    def _checked(self, name: str, value: ArrayLike, dtype: type, sizes: dict[str, int]) -> NDArray:
        given = np.asarray(value)
        if not np.can_cast(given.dtype, dtype, casting="same_kind"):
            raise InterpError(f"{name}: expected {'whole ' if dtype is np.int32 else ''}numbers, got {given.dtype}.")
        array: NDArray = np.array(given, dtype=dtype, order="C")
        axes = self.axes_of(name)
        known = [str(sizes.get(axis, "any")) for axis in axes]
        if array.ndim != len(axes) or any(
            size != sizes.setdefault(axis, size) for axis, size in zip(axes, array.shape, strict=False)
        ):
            raise InterpError(f"{name}: expected shape ({', '.join(axes)}) = ({', '.join(known)}), got {given.shape}.")
        array.flags.writeable = False
        return array

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis}: {len(values)}" for axis, values in self.coordinates.items())
        return f"{type(self).__name__}({axes}; groups: {', '.join(self.group_names) or 'none'})"

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return _rebuilt, (type(self), {**values, "coordinates": dict(self.coordinates)})

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the leading axes."""
        return tuple(self.coordinates)

    @property
    def layers(self) -> tuple[int, ...]:
        """What stands along the axis `layer`.

        Raises:
            InterpError: there is no such axis.
        """
        return tuple(int(layer) for layer in self.along("layer"))

    def along(self, axis: str) -> tuple[Coordinate, ...]:
        """What stands along a leading axis, or the names of the groups for `group`.

        Raises:
            InterpError: no such axis.
        """
        if axis == "group":
            return self.group_names
        if axis not in self.coordinates:
            raise InterpError(f"no axis {axis!r}: this result has {', '.join(self.axes)}.{nearest(axis, self.axes)}")
        return self.coordinates[axis]

    def axes_of(self, name: str) -> tuple[str, ...]:
        """Names of the axes of one array, in order."""
        whole: list[str] = []
        for axis in self.ARRAYS[name][0]:
            if axis == "...":
                whole += self.axes
            elif axis == "prompt":
                whole += [own for own in self.axes if own in _PROMPT_AXES]
            else:
                whole.append(axis)
        return tuple(whole)

    def arrays(self) -> dict[str, NDArray]:
        """The arrays by name, without those that this result does not have."""
        values = {name: getattr(self, name) for name in self.ARRAYS}
        return {name: value for name, value in values.items() if value is not None}

    def facts(self) -> dict[str, Any]:
        """The fields that say something of the whole, by name."""
        return {name: getattr(self, name) for name in self.FACTS}

    def select(self, **wanted: Coordinate | Sequence[Coordinate]) -> Self:
        """A part of the result: `select(layer=[4, 5], group="en", position="last")`.

        Arguments:
            wanted: axis -> one coordinate, by which that axis goes away (`example` and `group` stay, with length one),
                or several, in the order wanted.

        Raises:
            InterpError: no such axis or coordinate.
        """
        coordinates, names, arrays = dict(self.coordinates), self.group_names, self.arrays()
        axes = {name: list(self.axes_of(name)) for name in arrays}
        for axis, given in wanted.items():
            there = self.along(axis)
            one_alone = isinstance(given, Integral | str)
            several: list[Any] = [given] if one_alone else list(given)  # type: ignore[arg-type]
            for one in several:
                if one not in there:
                    raise InterpError(f"{axis}: no {one!r} in this result.{nearest(str(one), map(str, there))}")
            chosen = [there.index(one) for one in several]
            drops = one_alone and axis not in ("example", "group")
            for name, array in arrays.items():
                if axis in axes[name]:
                    arrays[name] = np.take(array, chosen[0] if drops else chosen, axis=axes[name].index(axis))
                    if drops:
                        axes[name].remove(axis)
            if axis == "group":
                names = tuple(names[index] for index in chosen)
            elif drops:
                del coordinates[axis]
            else:
                coordinates[axis] = tuple(several)
        return self._made(coordinates, names, {**arrays, **self.facts()})

    @classmethod
    def concatenate(cls, parts: Sequence[Self], order: Sequence[int] | None = None) -> Self:
        """Put results over different examples together.

        Arguments:
            parts: at least one result, alike in all but their examples. Where each numbers its examples from 0, so
                does the whole.
            order: for each example of the parts, in turn, its place in the whole; None: as they come.

        Raises:
            InterpError: no part, parts that differ in more, or an order that is no permutation of the examples.
        """
        if not parts:
            raise InterpError("concatenate: expected at least one result, got none.")
        kinds = {_kind(part) for part in parts}
        if len(kinds) > 1:
            raise InterpError("concatenate: the results differ in their axes, layers, groups or arrays.")
        examples = [example for part in parts for example in part.coordinates["example"]]
        rows = np.arange(len(examples))
        if order is not None:
            if sorted(order) != rows.tolist():
                raise InterpError(f"concatenate: order: expected each of 0 to {len(rows) - 1} once, got {list(order)}.")
            rows = np.argsort(np.asarray(order, dtype=np.int64))
        numbered = all(part.coordinates["example"] == tuple(range(len(part.coordinates["example"]))) for part in parts)
        whole = {name: np.concatenate([part.arrays()[name] for part in parts])[rows] for name in parts[0].arrays()}
        named = range(len(examples)) if numbered else [examples[row] for row in rows]
        return cls._made(
            {**parts[0].coordinates, "example": named}, parts[0].group_names, {**whole, **parts[0].facts()}
        )

    @classmethod
    def _made(cls, coordinates: Coordinates, group_names: Sequence[str], others: Mapping[str, Any]) -> Self:
        values: dict[str, Any] = {"coordinates": coordinates, "group_names": tuple(group_names), **others}
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the result into one safetensors file, the same bytes for the same result.

        Arguments:
            path: of the file; its folder has to exist.
        """
        described = {"coordinates": list(self.coordinates.items()), "group_names": self.group_names, **self.facts()}
        write_arrays(path, type(self).__name__, self.arrays(), described)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InterpError: no such file, or one that holds something else.
        """
        arrays, described = read_arrays(path, cls.__name__)
        facts = {name: described[name] for name in cls.FACTS}
        return cls._made(dict(described["coordinates"]), described["group_names"], {**arrays, **facts})


_Result = TypeVar("_Result", bound=NamedArrays)


def _rebuilt(kind: type[_Result], values: dict[str, Any]) -> _Result:
    return kind(**values)


def _kind(result: NamedArrays) -> tuple[Any, ...]:
    rest = tuple((axis, values) for axis, values in result.coordinates.items() if axis != "example")
    sizes = tuple((name, array.shape[1:]) for name, array in result.arrays().items())
    return type(result), rest, result.group_names, sizes, tuple(result.facts().items())


def _checked_coordinates(coordinates: Coordinates) -> Mapping[str, tuple[Coordinate, ...]]:
    if next(iter(coordinates), None) != "example":
        raise InterpError(f"coordinates: expected `example` as the first axis, got {list(coordinates)}.")
    checked: dict[str, tuple[Coordinate, ...]] = {}
    for axis, values in coordinates.items():
        if axis in ("group", "top"):
            raise InterpError(f"coordinates: {axis!r} is an axis of single arrays, not a leading one.")
        plain = tuple(value if isinstance(value, str) else int(value) for value in values)
        if axis != "example" and len(set(plain)) < len(plain):
            raise InterpError(f"coordinates: {axis!r} holds one of {list(plain)} twice.")
        checked[axis] = plain
    return MappingProxyType(checked)


def write_arrays(path: str | Path, kind: str, arrays: Mapping[str, NDArray], described: Mapping[str, Any]) -> None:
    """Write arrays and their description; the same bytes for the same content.

    Arguments:
        path: of the file; its folder has to exist.
        kind: what the file holds, by which `read_arrays` knows it.
        arrays: name -> array.
        described: what JSON can hold.
    """
    text = json.dumps({"kind": kind, "version": _VERSION, **described}, sort_keys=True, ensure_ascii=False)
    Path(path).write_bytes(save(dict(arrays), metadata={_KEY: text}))


def read_arrays(path: str | Path, kind: str) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Read what `write_arrays` wrote.

    Returns:
        The arrays by name, and the description.

    Raises:
        InterpError: no such file, or one that holds something else.
    """
    if not Path(path).is_file():
        raise InterpError(f"there is no file {str(path)!r}.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except SafetensorError as error:
        raise InterpError(f"{str(path)!r} is no whole safetensors file: {error}. Save the result again.") from None
    described: dict[str, Any] = json.loads(metadata.get(_KEY, "{}"))
    if (described.get("kind"), described.get("version")) != (kind, _VERSION):
        found = f"{described.get('kind')} (version {described.get('version')})"
        raise InterpError(f"{str(path)!r}: expected a {kind} (version {_VERSION}), found {found}.")
    return arrays, described
