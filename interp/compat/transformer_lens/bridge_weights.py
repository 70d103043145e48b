"""A model's weights in TransformerLens's names and shapes, read off the maps of whatever family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.compat.transformer_lens.named_points import NoSuchName
from interp.errors import nearest
from interp.model.layer_parts import Projection
from interp.model.model_spec.lookups import is_matrix
from interp.model.resolve import head_out_place, sublayer_of, why_missing
from interp.sites import Site

__all__ = ["WeightMethods", "is_plain"]

_OF_LAYERS = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "W_gate", "W_out", "b_in", "b_out")
_PLAIN_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_OF_HEADS = {"Q": "q", "K": "k", "V": "v"}
_OF_NEURONS = {"in": "in", "gate": "gate"}


class WeightMethods:
    """Weights of a bridge.

    | name | shape |
    |---|---|
    | `W_E`, `W_pos`, `W_U`, `b_U` | d_vocab d_model; n_ctx d_model; d_model d_vocab; d_vocab |
    | `W_Q`, `W_K`, `W_V`; `b_Q`, ... | layer head d_model d_head; layer head d_head. Keys and values: kv heads |
    | `W_O`; `b_O` | layer head d_head d_model; layer d_model |
    | `W_in`, `W_gate`; `W_out` | layer d_model d_mlp; layer d_mlp d_model |
    | `b_in`; `b_out` | layer d_mlp; layer d_model |

    Of one layer: `model.blocks[0].attn.W_Q`, `model.blocks[0].mlp.W_in`. Where a layer has no bias it is zero.
    """

    standardized: Any
    cfg: Any
    hook_dict: Any
    points: Any

    @property
    def W_E(self) -> Tensor:
        """The token embedding, (d_vocab, d_model)."""
        weight: Tensor = self.standardized.get(self.standardized.architecture.embedding)._module.weight
        return weight

    @property
    def W_pos(self) -> Tensor:
        """The embedding of positions, (n_ctx, d_model)."""
        point = self.points.by_name.get("hook_pos_embed")
        table = None if point is None else point.place.envoy._module
        if not isinstance(table, nn.Embedding):
            raise self.points.refuse("hook_pos_embed")
        return table.weight[int(getattr(table, "offset", 0)) :]

    @property
    def W_U(self) -> Tensor:
        """The head, (d_model, d_vocab)."""
        return self._head()[0]

    @property
    def b_U(self) -> Tensor:
        """The head's bias, (d_vocab,)."""
        weight, bias = self._head()
        return weight.new_zeros(weight.shape[1]) if bias is None else bias

    def _head(self) -> tuple[Tensor, Tensor | None]:
        return _matrix(self.standardized.get(self.standardized.tail.paths[-1])._module, "the head")

    def weight_of(self, name: str, part: str) -> Tensor:
        """A weight of one part: `W_Q` of `blocks.0.attn`, `W_in` of `blocks.0.mlp`.

        Raises:
            InterpError: that part has no such weight, or no plain matrix (quantized, experts).
        """
        pieces = part.split(".")
        if name in ("W_E", "W_pos", "W_U", "b_U") and part in ("embed", "pos_embed", "unembed"):
            value: Tensor = getattr(self, name)
            return value
        if pieces[0] != "blocks" or name not in _OF_LAYERS:
            raise NoSuchName(f"{part} has no weight {name!r}.{nearest(name, _OF_LAYERS)}")
        layer = int(pieces[1])
        kind = name[2:]
        if kind in _OF_HEADS:
            return self._of_heads(layer, name, _OF_HEADS[kind])
        if kind in _OF_NEURONS:
            parts = self.points.parts[layer]
            projection = parts.mlp.get(_OF_NEURONS[kind])
            if projection is None:
                raise NoSuchName(f"layer {layer} has no {name}: {parts.no_mlp or 'its MLP has no gate.'}")
            weight, bias = self._columns(layer, projection)
            return weight if name[0] == "W" else bias
        return self._outwards(layer, name)

    def _of_heads(self, layer: int, name: str, kind: str) -> Tensor:
        parts = self.points.parts[layer]
        projection = parts.heads.get(kind)
        if projection is None:
            raise NoSuchName(f"layer {layer} has no {name}: {parts.no_heads}")
        weight, bias = self._columns(layer, projection)
        if name[0] == "b":
            return bias.unflatten(-1, (projection.heads, -1))
        return weight.unflatten(-1, (projection.heads, -1)).transpose(0, 1)

    def _columns(self, layer: int, projection: Projection) -> tuple[Tensor, Tensor]:
        """Matrix (in, out) and bias of what a projection is of a map."""
        module = self.standardized.layer(layer)._module.get_submodule(projection.path)
        weight, bias = _matrix(module, f"{projection.path} of layer {layer}")
        if bias is None:
            bias = weight.new_zeros(weight.shape[1])
        if projection.columns is None:
            return weight, bias
        columns = projection.columns.to(weight.device)
        return weight[:, columns], bias[columns]

    def _outwards(self, layer: int, name: str) -> Tensor:
        """The map back into the residual stream."""
        site = Site("z" if name[2:] == "O" else "mlp_post", layer)
        reason = why_missing(self.standardized, site)
        if reason is not None:
            raise NoSuchName(f"layer {layer} has no {name}: {reason}")
        sublayer = sublayer_of(self.standardized, "attention" if name[2:] == "O" else "mlp", layer)
        assert sublayer is not None
        module = self.standardized.layer(layer)._module.get_submodule(str(sublayer.projection))
        weight, bias = _matrix(module, f"{sublayer.projection} of layer {layer}")
        if name[0] == "b":
            return weight.new_zeros(weight.shape[1]) if bias is None else bias
        if name == "W_out":
            return weight
        heads = head_out_place(self.standardized, layer, name).z.num_heads
        return weight.unflatten(0, (heads, -1))

    def stacked(self, name: str) -> Tensor:
        """A weight of all layers, stacked: `model.W_Q`.

        Raises:
            InterpError: a layer has none.
        """
        part = "mlp" if name[2:] in ("in", "gate", "out") else "attn"
        return torch.stack([self.weight_of(name, f"blocks.{layer}.{part}") for layer in range(self.cfg.n_layers)])

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Tensor:
        """Columns of the head: the directions in the residual stream that raise the logits of tokens.

        Arguments:
            tokens: a text of one token, an id, or ids of any shape.

        Returns:
            (*shape of the ids, d_model).
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)  # type: ignore[attr-defined]
        ids = torch.as_tensor(tokens, device=self.W_U.device)
        return self.W_U.T[ids]

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Tensor:
        """What the biases of attention and MLPs before a layer add to the residual stream.

        Arguments:
            layer: the layer; the number of layers: all of them.
            mlp_input: also attention's of that layer.
            include_mlp_biases: False leaves out those of the MLPs.

        Returns:
            (d_model,).
        """
        total = torch.zeros(self.cfg.d_model, dtype=self.standardized.dtype, device=self.standardized.device)
        for index in range(layer + int(mlp_input)):
            names = [("b_O", "attn", "o")] + [("b_out", "mlp", "out")] * (include_mlp_biases and index < layer)
            for name, part, projection in names:
                if f"blocks.{index}.{part}.{projection}.hook_out" in self.hook_dict:  # experts have no bias in common
                    total = total + self.weight_of(name, f"blocks.{index}.{part}").to(total)
        return total


for _name in _OF_LAYERS:

    def _get(self: WeightMethods, name: str = _name) -> Tensor:
        return self.stacked(name)

    setattr(WeightMethods, _name, property(_get, doc=f"`{_name}` of all layers, stacked; see `WeightMethods`."))


def is_plain(module: Any) -> bool:
    """Whether a module is a matrix of plain numbers, also in a class of the family's own (Falcon's)."""
    if is_matrix(module):
        return True
    hooked = getattr(module, "_forward_hooks", None) or getattr(module, "_forward_pre_hooks", None)
    return isinstance(module, nn.Linear) and not hooked and module.weight.dtype in _PLAIN_DTYPES


def _matrix(module: Any, what: str) -> tuple[Tensor, Tensor | None]:
    """Weight (in, out) and bias of a linear map.

    Raises:
        InterpError: it is more than a matrix of plain numbers.
    """
    if not is_plain(module):
        raise NoSuchName(f"{what} is a {type(module).__name__}, and no plain matrix (quantized, adapted or hooked).")
    weight = module.weight if isinstance(module, Conv1D) else module.weight.T
    return weight, getattr(module, "bias", None)
