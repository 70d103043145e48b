"""`TransformerBridge`: a model under TransformerLens's names, called as TransformerLens's models are."""

from __future__ import annotations

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
from interp.compat.transformer_lens.generation_methods import GenerationMethods
from interp.compat.transformer_lens.hook_methods import Hook, Side
from interp.compat.transformer_lens.hook_points import HookPoint, NamesFilter
from interp.compat.transformer_lens.key_value_cache import TransformerLensKeyValueCache
from interp.compat.transformer_lens.named_cache import ActivationCache
from interp.compat.transformer_lens.named_parts import Part, modules_by_name
from interp.compat.transformer_lens.points import Point, Points
from interp.compat.transformer_lens.slices import Slice, SliceInput
from interp.compat.transformer_lens.token_methods import TokenMethods
from interp.compat.transformer_lens.utils import lm_cross_entropy_loss
from interp.compat.transformer_lens.weight_processing import Processing, processed
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.model.places import ModulePlace
from interp.model.visits import Visit, run_visiting

__all__ = ["TransformerBridge"]

# Families whose scores and pattern are only there under eager attention.
_EAGER = ("falcon",)
_RETURN_TYPES = ("logits", "loss", "both", None)


class TransformerBridge(CachingMethods, TokenMethods, GenerationMethods, WeightMethods, nn.Module):
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
        no_heads = (
            {} if model.num_heads else {"d_head": model.hidden_size, "n_heads": 1}
        )  # as TransformerLens has Mamba
        self.cfg = TransformerBridgeConfig.from_model(model, **no_heads)
        self.context_level, self.is_caching = 0, False
        self._window: tuple[int, int] | None = None
        self._is_processed = False
        self._last_tokens: Tensor | None = None  # of the last pass, where the tokens are all that it was given
        self._hook_points: dict[str, HookPoint] = {}
        self._find_points()

    def _find_points(self) -> None:
        """Take the points of the model as it is now."""
        self._points_of = Points.of(self.standardized)
        self.hook_dict = {}
        for point in self._points_of.all:
            hook_point = self._hook_points.setdefault(point.name, HookPoint())
            hook_point.name, hook_point.pos_dim = point.name, point.position_axis
            self.hook_dict |= dict.fromkeys(point.names, hook_point)
        self.mod_dict = {**modules_by_name(self.standardized, self._points_of.all), **self.hook_dict}

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

    # The forward pass -------------------------------------------------------------------------------------------------

    def forward(
        self,
        input: str | list[str] | Tensor,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: TransformerLensKeyValueCache | None = None,
    ) -> Any:
        """Run the model; its hooks act.

        Arguments:
            input: a text, texts, token ids (position,) or (batch, position); with `start_at_layer` the residual stream
                (batch, position, d_model) that enters that layer.
            return_type: "logits" (batch, position, d_vocab), "loss" (the mean over tokens of the next token's negative
                log-probability), "both", or None: nothing.
            loss_per_token: the loss as (batch, position - 1).
            prepend_bos, padding_side: of texts, as in `to_tokens`. Shorter texts are masked.
            attention_mask: (batch, position), 0 at padding, of the tokens that are given; None: all are seen.
            position_ids: (batch, position); None: each row's tokens are counted, without its padding.
            start_at_layer: the layer that the input enters; counted from the end where negative.
            stop_at_layer: end before this layer, and return the residual stream that enters it; the number of layers:
                run on to the logits. Counted from the end where negative.
            past_kv_cache: keys and values of a prefix, which the input goes on from. They are appended to, unless the
                cache is frozen. A frozen one of one row serves any batch.

        Raises:
            InterpError: no such return type or layer, ids or positions that the model does not have, a loss without
                tokens, or an unfrozen cache in a pass that does not reach all layers.
        """
        if return_type not in _RETURN_TYPES:
            known = ", ".join(map(repr, _RETURN_TYPES))
            raise InterpError(f"return_type: expected one of {known}, got {return_type!r}.")
        window = self._layers(start_at_layer, stop_at_layer)
        tokens, inputs, residual = self._inputs(input, start_at_layer, prepend_bos, padding_side)
        if attention_mask is None:
            attention_mask = inputs.pop("attention_mask", None)
        mask = attention_mask
        if past_kv_cache is not None:
            fed = residual if tokens is None else tokens
            assert fed is not None
            own = torch.ones(fed.shape[:2], dtype=torch.int) if mask is None else mask  # of what is fed alone
            mask = self._go_on(past_kv_cache, own, inputs, window)
        self._place_tokens(inputs, mask, position_ids)
        plain = past_kv_cache is None and mask is None and position_ids is None
        self._last_tokens = tokens if plain else None
        output = self._pass(inputs, window, residual)
        if window[1] < self.cfg.n_layers:
            return output
        if past_kv_cache is not None:
            past_kv_cache.append_from(inputs["past_key_values"], own)
        logits = output.logits
        if return_type in (None, "logits"):
            return None if return_type is None else logits
        if tokens is None:
            raise InterpError(
                f"return_type={return_type!r}: a residual stream has no tokens to predict. Ask for logits."
            )
        loss = lm_cross_entropy_loss(logits, tokens, attention_mask, loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def _layers(self, start: int | None, stop: int | None) -> tuple[int, int]:
        """The first layer that runs, and the one before which it ends."""
        count = self.cfg.n_layers
        first = 0 if start is None else start + count if start < 0 else start
        last = count if stop is None else stop + count if stop < 0 else stop
        if not 0 <= first < count:
            raise InterpError(f"start_at_layer: the model has {count} layers, from 0; got {start}.")
        if not first <= last <= count:
            raise InterpError(f"stop_at_layer: expected {first} to {count}, got {stop}.")
        return first, last

    def _inputs(
        self, given: Any, start: int | None, prepend_bos: bool | None, padding_side: str | None
    ) -> tuple[Tensor | None, dict[str, Any], Tensor | None]:
        """Tokens, what the model is given of them, and the residual stream where that is given."""
        if start is not None:
            if not isinstance(given, Tensor) or not given.is_floating_point() or given.shape[-1] != self.cfg.d_model:
                raise InterpError(
                    f"start_at_layer: expected the residual stream (batch, position, {self.cfg.d_model}), got "
                    f"{tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__}."
                )
            residual = (given if given.dim() == 3 else given[None]).to(self.standardized.device)
            return None, {"inputs_embeds": residual}, residual
        if isinstance(given, str | list):
            tokens, mask = self._encode(given, prepend_bos, padding_side)
            inputs = {"input_ids": tokens}
            return tokens, inputs if bool(mask.all()) else {**inputs, "attention_mask": mask}, None
        if not isinstance(given, Tensor) or given.is_floating_point() or given.dim() not in (1, 2):
            raise InterpError(
                "expected a text, texts, or token ids (position,) or (batch, position); got "
                f"{given.dtype if isinstance(given, Tensor) else type(given).__name__}"
                f"{f' {tuple(given.shape)}' if isinstance(given, Tensor) else ''}. A residual stream needs "
                "start_at_layer."
            )
        tokens = (given if given.dim() == 2 else given[None]).to(self.standardized.device)
        return tokens, {"input_ids": tokens}, None

    def _go_on(
        self,
        past: TransformerLensKeyValueCache,
        attention_mask: Tensor,
        inputs: dict[str, Any],
        window: tuple[int, int],
    ) -> Tensor | None:
        """Give the model a prefix; the mask of prefix and input together, None where nothing is masked."""
        if not isinstance(past, TransformerLensKeyValueCache):
            raise InterpError(
                f"past_kv_cache: expected a TransformerLensKeyValueCache, got {type(past).__name__}. "
                "TransformerLensKeyValueCache.init_cache(model.cfg, device, batch_size) makes one."
            )
        if not past.frozen and window != (0, self.cfg.n_layers):
            raise InterpError(
                "past_kv_cache: a pass that does not run all layers leaves the cache without keys of some. Freeze it, "
                "or leave start_at_layer and stop_at_layer out."
            )
        inputs["past_key_values"], inputs["use_cache"] = past.to_transformers(len(attention_mask)), True
        mask = past.extended_attention_mask(attention_mask)
        return None if bool(mask.all()) else mask

    def _place_tokens(self, inputs: dict[str, Any], mask: Tensor | None, position_ids: Tensor | None) -> None:
        """Mask and positions, as the model takes them."""
        inputs.setdefault("use_cache", False)
        if mask is not None:
            inputs["attention_mask"] = mask.to(self.standardized.device)
        if position_ids is None and mask is not None and mask.dim() == 2 and self.standardized.takes_position_ids:
            fed = inputs.get("input_ids", inputs.get("inputs_embeds"))
            assert fed is not None
            position_ids = (inputs["attention_mask"].long().cumsum(1) - 1).clamp(min=0)[:, -fed.shape[1] :]
        if position_ids is not None:
            inputs["position_ids"] = position_ids.to(self.standardized.device)

    def _pass(self, inputs: dict[str, Any], window: tuple[int, int], residual: Tensor | None) -> Any:
        """One pass through the model with the hooks that are there; the residual stream where it ends early."""
        model, visits = self.standardized, []
        if residual is not None:
            entry = ModulePlace(model.layer(window[0]), "input", "start_at_layer")
            visits.append(Visit("start_at_layer", entry, lambda _: residual))
        visits += self._visits(window)
        if window[1] == self.cfg.n_layers:
            return run_visiting(model, visits, **inputs)
        kept: list[Tensor] = []
        end = ModulePlace(model.layer(window[1]), "input", "stop_at_layer")
        visits.append(Visit("stop_at_layer", end, lambda value: kept.append(value.clone())))
        run_visiting(model, visits, stop=True, **inputs)
        return kept[0]

    def _visits(self, window: tuple[int, int], *, every_step: bool = False) -> list[Visit]:
        """A visit at each point that has a hook."""
        visits = []
        for point in self._points_of.all:
            hook_point = self._hook_points[point.name]
            if hook_point.has_hooks() and self._is_open(point) and _inside(point, window, self.cfg.n_layers):
                name = hook_point.name or point.name
                visits.append(Visit(name, point.place, partial(_through, hook_point), every_step))
        return visits

    def _is_open(self, point: Point) -> bool:
        return point.gate is None or bool(getattr(self.cfg, point.gate))

    # Hooks and caches -------------------------------------------------------------------------------------------------

    def run_with_cache(  # type: ignore[override]  # its cache is an object where it is not told otherwise
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

    def run_with_hooks(self, *model_args: Any, **kwargs: Any) -> Any:
        """Run the model with hooks that are there for this run only; arguments as of a `HookedRootModule`'s.

        `start_at_layer`, `stop_at_layer`, `past_kv_cache` and whatever else the model is called with are taken too.
        """
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
        found = self._points_of.by_name[name]
        window = self._window
        return self._is_open(found) and (window is None or _inside(found, window, self.cfg.n_layers))

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
        found = self._points_of.by_name[hook_point_name]
        if not self._is_open(found):
            raise InterpError(
                f"{hook_point_name} is off, since it takes much memory. Switch it on: model.set_{found.gate}(True)."
            )
        if self._window is not None and not _inside(found, self._window, self.cfg.n_layers):
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
            raise self._points_of.refuse(name)

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
        self.standardized = processed(self.standardized, self._points_of, what)
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
            raise


def _through(hook_point: HookPoint, value: Tensor) -> Tensor | None:
    """Let a live value go through a hook point; None: nothing has changed it."""
    if not hook_point.bwd_hooks and all(_keeps(handle.user_hook) for handle in hook_point.fwd_hooks):
        hook_point(value)
        return None
    new: Tensor = hook_point(value.clone())  # a hook may change what it is given in place
    connected = torch.is_grad_enabled() and isinstance(new, Tensor) and new.requires_grad
    return None if not connected and isinstance(new, Tensor) and torch.equal(new, value) else new


def _keeps(hook: Any) -> bool:
    """Whether a hook is one of a cache's, which change nothing."""
    return isinstance(hook, partial) and getattr(hook.func, "__func__", None) is CachingMethods._save


def _inside(point: Point, window: tuple[int, int], count: int) -> bool:
    """Whether a pass from a layer to before another reaches a point."""
    first, last = window
    parts = point.name.split(".")
    if parts[0] != "blocks":
        return last == count if parts[0] in ("ln_final", "unembed") else first == 0
    layer = int(parts[1])
    return first <= layer < last or (layer == last and parts[2:] == ["hook_in"])


def _model_type(source: str | Path, trust_remote_code: bool, revision: str | None) -> str | None:
    """The family of a model, by its config; None: what loads it says why there is none."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError):
        return None
    return str(config.get_text_config().model_type)
