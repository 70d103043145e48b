"""Reject a config that cannot run, before anything is loaded: no torch, no transformers, no network.

    values = plain(config)                # a composed Hydra config as plain containers
    values = localize(values, Path.cwd())
    validate(values)

Checked are each section on its own (keys, types, choices, sizes), the sections against each other (a lens reads what is
collected, and patches into what the task has), and all against the input files (languages, columns, the model's depth).
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import pipeline.tasks  # noqa: F401 that its tasks are known
from interp.errors import InterpError
from interp.positions import Position, check_positions
from interp.sites import check_sites
from pipeline.config.activations import CollectConfig, StoreConfig
from pipeline.config.evaluate import EvaluateConfig, ReportConfig
from pipeline.config.lens import LensConfig, lenses_from
from pipeline.config.lens_base import Given, check_span
from pipeline.config.model import ModelConfig
from pipeline.config.paths import HUB_DATASET, HUB_MODEL, localize_source
from pipeline.config.section import ConfigError, nearest, section_from
from pipeline.config.task import TaskConfig
from pipeline.config.tracking import CacheConfig, TrackingConfig, masked
from pipeline.config.translators import TuneConfig
from pipeline.plugins import load as load_plugins
from pipeline.plugins import localized
from pipeline.validate.lenses import check_lens, check_tune
from pipeline.validate.model_source import ModelSize, check_attention, check_device_map, check_processor, model_size

RELATIVE_DATABASE = re.compile(r"sqlite:///([^/].*)")
LONGEST_EXPERIMENT = 250  # MLflow's databases keep 256
TAG = re.compile(r"[\w\-. :/]{1,250}", re.ASCII)
TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "uc")


@dataclass(frozen=True)
class Config:
    """Every section of a config, typed.

    Arguments:
        model, task, collect, tune, evaluate, report, store, cache, tracking: the sections.
        lens: lens name -> its section.
    """

    model: ModelConfig
    task: TaskConfig
    collect: CollectConfig
    tune: TuneConfig
    lens: dict[str, LensConfig]
    evaluate: EvaluateConfig
    report: ReportConfig
    store: StoreConfig
    cache: CacheConfig
    tracking: TrackingConfig


SECTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    schema.section: partial(section_from, schema, where=schema.section)
    for schema in (
        ModelConfig, TaskConfig, CollectConfig, TuneConfig, EvaluateConfig, ReportConfig, StoreConfig, CacheConfig,
        TrackingConfig,
    )
} | {"lens": lenses_from}  # fmt: skip


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed config as plain containers, interpolations resolved.

    Arguments:
        config: what Hydra composed, without its `hydra` node.

    Raises:
        ConfigError: a value is missing (`???`) or an interpolation leads nowhere.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(f"{missing[0]}: no value (???). Set it, e.g. {missing[0]}=VALUE")
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def localize(values: dict[str, Any], standing: Path) -> dict[str, Any]:
    """A config whose paths hold in every run folder, and whose stages depend on what the paths name.

    Arguments:
        values: the whole config as plain containers; it may still be wrong elsewhere.
        standing: the folder in which the user stood.

    Returns:
        A copy in which the model's source, the task's file, the tuned lens's source, each `depends_on`, the plugins and
        a tracking database are localized.

    Raises:
        ConfigError: one of them can be no path.
    """
    values = copy.deepcopy(values)
    if "plugins" in values:
        try:
            values["plugins"] = localized(values["plugins"], standing)
            load_plugins(values["plugins"])  # whose kinds say which of their keys are paths
        except InterpError as error:
            raise ConfigError(f"plugins: {error}") from None
    model, task = values.get("model"), values.get("task")
    if isinstance(model, dict):
        localize_source(model, "model.source", HUB_MODEL, standing)
    if isinstance(task, dict) and task.get("kind") in TaskConfig.kinds:
        schema = TaskConfig.kinds[task["kind"]]
        localize_source(task, f"task.{schema.file_key}", HUB_DATASET if schema.on_hub else None, standing)
    tune = values.get("tune")
    if isinstance(tune, dict) and tune.get("kind") in ("text", "lens"):
        localize_source(tune, "tune.source", HUB_DATASET if tune["kind"] == "text" else None, standing)
    tracking = values.get("tracking")
    if isinstance(tracking, dict) and (database := RELATIVE_DATABASE.fullmatch(str(tracking.get("uri")))):
        tracking["uri"] = f"sqlite:///{(standing / database[1]).absolute()}"
    return values


def validate(values: Mapping[str, Any]) -> Config:
    """Check a whole config.

    Arguments:
        values: the localized config as plain containers, one mapping a section.

    Returns:
        The typed sections.

    Raises:
        ConfigError: the first thing found that cannot run; the message says what was expected, what came, what to do.
    """
    values = {"lens": {}} | dict(values)  # `lens=[]` leaves no section
    try:
        load_plugins(values.pop("plugins", ()))  # whose kinds are then known as ours are
    except InterpError as error:
        raise ConfigError(f"plugins: {error}") from None
    for section in values:
        if section not in SECTIONS:
            raise ConfigError(f"unknown section {section!r} in the config.{nearest(section, SECTIONS)}")
    typed: dict[str, Any] = {}
    for section, read in SECTIONS.items():
        if not isinstance(values.get(section), dict):
            came = "nothing" if values.get(section) is None else repr(values[section])
            example = {"model": "demo", "task": "translation", "lens": "logit_lens", "tune": "off"}.get(
                section, "default"
            )
            raise ConfigError(
                f"{section}: expected a mapping, got {came}. Choose one of the group, e.g. {section}={example}"
            )
        typed[section] = read(values[section])
    config = Config(**typed)
    _check_values(config)
    check_device_map(config.model.device_map)
    size = model_size(config.model)
    check_attention(config.model)
    num_layers = size.num_layers
    if config.task.sees:
        _check_sees(config)
    config.task.check()
    _check_collect(config, size)
    for name, lens in config.lens.items():
        check_lens(f"lens.{name}", lens, config.collect, Given(config.task, num_layers))
    _check_sizes(config, size)
    check_tune(config.tune, config.lens, num_layers)
    if config.model.remote:
        _check_remote(config)
    return config


def _check_values(config: Config) -> None:
    """What names may be, on their own."""
    for where, text in (("model.name", config.model.name), ("tracking.experiment", config.tracking.experiment)):
        if not text.strip():
            raise ConfigError(f"{where}: expected a name, got nothing.")
    _check_tracking(config.tracking)


def _check_tracking(tracking: TrackingConfig) -> None:
    """What MLflow would refuse after the run."""
    if len(tracking.experiment) > LONGEST_EXPERIMENT:
        raise ConfigError(
            f"tracking.experiment: expected at most {LONGEST_EXPERIMENT} characters, got {len(tracking.experiment)}."
        )
    for tag in tracking.tags:
        if not TAG.fullmatch(tag):
            raise ConfigError(f"tracking.tags: expected names of letters, digits, '_-. :/', got {tag!r}.")
    if tracking.uri is None:
        return
    shown = masked(tracking.uri)
    expected = "tracking.uri: expected a server (http://HOST:PORT) or a database (sqlite:////absolute/path.db)"
    try:
        parts = urlsplit(tracking.uri)
        host, _ = parts.hostname, parts.port  # reading them checks them
    except ValueError as error:
        raise ConfigError(f"{expected}, got {shown!r}: {masked(str(error))}.") from None
    scheme = parts.scheme.split("+")[0]
    if scheme not in TRACKING_SCHEMES:
        raise ConfigError(f"{expected}, got {shown!r}. MLflow no longer writes to plain folders.")
    if scheme in ("http", "https") and not host:
        raise ConfigError(f"{expected}, got {shown!r}, which names no host.")
    if any(character.isspace() for character in parts.netloc):
        raise ConfigError(f"{expected}, got {shown!r}, whose host holds a space.")
    if scheme == "sqlite":
        _check_database(f"{expected}, got {shown!r}", parts.path)


def _check_database(message: str, path: str) -> None:
    """What sqlite would refuse after the run: no name, a folder, a folder that is a file."""
    if not path.strip("/"):
        raise ConfigError(f"{message}, which names no file.")
    place = Path("/", path.lstrip("/"))
    if place.is_dir():
        raise ConfigError(f"{message}, which is a folder.")
    for above in place.parents:
        if above.exists() and not above.is_dir():
            raise ConfigError(f"{message}, where {above} is a file.")


def _check_sizes(config: Config, size: ModelSize) -> None:
    """What the model's vocabulary and context bound, where they are known."""
    limits = {
        "top_k": (size.vocab_size, "tokens of the vocabulary"),
        "max_new_tokens": (size.context_length, "tokens that the model reads at most, its prompt among them"),
    }
    for key, (most, what) in limits.items():
        for name, lens in config.lens.items():
            value = getattr(lens, key, None)
            if most is not None and value is not None and value > most:
                raise ConfigError(f"lens.{name}.{key}: expected at most {most}, the {what}, got {value}.")
    named = {"collect.positions": config.collect.positions}
    for name, lens in config.lens.items():
        named |= {f"lens.{name}.{key}": texts for key, texts in lens.positions().items()}
    for where, texts in named.items():
        for text in texts:
            _check_reach(where, text, size.context_length)


