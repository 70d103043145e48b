"""`ActivationCache`: activations by site, with named axes, positions and the model that they are of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor

from interp.activations.residual_stack import (
    Parts,
    ResidualStack,
    TokenTargets,
    accumulated_residual,
    decomposed_residual,
    logit_attribution,
)
from interp.errors import InterpError
from interp.sites import LAYER_KINDS, SHAPES, Site, Spelling, parse_site, parse_sites
from interp.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    import pandas as pd

    from interp.model import StandardizedTransformer
    from interp.results import Attribution

__all__ = ["ActivationCache", "CachedModel", "axes_of"]

_HEAD_AXIS = {"q": 1, "k": 1, "v": 1, "scores": 1, "pattern": 1, "z": 2, "head_out": 2}
_KEY, _KIND, _VERSION = "interpipe", "ActivationCache", 1
_GRADIENT = "gradient:"


def axes_of(site: Site) -> tuple[str, ...]:
    """Names of the axes of a cached tensor: those of `interp.sites.SHAPES`, with `example` for `batch`."""
    names = ["example" if name == "batch" else name for name in SHAPES[site.kind].split(", ")]
    return tuple(name for name in names if site.head is None or not name.endswith("head"))


@dataclass(frozen=True)
class CachedModel:
    """What a cache knows of its model, without keeping the weights in memory.

    Arguments:
        name: the family's class and, where it is known, where it was loaded from.
        num_layers, num_heads, num_kv_heads: its sizes, by which spellings of sites are read.
        digest: of config and weights; None: not computed yet.
        reference: weak; None, or dead: the model is gone.
    """

    name: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    digest: str | None = None
    reference: Callable[[], StandardizedTransformer | None] | None = None

    @classmethod
    def of(cls, model: StandardizedTransformer) -> CachedModel:
        """What there is to know of a model."""
        source = getattr(model, "repo_id", None)
        name = type(model._module).__name__ + (f" ({source})" if source else "")
        return cls(name, model.num_layers, model.num_heads, model.num_kv_heads, reference=ref(model))

    def __call__(self) -> StandardizedTransformer | None:
        """The model; None where it is gone."""
        return None if self.reference is None else self.reference()


@dataclass(frozen=True, eq=False, repr=False)
class ActivationCache(Mapping[Spelling, Tensor]):
    """Activations of some prompts: site, in any spelling, -> a tensor of its own, detached.

        output, cache = model.run_with_cache("The Eiffel Tower is in", sites="resid_post.* z.3")
        cache["resid_post.3"], cache["z.3.h0"], cache["blocks.3.hook_resid_post"], cache["resid_post", -1]

    Positions count each prompt's own tokens, padding left out. Where a prompt has no such position, or key, there is
    NaN. Neighbouring sites that are one tensor of the model (`resid_post.2`, `resid_pre.3`) are one tensor here.

    Attributes:
        tensors: by site.
        positions: per example, the token at each place along the axis `position` (`query` of maps); -1: none.
        labels: names along that axis.
        lengths: tokens of each prompt, those of a frozen prefix included.
        input_ids: per example, the tokens that were run; None: the run began from a residual stream.
        gradients: of the scalar that the caller gave, by site; without any where none was asked for.
        about: what is known of the model.
    """

    tensors: Mapping[Site, Tensor]
    positions: Sequence[Sequence[int]]
    labels: Sequence[str]
    lengths: Sequence[int]
    input_ids: Sequence[Sequence[int]] | None
    about: CachedModel
    gradient_tensors: Mapping[Site, Tensor] = field(default_factory=dict)

    # A mapping ------------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> list[Site]:
        """The sites, in the order of the forward pass."""
        return list(self.tensors)

    def site(self, spelling: Spelling) -> Site:
        """A site of the model from any spelling, held here or not.

        Raises:
            InterpError: it cannot be read, or names several sites or none of the model's.
        """
        return parse_site(spelling, self.about.num_layers, self.about.num_heads, self.about.num_kv_heads)

    def __getitem__(self, site: Spelling) -> Tensor:
        """The tensor of a site; of one head, a view of that of all heads.

        Raises:
            InterpError: it is not here, or no site at all; with the nearest ones.
        """
        place = self.site(site)
        if place in self.tensors:
            return self.tensors[place]
        whole = replace(place, head=None)
        if whole not in self.tensors:
            held = [name for name in self if name.split(".")[0] == place.kind] or {s.kind: 0 for s in self.tensors}
            raise InterpError(f"the cache has no {str(place)!r}. Name it in `sites`. Here: {', '.join(held)}.")
        assert place.head is not None
        return self.tensors[whole].select(_HEAD_AXIS[place.kind], place.head)

    def __contains__(self, site: object) -> bool:
        place = self.site(site)  # type: ignore[arg-type]
        return place in self.tensors or replace(place, head=None) in self.tensors

    def get(self, site: Spelling, default: Any = None) -> Any:
        """The tensor of a site; `default` where the cache does not have it."""
        if site in self:
            return self[site]
        return default

    def __iter__(self) -> Iterator[str]:
        return map(str, self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    __eq__, __hash__ = object.__eq__, object.__hash__  # a mapping's would compare tensors

    def __repr__(self) -> str:
        shown = (
            ", ".join(map(str, self.tensors))
            if len(self) < 9
            else f"{self.sites[0]} ... {self.sites[-1]}, {len(self)} sites"
        )
        return f"{type(self).__name__}({shown}; {len(self.positions)} examples of {self.about.name})"

    def axes(self, site: Spelling) -> tuple[str, ...]:
        """Names of the axes of a site's tensor, such as `example, position, hidden`."""
        return axes_of(self.site(site))

    @property
    def gradients(self) -> ActivationCache:
        """The gradients, by site, of the scalar that the caller gave; with these axes and positions."""
        return replace(self, tensors=self.gradient_tensors, gradient_tensors={})

    # The model --------------------------------------------------------------------------------------------------------

    @property
    def model(self) -> StandardizedTransformer:
        """The model that these activations are of. The cache does not keep it in memory.

        Raises:
            InterpError: it is gone.
        """
        model = self.about()
        if model is None:
            raise InterpError(
                f"the cache's model, {self.about.name}, is no longer in memory. Keep a reference to it, or attach it "
                "again: cache.attached(model)."
            )
        return model

    @property
    def model_name(self) -> str:
        """The model's class, and where it was loaded from."""
        return self.about.name

    @property
    def model_digest(self) -> str:
        """SHA-256 of the model's config and weights as they are now (or were when the cache was saved)."""
        return self.about.digest or self.model.digest()

    def attached(self, model: StandardizedTransformer) -> ActivationCache:
        """The cache with a model, which decompositions need.

        Raises:
            InterpError: another model than the one that it was made with.
        """
        if self.about.digest is not None and model.digest() != self.about.digest:
            raise InterpError(
                f"attached: the cache is of {self.about.name} with the digest {self.about.digest[:12]}, got "
                f"{type(model._module).__name__} with {model.digest()[:12]}: other weights or another config."
            )
        known = (model.num_layers, model.num_heads, model.num_kv_heads)
        if known != (self.about.num_layers, self.about.num_heads, self.about.num_kv_heads):
            raise InterpError(f"attached: the cache is of {self.about.name}, which has other layers or heads.")
        return replace(self, about=replace(self.about, reference=ref(model)))

    # Other forms ------------------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ActivationCache:
        """The cache on another device or in another dtype; what is there already is not copied."""
        known: dict[int, Tensor] = {}

        def moved(tensor: Tensor) -> Tensor:
            if id(tensor) not in known:
                known[id(tensor)] = tensor.to(device=device, dtype=dtype)
            return known[id(tensor)]

        return replace(
            self,
            tensors={site: moved(tensor) for site, tensor in self.tensors.items()},
            gradient_tensors={site: moved(tensor) for site, tensor in self.gradient_tensors.items()},
        )

    def named(self, sites: Spelling | Sequence[Spelling]) -> list[Site]:
        """The sites here that a spelling names; a kind alone (`resid_post`), or `*`, names those of all layers.

        Raises:
            InterpError: one that is not here, or none that is.
        """
        shorthand = isinstance(sites, tuple) and any(isinstance(item, int) for item in sites)
        several: list[Any] = [sites] if isinstance(sites, str | Site) or shorthand else list(sites)
        found: dict[Site, None] = {}
        for spelling in several:
            words: list[Any] = spelling.split() if isinstance(spelling, str) else [spelling]
            for word in words:
                found |= dict.fromkeys(self._matching(word))
        return list(found)

    def _matching(self, word: Any) -> list[Site]:
        if isinstance(word, str) and word in LAYER_KINDS:
            held = [site for site in self.tensors if site.kind == word and site.head is None]
            if held:
                return held
            word = f"{word}.*"
        every = isinstance(word, str) and "*" in word
        sizes = (self.about.num_layers, self.about.num_heads, self.about.num_kv_heads)
        asked = parse_sites(word, *sizes)
        held = [site for site in asked if site in self]
        if not held or (len(held) < len(asked) and not every):
            missing = next(site for site in asked if site not in held)
            self[missing]  # raises
        return held

    def stack(self, sites: Spelling | Sequence[Spelling]) -> Tensor:
        """Tensors of one shape in one: a leading axis over the sites.

        Arguments:
            sites: a kind (`resid_post`: all its layers here), a range or `*`, or a list.

        Returns:
            (site, example, ...), on the device and in the dtype of the first.

        Raises:
            InterpError: one that is not here, or sites of different shapes.
        """
        chosen = self.named(sites)
        tensors = [self[site] for site in chosen]
        for site, tensor in zip(chosen, tensors, strict=True):
            if tensor.shape != tensors[0].shape:
                raise InterpError(
                    f"stack: {chosen[0]} has the shape {tuple(tensors[0].shape)}, {site} {tuple(tensor.shape)}. "
                    "Expected sites of one shape."
                )
        return torch.stack([tensor.to(tensors[0]) for tensor in tensors])

    def to_frame(self, sites: Spelling | Sequence[Spelling] | None = None) -> pd.DataFrame:
        """Activations as a table: a row for each site, example, position and (where there are any) head.

        Arguments:
            sites: as of `stack`, those of one width; None: all.

        Returns:
            The columns `site`, `example`, `position` (the token's place in its prompt), where sites have heads `head`,
            and 0, 1, ... along the last axis. Positions that an example does not have have no rows.

        Raises:
            InterpError: sites whose last axes differ in width.
        """
        import pandas as pd

        parts: list[tuple[pd.DataFrame, int]] = []
        for site in self.sites if sites is None else self.named(sites):
            tensor, axes = self[site], list(axes_of(site))
            last = axes.pop()
            places = [index for index, axis in enumerate(axes) if axis in ("position", "query")]
            heads = [index for index, axis in enumerate(axes) if axis.endswith("head")]
            tensor = tensor.permute(0, *places, *heads, len(axes)).float().cpu()
            counts = [range(size) for size in tensor.shape[:-1]]
            names = ["example", "position", *["head"] * len(heads)]
            frame = pd.MultiIndex.from_product(counts, names=names).to_frame(index=False)
            frame["position"] = [
                self.positions[row][slot] for row, slot in zip(frame["example"], frame["position"], strict=True)
            ]
            frame.insert(0, "site", str(site))
            values = pd.DataFrame(tensor.reshape(-1, tensor.shape[-1]).numpy())
            if parts and values.shape[1] != parts[0][1]:
                raise InterpError(f"to_frame: {site} has {values.shape[1]} numbers along {last}, others {parts[0][1]}.")
            parts.append((pd.concat([frame, values], axis=1)[frame["position"] >= 0], values.shape[1]))
        return pd.concat([frame for frame, _ in parts], ignore_index=True)

    # Files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the cache into one safetensors file; a JSON manifest in its header describes it. No pickle.

        What is one tensor here is written once. The model's digest is computed if the model is in memory.

        Arguments:
            path: of the file; its folder has to exist.
        """
        written: dict[int, str] = {}
        tensors: dict[str, Tensor] = {}
        same: dict[str, str] = {}
        named = {str(site): tensor for site, tensor in self.tensors.items()}
        named |= {f"{_GRADIENT}{site}": tensor for site, tensor in self.gradient_tensors.items()}
        for name, tensor in named.items():
            if id(tensor) in written:
                same[name] = written[id(tensor)]
            else:
                written[id(tensor)] = name
                tensors[name] = tensor
        model = self.about()
        digest = self.about.digest or (None if model is None else model.digest())
        manifest = {
            "kind": _KIND, "version": _VERSION, "axes": {str(site): axes_of(site) for site in self.tensors},
            "same": same, "order": list(named), "positions": [list(map(int, row)) for row in self.positions],
            "labels": list(self.labels), "lengths": list(map(int, self.lengths)),
            "input_ids": None if self.input_ids is None else [list(map(int, row)) for row in self.input_ids],
            "model": {
                "name": self.about.name, "num_layers": self.about.num_layers, "num_heads": self.about.num_heads,
                "num_kv_heads": self.about.num_kv_heads, "digest": digest,
            },
        }  # fmt: skip
        write_tensors(path, tensors, {_KEY: json.dumps(manifest, sort_keys=True, ensure_ascii=False)})

    @classmethod
    def load(cls, path: str | Path, model: StandardizedTransformer | None = None) -> ActivationCache:
        """Read what `save` wrote.

        Arguments:
            path: of the file.
            model: the model that it is of, for decompositions; checked by its digest.

        Raises:
            InterpError: no such file, one that holds something else, or another model.
        """
        found, header = read_tensors(path)
        manifest = json.loads(header.get(_KEY, "{}"))
        if (manifest.get("kind"), manifest.get("version")) != (_KIND, _VERSION):
            raise InterpError(f"{str(path)!r}: expected a {_KIND} (version {_VERSION}), found {manifest.get('kind')}.")
        found |= {name: found[other] for name, other in manifest["same"].items()}
        about = CachedModel(**manifest["model"])
        sizes = (about.num_layers, about.num_heads, about.num_kv_heads)
        of_run = {name: found[name] for name in manifest["order"] if not name.startswith(_GRADIENT)}
        of_gradients = {name: found[name] for name in manifest["order"] if name.startswith(_GRADIENT)}
        cache = cls(
            tensors={parse_site(name, *sizes): tensor for name, tensor in of_run.items()},
            positions=manifest["positions"],
            labels=manifest["labels"],
            lengths=manifest["lengths"],
            input_ids=manifest["input_ids"],
            about=about,
            gradient_tensors={
                parse_site(name.removeprefix(_GRADIENT), *sizes): tensor for name, tensor in of_gradients.items()
            },
        )
        return cache if model is None else cache.attached(model)

    # What adds up to what (`interp.activations.residual_stack`) -------------------------------------------------------

    def accumulated_residual(
        self, layer: int | None = None, *, include_middle: bool = False, apply_norm: bool = False
    ) -> ResidualStack:
        """The residual stream before each layer: what has been written so far.

        Arguments:
            layer: up to what enters this layer; None: up to what the last one gives.
            include_middle: with the stream between attention and MLP (`resid_mid`), where layers have it.
            apply_norm: each through the final norm, with the scale that it has at the last residual stream.

        Raises:
            InterpError: the cache lacks one of them.
        """
        return accumulated_residual(self, layer, include_middle=include_middle, apply_norm=apply_norm)

    def decomposed_residual(self, layer: int | None = None, parts: Parts = "layers") -> ResidualStack:
        """What parts of the model have added to a residual stream, and what remains: the sum is that stream.

        Parts are as they arrive: where later layers scale the stream itself, times these scales.

        Arguments:
            layer: the stream that enters this layer; None: what the last layer gives.
            parts: `layers` (`embed`, and each attention, mixer and MLP), `heads`, `neurons`, or a list of these:
                `embed`, `attention`, `mixer`, `mlp`, `heads`, `neurons`. Heads come from `head_out`, or `z`; neurons
                from `mlp_post`.

        Returns:
            (part, example, position, hidden), the last part `remainder`. Neurons make it large: a layer has as many as
            its MLP is wide. `logit_attribution` does without.

        Raises:
            InterpError: the cache lacks a site, its model is gone, or the stream is no sum (it goes through a norm).
        """
        return decomposed_residual(self, layer, parts)

    def logit_attribution(
        self, targets: TokenTargets, parts: Parts = "layers", *, stack: ResidualStack | None = None
    ) -> Attribution:
        """Direct logit attribution (Elhage et al. 2021): what parts add to logits, through the final norm and the head.

        The norm's scale, and its mean, are held at what they are at the last residual stream. The final softcap is no
        sum and is left out. `lenses.direct_logit_attribution` is the same of prompts, in batches.

        Arguments:
            targets: the tokens: an id, or a text that is one token, for all examples; a list with one an example; or
                name -> any of these, where several are asked for: the difference of two is that of their logits.
            parts: as of `decomposed_residual`; neurons cost no (neuron, example, position, hidden) tensor here.
            stack: these parts in place of `parts`.

        Returns:
            Contributions in logits; `top_k` sorts them.

        Raises:
            InterpError: as `decomposed_residual`; a text that is no single token; a head or norm that is not linear.
        """
        return logit_attribution(self, targets, parts, stack=stack)
