"""TransformerLens's way to say which positions of a tensor are meant."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError

__all__ = ["Slice", "SliceInput"]

SliceInput: TypeAlias = int | tuple[int, ...] | list[int] | Tensor | np.ndarray | builtins.slice | None


class Slice:
    """Some places along an axis, said in one of five ways.

    An integer takes one place and drops the axis; a tuple `(stop,)`, `(start, stop)` or `(start, stop, step)` and a
    `slice` take a range; a list, an array or a tensor takes the places that it lists, or those where it is True;
    None takes all.

    Arguments:
        input_slice: the places.

    Raises:
        InterpError: it is none of these.
    """

    slice: int | builtins.slice | np.ndarray
    mode: str

    def __init__(self, input_slice: SliceInput = None) -> None:
        number = _integer(input_slice)
        if number is not None:
            self.slice, self.mode = number, "int"
        elif input_slice is None:
            self.slice, self.mode = builtins.slice(None), "identity"
        elif isinstance(input_slice, builtins.slice):
            self.slice, self.mode = input_slice, "slice"
        elif isinstance(input_slice, tuple) and 1 <= len(input_slice) <= 3:
            self.slice, self.mode = builtins.slice(*input_slice), "slice"
        elif isinstance(input_slice, list | Tensor | np.ndarray):
            self.slice, self.mode = _places(input_slice), "array"
        else:
            raise InterpError(
                "a slice is an integer, a tuple of one to three integers, a slice, a list, an array or a tensor of "
                f"integers or of True and False, or None; got {input_slice!r}"
            )

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Take these places of a tensor.

        Arguments:
            tensor: any shape.
            dim: the axis; negative ones count from the end.

        Raises:
            InterpError: the axis does not have one of the places.
        """
        index: list[Any] = [builtins.slice(None)] * tensor.ndim
        index[dim] = torch.as_tensor(self.slice, device=tensor.device) if self.mode == "array" else self.slice
        try:
            return tensor[tuple(index)]
        except (IndexError, ValueError) as error:  # ValueError: a negative step
            shape = tuple(tensor.shape)
            raise InterpError(f"{self} does not fit axis {dim} of a tensor of shape {shape}: {error}") from None

    def indices(self, max_ctx: int | None = None) -> np.ndarray:
        """The places as integers.

        Arguments:
            max_ctx: length of the axis. Only an integer's place is known without it.

        Raises:
            InterpError: the length is missing.
        """
        if isinstance(self.slice, int):
            return np.array([self.slice], dtype=np.int64)
        if max_ctx is None:
            raise InterpError("max_ctx is missing: only the place of an integer is known without the axis's length")
        return np.arange(max_ctx, dtype=np.int64)[self.slice]

    def __repr__(self) -> str:
        return f"Slice: {self.slice} Mode: {self.mode}"

    @classmethod
    def unwrap(cls, slice_input: Slice | SliceInput) -> Slice:
        """The slice itself, or one that is made of what is given. An integer keeps its axis here, with length 1."""
        if isinstance(slice_input, cls):
            return slice_input
        number = _integer(slice_input)
        return cls([number] if number is not None else slice_input)  # type: ignore[arg-type]


def _integer(value: object) -> int | None:
    """A scalar that is an integer as Python's; None: it is not one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        number = value.item()
        return number if isinstance(number, int) and not isinstance(number, bool) else None
    return None


def _places(given: Sequence[int] | Tensor | np.ndarray) -> np.ndarray:
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise InterpError(f"a list of positions is of integers, or of True and False, in one row; got {given!r}")
    return array
