"""What every model with hook points does with hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Literal, Self, TypeAlias

from interp.compat.transformer_lens.hook_points import (
    Direction,
    HookIntrospectionMixin,
    HookPoint,
    LensHandle,
    matching,
    near_names,
)
from interp.errors import InterpError

__all__ = ["Hook", "HookMethods", "Hooks"]

Hook: TypeAlias = Callable[..., Any]
Hooks: TypeAlias = Sequence[tuple[str | Callable[[str], bool], Hook]]
Side: TypeAlias = Literal["fwd", "bwd"]


class HookMethods(HookIntrospectionMixin):
    """What TransformerLens's models do with their hook points."""

    hook_dict: dict[str, HookPoint]
    mod_dict: dict[str, Any]
    context_level: int = 0
    is_caching: bool = False

    # What a model may do in its own way.

    def _fires(self, name: str, point: HookPoint) -> bool:
        """Whether tensors pass through this point now; what is said of all points leaves out one where none do."""
        return True

    def _run(self, *model_args: Any, **model_kwargs: Any) -> Any:
        """One forward pass, as the user calls it."""
        return self(*model_args, **model_kwargs)  # type: ignore[operator]

    # Hooks that stay.

    def hook_points(self) -> list[HookPoint]:
        """All hook points, each once."""
        return [point for point, _ in matching(self.hook_dict, None).values()]

    def check_hooks_to_add(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: Hook,
        dir: Side = "fwd",
        is_permanent: bool = False,
        prepend: bool = False,
    ) -> None:
        """Called before each hook is added. Override it, and raise an error for one that must not be there."""

    def check_and_add_hook(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: Hook,
        dir: Side = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> LensHandle:
        """Add a hook to a hook point, after `check_hooks_to_add`.

        Arguments:
            hook_point: the point.
            hook_point_name: one of its names; the hook sees it as `hook.name`.
            hook: called as `hook(tensor, hook=point)`.
            dir: "fwd" for the tensor, "bwd" for its gradient.
            is_permanent: survives `reset_hooks`.
            level: depth of `hooks` blocks that it belongs to.
            prepend: called before the hooks that are there.

        Returns:
            A handle, whose `remove()` takes it off.
        """
        self.check_hooks_to_add(hook_point, hook_point_name, hook, dir=dir, is_permanent=is_permanent, prepend=prepend)
        return hook_point.add_hook(
            hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend, name=hook_point_name
        )

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: Hook,
        dir: Side = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook that stays until `reset_hooks`.

        Arguments:
            name: a hook point's name, or a function of a name: the hook is added once to each point that it is true of.
            hook: called as `hook(tensor, hook=point)`. What it returns goes on in the tensor's place; None: the tensor.
            dir: "fwd" for the tensor, "bwd" for its gradient.
            is_permanent: survives `reset_hooks`, unless that is told otherwise.
            level: depth of `hooks` blocks that it belongs to.
            prepend: called before the hooks that are there.

        Raises:
            InterpError: there is no such hook point, with the nearest names; or the function is true of none.
        """
        for point, found in self._points(name, "name"):
            self.check_and_add_hook(
                point, found, hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend
            )

    def add_perma_hook(self, name: str | Callable[[str], bool], hook: Hook, dir: Side = "fwd") -> None:
        """Add a hook that `reset_hooks` leaves, unless it is called with `including_permanent=True`."""
        self.add_hook(name, hook, dir=dir, is_permanent=True)

    def remove_all_hook_fns(
        self, direction: Direction = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Remove hooks from every point.

        Arguments:
            direction: "fwd", "bwd" or "both".
            including_permanent: the permanent ones too.
            level: only those of this depth of `hooks` blocks; None: all.
        """
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent=including_permanent, level=level)

    def clear_contexts(self) -> None:
        """Empty `ctx` of every hook point."""
        for point in self.hook_points():
            point.clear_context()

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Direction = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove hooks from every point, as `remove_all_hook_fns` does, and empty the points' `ctx`."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)
        self.is_caching = False

    # Hooks for a while.

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Self]:
        """Hooks that are there inside a `with` block, and gone after it, also after an exception.

        Arguments:
            fwd_hooks: pairs of a hook point's name, or a function of a name, and a hook.
            bwd_hooks: the same for gradients. Run the backward pass inside the block.
            reset_hooks_end: False leaves them until `reset_hooks`.
            clear_contexts: also empty the points' `ctx` at the end.

        Raises:
            InterpError: there is no such hook point, with the nearest names; or a function is true of none. No hook
                is added then.
        """
        sides: tuple[tuple[Side, Hooks, str], ...] = (("fwd", fwd_hooks, "fwd_hooks"), ("bwd", bwd_hooks, "bwd_hooks"))
        found = [
            (point, name, hook, side)
            for side, pairs, what in sides
            for where, hook in _pairs(pairs, what)
            for point, name in self._points(where, what)
        ]
        added: list[LensHandle] = []
        complete = False
        self.context_level += 1
        try:
            for point, name, hook, side in found:
                added.append(self.check_and_add_hook(point, name, hook, dir=side, level=self.context_level))
            complete = True
            yield self
        finally:
            self.context_level -= 1
            if reset_hooks_end or not complete:
                for handle in added:
                    handle.remove()
                if clear_contexts:
                    self.clear_contexts()

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run the model with hooks that are there for this run only.

        Arguments:
            model_args, model_kwargs: what the model is called with.
            fwd_hooks: pairs of a hook point's name, or a function of a name, and a hook.
            bwd_hooks: the same for gradients. They need `reset_hooks_end=False`: no backward pass is run here.
            reset_hooks_end: False leaves the hooks until `reset_hooks`.
            clear_contexts: also empty the points' `ctx` at the end.

        Returns:
            The model's output.

        Raises:
            InterpError: as `hooks` does; a keyword that nothing takes; backward hooks that would be gone before a
                backward pass.
        """
        self._check_keywords(model_kwargs, self.run_with_hooks)
        if len(bwd_hooks) and reset_hooks_end:
            raise InterpError(
                "bwd_hooks would be gone before a backward pass, which run_with_hooks does not run. Write "
                "`with model.hooks(bwd_hooks=...)` around both passes, or reset_hooks_end=False here and reset_hooks() "
                "after it."
            )
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self._run(*model_args, **model_kwargs)

    # Inside.

    def _points(self, where: str | Callable[[str], bool], what: str) -> list[tuple[HookPoint, str]]:
        """The points that a name or a function means, each with the name that it goes by here."""
        if not isinstance(where, str) and not callable(where):
            raise InterpError(f"{what} has a hook point's name, or a function of a name; got {where!r}")
        if isinstance(where, str) and where not in self.hook_dict and where in self.mod_dict:
            raise InterpError(f"{where!r} is a module and no hook point. {near_names(where, self.hook_dict)}")
        found = [(point, names[0]) for point, names in matching(self.hook_dict, where, what).values()]
        if isinstance(where, str):
            return found
        return self._firing(found, where, what)

    def _firing(self, found: list[tuple[HookPoint, str]], where: Hook, what: str) -> list[tuple[HookPoint, str]]:
        """Of the points that a function is true of, those that tensors pass."""
        firing = [(point, name) for point, name in found if self._fires(name, point)]
        if not firing:
            for point, name in found:
                self.check_hooks_to_add(point, name, where)  # says what to switch on
        return firing

    def _check_keywords(self, given: dict[str, Any], method: Callable[..., Any]) -> None:
        """Refuse a keyword that neither the method nor the model's call takes by name, where it looks like a slip."""
        call = inspect.signature(getattr(self, "forward", self._run)).parameters
        ours = inspect.signature(method).parameters
        named = {name for name, each in call.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
        takes_all = any(each.kind is each.VAR_KEYWORD for each in call.values())
        known = sorted(named | {name for name, each in ours.items() if each.kind is each.KEYWORD_ONLY})
        for name in given:
            near = get_close_matches(name, known, n=1, cutoff=0.75 if takes_all else 0.4)
            if name not in named and (near or not takes_all):
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
                raise InterpError(f"{method.__name__} has no argument {name!r}, and neither has the model. {hint}")


def _pairs(given: Any, what: str) -> list[tuple[Any, Hook]]:
    """The pairs of a list of hooks."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InterpError(f"{what} is a list of (name, hook); got {given!r}")
    for pair in given:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise InterpError(f"{what} is a list of (name, hook); one of it is {pair!r}")
    return [(where, hook) for where, hook in given]
