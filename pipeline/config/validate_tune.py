"""Rejects a tuned lens that cannot be made, or that a lens needs and nothing makes."""

from __future__ import annotations

from collections.abc import Mapping

from interp.errors import InterpError
from interp.sites import check_layers, parse_layers
from pipeline.config.base import ConfigError
from pipeline.config.lens import LensConfig, TunedLensConfig
from pipeline.config.paths import HUB_DATASET, located
from pipeline.config.tune import TEXT_FILES, TuneConfig

__all__ = ["check_tune", "tuned_layers"]

REMEDY = (
    "Choose tune=default (trained on the run's own prompts), tune=text tune.source=FILE, or tune=lens "
    "tune.source=FOLDER (one that exists)."
)


def tuned_layers(text: str, num_layers: int) -> list[int]:
    """The layers that get a translator: `*` is all but the last.

    Arguments:
        text: `*`, a range, a list.
        num_layers: of the model.

    Raises:
        InterpError: it cannot be read, or the model has no such layers.
    """
    return list(range(num_layers - 1)) if text.strip() == "*" else parse_layers(text, num_layers)


def check_tune(tune: TuneConfig, lenses: Mapping[str, LensConfig], num_layers: int | None) -> None:
    """Check the section `tune` by itself, against its files, and against the lenses that need it.

    Arguments:
        tune: the section, localized.
        lenses: lens name -> its section.
        num_layers: of the model; None: not known yet.

    Raises:
        ConfigError: a tuned lens cannot be made, or a lens needs what is not made.
    """
    tuned = {name: lens for name, lens in lenses.items() if isinstance(lens, TunedLensConfig)}
    if tune.kind in ("text", "lens") and not tune.source:
        raise ConfigError(f"tune.source: kind {tune.kind} needs one. {REMEDY}")
    if not tune.depends_on:
        raise ConfigError("tune.depends_on: expected a file or folder, got nothing. tune=default and its like set it.")
    if tune.kind == "off":
        if tuned:
            raise ConfigError(f"lens.{next(iter(tuned))}: a tuned lens is needed, and tune=off makes none. {REMEDY}")
        return
    if tune.kind == "lens":
        _check_folder(tune)
    if tune.trains:
        _check_training(tune, num_layers)
        if tune.kind == "text":
            _check_text(tune)
        for name, lens in tuned.items():
            _check_layers(name, lens, tune, num_layers)


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
    if tune.warmup_steps is not None and tune.warmup_steps >= tune.steps:
        raise ConfigError(f"tune.warmup_steps: expected fewer than tune.steps ({tune.steps}), got {tune.warmup_steps}.")
    if not 0 <= tune.momentum < 1:
        raise ConfigError(f"tune.momentum: expected a number from 0 to 1, 1 excluded, got {tune.momentum}.")
    for key in ("clip", "learning_rate"):
        value = getattr(tune, key)
        if value is not None and value <= 0:
            raise ConfigError(f"tune.{key}: expected a number above 0, got {value}.")
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


def _check_layers(name: str, lens: TunedLensConfig, tune: TuneConfig, num_layers: int | None) -> None:
    if num_layers is None:
        return
    trained = tuned_layers(tune.layers, num_layers)
    absent = [layer for layer in parse_layers(lens.layers, num_layers) if layer not in (*trained, num_layers - 1)]
    if absent:
        raise ConfigError(
            f"lens.{name}.layers: tune.layers ({tune.layers}) trains no translator of layer "
            f"{', '.join(map(str, absent))}. Train it, or choose other layers."
        )