def _check_reach(where: str, text: str, context_length: int | None) -> None:
    """Raise where a position counts further than any prompt of the model can have tokens."""
    position = Position.parse(text)
    ends = [end for end in (position.start, position.stop, position.draw) if end is not None]
    reach = max((abs(end) for end in ends), default=0) + int(position.single and ends[0] >= 0)
    if context_length is not None and reach > context_length:
        raise ConfigError(
            f"{where}: {text!r} needs {reach} tokens, and the model reads {context_length} at most (config.json)."
        )


def _check_remote(config: Config) -> None:
    """What cannot run on NDIF."""
    if config.model.depends_on != HUB_MODEL:
        raise ConfigError(
            "model.remote: expected a model of the hub, by whose id a server knows it, got the folder "
            f"{config.model.source!r}."
        )
    if not (os.environ.get("NDIF_API_KEY") or os.environ.get("NDIF_HOST")):
        raise ConfigError(
            "model.remote: expected an API key of NDIF in the environment variable NDIF_API_KEY, or in NDIF_HOST the "
            "address of a server that asks for none; found neither."
        )
    if config.model.device_map != ModelConfig.device_map:
        raise ConfigError(
            f"model.device_map: expected {ModelConfig.device_map} with model.remote=true, since the server has devices "
            f"of its own, got {config.model.device_map!r}."
        )
    if config.tune.kind != "off":
        raise ConfigError(
            "tune: maps are trained on gradients and text, which stay here. Choose tune=off, or model.remote=false."
        )
    for name, lens in config.lens.items():
        if not lens.remote:
            remote = " and ".join(kind for kind, schema in LensConfig.kinds.items() if schema.remote)
            raise ConfigError(
                f"lens.{name}: kind {lens.kind} does not run remotely: it needs more of the model than a trace gives. "
                f"Choose kinds {remote}, or model.remote=false."
            )
        if lens.maps() != "identity":
            raise ConfigError(
                f"lens.{name}.mapping: {lens.maps()!r} does not run remotely. Choose identity, or model.remote=false."
            )


def _check_sees(config: Config) -> None:
    """What prompts with images ask of the other sections."""
    check_processor(config.model, config.task.kind)
    if config.tune.kind == "prompts":
        raise ConfigError(
            f"tune: maps are trained on tokens alone, and the prompts of the task {config.task.kind} have images. "
            "Choose tune=text, tune=lens or tune=off."
        )
    if config.model.remote:
        raise ConfigError(
            f"model.remote: prompts with images run on this machine alone, and the task is {config.task.kind}. Set "
            "model.remote=false."
        )


def _check_collect(config: Config, size: ModelSize) -> None:
    try:
        check_sites(config.collect.sites, size.num_layers, size.num_heads, size.num_kv_heads)
    except InterpError as error:
        raise ConfigError(f"collect.sites: {error}") from None
    try:
        positions = check_positions(config.collect.positions)
    except InterpError as error:
        raise ConfigError(f"collect.positions: {error}") from None
    for position in positions:
        check_span("collect.positions", position.text, position.span_name, config.task)
