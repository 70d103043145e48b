"""Section `lens`: named lenses, each with a `kind` that selects its schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config.base import ConfigError, load_section, nearest, section_from


@dataclass(frozen=True)
class LogitLensConfig:
    """Logit lens (nostalgebraist 2020): the model's own readout applied to the residual stream after every layer.

    Arguments:
        kind: `logit_lens`.
        site: kind of site that is read; it must be among `collect.sites`.
        position: which of `collect.positions` is read.
        layers: layers, `*` or a range such as `3-5` or a list such as `0,2,7`.
        top_k: how many top tokens are kept.
        batch_size: rows that are read out at once.
    """

    kind: str = "logit_lens"
    site: str = "resid_post"
    position: str = "last"
    layers: str = "*"
    top_k: int = 5
    batch_size: int = 256


@dataclass(frozen=True)
class PatchscopeConfig:
    """Patchscope (Ghandeharioun et al. 2024): activations of a source prompt written into a target prompt's run.

    Arguments:
        kind: `patchscope`.
        site: kind of site that is patched; it must be among `collect.sites`.
        source_position: which of `collect.positions` gives the activation.
        target: `task` patches into the task's own target prompts (`task.patch_into`), `identity` into `target_prompt`.
        target_prompt: for `identity`: a name that `interp.prompts` knows (`king`, `cat`, ...) or the prompt's own text.
        target_position: position in the target prompt that is written: `last`, `query.last`, an integer.
        patch: `one_layer` patches layer j only, `from_layer` layers j, j+1, ..., last.
        sources: `first` takes the first source language, `mean` the mean over all of them.
        layers: layers, as in `LogitLensConfig`.
        top_k: how many top tokens are kept.
        batch_size: target prompts in a forward pass at most.
    """

    kind: str = "patchscope"
    site: str = "resid_post"
    source_position: str = "last"
    target: str = "task"
    target_prompt: str = "king"
    target_position: str = "last"
    patch: str = "one_layer"
    sources: str = "first"
    layers: str = "*"
    top_k: int = 5
    batch_size: int = 64


@dataclass(frozen=True)
class Reads:
    """The collected hidden states that a lens needs, and under which of its options it names them.

    Arguments:
        site: kind of site.
        position: a position.
        position_option: option that names the position.
        layers: layers, `*` or a range or a list.
        layers_option: option that names the layers.
        through_last: whether every layer from the first of `layers` to the model's last is needed, and why; empty: no.
    """

    site: str
    position: str
    position_option: str
    layers: str
    layers_option: str = "layers"
    through_last: str = ""


LensConfig = LogitLensConfig | PatchscopeConfig
LENSES: dict[str, type[LensConfig]] = {"logit_lens": LogitLensConfig, "patchscope": PatchscopeConfig}


FROM_LAYER = "patch: from_layer writes every layer from the first on"


def reads_of(lens: LensConfig) -> Reads:
    """What a lens needs of `activations.zarr`."""
    if isinstance(lens, LogitLensConfig):
        return Reads(lens.site, lens.position, "position", lens.layers)
    through_last = FROM_LAYER if lens.patch == "from_layer" else ""
    return Reads(lens.site, lens.source_position, "source_position", lens.layers, through_last=through_last)


def lenses_from(values: dict[str, Any]) -> dict[str, LensConfig]:
    """The section from plain values: lens name -> its config, in the config's order.

    Raises:
        ConfigError: no lens at all, an unknown `kind`, and all that `section_from` raises.
    """
    lenses: dict[str, LensConfig] = {}
    for name, section in values.items():
        if not isinstance(section, dict):
            raise ConfigError(f"lens.{name}: expected a lens (a mapping with 'kind'), got {section!r}.")
        kind = section.get("kind")
        if kind not in LENSES:
            raise ConfigError(f"lens.{name}.kind: unknown lens {kind!r}.{nearest(str(kind), list(LENSES))}")
        lenses[str(name)] = section_from(LENSES[kind], section, f"lens.{name}")
    if not lenses:
        raise ConfigError(
            "lens: no lens is configured. Choose one, e.g. lens=logit_lens or 'lens=[logit_lens,patchscope]'"
        )
    return lenses


def load_lens_configs(params: str = "params.yaml") -> dict[str, LensConfig]:
    """The section of a run folder's `params.yaml`."""
    return lenses_from(load_section("lens", params))
