"""Section `lens`: named lenses, each with a `kind` that selects its schema."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.base import (
    LARGEST_COUNT,
    LARGEST_SEED,
    ConfigError,
    bounded,
    load_section,
    nearest,
    passage,
    section_from,
)

__all__ = ["Reads", "mapping_of", "reads_of", "target_layers_of"]


MAPPINGS = ("identity", "affine_last", "affine_target", "tuned")
"""What a state goes through before it is written or read out.

`identity`: nothing. `affine_last`: an affine map from its layer to the model's last one, fitted by least squares.
`affine_target`: one to the layer that it is written at (a grid). `tuned`: the translator of a tuned lens. The maps come
from the section `tune`; they are of the residual stream after layers.
"""


@dataclass(frozen=True)
class LogitLensConfig:
    """Logit lens (nostalgebraist 2020): the model's own readout applied to the residual stream after every layer.

    Arguments:
        kind: `logit_lens`.
        site: kind of site that is read; it must be among `collect.sites`.
        position: which of `collect.positions` is read.
        layers: layers, `*` or a range such as `3-5` or a list such as `0,2,7`.
        mapping: what is read out instead (`MAPPINGS`): `identity`, or `affine_last` (Ghandeharioun et al. 2024); the
            tuned lens is a kind of its own.
        inverted: turn the sign after the final norm, which shows the tokens that a state speaks against.
        top_k: how many top tokens are kept.
        batch_size: rows that are read out at once.
    """

    kind: str = "logit_lens"
    site: str = "resid_post"
    position: str = "last"
    layers: str = "*"
    mapping: str = "identity"
    inverted: bool = False
    top_k: int = bounded(5, 1, 1_000_000)
    batch_size: int = bounded(256, 1, 1_000_000)


@dataclass(frozen=True)
class TunedLensConfig:
    """Tuned lens (Belrose et al. 2023): as the logit lens, after a translator that each layer has learned.

    It reads the residual stream after layers; its translators come from the section `tune`.

    Arguments:
        kind: `tuned_lens`.
        position: which of `collect.positions` is read.
        layers: layers, as in `LogitLensConfig`.
        top_k: how many top tokens are kept.
        batch_size: rows that are translated and read out at once.
    """

    kind: str = "tuned_lens"
    position: str = "last"
    layers: str = "*"
    top_k: int = bounded(5, 1, 1_000_000)
    batch_size: int = bounded(256, 1, 1_000_000)


@dataclass(frozen=True)
class IntoTarget:
    """What all lenses share that write activations of a source prompt into a target prompt's run.

    Arguments:
        kind: of the lens.
        source_position: which of `collect.positions` gives the activation.
        target: `task` patches into the task's own target prompts (`task.patch_into`), `identity` into `target_prompt`.
        target_prompt: for `identity`: a name that `interp.prompts` knows (`king`, `cat`, ...) or the prompt's own text.
        target_position: position in the target prompt that is written: `last`, `query.last`, an integer.
        sources: `first` takes the first source language, `mean` the mean over all of them.
        batch_size: target prompts in a forward pass at most.
    """

    kind: str = "patchscope"
    source_position: str = "last"
    target: str = "task"
    target_prompt: str = passage("king")
    target_position: str = "last"
    sources: str = "first"
    batch_size: int = bounded(64, 1, 1_000_000)


@dataclass(frozen=True)
class PatchscopeConfig(IntoTarget):
    """Patchscope (Ghandeharioun et al. 2024): activations of a source prompt written into a target prompt's run.

    Arguments:
        kind: `patchscope`.
        source_position, target, target_prompt, target_position, sources, batch_size: see `IntoTarget`.
        site: kind of site that is patched; it must be among `collect.sites`.
        patch: `one_layer` patches layer j only, `from_layer` layers j, j+1, ..., last.
        mapping: what the activations go through on the way (`MAPPINGS`).
        layers: layers, as in `LogitLensConfig`.
        top_k: how many top tokens are kept.
    """

    kind: str = "patchscope"
    site: str = "resid_post"
    patch: str = "one_layer"
    mapping: str = "identity"
    layers: str = "*"
    top_k: int = bounded(5, 1, 1_000_000)


@dataclass(frozen=True)
class PatchscopeGridConfig(IntoTarget):
    """Patchscope grid (Ghandeharioun et al. 2024): the activation of each source layer, into each target layer.

    Arguments:
        kind: `patchscope_grid`.
        source_position, target, target_prompt, target_position, sources, batch_size: see `IntoTarget`.
        site: kind of site that is patched; it must be among `collect.sites`.
        mapping: what the activations go through on the way (`MAPPINGS`).
        source_layers: layers of the source prompt that are read, as in `LogitLensConfig`.
        target_layers: layers of the target prompt that are written.
        top_k: how many top tokens are kept in every cell.
    """

    kind: str = "patchscope_grid"
    site: str = "resid_post"
    mapping: str = "identity"
    source_layers: str = "*"
    target_layers: str = "*"
    top_k: int = bounded(1, 1, 1_000_000)


@dataclass(frozen=True)
class PatchscopeGenerateConfig(IntoTarget):
    """Patchscope generation (Ghandeharioun et al. 2024): tokens generated from a patched run.

    For each layer, written into itself; or for each source layer and each target layer, which costs as many texts.

    Arguments:
        kind: `patchscope_generate`.
        source_position, target, target_prompt, target_position, sources, batch_size: see `IntoTarget`.
        site: kind of site that is patched; it must be among `collect.sites`.
        patch: `one_layer` or `from_layer`, as in `PatchscopeConfig`.
        mapping: what the activations go through on the way (`MAPPINGS`).
        layers: layers that are read, as in `LogitLensConfig`.
        target_layers: layers of the target prompt that are written, each from every one of `layers`; null: each layer
            into itself.
        max_layers: with `target_layers`, source layers and target layers at most, evenly spread over those named; null:
            all of them.
        max_new_tokens: how many tokens are generated at most; fewer where the model ends its text.
        temperature: 0 takes the most probable token (greedy); above 0 tokens are drawn at that temperature.
        seed: of the draws.
    """

    kind: str = "patchscope_generate"
    site: str = "resid_post"
    patch: str = "one_layer"
    mapping: str = "identity"
    layers: str = "*"
    target_layers: str | None = None
    max_layers: int | None = bounded(8, 1, 10_000)
    max_new_tokens: int = bounded(20, 1, LARGEST_COUNT)
    temperature: float = bounded(0.0, 0, 1_000_000)
    seed: int = bounded(0, 0, LARGEST_SEED)


@dataclass(frozen=True)
class AttentionObjectConfig(IntoTarget):
    """Attention-object lens (nnterp): what attention receives at a token, replaced in a window of layers.

    Arguments:
        kind: `attention_object`.
        source_position, target, target_prompt, target_position, sources, batch_size: see `IntoTarget`; what is
            read and written is `attn_in`, which must be among `collect.sites`.
        layers: first layers of the windows, as in `LogitLensConfig`.
        window: layers in a window, fewer at the model's end; null: all up to the last.
        top_k: how many top tokens are kept.
    """

    kind: str = "attention_object"
    layers: str = "*"
    window: int | None = bounded(5, 1, 10_000)
    top_k: int = bounded(5, 1, 1_000_000)


@dataclass(frozen=True)
class KnockoutConfig:
    """Attention knock-out (Geva et al. 2023): which positions does the answer need, by window of layers?

    Arguments:
        kind: `knockout`.
        blocks: sets of tokens that are not looked at, one run each (`interp.positions`): positions such as
            `first` or `query.all`, and `before_query`, `after_query` for all tokens before and after a span.
        query_position: the token that may not look at them; the answer is read after the last one.
        layers: where the windows are, as in `LogitLensConfig`.
        window: layers in a window, fewer at the model's ends; null: all up to the last.
        centred: whether `layers` are the middles of the windows, as in Geva et al., or their first layers.
        top_k: how many top tokens are kept.
        batch_size: prompts in a forward pass at most.
    """

    kind: str = "knockout"
    blocks: list[str] = field(default_factory=lambda: ["first", "query.all", "before_query"])
    query_position: str = "last"
    layers: str = "*"
    window: int | None = bounded(5, 1, 10_000)
    centred: bool = False
    top_k: int = bounded(5, 1, 1_000_000)
    batch_size: int = bounded(64, 1, 1_000_000)


PatchedConfig = PatchscopeConfig | PatchscopeGridConfig | PatchscopeGenerateConfig | AttentionObjectConfig
LensConfig = LogitLensConfig | TunedLensConfig | PatchedConfig | KnockoutConfig
NAME = re.compile(r"\w[\w.-]{0,99}")
LENSES: dict[str, type[LensConfig]] = {
    "logit_lens": LogitLensConfig,
    "tuned_lens": TunedLensConfig,
    "patchscope": PatchscopeConfig,
    "patchscope_grid": PatchscopeGridConfig,
    "patchscope_generate": PatchscopeGenerateConfig,
    "attention_object": AttentionObjectConfig,
    "knockout": KnockoutConfig,
}


def lenses_from(values: dict[str, Any]) -> dict[str, LensConfig]:
    """The section from plain values: lens name -> its config, in the config's order; none for `lens=none`.

    Raises:
        ConfigError: a name that cannot be a folder's, an unknown `kind`, and all that `section_from` raises.
    """
    lenses: dict[str, LensConfig] = {}
    for name, section in values.items():
        if not NAME.fullmatch(str(name)):  # it becomes a folder's name
            raise ConfigError(f"lens: expected a name of letters, digits, '_', '-' and '.', got {str(name)[:80]!r}.")
        if not isinstance(section, dict):
            raise ConfigError(f"lens.{name}: expected a lens (a mapping with 'kind'), got {section!r}.")
        kind = section.get("kind")
        if kind not in LENSES:
            raise ConfigError(f"lens.{name}.kind: unknown lens {kind!r}.{nearest(str(kind), list(LENSES))}")
        lenses[str(name)] = section_from(LENSES[kind], section, f"lens.{name}")
    return lenses


def load_lens_configs(params: str = "params.yaml") -> dict[str, LensConfig]:
    """The section of a run folder's `params.yaml`."""
    return lenses_from(load_section("lens", params))


