"""Finds the parts of a model by name, standardized or not, by the record of its family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from interp.architectures import Architecture
from interp.compat.nnterp.rename_utils import get_hidden_size, record_of, renamed_nnsight, text_config
from interp.compat.nnterp.utils import RenamingError
from interp.errors import InterpError
from interp.model import StandardizedTransformer as _Base
from interp.model import interventions
from interp.model.accessors import LayerValues
from interp.model.head import Tail
from interp.model.places import ModulePlace

__all__ = [
    "GetModuleOutput",
    "ModuleAccessor",
    "get_attention",
    "get_attention_output",
    "get_embed_tokens",
    "get_layer",
    "get_layer_input",
    "get_layer_output",
    "get_layers",
    "get_logits",
    "get_mlp",
    "get_mlp_output",
    "get_next_token_probs",
    "get_num_layers",
    "get_unembed",
    "get_unembed_norm",
    "project_on_vocab",
    "set_layer_output",
    "skip_layer",
    "skip_layers",
]

GetModuleOutput = Callable[[Any, int], Tensor]


def architecture_of(nn_model: Any) -> Architecture:
    """The record of a model, looked up once."""
    if isinstance(nn_model, _Base):
        return nn_model.architecture
    if "_record" not in nn_model.__dict__:
        nn_model.__dict__["_record"] = record_of(nn_model._module)
    record: Architecture = nn_model.__dict__["_record"]
    return record


def layer_number(nn_model: Any, layer: int) -> int:
    """A layer counted from 0, from either end.

    Raises:
        InterpError: the model does not have it.
    """
    count = get_num_layers(nn_model)
    if not -count <= layer < count:
        raise InterpError(f"layer {layer} is out of range: the model has {count} layers, 0 to {count - 1}.")
    return layer % count


def named(nn_model: Any) -> Any:
    """A model of interp's; or what its interventions and its readout ask of one, of a plain nnsight model."""
    return nn_model if isinstance(nn_model, _Base) else _Named(nn_model)


class _Named:
    readout, tail_input = _Base.readout, _Base.tail_input

    def __init__(self, nn_model: Any) -> None:
        self._module = module = nn_model._module
        self.get, self.interleaver = nn_model.get, nn_model.interleaver
        self.architecture = architecture_of(nn_model)
        self.tail = Tail.of(self.architecture, text_config(module), module)
        self.num_layers = get_num_layers(nn_model)
        self.hidden_size = get_hidden_size(module)
        self.device, self.dtype = module.device, module.dtype
        self.layer = partial(get_layer, nn_model)
        self.layers_input, self.layers_output = (
            LayerValues(partial(self._place, side), self.num_layers, f"layers_{side}") for side in ("input", "output")
        )

    def _place(self, side: str, layer: int) -> ModulePlace:
        return ModulePlace(self.layer(layer), side, f"layer {side}")


def get_embed_tokens(model: Any) -> Any:
    """The token embedding."""
    return model.get(architecture_of(model).embedding)


def get_layers(model: Any) -> Any:
    """The list of layers."""
    return model.get(architecture_of(model).layers)


def get_num_layers(nn_model: Any) -> int:
    """How many layers a model has."""
    return len(get_layers(nn_model))


def get_layer(nn_model: Any, layer: int) -> Any:
    """One layer."""
    return get_layers(nn_model)[layer_number(nn_model, layer)]


def get_layer_input(nn_model: Any, layer: int) -> Tensor:
    """The residual stream before a layer, inside a trace."""
    return ModulePlace(get_layer(nn_model, layer), "input", "layer input").read()


def layer_output(nn_model: Any, layer: int) -> ModulePlace:
    """The place of the residual stream after a layer."""
    return ModulePlace(get_layer(nn_model, layer), "output", "layer output")


def get_layer_output(nn_model: Any, layer: int) -> Tensor:
    """The residual stream after a layer, inside a trace."""
    return layer_output(nn_model, layer).read()


def set_layer_output(nn_model: Any, layer: int, tensor: Tensor) -> None:
    """Replace the residual stream after a layer, inside a trace."""
    layer_output(nn_model, layer).write(tensor)


def get_attention(nn_model: Any, layer: int) -> Any:
    """The attention module of a layer."""
    return _part(nn_model, layer, "attention", "attentions")


def get_attention_output(nn_model: Any, layer: int) -> Tensor:
    """What the attention module of a layer returns, inside a trace."""
    if isinstance(nn_model, _Base):
        return nn_model.attentions_output[layer]
    return ModulePlace(get_attention(nn_model, layer), "output", "attention output").read()


def attention_input(nn_model: Any, layer: int) -> ModulePlace:
    """The place of what the attention module of a layer receives."""
    return ModulePlace(get_attention(nn_model, layer), "input", "attention input")


def get_mlp(nn_model: Any, layer: int) -> Any:
    """The MLP of a layer."""
    return _part(nn_model, layer, "mlp", "mlps")


def get_mlp_output(nn_model: Any, layer: int) -> Tensor:
    """What the MLP of a layer returns, inside a trace."""
    if isinstance(nn_model, _Base):
        return nn_model.mlps_output[layer]
    return ModulePlace(get_mlp(nn_model, layer), "output", "MLP output").read()


