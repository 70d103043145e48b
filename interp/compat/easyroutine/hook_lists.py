"""Hooks of a `HookedModel` as dictionaries of `component` and `intervention`.

A component is the path of a module with `.input` or `.output`, where the intervention is called as torch calls a hook
with keywords; or a site of interp (`resid_post.3`, `pattern.0`), where it is called with None, (), {} and the tensor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from interp.activations.extraction_pass import BatchSlots, ExtractionPlan
from interp.activations.forward_passes import ForwardPasses
from interp.activations.prompt_runs import planned_edits
from interp.compat.easyroutine.extraction_config import ExtractionConfig, Heads
from interp.compat.easyroutine.flag_values import FlagValues
from interp.compat.easyroutine.input_batch import InputBatch
from interp.compat.easyroutine.keyed_cache import ActivationCache
from interp.compat.easyroutine.named_positions import Name, named
from interp.errors import InterpError
from interp.interventions.edits import Edit, Window
from interp.sites import ATTENTION_KINDS, Site

if TYPE_CHECKING:
    from interp.model import StandardizedTransformer

__all__ = ["HookLists"]


class HookLists:
    """What a `HookedModel` does with hooks of its user's."""

    standardized: StandardizedTransformer
    hf_model: Any
    get_module_from_string: Callable[[str], nn.Module]
    changes: Callable[..., list[Any]]
    read_batch: Callable[..., InputBatch]

    def create_hooks(
        self,
        inputs: Any,
        cache: ActivationCache,
        token_index: Any = None,
        token_dict: Any = None,
        extraction_config: ExtractionConfig | None = None,
        patching_queries: Any = None,
        ablation_queries: Any = None,
        batch_idx: int | None = None,
        external_cache: ActivationCache | None = None,
        *,
        token_indexes: Any = None,
        extracted_token_position: Any = None,
        string_tokens: Any = None,
        split_positions: Any = None,
        pivot_positions: Any = None,
        attn_heads: Heads = "all",
        interventions: Any = None,
        **flags: Any,
    ) -> list[dict[str, Any]]:
        """Make hooks that change a run of these inputs, and take of it what the flags ask for, for `set_hooks`.

        Arguments:
            inputs: as of `forward`, of examples of one length.
            cache: takes what is extracted, once a pass has come by all of the hooks.
            token_index, token_indexes: where: tokens, or lists of tokens.
            token_dict: name -> tokens, or such a dictionary for each example, as a cache's `token_dict`: the names of
                these tokens; without `token_index`, where.
            extracted_token_position: where: names of positions, in place of these two; the last token where none is
                given, and of patterns every token.
            extraction_config, flags: what is taken.
            patching_queries, ablation_queries, interventions: what is changed.
            batch_idx, external_cache: as of `forward`.
            string_tokens: of easyroutine, of no effect: positions are found by token ids.
            split_positions, pivot_positions, attn_heads: as of `forward`.

        Returns:
            Dictionaries of `component`, a site, and `intervention`, in the order in which they act.

        Raises:
            InterpError: what `forward` refuses, examples of several lengths, or gradients.
        """
        if attn_heads != "all":
            flags["attn_heads"] = attn_heads
        config = (extraction_config or ExtractionConfig()).changed(flags, "create_hooks")
        if config.keep_gradient:
            raise InterpError("keep_gradient: gradients take a pass of their own. Call forward.")
        splits = pivot_positions if split_positions is None else split_positions
        batch = self.read_batch(inputs, splits)
        lengths = {len(one.input_ids) for one in batch.encoded}
        if len(lengths) > 1:
            raise InterpError(
                f"create_hooks: expected examples of one length, got {', '.join(map(str, sorted(lengths)))} tokens. "
                "Hooks see a batch as the model has it; forward and extract_cache take any."
            )
        indices = token_index if token_indexes is None else token_indexes
        names = _names(batch, indices, token_dict, extracted_token_position)
        changes = self.changes(batch, ablation_queries, patching_queries, interventions)
        passes = ForwardPasses.whole(self.standardized, batch.encoded, len(batch), "left")
        edits = planned_edits(passes, changes)
        if edits and lengths == {1}:
            raise InterpError("create_hooks: prompts of one token look like new tokens to a hook. Call forward.")
        hooks: list[dict[str, Any]] = []
        for edit in edits:
            if edit.intervention.operation == "skip":
                raise InterpError(f"create_hooks: {edit.name}: a hook sees one place alone. Call forward.")
            change = _EditHook(edit, self.standardized, len(batch), *lengths)
            hooks.append({"component": str(edit.site), "intervention": change})
        if external_cache is not None and batch_idx == 0:
            external_cache.forget_means()
        unnamed = indices is None and not token_dict and extracted_token_position is None
        values = FlagValues(self.standardized, batch, config, names, columns=["all"] if unnamed else None)
        if config.is_not_empty():
            collected = _Collected(values, values.plan, values.slots(), cache, external_cache)
            hooks += [
                {"component": str(site), "intervention": partial(collected.take, site)} for site in collected.sites
            ]
        return hooks

    def set_hooks(self, hooks: Iterable[Mapping[str, Any]]) -> list[Any]:
        """Set hooks on the model: they act in each run of this object, until `remove_hooks`.

        Those at modules act also in calls of `hf_model` itself.

        Arguments:
            hooks: dictionaries of `component` and `intervention`, a function of (module, args, kwargs, output), or, of
                an output, of (module, input, output). What it returns goes on in the place of the output, or, of an
                input, of (args, kwargs); None: nothing is changed.

        Returns:
            Handles, for `remove_hooks`.

        Raises:
            InterpError: a component that the model lacks; none of the hooks is set then.
        """
        handles: list[Any] = []
        try:
            for index, hook in enumerate(hooks):
                missing = [key for key in ("component", "intervention") if key not in hook]
                if missing or not callable(hook["intervention"]):
                    raise InterpError(
                        f"hooks[{index}]: expected component, and intervention, a function; got {hook!r:.80}."
                    )
                handles += self._set(str(hook["component"]), hook["intervention"], f"hooks[{index}]")
        except BaseException:
            self.remove_hooks(handles)
            raise
        return handles

    def _set(self, component: str, function: Callable[..., Any], name: str) -> list[Any]:
        path, _, side = component.rpartition(".")
        if side not in ("input", "output"):
            path, side = component, "output"
        try:
            module = self.get_module_from_string(path)
        except InterpError as refused:
            try:
                return list(self.standardized.add_hook(path, _of_site(function)))
            except InterpError as other:
                raise InterpError(f"{name}: {component!r} is no module and no site. {refused} {other}") from None
        if side == "input":
            return [module.register_forward_pre_hook(partial(function, output=None), with_kwargs=True)]
        return [module.register_forward_hook(_with_keywords(function), with_kwargs=True)]

    def remove_hooks(self, hook_handlers: Iterable[Any]) -> None:
        """Remove hooks by the handles that `set_hooks` gave."""
        for handle in hook_handlers:
            handle.remove()


