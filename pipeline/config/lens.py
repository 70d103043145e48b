"""Section `lens`: the kinds of lenses, each with its settings, what it reads, its rules and the class that runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from interp.errors import InterpError
from interp.positions import check_blocks
from pipeline.config.lens_base import (
    MAPPINGS,
    Given,
    IntoTarget,
    LensConfig,
    Reads,
    check_span,
    lenses_from,
    load_lenses,
    named_layers,
    one_position,
)  # fmt: skip
from pipeline.config.section import LARGEST_COUNT, LARGEST_SEED, ConfigError, bounded, chosen
from pipeline.files import sha256_of

__all__ = [
    "AttentionObjectConfig", "IntoTarget", "JacobianLensConfig", "KnockoutConfig", "LensConfig", "LogitLensConfig",
    "PatchscopeConfig", "PatchscopeGenerateConfig", "PatchscopeGridConfig", "TunedLensConfig", "lenses_from",
    "load_lenses",
]  # fmt: skip


@dataclass(frozen=True)
class LogitLensConfig(LensConfig):
    """Logit lens (nostalgebraist 2020): the model's own readout applied to the residual stream after every layer.

    Arguments:
        kind: `logit_lens`.
        site: kind of site that is read; it must be among `collect.sites`.
        position: which of `collect.positions` is read.
        layers: layers, `*` or a range such as `3-5` or a list such as `0,2,7`.
        mapping: what is read out instead (`MAPPINGS`): `identity`, or `affine_last` (Ghandeharioun et al. 2024); the
            tuned lens is a kind of its own.
        inverted: negate the state after the final norm, which shows the tokens that it speaks against.
        top_k: how many top tokens are kept.
        batch_size: rows that are read out at once.
    """

    stage: ClassVar[str] = "pipeline.stages.lens.kinds.logit_lens:LogitLens"
    remote: ClassVar[bool] = True

    kind: str = "logit_lens"
    site: str = "resid_post"
    position: str = "last"
    layers: str = "*"
    mapping: str = chosen("identity", *MAPPINGS)
    inverted: bool = False
    top_k: int = bounded(5, 1, 1_000_000)
    batch_size: int = bounded(256, 1, 1_000_000)

    def reads(self) -> Reads:
        """The states at its site."""
        return Reads(self.site, self.position, "position", self.layers, site_option="site")

    def check(self, where: str, given: Given) -> None:
        """Check its mapping; raises ConfigError."""
        if self.mapping not in ("identity", "affine_last"):
            better = "lens=tuned_lens" if self.mapping == "tuned" else "identity or affine_last"
            raise ConfigError(
                f"{where}.mapping: expected identity or affine_last for kind {self.kind}, got {self.mapping!r}. Choose "
                f"{better}."
            )


@dataclass(frozen=True)
class TunedLensConfig(LensConfig):
    """Tuned lens (Belrose et al. 2023): as the logit lens, after a translator that each layer has learned.

    It reads the residual stream after layers; its translators come from the section `tune`.

    Arguments:
        kind: `tuned_lens`.
        position: which of `collect.positions` is read.
        layers: layers, as in `LogitLensConfig`.
        top_k: how many top tokens are kept.
        batch_size: rows that are translated and read out at once.
    """

    stage: ClassVar[str] = "pipeline.stages.lens.kinds.tuned_lens:Tuned"

    kind: str = "tuned_lens"
    position: str = "last"
    layers: str = "*"
    top_k: int = bounded(5, 1, 1_000_000)
    batch_size: int = bounded(256, 1, 1_000_000)

    def reads(self) -> Reads:
        """The residual stream after layers."""
        return Reads("resid_post", self.position, "position", self.layers)

    def maps(self) -> str:
        """Its own translators."""
        return "tuned"


@dataclass(frozen=True)
class JacobianLensConfig(LensConfig):
    """Jacobian lens (Gurnee et al. 2026): as the logit lens, after a given matrix a layer, its average Jacobian.

    Arguments:
        kind: `jacobian_lens`.
        jacobians: the file of the matrices, as `jlens` writes it, by an absolute path.
        sha256: of that file, so that a run says which matrices it has read with.
        position: which of `collect.positions` is read.
        layers: layers, as in `LogitLensConfig`.
        inverted: negate after the final norm: the tokens that a state lowers.
        top_k: how many top tokens are kept.
        batch_size: rows that are carried and read out at once.
    """

    stage: ClassVar[str] = "pipeline.stages.lens.kinds.jacobian_lens:JacobianLens"
    paper: ClassVar[str] = "Gurnee et al., 2026"

    kind: str = "jacobian_lens"
    jacobians: str = "???"
    sha256: str = "???"
    position: str = "last"
    layers: str = "*"
    inverted: bool = False
    top_k: int = bounded(5, 1, 1_000_000)
    batch_size: int = bounded(256, 1, 1_000_000)

    def file(self) -> Path:
        """The file of the matrices."""
        return Path(self.jacobians).expanduser()

    def reads(self) -> Reads:
        """The residual stream after layers."""
        return Reads("resid_post", self.position, "position", self.layers)

    def check(self, where: str, given: Given) -> None:
        """Check that the file is there, and is the one that is meant; raises ConfigError."""
        if not (self.file().is_absolute() and self.file().is_file()):
            raise ConfigError(f"{where}.jacobians: expected a file by its absolute path, got {self.jacobians!r}.")
        if (found := sha256_of(self.file())) != self.sha256:
            raise ConfigError(f"{where}.sha256: expected that of {self.jacobians}, {found}, got {self.sha256!r}.")

    def describe(self) -> str:
        """What the report says of the lens."""
        return (
            f"The residual stream after layer j (resid_post), at {self.position} of a prompt, is carried to the last "
            "layer by the model’s average Jacobian from layer j, then read out by the model’s own final norm and "
            "unembedding."
        )


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

    stage: ClassVar[str] = "pipeline.stages.lens.kinds.patchscope:Patchscope"
    remote: ClassVar[bool] = True

    kind: str = "patchscope"
    site: str = "resid_post"
    patch: str = chosen("one_layer", "one_layer", "from_layer")
    mapping: str = chosen("identity", *MAPPINGS)
    layers: str = "*"
    top_k: int = bounded(5, 1, 1_000_000)

    def reads(self) -> Reads:
        """The states at its site; of every layer from the first on, where all later ones are written."""
        window, why = (
            (None, "patch: from_layer writes every layer from the first on") if self.patch == "from_layer" else (1, "")
        )
        return Reads(
            self.site, self.source_position, "source_position", self.layers, window=window, why=why, site_option="site"
        )


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

    stage: ClassVar[str] = "pipeline.stages.lens.kinds.patchscope_grid:PatchscopeGrid"

    kind: str = "patchscope_grid"
    site: str = "resid_post"
    mapping: str = chosen("identity", *MAPPINGS)
    source_layers: str = "*"
    target_layers: str = "*"
    top_k: int = bounded(1, 1, 1_000_000)

    def reads(self) -> Reads:
        """The states at its site, of its source layers."""
        position = self.source_position
        return Reads(self.site, position, "source_position", self.source_layers, "source_layers", site_option="site")

    def writes(self) -> str:
        """The layers that each source layer is written into."""
        return self.target_layers


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

    stage: ClassVar[str] = "pipeline.stages.lens.kinds.patchscope_generate:PatchscopeGenerate"

    kind: str = "patchscope_generate"
    site: str = "resid_post"
    patch: str = chosen("one_layer", "one_layer", "from_layer")
    mapping: str = chosen("identity", *MAPPINGS)
    layers: str = "*"
    target_layers: str | None = None
    max_layers: int | None = bounded(8, 1, 10_000)
    max_new_tokens: int = bounded(10, 1, LARGEST_COUNT)
    temperature: float = bounded(0.0, 0, 1_000_000)
    seed: int = bounded(0, 0, LARGEST_SEED)

    def reads(self) -> Reads:
        """The states at its site; of every layer from the first on, where all later ones are written."""
        window, why = (
            (None, "patch: from_layer writes every layer from the first on") if self.patch == "from_layer" else (1, "")
        )
        return Reads(
            self.site, self.source_position, "source_position", self.layers, window=window, why=why, site_option="site"
        )

    def writes(self) -> str | None:
        """The layers that each source layer is written into; None: each into itself."""
        return self.target_layers

    def check(self, where: str, given: Given) -> None:
        """Check the targets, and that a patch of all later layers names no other ones; raises ConfigError."""
        super().check(where, given)
        if self.target_layers is not None and self.patch == "from_layer":
            raise ConfigError(
                f"{where}.patch: 'from_layer' writes each later layer's own activation, and target_layers writes one "
                "layer's into another. Choose one_layer, or target_layers: null."
            )


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

    stage: ClassVar[str] = "pipeline.stages.lens.kinds.attention_object:AttentionObject"

    kind: str = "attention_object"
    layers: str = "*"
    window: int | None = bounded(5, 1, 10_000)
    top_k: int = bounded(5, 1, 1_000_000)

    def reads(self) -> Reads:
        """What attention receives, in every layer of a window."""
        many = "all" if self.window is None else "that many"
        why = f"window: {'null' if self.window is None else self.window} writes {many} layers from each on"
        position = self.source_position
        return Reads("attn_in", position, "source_position", self.layers, window=self.window, why=why)

    def check(self, where: str, given: Given) -> None:
        """Check the targets and the window; raises ConfigError."""
        super().check(where, given)
        _check_window(where, self.window, given)


@dataclass(frozen=True)
class KnockoutConfig(LensConfig):
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

    stage: ClassVar[str] = "pipeline.stages.lens.kinds.knockout:Knockout"

    kind: str = "knockout"
    blocks: list[str] = field(default_factory=lambda: ["first", "query.all", "before_query"])
    query_position: str = "last"
    layers: str = "*"
    window: int | None = bounded(5, 1, 10_000)
    centred: bool = False
    top_k: int = bounded(5, 1, 1_000_000)
    batch_size: int = bounded(64, 1, 1_000_000)

    def positions(self) -> dict[str, list[str]]:
        """The token that may not look, and what it may not look at."""
        blocks = [block.position for block in check_blocks(self.blocks)]
        named = [position.text for position in blocks if position is not None]
        return {"query_position": [self.query_position], "blocks": named}

    def check(self, where: str, given: Given) -> None:
        """Check layers, blocks and window; raises ConfigError."""
        named_layers(f"{where}.layers", self.layers, given.num_layers)
        try:
            blocks = check_blocks(self.blocks)
        except InterpError as error:
            raise ConfigError(f"{where}.blocks: {error}") from None
        for block in blocks:
            check_span(f"{where}.blocks", block.text, block.span_name, given.task)
        position = one_position(f"{where}.query_position", self.query_position)
        check_span(f"{where}.query_position", position.text, position.span_name, given.task)
        if self.centred and self.window is None:
            raise ConfigError(f"{where}.centred: a window up to the last layer has no middle. Set {where}.window too.")
        _check_window(where, self.window, given)


def _check_window(where: str, window: int | None, given: Given) -> None:
    """Raise where a window has more layers than the model."""
    if given.num_layers is not None and window is not None and window > given.num_layers:
        raise ConfigError(
            f"{where}.window: expected at most {given.num_layers}, the layers of the model, got {window}."
        )
