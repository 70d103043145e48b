"""Read and write a model by site (`read("resid_post.3")`) and by name (`layers_output[3]`); name its modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from interp.architectures import Architecture, submodule
from interp.errors import InterpError
from interp.model.head import closest_tokens
from interp.model.interventions import skip_layers, steer
from interp.model.places import ModulePlace, Place
from interp.model.resolve import place_of, projection_width, sublayer_of, why_missing
from interp.model.vision_sites import num_vision_layers
from interp.prompts.encoding import bare_tokenizer
from interp.sites import HEAD_KINDS, VISION_KINDS, Site, Spelling, parse_site
from interp.tracing import check_not_passed

__all__ = ["LayerModules", "LayerValues", "NamedValues", "aliases", "merged"]


Item = TypeVar("Item")


class _ByLayer(Generic[Item]):
    def __init__(self, items: Callable[[int], Item], num_layers: int, name: str) -> None:
        self._items = items
        self._num_layers = num_layers
        self._name = name

    def __len__(self) -> int:
        return self._num_layers

    def _item(self, layer: int) -> Item:
        if not -self._num_layers <= layer < self._num_layers:
            raise InterpError(
                f"{self._name}[{layer}]: the model has {self._num_layers} layers, 0 to {self._num_layers - 1}."
            )
        return self._items(layer % self._num_layers)


class LayerValues(_ByLayer[Place]):
    """`values[layer]` reads and `values[layer] = tensor` writes one value of a layer inside a trace.

    Arguments:
        items: layer -> the place of the value.
        num_layers: the model's depth.
        name: what this is called, for messages.
    """

    def __getitem__(self, layer: int) -> Tensor:
        return self._item(layer).read()

    def __setitem__(self, layer: int, value: Tensor) -> None:
        self._item(layer).write(value)

    __call__ = __getitem__


class LayerModules(_ByLayer[Any]):
    """`modules[layer]`: one module of each layer, an nnsight envoy.

    Arguments:
        items: layer -> the envoy.
        num_layers: the model's depth.
        name: what this is called, for messages.
    """

    def __getitem__(self, layer: int) -> Any:
        return self._item(layer)

    def __setitem__(self, layer: int, value: object) -> None:
        raise InterpError(f"{self._name}[{layer}] is a module. Set what it returns: {self._name}_output[{layer}] = ...")

    def __iter__(self) -> Iterator[Any]:
        return (self[layer] for layer in range(len(self)))


class NamedValues:
    """The values of a `StandardizedTransformer`, by site and by name; read, and where it is a value set, in a trace."""

    # By site ----------------------------------------------------------------------------------------------------------

    def site(self: Any, site: Spelling) -> Site:
        """A site of this model, from any spelling.

        Raises:
            InterpError: it cannot be read, names several sites, or a layer or head that the model does not have.
        """
        return parse_site(site, self.num_layers, self.num_heads, self.num_kv_heads, num_vision_layers(self))

    def has(self: Any, site: Spelling) -> bool:
        """Whether the model has a site: parallel layers have no `resid_mid`, Mamba layers no `pattern`."""
        if num_vision_layers(self) is None and str(site).startswith("vision."):
            return False
        return why_missing(self, self.site(site)) is None

    def in_order(self: Any, sites: Sequence[Spelling]) -> list[Site]:
        """Sort sites in the order in which this model computes them, which a trace must keep."""
        layers, seen = self.num_layers, num_vision_layers(self)  # asked for once: it looks at all modules
        places = (parse_site(site, layers, self.num_heads, self.num_kv_heads, seen) for site in sites)
        return sorted(places, key=self._depth)

    def _depth(self: Any, site: Site) -> tuple[Any, ...]:
        if not self.architecture.mixer_first or not site.kind.startswith("mixer"):
            return site.depth
        before = Site("attn_in", site.layer).depth
        return (*before[:1], before[1] - (0.5 if site.kind == "mixer_out" else 0.75), *before[2:])

    def width(self: Any, site: Spelling) -> int:
        """The last axis of a site without a head axis: hidden, vocabulary, or the MLP's neurons.

        Raises:
            InterpError: no such site in this model, or one with heads.
        """
        place = self.site(site)
        if place.kind in VISION_KINDS:
            raise InterpError(f"width of {place}: it is that of the vision tower. Read it in a trace to see it.")
        if place.kind in HEAD_KINDS:
            raise InterpError(f"width of {place}: expected a site without a head axis.")
        if place.kind == "logits":
            return self.vocab_size
        if place.kind != "mlp_post":
            return self.hidden_size
        return projection_width(self, place)

    def read(self: Any, site: Spelling) -> Tensor:
        """The value at a site, inside a trace.

        It is the model's live tensor: changed in place, it changes the forward pass; kept past the trace, it shows
        every change made in place later on. So `.clone()` what you keep. (`head_out`, and what is scaled before it is
        added, are computed on reading; write them back to change them.)

        Arguments:
            site: e.g. `resid_post.3`, `attn_out.-1`, `pattern.2.h0`, `logits`; see `interp.sites`.

        Returns:
            A tensor of the site's shape (`interp.sites.SHAPES`); without the head axis where the site names a head.

        Raises:
            InterpError: no such site in this model.
        """
        return place_of(self, self.site(site)).read()

    def write(self: Any, site: Spelling, value: Tensor) -> None:
        """Replace the value at a site, inside a trace; everything after it sees the new one.

        `resid_mid` is written in place, because the layer itself holds on to that tensor.

        Arguments:
            site: as in `read`.
            value: of the same shape as what `read` gives; moved to its device and dtype.

        Raises:
            InterpError: no such site in this model, or another shape.
        """
        place_of(self, self.site(site)).write(value)

    # By name ----------------------------------------------------------------------------------------------------------

    @property
    def layers_input(self: Any) -> LayerValues:
        """`layers_input[i]`: the residual stream before layer i (`resid_pre`)."""
        return self._values("layers_input", "resid_pre")

    @property
    def layers_output(self: Any) -> LayerValues:
        """`layers_output[i]`: the residual stream after layer i (`resid_post`)."""
        return self._values("layers_output", "resid_post")

    @property
    def attentions(self: Any) -> LayerModules:
        """`attentions[i]`: the attention module of layer i."""
        return LayerModules(lambda layer: self._part("attention", layer), self.num_layers, "attentions")

    @property
    def attentions_input(self: Any) -> LayerValues:
        """`attentions_input[i]`: what the attention module of layer i receives (`attn_in`)."""
        return self._values("attentions_input", "attn_in")

    @property
    def attentions_output(self: Any) -> LayerValues:
        """`attentions_output[i]`: what the attention module of layer i returns.

        Not always what is added to the residual stream: in Gemma 2 or OLMo 2 a norm comes between. That is `attn_out`.
        """
        return self._outputs("attentions_output", "attention")

    @property
    def mlps(self: Any) -> LayerModules:
        """`mlps[i]`: the MLP of layer i."""
        return LayerModules(lambda layer: self._part("mlp", layer), self.num_layers, "mlps")

    @property
    def mlps_input(self: Any) -> LayerValues:
        """`mlps_input[i]`: what the MLP of layer i receives (`mlp_in`)."""
        return self._values("mlps_input", "mlp_in")

    @property
    def mlps_output(self: Any) -> LayerValues:
        """`mlps_output[i]`: what the MLP of layer i returns; what is added to the residual stream is `mlp_out`."""
        return self._outputs("mlps_output", "mlp")

    @property
    def attention_probabilities(self: Any) -> LayerValues:
        """`attention_probabilities[i]`: the attention pattern of layer i, (batch, head, query, key) (`pattern`)."""
        return self._values("attention_probabilities", "pattern")

    def _values(self: Any, name: str, kind: str) -> LayerValues:
        return LayerValues(lambda layer: place_of(self, Site(kind, layer)), self.num_layers, name)

    def _outputs(self: Any, name: str, role: str) -> LayerValues:
        def place(layer: int) -> ModulePlace:
            envoy = self._part(role, layer)
            sublayer = sublayer_of(self, role, layer)
            assert sublayer is not None
            if sublayer.is_spread:
                envoy = self.layer(layer).get(str(sublayer.projection))
            return ModulePlace(envoy, "output", f"{name}[{layer}]")

        return LayerValues(place, self.num_layers, name)

    def _part(self: Any, role: str, layer: int) -> Any:
        sublayer = sublayer_of(self, role, layer)
        if sublayer is None:
            place_of(self, Site("attn_in" if role == "attention" else "mlp_in", layer))  # raises, and says why
        assert sublayer is not None
        return self.layer(layer).get(sublayer.module)

    @property
    def token_embeddings(self: Any) -> Tensor:
        """What the token embedding gives, inside a trace; may be set. What enters layer 0 is `embed`."""
        return self._embeddings.read()

    @token_embeddings.setter
    def token_embeddings(self: Any, value: Tensor) -> None:
        self._embeddings.write(value)

    @property
    def _embeddings(self: Any) -> ModulePlace:
        return ModulePlace(self.get(self.architecture.embedding), "output", "token_embeddings")

    @property
    def input_ids(self: Any) -> Tensor:
        """The token ids (batch, position) as they are fed, padding included, inside a trace."""
        return self._fed("input_ids")

    @property
    def attention_mask(self: Any) -> Tensor:
        """The attention mask (batch, position) as it is fed, 0 at padding, inside a trace."""
        return self._fed("attention_mask")

    @property
    def input_size(self: Any) -> torch.Size:
        """(batch, position) of what is fed, inside a trace."""
        return self.input_ids.shape

    def _fed(self: Any, name: str) -> Tensor:
        whole: Any = self
        check_not_passed(f"{self.path}.input", name)
        args, kwargs = whole.inputs
        if name == "input_ids" and args:
            return args[0]
        if not isinstance(kwargs.get(name), Tensor):
            raise InterpError(f"{name}: the model is fed {', '.join(kwargs)}. Pass {name}= to the trace.")
        return kwargs[name]

    @property
    def logits(self: Any) -> Tensor:
        """The model's logits (batch, position, vocabulary), inside a trace; may be set."""
        return self.read("logits")

    @logits.setter
    def logits(self: Any, value: Tensor) -> None:
        self.write("logits", value)

    @property
    def next_token_probs(self: Any) -> Tensor:
        """Probabilities after the last token (batch, vocabulary), float32, inside a trace of left-padded prompts."""
        return self.logits[:, -1].float().softmax(-1)

    # Interventions ------------------------------------------------------------------------------------------------

    def skip_layer(self: Any, layer: int, skip_with: Tensor | None = None) -> None:
        """Skip one layer, inside a trace; as `skip_layers` from it to itself."""
        skip_layers(self, layer, layer, skip_with)

    def skip_layers(self: Any, start_layer: int, end_layer: int, skip_with: Tensor | None = None) -> None:
        """Skip layers, inside a trace: the residual stream after the last of them is what entered the first.

        Arguments:
            start_layer, end_layer: the first and the last layer that is skipped; from the end where negative.
            skip_with: (batch, position, hidden), what every skipped layer gives; None: what enters the first.

        Raises:
            InterpError: a layer that the model does not have, an end before the start, or a value of another shape.
        """
        skip_layers(self, start_layer, end_layer, skip_with)

    def steer(
        self: Any,
        layers: int | Sequence[int],
        steering_vector: Tensor,
        factor: float = 1.0,
        token_positions: int | Sequence[int] | Tensor | None = None,
        batch_index: int | Sequence[int] | Tensor | None = None,
    ) -> None:
        """Add `factor * steering_vector` to the residual stream after layers, inside a trace (Turner et al. 2023).

        Arguments:
            layers: one or several, in any order; from the end where negative.
            steering_vector: (hidden,), or what broadcasts to the steered part of (batch, position, hidden).
            factor: its multiple.
            token_positions: the positions that are steered, in the padded batch; None: all.
            batch_index: the rows that are steered; None: all. A list here and one in `token_positions` are pairs.

        Raises:
            InterpError: a layer that the model does not have, or a vector whose last axis is not `hidden_size`.
        """
        steer(self, layers, steering_vector, factor, token_positions=token_positions, batch_index=batch_index)

    def project_on_vocab(self: Any, hidden: Tensor) -> Tensor:
        """nnterp's name of `readout`."""
        return self.readout(hidden)

    def get_topk_closest_tokens(self: Any, hidden: Tensor, k: int = 5) -> dict[str, float] | list[dict[str, float]]:
        """The most probable tokens of hidden states, read out through the model's own tail.

        Arguments:
            hidden: (hidden,) or (row, hidden).
            k: how many tokens.

        Returns:
            Token -> probability, most probable first; a list of these for several rows.
        """
        return closest_tokens(self, hidden, k)

    @property
    def add_prefix_false_tokenizer(self: Any) -> PreTrainedTokenizerBase:
        """A copy of the tokenizer that puts no space before a text; see `interp.prompts.encoding.bare_tokenizer`."""
        return bare_tokenizer(self.tokenizer)


