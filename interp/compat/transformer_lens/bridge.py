"""`TransformerBridge`: a model under TransformerLens's names, called as TransformerLens's models are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from interp.compat.transformer_lens.bridge_weights import WeightMethods
from interp.compat.transformer_lens.caching_methods import CachingMethods
from interp.compat.transformer_lens.config import TransformerBridgeConfig
from interp.compat.transformer_lens.forward_methods import ForwardMethods, is_inside
from interp.compat.transformer_lens.generation_methods import GenerationMethods
from interp.compat.transformer_lens.hook_methods import Hook, Side
from interp.compat.transformer_lens.hook_points import HookPoint, NamesFilter
from interp.compat.transformer_lens.named_cache import ActivationCache
from interp.compat.transformer_lens.named_parts import Part, envoys_by_name
from interp.compat.transformer_lens.named_points import Points
from interp.compat.transformer_lens.slices import Slice, SliceInput
from interp.compat.transformer_lens.token_methods import TokenMethods
from interp.compat.transformer_lens.weight_processing import Processing, processed
from interp.errors import InterpError
from interp.model import StandardizedTransformer

__all__ = ["TransformerBridge"]

_log = logging.getLogger(__name__)

# Families whose scores and pattern are only there under eager attention.
_EAGER = ("falcon",)


class TransformerBridge(CachingMethods, TokenMethods, ForwardMethods, GenerationMethods, WeightMethods, nn.Module):
    """A decoder language model with TransformerLens's names, hooks and caches.

        model = TransformerBridge.boot_transformers("openai-community/gpt2")
        logits, cache = model.run_with_cache("The Eiffel Tower is in")
        pattern = cache["pattern", 0]

    Its numbers are the transformers model's own; `enable_compatibility_mode` folds and centres the weights.

    Attributes:
        cfg: what the model's config says, in TransformerLens's names.
        standardized: the same model under interp's names.
        original_model: the transformers model.
        tokenizer: the model's, which pads on the left.
        hook_dict: every hook point by each of its names, in the order of a forward pass.
        mod_dict: the modules and hook points by name.
    """

    def __init__(self, model: StandardizedTransformer) -> None:
        """Put a model under TransformerLens's names; `boot_transformers` also loads it.

        Arguments:
            model: the model. Hooks that are added here act in what is run here; it has none of them itself.
        """
        super().__init__()
        self.original_model: Any = model._module
        self.standardized = model
        self.tokenizer: Any = model.tokenizer
        # Mamba has no heads; TransformerLens gives it one.
        no_heads = {} if model.num_heads else {"d_head": model.hidden_size, "n_heads": 1}
        self.cfg = TransformerBridgeConfig.from_model(model, **no_heads)
        self.context_level, self.is_caching = 0, False
        self._window: tuple[int, int] | None = None
        self._is_processed = False
        self._last_tokens: Tensor | None = None  # of the last pass, where the tokens are all that it was given
        self._hook_points: dict[str, HookPoint] = {}
        self._find_points()

    def _find_points(self) -> None:
        """Take the points of the model as it is now."""
        self.points, self._found_order = Points.of(self.standardized), None
        self.hook_dict = {}
        for point in self.points.all:
            hook_point = self._hook_points.setdefault(point.name, HookPoint())
            hook_point.name, hook_point.pos_dim = point.name, point.position_axis
            self.hook_dict |= dict.fromkeys(point.names, hook_point)
        self.envoys = envoys_by_name(self.standardized, self.points.all)
        self.mod_dict = {**{name: envoy._module for name, envoy in self.envoys.items()}, **self.hook_dict}

    def setup(self) -> None:
        """Take the hook points once more, of a model whose modules were replaced (adapters); hooks that are there stay.

        Raises:
            InterpError: the names do not fit the model any more.
        """
        self.standardized.follow()
        self._find_points()

    @classmethod
    def boot_transformers(
        cls,
        model_name: str | Path | nn.Module | StandardizedTransformer,
        *,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        hf_model: nn.Module | None = None,
        hf_config_overrides: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = torch.float32,
        trust_remote_code: bool = False,
        revision: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        attn_implementation: str | None = None,
    ) -> TransformerBridge:
        """Load a model, or take one that is in memory.

        Arguments:
            model_name: a local folder, a hub id, a transformers model in memory, or interp's model.
            tokenizer: an object, or where to load it from; None: from where the model is.
            hf_model: a transformers model in memory, whatever `model_name` says.
            hf_config_overrides: fields of the config that are to differ.
            device: where to load it; None: the first GPU, or the CPU where there is none.
            dtype: of the weights; None: the checkpoint's own. A model in memory keeps its own.
            trust_remote_code: run code that the hub repository carries.
            revision: branch, tag or commit on the hub.
            device_map: accelerate's placement, in place of `device`.
            attn_implementation: transformers' choice where None; eager in families (Falcon) that have no pattern
                otherwise, also of a model in memory.

        Raises:
            InterpError: it cannot be loaded, or is no decoder that interp knows; the message says what to do.
        """
        given: Any = model_name if hf_model is None else hf_model
        if isinstance(given, StandardizedTransformer):
            return cls(given)
        if isinstance(given, nn.Module):
            config: Any = getattr(given, "config", None)
            if getattr(config, "model_type", None) in _EAGER:
                config._attn_implementation = "eager"
            device = torch.device(device) if device is not None else None
            if device is not None:
                given.to(device)
            if tokenizer is None and isinstance(model_name, str | Path):
                tokenizer = model_name
            return cls(StandardizedTransformer(given, tokenizer=tokenizer))
        if attn_implementation is None and _model_type(given, trust_remote_code, revision) in _EAGER:
            attn_implementation = "eager"
        if device is None and device_map is None and torch.cuda.is_available():
            device = "cuda"
        return cls(
            StandardizedTransformer(
                given,
                tokenizer=tokenizer,
                revision=revision,
                dtype=dtype,
                device_map=device_map if device_map is not None or device is None else str(device),
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                **(hf_config_overrides or {}),
            )
        )

    # Hooks and caches -------------------------------------------------------------------------------------------------

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
        return_cache_object: bool = True,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run the model and keep what passes through its hook points.

        Arguments:
            model_args, model_kwargs: what the model is called with, `start_at_layer`, `stop_at_layer` and
                `past_kv_cache` among it.
            names_filter: a hook point's name, a list of names, a function of a name; None: all that the pass reaches.
            device: where to keep the values; None: where they are.
            remove_batch_dim: drop the batch axis, of a batch of one.
            incl_bwd: also run `backward()` of the output, one number, and keep gradients as `NAME_grad`.
            reset_hooks_end, clear_contexts: as in `hooks`.
            pos_slice: the positions to keep; see `interp.compat.transformer_lens.Slice`. An integer's axis stays.
            return_cache_object: an `ActivationCache`; False: a dictionary.

        Returns:
            The output, and the values: detached copies, under all of a point's names where no filter chooses.

        Raises:
            InterpError: the filter names no hook point, or one that the pass does not reach; a keyword that nothing
                takes; a batch of several whose axis is to go; an output that is not one number.
        """
        with self._within(model_kwargs):
            return super().run_with_cache(
                *model_args,
                names_filter=names_filter,
                device=device,
                remove_batch_dim=remove_batch_dim,
                incl_bwd=incl_bwd,
                reset_hooks_end=reset_hooks_end,
                clear_contexts=clear_contexts,
                pos_slice=pos_slice,
                return_cache_object=return_cache_object,
                **model_kwargs,
            )

    def run_with_hooks(self, *model_args: Any, remove_batch_dim: bool = False, **kwargs: Any) -> Any:
        """Run the model with hooks that are there for this run only; arguments as of a `HookedRootModule`'s.

        `start_at_layer`, `stop_at_layer`, `past_kv_cache` and whatever else the model is called with are taken too.
        With `remove_batch_dim` hooks see, and return, the tensors of a batch of one without their batch axis.
        """
        if remove_batch_dim:
            for side in ("fwd_hooks", "bwd_hooks"):
                kwargs[side] = [(where, partial(_of_one_row, hook)) for where, hook in kwargs.get(side, ())]
        with self._within(kwargs):
            return super().run_with_hooks(*model_args, **kwargs)

    @contextmanager
    def _within(self, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """While one run is prepared: which layers it reaches."""
        start, stop = kwargs.get("start_at_layer"), kwargs.get("stop_at_layer")
        before, self._window = self._window, None if start is None and stop is None else self._layers(start, stop)
        try:
            yield
        finally:
            self._window = before

    def _fires(self, name: str, point: HookPoint) -> bool:
        found = self.points.by_name[name]
        window = self._window
        return self._is_open(found) and (window is None or is_inside(found, window, self.cfg.n_layers))

    def _firing(self, found: list[tuple[HookPoint, str]], where: Hook, what: str) -> list[tuple[HookPoint, str]]:
        firing = super()._firing(found, where, what)
        off = {name: gate for _, name in found if (gate := self._gate_that_is_off(name))}
        if off:
            switches = ", ".join(f"model.set_{gate}(True)" for gate in sorted(set(off.values())))
            _log.warning("%s: left out hook points that are off (%s): %s", what, switches, ", ".join(off))
        return firing

    def _gate_that_is_off(self, name: str) -> str | None:
        found = self.points.by_name[name]
        return None if self._is_open(found) else found.gate

    def check_hooks_to_add(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: Hook,
        dir: Side = "fwd",
        is_permanent: bool = False,
        prepend: bool = False,
    ) -> None:
        """Refuse a hook that would never be called.

        Raises:
            InterpError: its point is not switched on, or the pass does not reach it; says what to do.
        """
        found = self.points.by_name[hook_point_name]
        if not self._is_open(found):
            raise InterpError(
                f"{hook_point_name} is off, since it takes much memory. Switch it on: model.set_{found.gate}(True)."
            )
        if self._window is not None and not is_inside(found, self._window, self.cfg.n_layers):
            first, last = self._window
            raise InterpError(
                f"{hook_point_name}: the pass does not reach it, from layer {first} to before layer {last} "
                "(start_at_layer, stop_at_layer)."
            )

    def _cached(self, cache: dict[str, Any], remove_batch_dim: bool, return_cache_object: bool) -> Any:
        if not return_cache_object:
            return cache
        return ActivationCache(cache, self, has_batch_dim=not remove_batch_dim, tokens=self._last_tokens)

    def get_caching_hooks(self, names_filter: NamesFilter = None, *args: Any, **kwargs: Any) -> Any:
        """Make hooks that keep what passes, without adding them; arguments as of a `HookedRootModule`'s."""
        if names_filter is not None and not callable(names_filter):
            for name in [names_filter] if isinstance(names_filter, str) else names_filter:
                self._check_name(name)
        return super().get_caching_hooks(names_filter, *args, **kwargs)

    def _points(self, where: str | Callable[[str], bool], what: str) -> list[tuple[HookPoint, str]]:
        if isinstance(where, str) and where not in self.mod_dict:
            self._check_name(where)
        return super()._points(where, what)

    def _check_name(self, name: object) -> None:
        if isinstance(name, str) and name not in self.hook_dict:
            raise self.points.refuse(name)

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Switch `attn.hook_result` on or off: what each head adds, (batch, position, head, d_model)."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Switch `hook_q_input`, `hook_k_input`, `hook_v_input` on or off: what enters attention, a copy a head."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Switch `hook_attn_in` on or off: what enters attention, a copy a head for queries, keys and values alike."""
        self.cfg.use_attn_in = use_attn_in

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Switch `hook_mlp_in` on or off: what enters the MLP, before its norm; the residual stream keeps its own."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def enable_compatibility_mode(
        self,
        disable_warnings: bool = False,
        no_processing: bool = False,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Process the weights as TransformerLens does: log-probabilities stay, activations are folded and centred.

        It is done on a copy, so that the model that was given stays as it is. Hooks that are there stay.

        Arguments:
            disable_warnings: of TransformerLens; there are none.
            no_processing: leave the weights as they are. The older names are here in any case.
            fold_ln: norms' weights and biases go into the maps behind them.
            center_writing_weights: what writes to the residual stream has mean zero, where norms subtract the mean.
            center_unembed: logits have mean zero, where they are not capped.
            fold_value_biases: values' biases go into the bias of attention's output.
            refactor_factored_attn_matrices: refused.

        Raises:
            InterpError: a family for which it does not hold, with the reason.
        """
        if refactor_factored_attn_matrices:
            raise InterpError("refactor_factored_attn_matrices: not available. Leave it out.")
        if no_processing or self._is_processed:
            return
        what = Processing(fold_ln, center_writing_weights, center_unembed, fold_value_biases)
        self.standardized = processed(self.standardized, self.points, what)
        self.original_model = self.standardized._module
        self._find_points()
        if fold_ln and self.cfg.normalization_type in ("LN", "RMS"):
            self.cfg.normalization_type += "Pre"
        self._is_processed = True

    # Names ------------------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Hook points and parts of the model by name: `model.hook_embed`, `model.blocks[0].attn.hook_q`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            points = self.__dict__.get("hook_dict", {})
            if name in points:
                return points[name]
            if any(other.startswith(f"{name}.") for other in points):
                return Part(self, name)
            own = getattr(type(self), name, None)
            if isinstance(own, property) and own.fget is not None:  # a weight that is not there: say why
                return own.fget(self)
            raise


def _of_one_row(function: Hook, tensor: Tensor, hook: Any) -> Any:
    """Call a hook with a tensor without its batch axis, where that has one row."""
    if not tensor.ndim or tensor.shape[0] != 1:
        return function(tensor, hook=hook)
    changed = function(tensor[0], hook=hook)
    return changed if changed is None or changed.ndim == tensor.ndim else changed[None]


def _model_type(source: str | Path, trust_remote_code: bool, revision: str | None) -> str | None:
    """The family of a model, by its config; None: what loads it says why there is none."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError):
        return None
    return str(config.get_text_config().model_type)
