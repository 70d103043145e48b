"""The record of a family: module paths, what is added to the residual stream, how the readout goes on.

Names of norms say little: `post_attention_layernorm` stands before the MLP in Llama and after attention in Gemma 2.
So a record names a module by what it does.

A layer passes the residual stream x through one or two stages, attention (or another token mixer, or both) and the MLP:

    x -> norm_after(residual_scale * residual_norm(x) + sum of scale * added)

where nearly every family has no norm and no scale at all: x -> x + added. In parallel layers one stage holds both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Architecture", "Sublayer"]


@dataclass(frozen=True)
class Sublayer:
    """Attention, another token mixer, or the MLP. Paths are dotted and count from the layer.

    Arguments:
        module: the module; what it receives is `attn_in`, `mixer_in`, `mlp_in`.
        added: the modules whose outputs are added (their sum) to the residual stream: `attn_out`, `mixer_out`,
            `mlp_out`. Empty: the module itself. Those that a layer lacks are left out.
        projection: the last linear map; what it receives is, by heads, `z`, or `mlp_post`. None: it has none.
        only: the sublayer is there only in layers whose module's class name holds one of these words; empty: wherever
            the module is.
        scale: attribute of the layer that multiplies what is added.
        residual_scale: attribute of the layer that multiplies the residual stream before the sum.
        residual_norm: the norm through which the residual stream itself goes before the sum.
        norm_after: the norm through which the sum goes (a post-norm layer).
    """

    module: str
    added: tuple[str, ...] = ()
    projection: str | None = None
    only: tuple[str, ...] = ()
    scale: str | None = None
    residual_scale: str | None = None
    residual_norm: str | None = None
    norm_after: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The modules whose outputs are added."""
        return self.added or (self.module,)

    @property
    def is_spread(self) -> bool:
        """Whether its two maps lie on the layer itself, so that no module is the sublayer (OPT)."""
        return self.projection is not None and not self.projection.startswith(f"{self.module}.")

    def is_in(self, layer: Any) -> bool:
        """Whether a layer has this sublayer."""
        module = submodule(layer, self.module)
        if module is None:
            return False
        return not self.only or any(word in type(module).__name__ for word in self.only)


@dataclass(frozen=True)
class Architecture:
    """Where things are in one family. Paths are dotted, from the model or (where said) from a layer.

    Arguments:
        family: the family's name.
        model_types: the `model_type`s of configs that belong to it.
        when: config fields and their values, where a family has several layouts; the first record that fits counts.
        layers: the list of layers.
        embedding: the token embedding.
        final_norm: the norm after the last layer; None: there is none.
        final_norm_runs_early: that norm runs before the layers too; `final_norm` is what the module after it receives.
        before_head: modules between that norm and the head, in order; those that a model lacks are left out.
        head: the projection onto the vocabulary.
        attention: the attention of a layer; None: the family has none.
        mixer: another token mixer (Mamba, linear attention, convolution), in place of attention or beside it.
        mlp: the MLP; None: the family has none.
        mixer_first: where a layer has both, the mixer runs before attention.
        layer_returns_tuple: a layer returns a tuple (or list) whose first item is the residual stream.
        middle: in a layer, the module whose input is the residual stream between the two stages (`resid_mid`); None:
            the layers have one stage.
        parallel: attention and MLP both read the residual stream at the layer's start, so there is no `resid_mid`.
        logit_scale: config field that multiplies the head's output.
        logit_divisor: config field that divides it.
        softcap: config field c of logits = c tanh(logits / c), the last step; none where it is absent or None.
        silenced: attribute of the model, dotted, that has the ids of tokens which it never says: their logits are the
            lowest number of the dtype, after all else.
        unpadded: in a layer, modules whose output (batch, position, width) has to be set to zero at padding, which
            transformers does not do: a convolution over positions comes next.
        variants: for families whose kinds of layers are laid out differently: a word in the class name of a layer, and
            the record by which such layers go. Of that record only what it says of a layer counts.
    """

    family: str
    model_types: tuple[str, ...]
    when: tuple[tuple[str, object], ...] = ()
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str | None = "model.norm"
    final_norm_runs_early: bool = False
    before_head: tuple[str, ...] = ()
    head: str = "lm_head"
    attention: Sublayer | None = field(default_factory=lambda: Sublayer("self_attn", projection="self_attn.o_proj"))
    mixer: Sublayer | None = None
    mlp: Sublayer | None = field(default_factory=lambda: Sublayer("mlp", projection="mlp.down_proj"))
    mixer_first: bool = False
    layer_returns_tuple: bool = False
    middle: str | None = "post_attention_layernorm"
    parallel: bool = False
    logit_scale: str | None = None
    logit_divisor: str | None = None
    softcap: str | None = None
    silenced: str | None = None
    unpadded: tuple[str, ...] = ()
    variants: tuple[tuple[str, Architecture], ...] = ()

    def fits(self, model_type: str, config: Any) -> bool:
        """Whether this record was written for a model, by its config."""
        return model_type in self.model_types and all(getattr(config, name, None) == value for name, value in self.when)

    def of_layer(self, layer: Any) -> Architecture:
        """The record by which one layer goes: this one, or a variant."""
        name = type(layer).__name__
        return next((variant for word, variant in self.variants if word in name), self)

    def sublayers(self, layer: Any) -> Iterator[tuple[str, Sublayer]]:
        """What a layer has of `attention`, `mixer` and `mlp`, by role, in that order."""
        own = self.of_layer(layer)
        roles: dict[str, Sublayer | None] = {"attention": own.attention, "mixer": own.mixer, "mlp": own.mlp}
        for role, sublayer in roles.items():
            if sublayer is not None and sublayer.is_in(layer):
                yield role, sublayer


def submodule(module: Any, path: str) -> Any | None:
    """The module at a dotted path; None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
