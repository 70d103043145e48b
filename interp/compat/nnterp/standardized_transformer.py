"""nnterp's `StandardizedTransformer`: interp's, with nnterp's arguments and members."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nnsight
import torch
from torch import Tensor, nn

from interp.architectures import Architecture
from interp.architectures import RenameConfig as _RenameConfig
from interp.compat.nnterp.layer_accessors import AttentionProbabilitiesAccessor, IOType, LayerAccessor
from interp.compat.nnterp.modules import last_token_probs
from interp.compat.nnterp.rename_utils import RenameConfig, check_io, for_interp, get_ignores
from interp.compat.nnterp.utils import RenamingError, dummy_inputs
from interp.errors import InterpError
from interp.model import StandardizedTransformer as _Base
from interp.model.accessors import aliases
from interp.model.head import closest_tokens
from interp.model.interventions import Indices
from interp.model.loading import UnknownKeyword

__all__ = ["GetLayerObject", "StandardizedTransformer"]

GetLayerObject = Callable[[int], Tensor]
# How weights are loaded, which scripts say of remote models too.
_OF_THE_SERVER = ("device_map", "dtype", "torch_dtype", "attn_implementation")


class StandardizedTransformer(_Base):
    """A language model under nnterp's names; everything of `interp.StandardizedTransformer` is there too.

    model = StandardizedTransformer("openai-community/gpt2")
    with model.trace("The Eiffel Tower is in"):
        model.layers_output[10] = model.layers_output[10] + model.layers_output[3]
        logits = model.logits.save()
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        trust_remote_code: bool = False,
        check_renaming: bool = True,
        remote: bool = False,
        allow_dispatch: bool = True,
        enable_attention_probs: bool = False,
        check_attn_probs_with_trace: bool = True,
        allow_multimodal: bool = False,
        rename_config: RenameConfig | _RenameConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Load a model, or wrap one that is in memory.

        Arguments:
            model: a local folder, a hub id, or a transformers model in memory, which needs `tokenizer=`.
            trust_remote_code: run code that the hub repository carries.
            check_renaming: prove that the names mean what they say, and check the shapes of all layers.
            remote: load no weights; traces run on NDIF.
            allow_dispatch: of nnterp, and of no use here: the weights are loaded at once.
            enable_attention_probs: load with eager attention, and check the attention probabilities. They can be read
                without it too.
            check_attn_probs_with_trace: check their values as well as their shape.
            allow_multimodal: of nnterp, and of no use here: layers may be of different kinds.
            rename_config: where things are, for a family that has no record, or has it wrong.
            kwargs: keyword arguments of `interp.StandardizedTransformer`; `device_map` is `auto` where it is not given.
                `dispatch` and `meta_buffers` of nnsight are taken too, and are of no use; what nothing takes is left
                out, with a warning that names it.

        Raises:
            RenamingError: the model cannot be loaded, or is not what its names say.
            InterpError: `enable_attention_probs` with another `attn_implementation` than eager.
        """
        for needless in ("dispatch", "meta_buffers"):
            kwargs.pop(needless, None)
        if remote:
            nnsight.ndif.register("interp")
            enable_attention_probs = False  # attention is read whatever the server runs it with
            for name in _OF_THE_SERVER:
                value = kwargs.pop(name, None)
                if value not in (None, "auto"):
                    warnings.warn(f"{name}={value!r} is left out: remotely it is the server's to decide.", stacklevel=2)
        implementation = kwargs.pop("attn_implementation", None)
        if enable_attention_probs and implementation not in (None, "eager"):
            raise InterpError(
                f"enable_attention_probs=True loads the model with eager attention, got attn_implementation="
                f"{implementation!r}. Leave one of them out: attention probabilities can be read with sdpa too."
            )
        given = for_interp(rename_config)
        if enable_attention_probs or (given is not None and given.attn_prob_source is not None):
            implementation = implementation or "eager"  # which alone computes the probabilities
        if isinstance(model, nn.Module):
            if implementation is not None:
                model.set_attn_implementation(implementation)  # type: ignore[operator]
            kwargs.pop("device_map", None)
        elif not remote:
            kwargs = {"device_map": "auto", "attn_implementation": implementation, **kwargs}
        tokenizer_kwargs = kwargs.get("tokenizer_kwargs") or {}
        while True:
            try:
                super().__init__(
                    model,
                    trust_remote_code=trust_remote_code,
                    verify=check_renaming,
                    remote=remote,
                    rename_config=given,
                    **kwargs,
                )
                break
            except UnknownKeyword as error:  # raised before anything is loaded
                warnings.warn(f"{error} It is left out, as nnterp's scripts expect.", stacklevel=2)
                del kwargs[error.name]
            except InterpError as error:
                raise RenamingError(str(error)) from error
        if "padding_side" in tokenizer_kwargs:  # nnsight turns it to the left
            self.tokenizer.padding_side = tokenizer_kwargs["padding_side"]
        self._rename_config = given
        if remote or not check_renaming:
            return
        name = type(self._module).__name__
        with torch.no_grad(), self.trace(dummy_inputs(), use_cache=False):
            check_io(self, name, get_ignores(self._module, given))
        if enable_attention_probs:
            self.attention_probabilities.check_source(use_trace=check_attn_probs_with_trace)

    @staticmethod
    def _standard_names(record: Architecture, module: nn.Module) -> dict[Any, list[str]]:
        """The standard names, and at every depth: `model.model.layers`, `model.model.ln_final`."""
        return aliases(record, module, every_depth=True)

    @property
    def _model(self) -> nn.Module:
        """The transformers model."""
        module: nn.Module = self._module
        return module

    # Values by layer ----------------------------------------------------------------------------------------------

    @property
    def layers_input(self) -> LayerAccessor:
        """`layers_input[i]`: the residual stream before layer i."""
        return LayerAccessor(self, None, IOType.INPUT)

    @property
    def layers_output(self) -> LayerAccessor:
        """`layers_output[i]`: the residual stream after layer i."""
        return LayerAccessor(self, None, IOType.OUTPUT, self.architecture.layer_returns_tuple)

    @property
    def attentions(self) -> Any:
        """`attentions[i]`: the attention module of layer i."""
        return LayerAccessor(self, "self_attn", None)

    @property
    def attentions_input(self) -> LayerAccessor:
        """`attentions_input[i]`: what the attention module of layer i receives."""
        return LayerAccessor(self, "self_attn", IOType.INPUT)

    @property
    def attentions_output(self) -> LayerAccessor:
        """`attentions_output[i]`: what the attention module of layer i returns."""
        return LayerAccessor(self, "self_attn", IOType.OUTPUT)

    @property
    def mlps(self) -> Any:
        """`mlps[i]`: the MLP of layer i."""
        return LayerAccessor(self, "mlp", None)

    @property
    def mlps_input(self) -> LayerAccessor:
        """`mlps_input[i]`: what the MLP of layer i receives."""
        return LayerAccessor(self, "mlp", IOType.INPUT)

    @property
    def mlps_output(self) -> LayerAccessor:
        """`mlps_output[i]`: what the MLP of layer i returns."""
        return LayerAccessor(self, "mlp", IOType.OUTPUT)

    @property
    def attention_probabilities(self) -> AttentionProbabilitiesAccessor:
        """`attention_probabilities[i]`: the attention pattern of layer i, (batch, head, query, key)."""
        return AttentionProbabilitiesAccessor(self, self.__dict__.get("_rename_config"))

    @property
    def attn_probs_available(self) -> bool:
        """Whether `attention_probabilities` can be read."""
        return self.attention_probabilities.enabled

    @property
    def next_token_probs(self) -> Tensor:
        """Probabilities after the last token (batch, vocabulary), float32, inside a trace of left-padded prompts."""
        return last_token_probs(self, self.logits)

    def detect_layer_output_type(self) -> None:
        """Of nnterp, and of no use here: the record of the family says whether layers return a tuple."""

    # Interventions ------------------------------------------------------------------------------------------------

    def skip_layers(
        self,
        start_layer: int,
        end_layer: int,
        skip_with: Tensor | tuple[Any, ...] | None = None,
        layer_returns_tuple: bool | None = None,
    ) -> None:
        """Skip layers, the last one too, inside a trace.

        Arguments:
            start_layer, end_layer: the first and the last layer that is skipped.
            skip_with: (batch, position, hidden), what they give; None: what enters the first. Where layers return a
                tuple, a tuple that begins so will do.
            layer_returns_tuple: of nnterp, and of no use here: the record of the family says it.

        Raises:
            InterpError: no such layer, a value of another shape, or a tuple where layers return none.
        """
        if isinstance(skip_with, tuple):
            if not self.architecture.layer_returns_tuple:
                raise InterpError(
                    "skip_with: expected a tensor, got a tuple, which the layers of this model do not return."
                )
            value: Tensor | None = skip_with[0]
        else:
            value = skip_with
        _Base.skip_layers(self, start_layer, end_layer, value)

    def skip_layer(self, layer: int, skip_with: Tensor | tuple[Any, ...] | None = None) -> None:
        """Skip one layer, inside a trace; see `skip_layers`."""
        self.skip_layers(layer, layer, skip_with)

    def steer(  # type: ignore[override]  # nnterp's order of arguments
        self,
        layers: int | Sequence[int],
        steering_vector: Tensor,
        factor: float = 1,
        positions: Indices | None = None,
        token_positions: Indices | None = None,
        batch_index: Indices | None = None,
        get_layer_object_to_steer: GetLayerObject | None = None,
    ) -> None:
        """Add `factor * steering_vector` to the residual stream after layers, inside a trace.

        Arguments:
            layers, steering_vector, factor, token_positions, batch_index: as in `interp.model.interventions.steer`.
            positions: the old name of `token_positions`.
            get_layer_object_to_steer: of nnterp 1.0: layer -> another value (batch, position, hidden) that is steered.
                An accessor's is replaced; what another function gives is changed in place.

        Raises:
            InterpError: both names of the positions, no such layer, or a vector of another width.
        """
        if positions is not None:
            if token_positions is not None:
                raise InterpError(
                    "Cannot specify both positions and token_positions, of which positions is the old name."
                )
            if get_layer_object_to_steer is None:  # of nnterp 1.0, where it had no other name
                warnings.warn("steer: `positions` is now called `token_positions`.", DeprecationWarning, stacklevel=2)
            token_positions = positions
        if get_layer_object_to_steer is None:
            _Base.steer(self, layers, steering_vector, factor, token_positions, batch_index)
            return
        rows = slice(None) if batch_index is None else batch_index
        columns = slice(None) if token_positions is None else token_positions
        for layer in sorted(i % self.num_layers for i in ([layers] if isinstance(layers, int) else layers)):
            live = get_layer_object_to_steer(layer)
            is_accessor = isinstance(get_layer_object_to_steer, LayerAccessor)
            steered = live.clone() if is_accessor else live
            steered[rows, columns] += factor * steering_vector.to(steered)
            if isinstance(get_layer_object_to_steer, LayerAccessor):
                get_layer_object_to_steer[layer] = steered

    # Readout ------------------------------------------------------------------------------------------------------

    def probs_to_dict(self, tokens: Tensor, probs: Tensor) -> dict[str, float]:
        """Token, as the tokenizer spells it -> probability; an id that has no token of its own is spelt `#ID`.

        Arguments:
            tokens: (token,), ids.
            probs: (token,), their probabilities.
        """
        named: dict[str, float] = {}
        for token_id, probability in zip(tokens.tolist(), probs.tolist(), strict=True):
            token = self.tokenizer.convert_ids_to_tokens(token_id) if token_id < len(self.tokenizer) else None
            named[f"#{token_id}" if token is None or token in named else token] = probability
        return named

    def get_topk_closest_tokens(self, hidden_state: Tensor, k: int = 5) -> dict[str, float] | list[dict[str, float]]:
        """The most probable tokens of hidden states, read out through the model's own tail.

        Arguments:
            hidden_state: (hidden,) or (row, hidden).
            k: how many tokens.

        Returns:
            Token -> probability, best first, k entries; a list of them for several rows.

        Raises:
            InterpError: `hidden_state` has other axes, or k is out of range.
        """
        return closest_tokens(self, hidden_state, k, named=self.probs_to_dict)
