"""What a lens needs besides its own section: collected states, and what they go through."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.lens import (
    AttentionObjectConfig,
    KnockoutConfig,
    LensConfig,
    LogitLensConfig,
    PatchscopeGenerateConfig,
    PatchscopeGridConfig,
    TunedLensConfig,
)

__all__ = ["Reads", "mapping_of", "reads_of", "target_layers_of"]


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
