"""What every model with hook points does to keep what passes through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.compat.transformer_lens.hook_methods import Hook, HookMethods
from interp.compat.transformer_lens.hook_points import HookPoint, NamesFilter, matching
from interp.compat.transformer_lens.slices import Slice, SliceInput
from interp.errors import InterpError

__all__ = ["CachingMethods"]

_PER_HEAD = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_z", "hook_result")


class CachingMethods(HookMethods):
    """Caches of TransformerLens's models, over their hooks."""

    # What a model may do in its own way.

    def _position_axis(self, name: str, point: HookPoint, tensor: Tensor) -> int:
        """The axis of positions in a tensor with its batch axis.

        Raises:
            InterpError: nothing says which it is.
        """
        if point.pos_dim is not None:
            return point.pos_dim
        if name.endswith(_PER_HEAD) and tensor.ndim >= 3:
            return -3
        if tensor.ndim >= 3:
            return -2
        if tensor.ndim == 2 and not tensor.is_floating_point():
            return -1  # token ids
        raise InterpError(
            f"pos_slice: a tensor of shape {tuple(tensor.shape)} passes through {name!r}, and nothing says which axis "
            f"is that of positions. Set `pos_dim` of that hook point, or leave it out with names_filter."
        )

    def _cached(self, cache: dict[str, Any], remove_batch_dim: bool, return_cache_object: bool) -> Any:
        """What `run_with_cache` gives beside the output."""
        if return_cache_object:
            raise InterpError(
                "return_cache_object=True: an ActivationCache is of a TransformerBridge; a module of one's own gives a "
                "dictionary"
            )
        return cache

    # Caches.

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Any] | None = None,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[dict[str, Any], list[tuple[str, Hook]], list[tuple[str, Hook]]]:
        """Make hooks that keep what passes, without adding them.

        Arguments:
            names_filter: a hook point's name, a list of names, a function of a name; None: all.
            incl_bwd: also hooks for the gradients, kept as `NAME_grad`.
            device: where to keep the values; None: where they are.
            remove_batch_dim: drop a first axis of length 1. One of another length stays.
            cache: the dictionary to fill; None: a new one.
            pos_slice: the positions to keep; None: all.

        Returns:
            The dictionary, the forward hooks and the backward hooks, as `hooks` takes them. Values are detached
            copies, under each name that the filter matches.

        Raises:
            InterpError: the filter names no hook point, with the nearest names.
        """
        cache = {} if cache is None else cache
        positions = Slice.unwrap(pos_slice)
        forward: list[tuple[str, Hook]] = []
        backward: list[tuple[str, Hook]] = []
        found = list(matching(self.hook_dict, names_filter).values())
        if callable(names_filter):
            firing = self._firing([(point, names[0]) for point, names in found], names_filter, "names_filter")
            found = [(point, names) for point, names in found if (point, names[0]) in firing]
        elif names_filter is None:
            found = [(point, names) for point, names in found if self._fires(names[0], point)]
        for point, names in found:
            keys = names
            if names_filter is not None and not callable(names_filter) and point.name and point.name not in names:
                keys = [point.name, *names]  # who asks for one of a point's names finds it under its first name too
            save = partial(
                self._save,
                cache=cache,
                keys=keys,
                device=device,
                remove_batch_dim=remove_batch_dim,
                positions=positions,
            )
            forward.append((names[0], save))
            if incl_bwd:
                backward.append((names[0], partial(save, suffix="_grad")))
        return cache, forward, backward

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Add hooks that keep what passes in every run from now on, until `reset_hooks`.

        Arguments:
            names_filter, incl_bwd, device, remove_batch_dim, cache: as for `get_caching_hooks`.

        Returns:
            The dictionary, which the next run fills.
        """
        cache, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for name, hook in forward:
            self.add_hook(name, hook)
        for name, hook in backward:
            self.add_hook(name, hook, dir="bwd")
        self.is_caching = True
        return cache

    def cache_all(
        self,
        cache: dict[str, Any] | None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
    ) -> dict[str, Any]:
        """`add_caching_hooks` on every hook point, under its old name."""
        return self.add_caching_hooks(None, incl_bwd, device, remove_batch_dim, cache)

    def cache_some(
        self,
        cache: dict[str, Any] | None,
        names: Callable[[str], bool],
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
    ) -> dict[str, Any]:
        """`add_caching_hooks` on the hook points that `names` is true of, under its old name."""
        return self.add_caching_hooks(names, incl_bwd, device, remove_batch_dim, cache)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
        return_cache_object: bool = False,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run the model and keep what passes through its hook points.

        Arguments:
            model_args, model_kwargs: what the model is called with.
            names_filter: a hook point's name, a list of names, a function of a name; None: all.
            device: where to keep the values; None: where they are.
            remove_batch_dim: drop the batch axis, of a batch of one.
            incl_bwd: also run `backward()` of the output, which must be one number, and keep gradients as `NAME_grad`.
                The parameters' `grad` is filled by it, as by any backward pass.
            reset_hooks_end: False leaves the hooks, and the cache is filled by each run until `reset_hooks`.
            clear_contexts: also empty the points' `ctx` at the end.
            pos_slice: the positions to keep: an integer (the axis stays, with length 1), `(stop,)`, `(start, stop)`,
                `(start, stop, step)`, a slice, or a list, array or tensor of positions; None: all.
            return_cache_object: of a TransformerBridge only: an `ActivationCache` in place of a dictionary.

        Returns:
            The output, and the values by name: detached copies, which later edits in place do not reach.

        Raises:
            InterpError: the filter names no hook point, with the nearest names; a keyword that nothing takes; a batch
                of several whose axis is to go; an output that has no gradient, or is not one number.
        """
        self._check_keywords(model_kwargs, self.run_with_cache)
        if remove_batch_dim:
            _check_batch_of_one((*model_args, *model_kwargs.values()))
        if incl_bwd and not torch.is_grad_enabled():
            raise InterpError("incl_bwd=True needs gradients, and they are off here (torch.no_grad or inference_mode)")
        cache, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim=remove_batch_dim, pos_slice=pos_slice
        )
        self._cached({}, remove_batch_dim, return_cache_object)  # refused before the model runs
        self.is_caching = True
        with self.hooks(forward, backward, reset_hooks_end, clear_contexts):
            output = self._run(*model_args, **model_kwargs)
            if incl_bwd:
                _backward(output)
        self.is_caching = not reset_hooks_end
        return output, self._cached(cache, remove_batch_dim, return_cache_object)

    # Inside.

    def _save(
        self,
        tensor: Any,
        hook: Any,
        cache: dict[str, Any],
        keys: Sequence[str],
        device: torch.device | str | None,
        remove_batch_dim: bool,
        positions: Slice,
        suffix: str = "",
    ) -> None:
        if not isinstance(tensor, Tensor):
            raise InterpError(f"{keys[0]!r} passes a {type(tensor).__name__}; only tensors can be kept in a cache")
        value = tensor.detach()
        if positions.mode != "identity":
            value = positions.apply(value, self._position_axis(keys[0], hook, value))
        value = value.clone() if device is None else value.to(device, copy=True)
        if remove_batch_dim and value.ndim and value.shape[0] == 1:
            value = value[0]
        for key in keys:
            cache[key + suffix] = value


def _check_batch_of_one(values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            if value.shape[0] != 1:
                raise InterpError(
                    f"remove_batch_dim=True is for a batch of one; this is one of {value.shape[0]} "
                    f"(an input of shape {tuple(value.shape)})"
                )
            return


def _backward(output: Any) -> None:
    if not isinstance(output, Tensor) or output.numel() != 1:
        shape = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise InterpError(f"incl_bwd=True: the model must give one number, as return_type='loss' does; it gave {shape}")
    if not output.requires_grad:
        raise InterpError("incl_bwd=True: what the model gave has no gradient, nothing that it depends on requires one")
    output.sum().backward()