def _part(nn_model: Any, layer: int, role: str, accessor: str) -> Any:
    if isinstance(nn_model, _Base):
        return getattr(nn_model, accessor)[layer]
    envoy = get_layer(nn_model, layer)
    sublayer = dict(architecture_of(nn_model).sublayers(envoy._module)).get(role)
    if sublayer is None or sublayer.is_spread:
        raise RenamingError(f"layer {layer} of {type(nn_model._module).__name__} has no module that is its {role}.")
    return envoy.get(sublayer.module)


def get_logits(nn_model: Any) -> Tensor:
    """The model's logits (batch, position, vocabulary), inside a trace."""
    logits: Tensor = nn_model.output.logits
    return logits


def get_next_token_probs(nn_model: Any) -> Tensor:
    """Probabilities after the last token (batch, vocabulary), float32, inside a trace.

    Raises:
        InterpError: prompts are padded on the right, where the last column is no prompt's last token.
    """
    return last_token_probs(nn_model, get_logits(nn_model))


def last_token_probs(nn_model: Any, logits: Tensor) -> Tensor:
    """(batch, vocabulary) from (batch, position, vocabulary), of prompts that are padded on the left."""
    if len(logits) > 1 and nn_model.tokenizer.padding_side != "left":
        raise InterpError(
            "next-token probabilities of several prompts are read in the last column, and the tokenizer pads on the "
            "right. Set model.tokenizer.padding_side = 'left', or read the logits at each prompt's own last token."
        )
    return logits[:, -1].float().softmax(-1)


def get_unembed_norm(nn_model: Any) -> Any:
    """The norm after the last layer."""
    path = architecture_of(nn_model).final_norm
    if path is None:
        raise RenamingError(f"{type(nn_model._module).__name__} has no norm after its last layer.")
    return nn_model.get(path)


def get_unembed(nn_model: Any) -> Any:
    """The projection onto the vocabulary."""
    return nn_model.get(architecture_of(nn_model).head)


def project_on_vocab(nn_model: Any, h: Tensor) -> Tensor:
    """Logits of hidden states through the model's own tail: last norm, head, scale, softcap.

    Arguments:
        nn_model: the model.
        h: (..., hidden).
    """
    logits: Tensor = named(nn_model).readout(h)
    return logits


def project_negated_on_vocab(nn_model: Any, h: Tensor) -> Tensor:
    """As `project_on_vocab`, negated after the last norm."""
    logits: Tensor = named(nn_model).readout(h, negate=True)
    return logits


def skip_layer(nn_model: Any, layer: int, skip_with: Tensor | None = None) -> None:
    """Skip one layer, inside a trace; of nnterp 1.0."""
    skip_layers(nn_model, layer, layer, skip_with)


def skip_layers(nn_model: Any, start_layer: int, end_layer: int, skip_with: Tensor | None = None) -> None:
    """Skip layers, the last one too, inside a trace; of nnterp 1.0.

    Arguments:
        nn_model: the model.
        start_layer, end_layer: the first and the last layer that is skipped.
        skip_with: (batch, position, hidden), what they give; None: what enters the first.
    """
    interventions.skip_layers(named(nn_model), start_layer, end_layer, skip_with)


class ModuleAccessor:
    """The torch modules of a transformers model by their standard names.

    Arguments:
        model: a transformers causal language model.
        rename_config: where things are, for a family that has no record.
        rename: further names of modules, own name -> further name.

    Attributes:
        nn_model: the model in nnsight, under those names.

    Raises:
        RenamingError: no record fits the model.
    """

    def __init__(self, model: nn.Module, rename_config: Any = None, rename: dict[str, str] | None = None) -> None:
        self.nn_model = renamed_nnsight(model, rename_config, rename)
        self._record = record_of(model, rename_config)

    def __getattr__(self, name: str) -> Any:
        envoy = getattr(self.__dict__["nn_model"], name)
        if not hasattr(envoy, "_module"):
            raise AttributeError(f"Attribute {name} is not a module of {type(self.nn_model._module).__name__}.")
        return envoy._module

    def get_embed_tokens(self) -> nn.Module:
        """The token embedding."""
        return self._at(self._record.embedding)

    def get_layers(self) -> nn.ModuleList:
        """The layers."""
        layers = self._at(self._record.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def get_mlp(self, layer: int) -> nn.Module:
        """The MLP of a layer."""
        return self._part("mlp", layer)

    def get_attention(self, layer: int) -> nn.Module:
        """The attention module of a layer."""
        return self._part("attention", layer)

    def get_unembed_norm(self) -> nn.Module:
        """The norm after the last layer."""
        return self._at(str(self._record.final_norm))

    def get_unembed(self) -> nn.Module:
        """The projection onto the vocabulary."""
        return self._at(self._record.head)

    def _at(self, path: str) -> nn.Module:
        module: nn.Module = self.nn_model._module.get_submodule(path)
        return module

    def _part(self, role: str, layer: int) -> nn.Module:
        block = self.get_layers()[layer]
        sublayer = dict(self._record.sublayers(block)).get(role)
        if sublayer is None or sublayer.is_spread:
            raise RenamingError(f"layer {layer} has no module that is its {role}.")
        return block.get_submodule(sublayer.module)