@dataclass(frozen=True)
class Reads:
    """The collected hidden states that a lens needs, and under which of its options it names them.

    Arguments:
        site: kind of site.
        position: a position.
        position_option: option that names the position.
        layers: layers, `*` or a range or a list.
        layers_option: option that names the layers.
        window: layers that are needed from each of `layers` on; None: all up to the model's last.
        why: what needs more than one layer, for messages.
        site_option: option that names the site; empty: the lens has none.
    """

    site: str
    position: str
    position_option: str
    layers: str
    layers_option: str = "layers"
    window: int | None = 1
    why: str = ""
    site_option: str = ""

    def needed(self, layers: list[int], num_layers: int) -> list[int]:
        """The layers whose states are read, ascending.

        Arguments:
            layers: the layers that the option names, ascending.
            num_layers: of the model.
        """
        window = num_layers if self.window is None else self.window
        return sorted({layer for first in layers for layer in range(first, min(first + window, num_layers))})


def reads_of(lens: LensConfig) -> Reads | None:
    """What a lens needs of `activations.zarr`; None: nothing."""
    if isinstance(lens, KnockoutConfig):
        return None
    if isinstance(lens, LogitLensConfig):
        return Reads(lens.site, lens.position, "position", lens.layers, site_option="site")
    if isinstance(lens, TunedLensConfig):
        return Reads("resid_post", lens.position, "position", lens.layers)
    position, option = lens.source_position, "source_position"
    if isinstance(lens, PatchscopeGridConfig):
        return Reads(lens.site, position, option, lens.source_layers, "source_layers", site_option="site")
    if isinstance(lens, AttentionObjectConfig):
        many = "all" if lens.window is None else "that many"
        why = f"window: {'null' if lens.window is None else lens.window} writes {many} layers from each on"
        return Reads("attn_in", position, option, lens.layers, window=lens.window, why=why)
    window, why = (
        (None, "patch: from_layer writes every layer from the first on") if lens.patch == "from_layer" else (1, "")
    )
    return Reads(lens.site, position, option, lens.layers, window=window, why=why, site_option="site")


def mapping_of(lens: LensConfig) -> str:
    """What a lens puts its states through, one of `MAPPINGS`."""
    return "tuned" if isinstance(lens, TunedLensConfig) else getattr(lens, "mapping", "identity")


def target_layers_of(lens: LensConfig) -> str | None:
    """The layers that each source layer is written into; None: each is written into itself, or nothing is."""
    return lens.target_layers if isinstance(lens, PatchscopeGridConfig | PatchscopeGenerateConfig) else None
