"""Hook points: named places of a model's forward pass that call a user's functions, as TransformerLens has them.

`HookPoint` is an identity module. In a module of one's own it stands in the forward pass. On `TransformerBridge` it
stands beside the model: what reads the model's tensors passes each through its point, with the same effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from interp.errors import InterpError

__all__ = ["Direction", "HookIntrospectionMixin", "HookPoint", "LensHandle", "NamesFilter", "matching", "near_names"]

Direction: TypeAlias = Literal["fwd", "bwd", "both"]
NamesFilter: TypeAlias = Callable[[str], bool] | Sequence[str] | str | None


@dataclass(eq=False)
class LensHandle:
    """One function at one hook point.

    Attributes:
        user_hook: the function as it was given.
        is_permanent: `reset_hooks` leaves it, unless it is told otherwise.
        context_level: depth of the `hooks` blocks around the place where it was added; None: added by `add_hook`.
    """

    user_hook: Callable[..., Any]
    is_permanent: bool = False
    context_level: int | None = None
    _place: list[LensHandle] = field(default_factory=list, repr=False)
    _name: str | None = field(default=None, repr=False)

    @property
    def hook(self) -> LensHandle:
        """What can be removed: the handle itself (TransformerLens has a handle of torch's here)."""
        return self

    @property
    def attached(self) -> bool:
        """Whether it is still at its point."""
        return any(each is self for each in self._place)

    def remove(self) -> None:
        """Take it off its point. Nothing happens where it is off already."""
        self._place[:] = [each for each in self._place if each is not self]

    def matches(self, including_permanent: bool, level: int | None) -> bool:
        """Whether it is one of those that are meant."""
        return (including_permanent or not self.is_permanent) and level in (None, self.context_level)


class HookPoint(nn.Module):
    """An identity that calls functions with what passes through it.

    A function is called as `function(tensor, hook=point)`. What it returns goes on in the tensor's place; None: the
    tensor itself goes on, as the function left it. Functions are called in the order in which they were added, each
    with what the one before it made. A backward function is called with the gradient at what this point gives, and
    replaces it in the same way.

    Attributes:
        name: dotted name in the root module, once that was set up.
        ctx: a dictionary for the user's functions, kept until `clear_context`.
        pos_dim: axis of positions in a tensor with its batch axis, for `pos_slice`; None: told by name and shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fwd_hooks: list[LensHandle] = []
        self.bwd_hooks: list[LensHandle] = []
        self.ctx: dict[Any, Any] = {}
        self.name: str | None = None
        self.pos_dim: int | None = None

    def extra_repr(self) -> str:
        """What `print` shows: the name, and how many functions."""
        told = [f"name={self.name!r}"] if self.name is not None else []
        told += [f"{len(self.fwd_hooks)} fwd"] * bool(self.fwd_hooks) + [f"{len(self.bwd_hooks)} bwd"] * bool(
            self.bwd_hooks
        )
        return ", ".join(told)

    def add_hook(
        self,
        hook: Callable[..., Any],
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        name: str | None = None,
    ) -> LensHandle:
        """Add a function.

        Arguments:
            hook: called as `hook(tensor, hook=point)`.
            dir: "fwd" for what passes through, "bwd" for its gradient.
            is_permanent: survives `reset_hooks`.
            level: depth of `hooks` blocks that it belongs to.
            prepend: called before the functions that are there.
            name: what the function is to see as `point.name`, where the user asked by another name of this point.

        Returns:
            A handle, whose `remove()` takes it off.

        Raises:
            InterpError: it is no function, or there is no such direction.
        """
        if not callable(hook):
            raise InterpError(f"a hook is a function of a tensor and `hook`; got {hook!r}")
        place = self._hooks(dir)[0] if dir in ("fwd", "bwd") else self._no(dir, "'fwd' or 'bwd'")
        handle = LensHandle(hook, is_permanent, level, place, name)
        place.insert(0 if prepend else len(place), handle)
        return handle

    def add_perma_hook(self, hook: Callable[..., Any], dir: Literal["fwd", "bwd"] = "fwd") -> LensHandle:
        """Add a function that `reset_hooks` leaves."""
        return self.add_hook(hook, dir=dir, is_permanent=True)

    def has_hooks(self, dir: Direction = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether there is a function of this direction and level."""
        return any(handle.matches(including_permanent, level) for place in self._hooks(dir) for handle in place)

    def remove_hooks(self, dir: Direction = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Remove functions: by default the forward ones that are not permanent."""
        for place in self._hooks(dir):
            place[:] = [handle for handle in place if not handle.matches(including_permanent, level)]

    def clear_context(self) -> None:
        """Empty `ctx`."""
        self.ctx = {}

    def layer(self) -> int:
        """The layer's index, from a name `blocks.{layer}....`

        Raises:
            InterpError: the point has no such name.
        """
        return _layer(self.name)

    def forward(self, x: Any) -> Any:
        """Pass a tensor through: the forward functions change it, the backward ones its gradient."""
        for handle in tuple(self.fwd_hooks):
            x = self._call(handle, x)
        handles = tuple(self.bwd_hooks)
        if handles and isinstance(x, Tensor) and x.requires_grad:
            x = x.clone()  # a node of its own: what else uses the tensor, or edits it in place, has another gradient

            def backward(gradient: Tensor) -> Tensor:
                for handle in handles:
                    if handle.attached:  # one that was removed after the forward pass is no more
                        gradient = self._call(handle, gradient)
                return gradient

            x.register_hook(backward)
        return x

    def _call(self, handle: LensHandle, value: Any) -> Any:
        point = self if handle._name in (None, self.name) else _NamedPoint(self, str(handle._name))
        changed = handle.user_hook(value, hook=point)
        return value if changed is None else changed

    def _hooks(self, dir: Direction) -> list[list[LensHandle]]:
        known = {"fwd": [self.fwd_hooks], "bwd": [self.bwd_hooks], "both": [self.fwd_hooks, self.bwd_hooks]}
        return known[dir] if dir in known else self._no(dir, "'fwd', 'bwd' or 'both'")

    def _no(self, dir: object, known: str) -> Any:
        raise InterpError(f"there is no direction {dir!r} of hooks: write {known}")


class _NamedPoint:
    """A hook point under another of its names."""

    def __init__(self, point: HookPoint, name: str) -> None:
        self._point, self.name = point, name

    def layer(self) -> int:
        return _layer(self.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._point, name)


def _layer(name: str | None) -> int:
    parts = (name or "").split(".")
    if len(parts) < 2 or not parts[1].isdigit():
        raise InterpError(f"only a hook point named blocks.LAYER... has a layer; this one's name is {name!r}")
    return int(parts[1])


def near_names(name: str, points: Iterable[str]) -> str:
    """The sentence that names the hook points nearest to one that there is not, or the first few."""
    names = list(points)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(each) for each in close)}?"
    more = ", ..." if len(names) > 8 else ""
    return f"The {len(names)} names are in `hook_dict`: {', '.join(islice(names, 8))}{more}."


def matching(
    points: Mapping[str, HookPoint], names_filter: NamesFilter, what: str = "names_filter"
) -> dict[int, tuple[HookPoint, list[str]]]:
    """The hook points that a filter means, each once.

    Arguments:
        points: the points by name. One point may have several names.
        names_filter: a name, a sequence of names, a function of a name, or None for all.
        what: what messages call the filter.

    Returns:
        For each point that matches, by its `id`: the point and its matching names, in the order of `points`.

    Raises:
        InterpError: a name that there is not, with the nearest that there are; a function that no name satisfies; a
            filter of another kind.
    """
    if names_filter is None:
        names = list(points)
    elif isinstance(names_filter, str):
        names = [names_filter]
    elif callable(names_filter):
        names = [name for name in points if names_filter(name)]
        if not names:
            raise InterpError(f"{what} is a function that is true of none of the {len(points)} hook points")
    elif isinstance(names_filter, Sequence) and all(isinstance(name, str) for name in names_filter):
        names = list(names_filter)
        if not names:
            raise InterpError(f"{what} is an empty list: name the hook points, or leave it out for all of them")
    else:
        raise InterpError(f"{what} is a name, a list of names, a function of a name, or None; got {names_filter!r}")
    found: dict[int, tuple[HookPoint, list[str]]] = {}
    for name in dict.fromkeys(names):
        if name not in points:
            raise InterpError(f"there is no hook point {name!r}. {near_names(name, points)}")
        found.setdefault(id(points[name]), (points[name], []))[1].append(name)
    return found


class HookIntrospectionMixin:
    """Lists the hooks of anything that has a `hook_dict`."""

    hook_dict: dict[str, HookPoint]

    def list_hooks(
        self, name_filter: NamesFilter = None, dir: Direction = "both", including_permanent: bool = True
    ) -> dict[str, list[LensHandle]]:
        """The hooks that are there now, each once.

        Arguments:
            name_filter: a hook point's name, a list of names, a function of a name; None: all.
            dir: "fwd", "bwd" or "both".
            including_permanent: the permanent ones too.

        Returns:
            By name of the hook point (the first of its names that matches), the handles; points without hooks are
            left out.

        Raises:
            InterpError: the filter names no hook point, or there is no such direction.
        """
        listed = {}
        for point, names in matching(self.hook_dict, name_filter, "name_filter").values():
            handles = [each for place in point._hooks(dir) for each in place if each.matches(including_permanent, None)]
            if handles:
                listed[names[0]] = handles
        return listed