def _of_site(function: Callable[..., Any]) -> Callable[[Tensor, Site], Any]:
    def hook(tensor: Tensor, site: Site) -> Any:
        return _with_keywords(function)(None, (), {}, tensor)

    return hook


def _with_keywords(function: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of (module, input, output) as one of (module, args, kwargs, output)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return function
    plain = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(plain) != 3 or len(plain) < len(parameters):
        return function

    @wraps(function)  # it counts as the user's own
    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return function(module, args, output)

    return hook


def _names(batch: InputBatch, indices: Any, tokens: Any, positions: Any) -> list[Name]:
    """The names at which something is taken; tokens that are given get a name, by `token_dict` where it has one."""
    if positions is not None:
        return named(positions, "extracted_token_position")
    several: list[Any] = [tokens] * len(batch) if tokens is None or isinstance(tokens, Mapping) else list(tokens)
    known: dict[Name, list[list[int]]] = {}
    if tokens is not None:
        if len(several) != len(batch) or not all(isinstance(one, Mapping) for one in several):
            raise InterpError(f"token_dict: expected a dictionary, or one for each example, got {tokens!r:.80}.")
        for name in several[0]:
            known[name] = [_tokens(one[name], batch, f"token_dict[{name!r}]") for one in several]
    if indices is None:
        chosen = known or {"last": [[-1]] * len(batch)}
    else:
        plain = indices.tolist() if isinstance(indices, Tensor) else list(indices)
        groups = [_tokens(one, batch, "token_index") for one in (plain if _is_nested(plain) else [plain])]
        found = {name: rows for group in groups for name, rows in known.items() if rows == [group] * len(batch)}
        flat = [token for group in groups for token in group]
        chosen = found if len(found) == len(groups) else {"token_index": [flat] * len(batch)}
    length = len(batch.encoded[0].input_ids)
    for name, rows in chosen.items():
        batch.call(name, [[token % length for token in row] for row in rows])
    return list(chosen)


def _is_nested(plain: list[Any]) -> bool:
    return bool(plain) and all(isinstance(one, Sequence) for one in plain)


def _tokens(given: Any, batch: InputBatch, name: str) -> list[int]:
    length = len(batch.encoded[0].input_ids)
    plain = given.tolist() if isinstance(given, Tensor) else given
    several = [plain] if isinstance(plain, int) else plain
    if (
        not isinstance(several, Sequence)
        or not several
        or not all(isinstance(one, int) and -length <= one < length for one in several)
    ):
        raise InterpError(f"{name}: expected tokens of {length}, got {given!r:.80}.")
    return [one % length for one in several]


@dataclass
class _Collected:
    """What hooks take of one pass, put into a cache when they have all been called.

    Arguments:
        values: what the flags ask for.
        plan, slots: the same, as interp extracts it.
        cache: takes it.
        means: takes running means; None: the cache does.
    """

    values: FlagValues
    plan: ExtractionPlan
    slots: BatchSlots
    cache: ActivationCache
    means: ActivationCache | None
    held: dict[Site, Tensor] = field(default_factory=dict)
    sites: list[Site] = field(init=False)

    def __post_init__(self) -> None:
        encoded = self.values.batch.encoded
        self.sites = self.plan.sites(encoded, self.slots)
        self.values.keyed(self.plan.run(encoded, self.slots), self.slots, ActivationCache())  # refuses what it refuses

    def take(self, site: Site, module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        """Keep what is at a site; of a generation, of its first pass."""
        encoded = self.values.batch.encoded
        if output.shape[_axis(site)] != len(encoded[0].input_ids):
            return
        if len(output) != len(encoded):
            raise InterpError(f"hook on {site}: made for {len(encoded)} examples, the model runs {len(output)}.")
        self.held[site] = output.detach().clone()
        if len(self.held) < len(self.sites):
            return
        interleaver = self.values.model.interleaver
        # Projections are no part of the pass that runs.
        before, interleaver.interleaving = interleaver.interleaving, False
        try:
            self._keep()
        finally:
            interleaver.interleaving = before

    def _keep(self) -> None:
        found = self.plan.of_tensors(self.values.batch.encoded, self.slots, self.held)
        self.held = {}
        means = ActivationCache() if self.means is None else self.means
        self.cache.update(self.values.keyed(found, self.slots, means))
        if self.means is None:
            self.cache.update(means)


@dataclass
class _EditHook:
    """One change at one site, in the passes of a run or a generation.

    Arguments:
        edit: the change.
        model: the model.
        examples: how many there are.
        length: tokens of each.
    """

    edit: Edit
    model: StandardizedTransformer
    examples: int
    length: int
    reached: int = 0

    def __call__(self, module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """Make the change."""
        width = output.shape[_axis(self.edit.site)]
        if self.edit.site.kind in ("k", "v"):  # with those of a cache
            start, stop = self.reached if width == self.reached + 1 else 0, width
        else:
            is_prompt = width == self.length
            start = 0 if is_prompt or width == self.reached + 1 else self.reached
            stop = start + width
        self.reached = stop
        each = max(1, len(output) // self.examples)
        rows = [row for row in range(self.examples) for _ in range(each)]
        if len(rows) != len(output):
            raise InterpError(
                f"hook on {self.edit.site}: made for {self.examples} examples, the model runs {len(output)}."
            )
        grown = max(0, stop - self.length)
        window = Window(rows, [0] * len(rows), [self.length] * self.examples, grown, start, stop)
        return self.edit.apply(self.model, output, window, None)


def _axis(site: Site) -> int:
    """The axis of a site's positions, or queries."""
    return 2 if site.kind in ATTENTION_KINDS else 1