Names = dict[Any, list[str]]


def aliases(architecture: Architecture, module: Any, *, every_depth: bool = False) -> Names:
    """What nnsight is told to call a model's modules, further to their own names.

    Arguments:
        architecture: the record of the model.
        module: the model.
        every_depth: the standard names at every module on the way down too: `layers` is `model.layers` as well. What
            holds the layers is called `model`, and so is what holds that (`model.model` in OPT).

    Returns:
        Path, or class, of a module -> its standard names; without those that are called so already. A dotted one
        belongs to the module that it begins with.
    """
    names: Names = {}
    roots = {"layers": architecture.layers, "embed_tokens": architecture.embedding, "lm_head": architecture.head}
    if architecture.final_norm is not None:
        roots["ln_final"] = architecture.final_norm
    for name, path in roots.items():
        if path != name and not hasattr(module, name):  # ModernBERT calls another module lm_head
            names.setdefault(path, []).append(name)
    for layer in submodule(module, architecture.layers) or ():
        for role, sublayer in architecture.sublayers(layer):
            name = {"attention": "self_attn", "mlp": "mlp"}.get(role, sublayer.module)
            if sublayer.module == name or hasattr(layer, name):
                continue
            # Where one name holds different modules in different layers, the alias follows the module's class.
            key: Any = type(submodule(layer, sublayer.module)) if sublayer.only else sublayer.module
            names[key] = [name]
    if architecture.mlp is not None and architecture.mlp.is_spread:  # no module is the MLP
        names.pop(architecture.mlp.module, None)
    return _at_every_depth(names, roots, architecture, module) if every_depth else names


