"""The bridge's forward pass: what it is given, the prefix that it goes on from, the visits at its hook points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from interp.compat.transformer_lens.caching_methods import CachingMethods
from interp.compat.transformer_lens.hook_points import HookPoint
from interp.compat.transformer_lens.key_value_cache import TransformerLensKeyValueCache
from interp.compat.transformer_lens.named_points import Point, Points
from interp.compat.transformer_lens.utils import lm_cross_entropy_loss
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.model.places import ModulePlace, Place
from interp.model.verdicts import sample_ids
from interp.model.visits import Visit, run_visiting

__all__ = ["ForwardMethods", "is_inside"]

_FEW = 8  # caches of so many points are served by a worker each
_RETURN_TYPES = ("logits", "loss", "both", "logits_and_cache", None)


class ForwardMethods:
    """How a bridge is called."""

    standardized: StandardizedTransformer
    cfg: Any
    points: Points
    _hook_points: dict[str, HookPoint]
    _found_order: dict[str, int] | None = None  # of the points that are there now; empty: there is none
    _encode: Callable[..., tuple[Tensor, Tensor]]  # of `TokenMethods`
    _last_tokens: Tensor | None = None  # of the last pass, where the tokens are all that it was given

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
        past_key_values: Any = None,
    ) -> Any:
        """Run the model; its hooks act.

        Arguments:
            input: a text, texts, token ids (position,) or (batch, position); with `start_at_layer` the residual stream
                (batch, position, d_model) that enters that layer.
            return_type: "logits" (batch, position, d_vocab), "loss" (the mean over tokens of the next token's negative
                log-probability), "both", None: nothing; or "logits_and_cache": also transformers' cache, to go on
                from by `past_key_values`.
            loss_per_token: the loss as (batch, position - 1).
            prepend_bos, padding_side: of texts, as in `to_tokens`. Shorter texts are masked.
            attention_mask: (batch, position), 0 at padding, of the tokens that are given; None: all are seen.
            position_ids: (batch, position); None: each row's tokens are counted, without its padding.
            start_at_layer: the layer that the input enters; counted from the end where negative.
            stop_at_layer: end before this layer, and return the residual stream that enters it; the number of layers:
                run on to the logits. Counted from the end where negative.
            past_kv_cache: keys and values of a prefix, which the input goes on from. They are appended to, unless the
                cache is frozen. A frozen one of one row serves any batch.
            past_key_values: transformers' cache of a prefix, which is appended to. A mask is then of all positions.

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
        if past_key_values is not None:
            if past_kv_cache is not None:
                raise InterpError("past_kv_cache and past_key_values: expected one of them.")
            inputs["past_key_values"], inputs["use_cache"] = past_key_values, True
        if return_type == "logits_and_cache":
            inputs["use_cache"] = True
        self._place_tokens(inputs, mask, position_ids)
        plain = position_ids is None and mask is None and past_kv_cache is None and past_key_values is None
        self._last_tokens = tokens if plain else None
        output = self._pass(inputs, window, residual)
        if window[1] < self.cfg.n_layers:
            return output
        if past_kv_cache is not None:
            past_kv_cache.append_from(inputs["past_key_values"], own)
        logits = output.logits
        if return_type in (None, "logits"):
            return None if return_type is None else logits
        if return_type == "logits_and_cache":
            return logits, output.past_key_values
        if tokens is None:
            raise InterpError(
                f"return_type={return_type!r}: a residual stream has no tokens to predict. Ask for logits."
            )
        seen = None if attention_mask is None else attention_mask[:, -tokens.shape[1] :].to(tokens.device)
        loss = lm_cross_entropy_loss(logits, tokens, seen, loss_per_token)
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
        """A visit at each point that has a hook; hooks of caches alone are served by one worker, where that can be."""
        visits, kept = [], []
        for point in self.points.all:
            hook_point = self._hook_points[point.name]
            reached = self._is_open(point) and is_inside(point, window, self.cfg.n_layers)
            if not reached or not hook_point.has_hooks():
                continue
            if not every_step and point.gate is None and _only_keeps(hook_point):
                kept.append(point)
            else:
                visits.append(Visit(str(hook_point.name), point.place, partial(_through, hook_point), every_step))
        order = self._order() if len(kept) > _FEW else None
        if order is None:
            return visits + [Visit(one.name, one.place, partial(_through, self._hook_points[one.name])) for one in kept]
        kept.sort(key=lambda point: order[point.name])
        places = _InOrder([(point.name, point.place, self._hook_points[point.name]) for point in kept])
        return [*visits, Visit("a cache", places, lambda _: None)]

    @torch.no_grad()
    def _order(self) -> dict[str, int] | None:
        """Point -> its place in the order of a pass; None where one worker, which asks late, cannot read them all.

        Found out by a small pass with a worker for each, and one with one for all.
        """
        if self._found_order is None:
            model = self.standardized
            inputs: dict[str, Any] = {"input_ids": sample_ids(model), "use_cache": False}
            apart: dict[str, Tensor] = {}
            together: dict[str, Tensor] = {}
            points = [point for point in self.points.all if point.gate is None]
            run_visiting(model, [Visit(one.name, one.place, _keeper(apart, one.name)) for one in points], **inputs)
            by_name = {point.name: point for point in points}
            asked = _InOrder([(name, by_name[name].place, _keeper(together, name)) for name in apart])
            try:
                run_visiting(model, [Visit("a cache", asked, lambda _: None)], **inputs)
                fits = all(torch.equal(apart[name], together[name]) for name in apart)
            except (ValueError, RuntimeError, AttributeError):
                fits = False  # attention whose parts have to be asked for before anything inside it (MPT)
            self._found_order = {name: index for index, name in enumerate(apart)} if fits else {}
        return self._found_order or None

    def _is_open(self, point: Point) -> bool:
        return point.gate is None or bool(getattr(self.cfg, point.gate))


