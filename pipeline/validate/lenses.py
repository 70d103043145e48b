"""Reject a lens that cannot run: against the collected sites, the task, and the stage `tune`."""

from __future__ import annotations

from collections.abc import Mapping

from interp.errors import InterpError
from interp.positions import Position
from interp.sites import HIDDEN_KINDS, check_layers, layers_by_kind, parse_layers
from pipeline.config.activations import CollectConfig
from pipeline.config.lens_base import Given, LensConfig, Reads, named_layers, one_position
from pipeline.config.paths import HUB_DATASET, located
from pipeline.config.section import ConfigError, nearest
from pipeline.config.translators import TEXT_FILES, TuneConfig, tuned_layers

__all__ = ["check_lens", "check_tune"]


def check_lens(where: str, lens: LensConfig, collect: CollectConfig, given: Given) -> None:
    """Check one lens against what is collected, and by the rules of its kind.

    Arguments:
        where: key of the lens in the config, for messages.
        lens: its section.
        collect: section `collect`.
        given: what else it is checked against.

    Raises:
        ConfigError: it cannot run.
    """
    reads = lens.reads()
    if reads is not None:
        _check_reads(where, reads, collect, given.num_layers)
    _check_mapping(where, lens, reads)
    lens.check(where, given)
    if lens.maps() == "affine_target" and lens.writes() is None:
        raise ConfigError(
            f"{where}.mapping: 'affine_target' maps to the layer that is written, which is the source's own here: it "
            "would change nothing. Choose affine_last, or a lens with target_layers (lens=patchscope_grid)."
        )
    if (target_layers := lens.writes()) is not None:
        named_layers(f"{where}.target_layers", target_layers, given.num_layers)


def _check_mapping(where: str, lens: LensConfig, reads: Reads | None) -> None:
    """Whether what a lens reads can go through its mapping."""
    if lens.maps() != "identity" and reads is not None and reads.site != "resid_post":
        raise ConfigError(
            f"{where}.mapping: {lens.maps()!r} maps the residual stream after layers, and the lens reads "
            f"{reads.site!r}. Choose identity, or site: resid_post."
        )


def _check_reads(where: str, reads: Reads, collect: CollectConfig, num_layers: int | None) -> None:
    """Whether all that a lens reads is collected."""
    collected = layers_by_kind(collect.sites, num_layers or 1000)  # the kinds are right whatever the depth
    option = f"{where}.{reads.site_option}" if reads.site_option else where
    if reads.site not in HIDDEN_KINDS:
        raise ConfigError(
            f"{option}: expected a kind of site that each layer has, got {reads.site!r}."
            f"{nearest(reads.site, HIDDEN_KINDS)} A lens reads hidden states (batch, position, hidden)."
        )
    if reads.site not in collected:
        raise ConfigError(
            f"{option}: {reads.site!r} is not among collect.sites ({', '.join(collect.sites)}). Add it "
            f"there: 'collect.sites=[{','.join([*collect.sites, f'{reads.site}.*'])}]'"
        )
    layers = named_layers(f"{where}.{reads.layers_option}", reads.layers, num_layers)
    if layers is not None and num_layers is not None:
        needed = reads.needed(layers, num_layers)
        absent = [layer for layer in needed if layer not in collected[reads.site]]
        if absent:
            why = f"{reads.why}, and " if reads.why else ""
            raise ConfigError(
                f"{where}.{reads.layers_option}: {why}collect.sites ({', '.join(collect.sites)}) lacks {reads.site} of "
                f"layer {', '.join(map(str, absent))}. Collect it, or choose other layers."
            )
    _check_source_position(f"{where}.{reads.position_option}", reads.position, collect)


def _check_source_position(where: str, text: str, collect: CollectConfig) -> None:
    position = one_position(where, text)
    if position not in [Position.parse(other) for other in collect.positions]:
        raise ConfigError(
            f"{where}: {text!r} is not among collect.positions ({', '.join(collect.positions)}). Add it there, "
            "or choose one of them."
        )


REMEDY = (
    "Choose tune=default (trained on the run's own prompts), tune=text tune.source=FILE, or tune=lens "
    "tune.source=FOLDER (one that exists)."
)
AFFINE_REMEDY = "Choose tune=default (fitted to the run's own prompts) or tune=text tune.source=FILE."