def _at_every_depth(names: Names, roots: Mapping[str, str], architecture: Architecture, module: Any) -> Names:
    """Standard names further down. A name that a module has already stays what it is."""

    def name(path: str, above: list[str], standard: str) -> None:
        holder = submodule(module, ".".join(above)) if above else module
        alias = ".".join([*above, standard])
        if path != alias and not hasattr(holder, standard) and alias not in names.setdefault(path, []):
            names[path].append(alias)

    for standard, path in roots.items():
        parts = path.split(".")
        for depth in range(1, len(parts)):
            name(path, parts[:depth], standard)
    backbone = architecture.layers.split(".")[:-1]
    for depth in range(len(backbone)):
        name(".".join(backbone[: depth + 1]), backbone[:depth], "model")
    return {path: own for path, own in names.items() if own}


def merged(standard: Names, given: Mapping[Any, Any] | None, *, reserved: Collection[str] = ()) -> Names:
    """The standard names with the user's further ones.

    Arguments:
        standard: as `aliases` gives them.
        given: the user's, own name -> further name or names.
        reserved: names of the model's own attributes, which no module can have.

    Raises:
        InterpError: a reserved name is given.
    """
    names = {key: list(values) for key, values in standard.items()}
    for key, values in (given or {}).items():
        for value in [values] if isinstance(values, str) else values:
            if value in reserved:
                raise InterpError(
                    f"rename: {key!r} cannot be called {value!r}, which a model has already. Choose another."
                )
            if value not in names.setdefault(key, []):
                names[key].append(value)
    return names
