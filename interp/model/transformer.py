"""`StandardizedTransformer`: load a decoder language model; read and write its inside by one set of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from interp.architectures import Architecture, architecture_of, known_model_types
from interp.errors import InterpError
from interp.model.accessors import LayerValues, fitted, read_place, write_place
from interp.model.digest import model_digest
from interp.model.loading import execution_device, load_model, load_tokenizer
from interp.model.proof import prove
from interp.sites import Site, parse_site

__all__ = ["StandardizedTransformer"]


class StandardizedTransformer(TransformersModel):
    """A decoder language model whose inside has the same names in every family.

    A subclass of nnsight's `TransformersModel`: `trace`, `generate`, `session`, `edit` and the modules' own names are
    all there. Inside a trace, places must be asked for in the order in which the model meets them (`Site.depth`).

        model = StandardizedTransformer("openai-community/gpt2")
        with torch.no_grad(), model.trace("The Eiffel Tower is in"):
            hidden = model.read("resid_post.3").clone().save()
            model.write("attn_out.5", torch.zeros_like(model.read("attn_out.5")))
            logits = model.logits.save()

    Attributes:
        architecture: the record of this family, `interp.architectures.Architecture`.
        num_layers, num_heads, num_kv_heads, head_dim, hidden_size, vocab_size: sizes.
        parallel: attention and MLP read the same residual stream, so there is no `resid_mid`.
        layers, embed_tokens, ln_final, lm_head: nnsight envoys of these modules; `layers[i]` of one layer.
        tokenizer: pads on the left, so that `[:, -1]` is every prompt's last token.
    """

    architecture: Architecture
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        verify: bool = True,
    ) -> None:
        """Load a model, or wrap one that is in memory, and prove that its names mean what they say.

        Arguments:
            model: a local folder, a hub id, or a transformers model in memory (put into eval mode).
            tokenizer: an object, or where to load it from; None: from where the model is. A model in memory needs
                one. An object is set to pad on the left.
            revision: branch, tag or commit on the hub.
            dtype: `float32`, `bfloat16`, `float16` or torch's; None: the checkpoint's own.
            device_map: accelerate's placement: `auto`, `cpu`, `cuda:0`, a mapping; None: the CPU.
            attn_implementation: `sdpa`, `eager`, `flash_attention_2`, ...; None: transformers' choice.
            trust_remote_code: run code that the hub repository carries.
            verify: run the proof (`interp.model.proof`): two forward passes over five tokens. A family that has no
                record and follows Llama's layout is proved whatever this says.

        Raises:
            InterpError: no such model or tokenizer, weights that are not whole, an unknown architecture, a proof
                that fails; the message says what to do.
        """
        if isinstance(model, nn.Module):
            _reject_load_options(revision, dtype, device_map, attn_implementation)
            if tokenizer is None:
                raise InterpError("a model in memory needs its tokenizer: pass tokenizer=, an object or a folder.")
            module = model
        else:
            module = load_model(
                model,
                revision=revision,
                dtype=dtype,
                device_map=device_map,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
            )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            where, at = (tokenizer, None) if tokenizer is not None else (model, revision)
            assert isinstance(where, str | Path)
            tokenizer = load_tokenizer(where, revision=at, trust_remote_code=trust_remote_code)
        config: Any = getattr(module, "config", None)
        if config is None or not hasattr(config, "model_type"):
            raise InterpError(f"expected a transformers model, which has a config, got {type(module).__name__}.")
        architecture, known = architecture_of(config.model_type, module)
        # Without a device, the pipeline that nnsight builds would move a model on the CPU to the first GPU.
        placed = {} if hasattr(module, "hf_device_map") else {"device": module.device}
        super().__init__(module.eval(), tokenizer=tokenizer, **placed)

        self.architecture = architecture
        text = config.get_text_config()
        self.parallel = architecture.is_parallel(text)
        self.hidden_size: int = text.hidden_size
        self.vocab_size: int = text.vocab_size
        self.num_heads: int = text.num_attention_heads
        self.num_kv_heads: int = getattr(text, "num_key_value_heads", None) or self.num_heads
        self.head_dim: int = getattr(text, "head_dim", None) or self.hidden_size // self.num_heads
        self.layers = self.get(architecture.layers)
        self.num_layers = len(self.layers)
        self.embed_tokens = self.get(architecture.embedding)
        self.ln_final = self.get(architecture.final_norm)
        self.lm_head = self.get(architecture.head)
        self._softcap = _config_number(text, architecture.softcap)
        self._logit_scale = _config_number(text, architecture.logit_scale)
        if known and verify:
            prove(self)
        elif not known:
            self._prove_llama_layout()

    def _prove_llama_layout(self) -> None:
        try:
            prove(self)
        except InterpError as error:
            raise InterpError(
                f"unknown architecture {self.architecture.family!r}: no record of it, and though it has the modules of "
                f"Llama's layout, it does not compute as Llama does: {error} Known: {', '.join(known_model_types())}."
            ) from error

    @property
    def device(self) -> torch.device:
        """Where prompts go: the device on which the token embedding runs."""
        device = execution_device(self.embed_tokens._module)
        assert device is not None  # an embedding has weights
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights, which is that of its activations."""
        return self._module.dtype

    # Places by site -----------------------------------------------------------------------------------------------

    def read(self, site: Site | str) -> Tensor:
        """The value at a site, inside a trace.

        It is the model's live tensor: changed in place, it changes the forward pass; kept past the trace, it shows
        every change made in place later on. So `.clone()` what you keep.

        Arguments:
            site: e.g. `resid_post.3`, `attn_out.-1`, `logits`; see `interp.sites`.

        Returns:
            (batch, position, hidden), for `logits` (batch, position, vocabulary).

        Raises:
            InterpError: no such site in this model.
        """
        place = self._site(site)
        if place.kind == "logits":
            return self.logits
        return read_place(*self._place(place))

    def write(self, site: Site | str, value: Tensor) -> None:
        """Replace the value at a site, inside a trace; everything after it sees the new one.

        `resid_mid` is written in place, because the layer itself holds on to that tensor.

        Arguments:
            site: as in `read`.
            value: of the same shape as what `read` gives; moved to its device and dtype.

        Raises:
            InterpError: no such site in this model, or another shape.
        """
        place = self._site(site)
        if place.kind == "logits":
            self.logits = value
            return
        envoy, side = self._place(place)
        if place.kind == "resid_mid":
            live = read_place(envoy, side)
            live.copy_(fitted(value, live, str(place)))
        else:
            write_place(envoy, side, value, str(place))

    def _site(self, site: Site | str) -> Site:
        place = parse_site(site, self.num_layers)
        if place.kind == "resid_mid" and self.parallel:
            raise InterpError(
                f"site {str(place)!r} does not exist in {type(self._module).__name__}: attention and MLP both read "
                "resid_pre (parallel residual). Use resid_pre, attn_out, mlp_out or resid_post."
            )
        return place

    def _place(self, site: Site) -> tuple[Any, str]:
        """The module of a site, and whether the site is what it takes or what it gives."""
        record = self.architecture
        if site.kind == "embed":
            return self.layers[0], "input"
        if site.kind == "final_norm":
            return self.ln_final, "output"
        assert site.layer is not None
        layer = self.layers[site.layer]
        if site.kind in ("resid_pre", "resid_post"):
            return layer, "input" if site.kind == "resid_pre" else "output"
        path, side = {
            "attn_in": (record.attention, "input"),
            "attn_out": (record.attention_added, "output"),
            "resid_mid": (record.middle, "input"),
            "mlp_in": (record.mlp, "input"),
            "mlp_out": (record.mlp_added, "output"),
        }[site.kind]
        return layer.get(path), side

    # Places by accessor -------------------------------------------------------------------------------------------

    @property
    def layers_input(self) -> LayerValues:
        """`layers_input[i]`: the residual stream before layer i (`resid_pre`)."""
        return LayerValues(self.layers.__getitem__, self.num_layers, "input", "layers_input")

    @property
    def layers_output(self) -> LayerValues:
        """`layers_output[i]`: the residual stream after layer i (`resid_post`)."""
        return LayerValues(self.layers.__getitem__, self.num_layers, "output", "layers_output")

    @property
    def attentions_input(self) -> LayerValues:
        """`attentions_input[i]`: what the attention module of layer i receives (`attn_in`)."""
        return LayerValues(self._attention, self.num_layers, "input", "attentions_input")

    @property
    def attentions_output(self) -> LayerValues:
        """`attentions_output[i]`: what the attention module of layer i returns.

        Not always what is added to the residual stream: in Gemma 2 or OLMo 2 a norm comes between. That is `attn_out`.
        """
        return LayerValues(self._attention, self.num_layers, "output", "attentions_output")

    @property
    def mlps_input(self) -> LayerValues:
        """`mlps_input[i]`: what the MLP of layer i receives (`mlp_in`)."""
        return LayerValues(self._mlp, self.num_layers, "input", "mlps_input")

    @property
    def mlps_output(self) -> LayerValues:
        """`mlps_output[i]`: what the MLP of layer i returns; what is added to the residual stream is `mlp_out`."""
        return LayerValues(self._mlp, self.num_layers, "output", "mlps_output")

    def _attention(self, layer: int) -> Any:
        return self.layers[layer].get(self.architecture.attention)

    def _mlp(self, layer: int) -> Any:
        return self.layers[layer].get(self.architecture.mlp)

    @property
    def logits(self) -> Tensor:
        """The model's logits (batch, position, vocabulary), inside a trace; may be set."""
        whole: Any = self
        return whole.output.logits

    @logits.setter
    def logits(self, value: Tensor) -> None:
        whole: Any = self
        output = whole.output
        whole.output = type(output)(**{**output, "logits": fitted(value, output.logits, "logits")})

    @property
    def next_token_probs(self) -> Tensor:
        """Probabilities after the last token (batch, vocabulary), float32, inside a trace of left-padded prompts."""
        return self.logits[:, -1].float().softmax(-1)

    # Readout ------------------------------------------------------------------------------------------------------

    def readout(self, hidden: Tensor) -> Tensor:
        """From a residual stream to the vocabulary through the model's own tail: norm, head, scale, softcap.

        Plain torch under the caller's grad mode; inside a trace it is `project_on_vocab`. At the last layer it gives
        the model's logits exactly.

        Arguments:
            hidden: (..., hidden), moved to the device and dtype of the model's last norm.

        Returns:
            Logits (..., vocabulary), on the device of the head.

        Raises:
            InterpError: the last axis is not `hidden_size`.
        """
        if self.interleaver.interleaving:
            return self.project_on_vocab(hidden)
        return self._tail(hidden, self.ln_final._module, self.lm_head._module)

    def project_on_vocab(self, hidden: Tensor) -> Tensor:
        """`readout` for use inside a trace, where the modules are called without being taken for the forward pass."""
        return self._tail(hidden, self.ln_final, self.lm_head)

    def _tail(self, hidden: Tensor, norm: Any, head: Any) -> Tensor:
        if hidden.shape[-1:] != (self.hidden_size,):
            raise InterpError(f"readout: expected hidden (..., {self.hidden_size}), got shape {tuple(hidden.shape)}.")
        hidden = hidden.to(device=execution_device(self.ln_final._module) or hidden.device, dtype=self.dtype)
        logits = head(norm(hidden))
        if self._logit_scale is not None:
            logits = logits * self._logit_scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def digest(self) -> str:
        """SHA-256 of config and weights, 64 hexadecimal digits; the same on every device and from every folder."""
        return model_digest(self._module)


def _config_number(config: Any, name: str | None) -> float | None:
    return None if name is None else getattr(config, name, None)


def _reject_load_options(
    revision: str | None, dtype: str | torch.dtype | None, device_map: Any, attn_implementation: str | None
) -> None:
    given = dict(revision=revision, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation)
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise InterpError(f"{', '.join(named)}: of no use with a model in memory. Load it so in the first place.")
