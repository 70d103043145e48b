"""Hooks of a model: functions that see the tensor at a site, forward or backward, and may replace it.

A hook stays on the model (`add_hook`), for the time of a block (`hooks`) or of one run (`run_with_hooks`), and acts in
every pass of the model that this library or nnsight drives: runs, traces, each step of a generation, what follows a
frozen prefix. It lives in nnsight's list of edits of the model, where nnsight looks for what acts in every pass; fast
ways see it there and stand back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import ref

import torch
from torch import Tensor

from interp.activations.cached_run import ALL_AT_ONCE
from interp.activations.chosen_sites import all_sites, sites_of
from interp.activations.forward_passes import ForwardPasses
from interp.activations.prompt_batches import PaddingSide
from interp.errors import InterpError
from interp.forward.prefix import FrozenPrefix
from interp.model.resolve import place_of
from interp.model.verdicts import warn_once
from interp.model.visits import Visit, Visitor
from interp.sites import Site, Spelling

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = [
    "Direction",
    "Hook",
    "HookPair",
    "add_hook",
    "hooks_for_a_while",
    "list_hooks",
    "reset_hooks",
    "run_with_hooks",
]

Direction = Literal["forward", "backward"]
Function = Callable[[Tensor, Site], Tensor | None]
HookPair = tuple[Spelling | Sequence[Spelling] | Callable[[Site], bool], Function]
"""Where, in any spelling of sites or as a predicate, and what."""


class Hook:
    """One function at one site of a model; `add_hook` makes it.

    Attributes:
        site: where.
        function: given the tensor there (forward) or its gradient (backward), a copy of its own, and the site; what it
            returns takes its place, None: the copy does, as the function left it.
        direction: `forward` or `backward`.
        permanent: `reset_hooks()` leaves it.
        is_on: it acts.
    """

    def __init__(
        self, model: StandardizedTransformer, site: Site, function: Function, direction: Direction, *, permanent: bool
    ) -> None:
        self.site, self.function, self.direction, self.permanent = site, function, direction, permanent
        self.is_on = True
        self._model = ref(model)  # the model holds its hooks

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", repr(self.function))
        words = [self.direction, *["permanent"] * self.permanent, *["removed"] * (not self.is_on)]
        return f"Hook({self.site}, {name}, {', '.join(words)})"

    def remove(self) -> None:
        """Take it off the model: from now on, also in a pass that runs, it does nothing."""
        self.is_on = False
        model = self._model()
        if model is not None:
            model._edits = [edit for edit in model._edits if not (isinstance(edit, _HookVisitor) and edit.hook is self)]

    # What the model does ----------------------------------------------------------------------------------------------

    def read(self) -> Tensor:
        """The live tensor; a place as `interp.model.places` has it, found anew in each pass."""
        return place_of(self._there(), self.site).read()

    def write(self, value: Tensor) -> None:
        """Replace it."""
        place_of(self._there(), self.site).write(value)

    def _there(self) -> StandardizedTransformer:
        model = self._model()
        assert model is not None  # it runs
        return model

    def forward(self, value: Tensor) -> Tensor | None:
        """What a visit does."""
        return self._called(value) if self.is_on else None

    def backward(self, value: Tensor) -> Tensor | None:
        """What a visit does: goes on with a copy that tells its gradient."""
        if not self.is_on:
            return None
        if not torch.is_grad_enabled():
            name = f"backward hook on {self.site}"
            warn_once(self._there(), name, "the %s is not called: this pass has no gradients (torch.no_grad).", name)
            return None
        on_its_way = value.clone()
        if not on_its_way.requires_grad:  # the first of them, in a model whose weights are frozen
            on_its_way.requires_grad_()
        on_its_way.register_hook(lambda gradient: self._called(gradient) if self.is_on else None)
        return on_its_way

    def _called(self, value: Tensor) -> Tensor | None:
        given = value.clone()
        before = None if given.is_inference() else given._version
        result = self.function(given, self.site)
        if result is None:
            return None if before is not None and given._version == before else given
        if not isinstance(result, Tensor) or result.shape != value.shape:
            came = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"{type(result).__name__}"
            raise InterpError(
                f"hook on {self.site}: expected a tensor of shape {tuple(value.shape)} or None, got {came}. To change "
                "a part, change it in the tensor that the hook is given."
            )
        return result.to(value)


class _HookVisitor(Visitor):
    def __init__(self, hook: Hook) -> None:
        call = hook.forward if hook.direction == "forward" else hook.backward
        super().__init__(Visit(f"hook on {hook.site}", hook, call, every_step=True), optional=True)
        self.hook = hook

    @property
    def is_backward(self) -> bool:
        return self.hook.direction == "backward"


def add_hook(
    model: StandardizedTransformer,
    site: Any,
    function: Function,
    *,
    direction: Direction = "forward",
    permanent: bool = False,
    prepend: bool = False,
) -> list[Hook]:
    """See `StandardizedTransformer.add_hook`."""
    if direction not in get_args(Direction):
        raise InterpError(f"direction: expected forward or backward, got {direction!r}.")
    if not callable(function):
        raise InterpError(f"hook: expected a function of (tensor, site), got {function!r:.80}.")
    model.follow()
    made = [Hook(model, one, function, direction, permanent=permanent) for one in _places(model, site)]
    visitors = [_HookVisitor(hook) for hook in made]
    edits = list(model._edits)
    # Backward hooks go on with a copy each. They come last, so that they tell the gradient of what the model goes on
    # with, and the first that is listed comes last of them, so that the gradient meets it first.
    first = next(
        (at for at, edit in enumerate(edits) if isinstance(edit, _HookVisitor) and edit.is_backward), len(edits)
    )
    ends = {"forward": 0, "backward": len(edits)}
    at = ends[direction] if prepend else first
    model._edits = [*edits[:at], *visitors, *edits[at:]]
    return made


def _places(model: StandardizedTransformer, site: Any) -> list[Site]:
    if not callable(site):
        return sites_of(model, site)
    found = [one for one in all_sites(model) if site(one)]
    if not found:
        raise InterpError(
            "hook: the predicate is true of no site of the model. It is given a Site, e.g. lambda site: site.kind == "
            "'resid_post' and site.layer > 3."
        )
    return found


def list_hooks(model: StandardizedTransformer) -> list[Hook]:
    """See `StandardizedTransformer.list_hooks`."""
    visitors = [edit for edit in model._edits if isinstance(edit, _HookVisitor)]
    backward = [visitor.hook for visitor in visitors if visitor.is_backward]
    return [visitor.hook for visitor in visitors if not visitor.is_backward] + backward[::-1]


def reset_hooks(
    model: StandardizedTransformer, *, including_permanent: bool = False, direction: Direction | None = None
) -> None:
    """See `StandardizedTransformer.reset_hooks`."""
    if direction not in (None, *get_args(Direction)):
        raise InterpError(f"direction: expected forward, backward or None for both, got {direction!r}.")
    for hook in list_hooks(model):
        if (including_permanent or not hook.permanent) and direction in (None, hook.direction):
            hook.remove()


@contextmanager
def hooks_for_a_while(
    model: StandardizedTransformer, hooks: Iterable[HookPair] = (), backward_hooks: Iterable[HookPair] = ()
) -> Iterator[list[Hook]]:
    """See `StandardizedTransformer.hooks`."""
    made: list[Hook] = []
    try:
        for direction, pairs in (("forward", hooks), ("backward", backward_hooks)):
            for site, function in _pairs(pairs):
                made += add_hook(model, site, function, direction=direction)  # type: ignore[arg-type]
        yield made
    finally:
        for hook in made:
            hook.remove()


def _pairs(given: Any) -> list[HookPair]:
    pairs = list(given)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise InterpError(f"hooks: expected a list of (site, function), got {pair!r:.80} in it.")
    return pairs


def run_with_hooks(
    model: StandardizedTransformer,
    prompts: Any,
    *,
    images: Any = None,
    hooks: Iterable[HookPair] = (),
    backward_hooks: Iterable[HookPair] = (),
    stop_at_layer: int | None = None,
    start_at_layer: int | None = None,
    prefix: FrozenPrefix | None = None,
    batch_size: int | None = None,
    padding_side: PaddingSide = "left",
) -> Tensor:
    """See `StandardizedTransformer.run_with_hooks`."""
    backward = _pairs(backward_hooks)
    if backward and not torch.is_grad_enabled():
        raise InterpError("backward_hooks: gradients are off here (torch.no_grad), so no backward pass can follow.")
    with hooks_for_a_while(model, hooks, backward) as made:
        passes = ForwardPasses.of(
            model, prompts, images=images, prefix=prefix, stop_at_layer=stop_at_layer, start_at_layer=start_at_layer,
            batch_size=ALL_AT_ONCE if batch_size is None else batch_size, padding_side=padding_side,
        )  # fmt: skip
        for hook in made:
            passes.check_runs(hook.site)
        output = passes.run(lambda _: [])
    for hook in made:  # off the model; but the backward pass of this output is still to come
        hook.is_on = hook.direction == "backward"
    return output