def check_tune(tune: TuneConfig, lenses: Mapping[str, LensConfig], num_layers: int | None) -> None:
    """Check the section `tune` by itself, against its files, and against the lenses that need it.

    Arguments:
        tune: the section, localized.
        lenses: lens name -> its section.
        num_layers: of the model; None: not known yet.

    Raises:
        ConfigError: a tuned lens cannot be made, or a lens needs what is not made.
    """
    needs = {name: lens.maps() for name, lens in lenses.items()}
    if tune.kind in ("text", "lens") and not tune.source:
        raise ConfigError(f"tune.source: kind {tune.kind} needs one. {REMEDY}")
    if not tune.depends_on:
        raise ConfigError("tune.depends_on: expected a file or folder, got nothing. tune=default and its like set it.")
    tuned = next((name for name, mapping in needs.items() if mapping == "tuned"), None)
    if tuned is not None and not tune.has_lens:
        none = "tune=off makes none" if tune.kind == "off" else "tune.train=false trains none"
        raise ConfigError(f"lens.{tuned}: a tuned lens is needed, and {none}. {REMEDY}")
    _check_affine_needs(tune, needs)
    if tune.kind == "lens":
        _check_folder(tune)
    if tune.has_text:
        _check_training(tune, num_layers)
        if tune.kind == "text":
            _check_text(tune)
        for name, lens in lenses.items():
            _check_layers(name, lens, tune, num_layers)


def _check_affine_needs(tune: TuneConfig, needs: Mapping[str, str]) -> None:
    """Whether the affine maps that lenses need are fitted, and there is something to fit them to."""
    if tune.affine != "off" and not tune.has_text:
        raise ConfigError(
            f"tune.affine: maps are fitted to prompts or text, and tune.kind is {tune.kind}. {AFFINE_REMEDY}"
        )
    if tune.has_text and not tune.train and tune.affine == "off":
        raise ConfigError("tune.train: without a tuned lens and without affine maps nothing is made. Choose tune=off.")
    for name, mapping in needs.items():
        enough = {"affine_last": ("last", "pairs"), "affine_target": ("pairs",)}.get(mapping)
        if enough and tune.affine not in enough:
            raise ConfigError(
                f"lens.{name}.mapping: {mapping} needs affine maps, and tune.affine is {tune.affine}. Set "
                f"tune.affine={enough[0]}. {AFFINE_REMEDY if not tune.has_text else ''}".rstrip()
            )


def _check_folder(tune: TuneConfig) -> None:
    assert tune.source is not None
    folder = located(tune.source)
    files = [("config.json", "lens.safetensors"), ("config.json", "params.pt")]
    if not any(all((folder / name).is_file() for name in pair) for pair in files):
        raise ConfigError(
            f"tune.source: expected a folder with a tuned lens (config.json and lens.safetensors, or params.pt of the "
            f"tuned-lens library), got {tune.source!r}. `python -m interp tune` trains one."
        )


def _check_text(tune: TuneConfig) -> None:
    assert tune.source is not None
    if tune.depends_on == HUB_DATASET:
        return
    file = located(tune.source)
    if not file.is_file() or file.suffix not in TEXT_FILES:
        raise ConfigError(
            f"tune.source: expected a file ending in {', '.join(TEXT_FILES)}, or a hub data set, got {tune.source!r}"
            f"{'' if file.is_file() else ', which is not there'}."
        )


def _check_training(tune: TuneConfig, num_layers: int | None) -> None:
    try:
        check_layers(tune.affine_layers, num_layers)
    except InterpError as error:
        raise ConfigError(f"tune.affine_layers: {error}") from None
    if tune.warmup_steps is not None and tune.warmup_steps >= tune.steps:
        raise ConfigError(f"tune.warmup_steps: expected fewer than tune.steps ({tune.steps}), got {tune.warmup_steps}.")
    try:
        check_layers(tune.layers, num_layers)
        last = num_layers is not None and num_layers - 1 in tuned_layers(tune.layers, num_layers)
    except InterpError as error:
        raise ConfigError(f"tune.layers: {error}") from None
    if last:
        raise ConfigError(
            f"tune.layers: layer {num_layers - 1 if num_layers else ''} is the last, which needs no translator. Leave "
            "it out; a lens may read it all the same."
        )


def _check_layers(name: str, lens: LensConfig, tune: TuneConfig, num_layers: int | None) -> None:
    """Whether all layers that a lens maps have a map."""
    mapping, reads = lens.maps(), lens.reads()
    if num_layers is None or reads is None or mapping == "identity":
        return
    made = tuned_layers(tune.layers, num_layers) if mapping == "tuned" else parse_layers(tune.affine_layers, num_layers)
    key, what = ("layers", "trains no translator") if mapping == "tuned" else ("affine_layers", "fits no map")
    options = {reads.layers_option: reads.needed(parse_layers(reads.layers, num_layers), num_layers)}
    target_layers = lens.writes()
    if mapping == "affine_target" and target_layers is not None:
        options["target_layers"] = parse_layers(target_layers, num_layers)
    for option, layers in options.items():
        absent = [layer for layer in layers if layer not in (*made, num_layers - 1)]
        if absent:
            raise ConfigError(
                f"lens.{name}.{option}: tune.{key} ({getattr(tune, key)}) {what} of layer "
                f"{', '.join(map(str, absent))}. {'Train' if mapping == 'tuned' else 'Fit'} it, or choose other layers."
            )
