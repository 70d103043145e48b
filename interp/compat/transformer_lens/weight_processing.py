"""TransformerLens's weight processing: norms folded, what writes to the residual stream centred, value biases folded.

Log-probabilities stay the same, activations do not: norms only normalize, so that a column of the head is a direction
in what they give. It is done on a copy of the model, and proved on a few tokens.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.compat.transformer_lens.bridge_weights import is_plain
from interp.compat.transformer_lens.named_points import Points
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.model.layer_parts import LayerParts, Projection
from interp.model.model_spec.attention_spec import is_norm
from interp.model.model_spec.lookups import widths
from interp.model.places_inside import norm_kind, norm_weights
from interp.model.resolve import head_out_place, sublayer_of
from interp.model.verdicts import sample_ids

__all__ = ["Processing", "processed"]


@dataclass(frozen=True)
class Processing:
    """What is done.

    Arguments:
        fold_ln: weights and biases of norms go into the maps behind them.
        center_writing_weights: what writes to the residual stream has mean zero, in models whose norms subtract it.
        center_unembed: logits have mean zero, in models that do not cap them.
        fold_value_biases: biases of values go into that of attention's output.
    """

    fold_ln: bool = True
    center_writing_weights: bool = True
    center_unembed: bool = True
    fold_value_biases: bool = True


@torch.no_grad()
def processed(model: StandardizedTransformer, points: Points, what: Processing) -> StandardizedTransformer:
    """A copy of a model with its weights processed.

    Arguments:
        model: the model, which stays as it is.
        points: of it.
        what: what is done.

    Raises:
        InterpError: a family for which it does not hold (experts, norms behind sublayers of layer norm models, maps
            that are not plain matrices, ...), with the reason.
    """
    module = copy.deepcopy(model._module)
    own = StandardizedTransformer(module, tokenizer=model.tokenizer, verify=False)
    work = _Work(own, points.parts)
    work.untie()
    if what.fold_ln:
        work.fold_norms()
    if what.center_writing_weights and work.centred:
        work.centre_writers()
    if what.center_unembed and own.tail.softcap is None:
        work.centre_head()
    if what.fold_value_biases:
        work.fold_value_biases()
    _prove(model, own)
    return own


def _prove(model: StandardizedTransformer, own: StandardizedTransformer) -> None:
    """Log-probabilities are the same.

    Raises:
        InterpError: they are not.
    """
    ids = sample_ids(model)
    before, after = (each._module(ids, use_cache=False).logits.float().log_softmax(-1) for each in (model, own))
    off = float((before - after).abs().max())
    if off > 1e-3 + 64 * torch.finfo(model.dtype).eps:
        raise InterpError(
            f"enable_compatibility_mode: {type(model._module).__name__} computes something else with its weights "
            f"folded and centred (log-probabilities are off by {off:.2g}). Leave steps out (fold_ln=False, "
            "center_writing_weights=False, ...), or use the model as it is."
        )


class _Work:
    """A copy whose weights are changed.

    Arguments:
        model: the copy.
        parts: what stands inside its layers.
    """

    def __init__(self, model: StandardizedTransformer, parts: list[LayerParts]) -> None:
        self.model, self.parts = model, parts
        path = model.architecture.final_norm
        self.final = None if path is None else model._module.get_submodule(path)
        kind = None if self.final is None else _kind(model, self.final)
        self.centred = kind is not None and kind[0]

    def untie(self) -> None:
        """The head gets weights of its own."""
        head = self._head()
        head.weight = nn.Parameter(head.weight.detach().clone())
        for config in (self.model._module.config, self.model._module.config.get_text_config()):
            config.tie_word_embeddings = False

    def fold_norms(self) -> None:
        """Fold the norms before attention, before MLPs and at the end."""
        for index, parts in enumerate(self.parts):
            layer = self.model.layer(index)._module
            readers: dict[str, set[str]] = {}
            if "ln1" in parts.norms:
                readers.setdefault(parts.norms["ln1"], set()).update(self._into_attention(index, parts))
            before_mlp = parts.norms.get("ln2")
            if before_mlp is None and self.model.parallel:
                before_mlp = parts.norms.get("ln1")  # one norm before both
            if before_mlp is not None:
                readers.setdefault(before_mlp, set()).update(self._into_mlp(index, parts))
            for path, maps in readers.items():
                self._fold(layer.get_submodule(path), [layer.get_submodule(each) for each in sorted(maps)])
        if self.final is not None:
            if self.model.architecture.final_norm_runs_early or len(self.model.tail.paths) != 2:
                raise self._refused("its last norm is read by more than the head")
            self._fold(self.final, [self._head()])

    def _into_attention(self, index: int, parts: LayerParts) -> set[str]:
        sublayer = sublayer_of(self.model, "attention", index)
        if sublayer is None or len(parts.heads) != 3:
            raise self._refused(parts.no_heads or f"layer {index} has no attention")
        return self._maps(index, sublayer.module, sublayer.projection, parts.heads)

    def _into_mlp(self, index: int, parts: LayerParts) -> set[str]:
        sublayer = sublayer_of(self.model, "mlp", index)
        if sublayer is None or not parts.mlp:
            raise self._refused(parts.no_mlp)
        holder = str(sublayer.projection).rpartition(".")[0] or sublayer.module
        return self._maps(index, holder, sublayer.projection, parts.mlp)

    def _maps(self, index: int, holder: str, out: str | None, known: dict[str, Projection]) -> set[str]:
        """The maps that read a norm's output: those that are known, if there is no other."""
        layer = self.model.layer(index)._module
        found = {each.path for each in known.values()}
        others = {
            f"{holder}.{path}"
            for path, part in layer.get_submodule(holder).named_modules()
            if path and widths(part) is not None
        } - {out, *found}
        if others:
            raise self._refused(f"{', '.join(sorted(others))} of layer {index} reads the norm's output too")
        return found

    def _fold(self, norm: Any, maps: list[Any]) -> None:
        """Put a norm's weight and bias into the maps behind it."""
        kind = _kind(self.model, norm)
        if kind is None:
            raise self._refused(f"{type(norm).__name__} is neither a layer norm nor an RMS norm")
        parameters = dict(norm.named_parameters(recurse=False))
        if not parameters:
            return
        weight, bias = norm_weights(norm, *kind, parameters["weight"])
        for each in maps:
            matrix = self._matrix(each)
            self._add_bias(each, (bias @ matrix.float()))
            folded = weight[:, None] * matrix.float()
            # What a layer norm gives has mean zero, so that a map's mean over its input does nothing.
            matrix.copy_(folded - folded.mean(0) if kind[0] else folded)
        own = parameters["weight"]
        shifted = float((weight - own.float()).abs().mean()) > float((weight - 1 - own.float()).abs().mean())
        own.fill_(0.0 if shifted else 1.0)
        if "bias" in parameters:
            parameters["bias"].zero_()

    def centre_writers(self) -> None:
        """What writes to the residual stream has mean zero over it."""
        tables = [self.model._module.get_submodule(self.model.architecture.embedding)]
        root = self.model._module.get_submodule(self.model.architecture.layers.rpartition(".")[0])
        tables += [part for part in root.children() if isinstance(part, nn.Embedding) and part not in tables]
        if not any(is_norm(part) and part is not self.final for part in root.children()):  # a norm behind the embedding
            for table in tables:
                table.weight.sub_(table.weight.mean(-1, keepdim=True))
        for index in range(self.model.num_layers):
            for role in ("attention", "mlp"):
                sublayer = sublayer_of(self.model, role, index)
                if sublayer is None:
                    continue
                path = sublayer.projection
                if path is None or sublayer.sources[0] not in (sublayer.module, path):
                    raise self._refused(f"{role} of layer {index} does not write to the residual stream by one map")
                module = self.model.layer(index)._module.get_submodule(path)
                matrix = self._matrix(module)
                matrix.sub_(matrix.mean(-1, keepdim=True))
                if module.bias is not None:
                    module.bias.sub_(module.bias.mean())

    def centre_head(self) -> None:
        """Logits have mean zero."""
        matrix = self._matrix(self._head())
        matrix.sub_(matrix.mean(-1, keepdim=True))
        bias = self._head().bias
        if bias is not None:
            bias.sub_(bias.mean())

    def fold_value_biases(self) -> None:
        """Biases of values, which patterns that sum to one hand on as they are, go into the bias behind the heads."""
        if self.model.spec.attention_sinks:
            raise self._refused("with attention sinks, patterns do not sum to one. Pass fold_value_biases=False")
        for index, parts in enumerate(self.parts):
            value = parts.heads.get("v")
            if value is None:
                continue
            layer = self.model.layer(index)._module
            projection = layer.get_submodule(value.path)
            if getattr(projection, "bias", None) is None:
                continue
            sublayer = sublayer_of(self.model, "attention", index)
            assert sublayer is not None and value.heads is not None
            columns = slice(None) if value.columns is None else value.columns.to(projection.bias.device)
            heads = head_out_place(self.model, index, "z").z.num_heads
            bias = projection.bias[columns].unflatten(0, (value.heads, -1)).repeat_interleave(heads // value.heads, 0)
            out = layer.get_submodule(str(sublayer.projection))
            self._add_bias(out, bias.flatten().float() @ self._matrix(out).float())
            projection.bias[columns] = 0.0

    def _head(self) -> Any:
        return self.model._module.get_submodule(self.model.tail.paths[-1])

    def _matrix(self, module: Any) -> Tensor:
        """The matrix of a map, (in, out), as a view."""
        if not is_plain(module):
            raise self._refused(f"a {type(module).__name__} is no plain matrix")
        weight: Tensor = module.weight.data
        return weight if isinstance(module, Conv1D) else weight.T

    def _add_bias(self, module: Any, bias: Tensor) -> None:
        """Add to a map's bias; it gets one where it has none and is to have one."""
        if getattr(module, "bias", None) is not None:
            module.bias.add_(bias.to(module.bias))
        elif bool(bias.abs().max() > 0):
            module.bias = nn.Parameter(bias.to(module.weight))

    def _refused(self, reason: str) -> InterpError:
        name = type(self.model._module).__name__
        return InterpError(f"enable_compatibility_mode: not for {name}: {reason.rstrip('.')}.")


def _kind(model: StandardizedTransformer, norm: Any) -> tuple[bool, float] | None:
    weight = getattr(norm, "weight", None)
    width = model.hidden_size if weight is None else weight.shape[-1]
    return norm_kind(norm, width, device=model.device, dtype=model.dtype)