def _through(hook_point: HookPoint, value: Tensor) -> Tensor | None:
    """Let a live value go through a hook point; None: nothing has changed it."""
    if _only_keeps(hook_point):
        hook_point(value)
        return None
    new: Tensor = hook_point(value.clone())  # a hook may change what it is given in place
    connected = torch.is_grad_enabled() and isinstance(new, Tensor) and new.requires_grad
    return None if not connected and isinstance(new, Tensor) and torch.equal(new, value) else new


def _only_keeps(hook_point: HookPoint) -> bool:
    """Whether all that is hooked to a point are caches."""
    return not hook_point.bwd_hooks and all(_keeps(handle.user_hook) for handle in hook_point.fwd_hooks)


def _keeper(values: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def keep(value: Tensor) -> None:
        values[name] = value.clone()

    return keep


@dataclass(frozen=True)
class _InOrder:
    """Places that one worker reads, one after the other, in the order in which a pass comes to them.

    Arguments:
        places: each with its name before it, and what is called with its value behind it.
    """

    places: Sequence[tuple[str, Place, Callable[[Tensor], Any]]]

    def read(self) -> Tensor:
        for name, place, call in self.places:
            try:
                value = place.read()
            except OutOfOrderError:
                raise InterpError(f"{name}: the forward pass did not reach it, or was past it already.") from None
            call(value)
        return value

    def write(self, value: Tensor) -> None:
        raise InterpError("what is kept is not written.")


def _keeps(hook: Any) -> bool:
    """Whether a hook is one of a cache's, which change nothing."""
    return isinstance(hook, partial) and getattr(hook.func, "__func__", None) is CachingMethods._save


def is_inside(point: Point, window: tuple[int, int], count: int) -> bool:
    """Whether a pass from a layer to before another reaches a point."""
    first, last = window
    parts = point.name.split(".")
    if parts[0] != "blocks":
        return last == count if parts[0] in ("ln_final", "unembed") else first == 0
    layer = int(parts[1])
    return first <= layer < last or (layer == last and parts[2:] == ["hook_in"])
