"""Rejects a config that cannot run, before anything is loaded: no torch, no transformers, no network.

    values = plain(config)                # a composed Hydra config as plain containers
    values = localize(values, Path.cwd())  # pipeline.config.paths
    validate(values)

Checked are each section on its own (keys, types, choices, sizes), the sections against each other (a lens reads what is
collected, and patches into what the task has), and all against the input files (languages, columns, the model's depth).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from interp.errors import InterpError
from interp.positions import Position, check_positions
from interp.prompts import BOUNDARIES, OCCURRENCES
from interp.sites import check_sites
from pipeline.config.base import ConfigError, nearest
from pipeline.config.blocks import check_blocks
from pipeline.config.cache import VERSIONS, CacheConfig, cache_from
from pipeline.config.collect import CollectConfig, collect_from
from pipeline.config.evaluate import EvaluateConfig, evaluate_from
from pipeline.config.inputs import check_task
from pipeline.config.lens import MAPPINGS, LensConfig, LogitLensConfig, PatchscopeConfig, lenses_from
from pipeline.config.machine import check_attention, check_device_map
from pipeline.config.model import ModelConfig, model_from
from pipeline.config.model_size import ModelSize, model_size
from pipeline.config.paths import HUB_MODEL
from pipeline.config.report import ReportConfig, report_from
from pipeline.config.store import StoreConfig, store_from
from pipeline.config.task import TaskConfig, spans_of, task_from
from pipeline.config.tracking import TrackingConfig, masked, tracking_from
from pipeline.config.tune import AFFINE, KINDS, LOSSES, OPTIMIZERS, TuneConfig, tune_from
from pipeline.config.validate_lens import check_lens, check_span, close
from pipeline.config.validate_tune import check_tune
from pipeline.demo.lexicon import POLICIES
from pipeline.plugins import load
from pipeline.tables.choice import FORMATS
from pipeline.tables.delimited import QUOTING

Rule = TypeVar("Rule")
DTYPES = ("float32", "bfloat16", "float16")
CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": DTYPES,
    "model.attention_implementation": (
        "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention",
    ),
    "task.target_policy": ("first_token", "all_prefixes", "exact"),
    "task.quoting": QUOTING,
    "task.list_cells": ("auto", "always", "text"),
    "task.format": ("auto", "table", *FORMATS),
    "task.occurrence": ("auto", *OCCURRENCES),
    "task.word_boundary": BOUNDARIES,
    "task.shared_words": POLICIES,
    "task.phrases": POLICIES,
    "collect.dtype": ("model", *DTYPES),
    "tune.kind": KINDS,
    "tune.loss": LOSSES,
    "tune.optimizer": OPTIMIZERS,
    "tune.affine": AFFINE,
    "evaluate.entropy_unit": ("bits", "nats"),
    "report.interval": ("normal", "bootstrap"),
    "report.figure_format": ("svg", "png"),
    "store.compression": ("none", "zstd"),
    "cache.versions": VERSIONS,
    "lens.*.patch": ("one_layer", "from_layer"),
    "lens.*.target": ("task", "identity"),
    "lens.*.sources": ("first", "mean"),
    "lens.*.mapping": MAPPINGS,
}  # fmt: skip
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
    "model": model_from,
    "task": task_from,
    "collect": collect_from,
    "tune": tune_from,
    "lens": lenses_from,
    "evaluate": evaluate_from,
    "report": report_from,
    "store": store_from,
    "cache": cache_from,
    "tracking": tracking_from,
}


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
        load(values.pop("plugins", ()))  # whose kinds are then known as ours are
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
    check_task(config.task)
    _check_collect(config, size)
    for name, lens in config.lens.items():
        check_lens(f"lens.{name}", lens, config.collect, config.task, spans_of(config.task), num_layers)
    _check_sizes(config, size)
    check_tune(config.tune, config.lens, num_layers)
    if config.model.remote:
        _check_remote(config)
    return config


def _check_values(config: Config) -> None:
    """What each value may be, on its own."""
    for where, allowed, value in _listed(config, CHOICES):
        if value not in allowed:
            raise ConfigError(f"{where}: expected one of {', '.join(allowed)}, got {value!r}.{close(value, allowed)}")
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


def _listed(config: Config, rules: Mapping[str, Rule]) -> Iterable[tuple[str, Rule, Any]]:
    """(key, rule, value) of every rule whose key this config has; `*` stands for each lens."""
    for where, rule in rules.items():
        section, *_, key = where.split(".")
        owners = (
            {f"lens.{name}": lens for name, lens in config.lens.items()}
            if section == "lens"
            else {section: getattr(config, section)}
        )
        for path, owner in owners.items():
            if hasattr(owner, key):
                yield f"{path}.{key}", rule, getattr(owner, key)


def _check_sizes(config: Config, size: ModelSize) -> None:
    """What the model's vocabulary and context bound, where they are known."""
    limits = {
        "lens.*.top_k": (size.vocab_size, "tokens of the vocabulary"),
        "lens.*.max_new_tokens": (size.context_length, "tokens that the model reads at most, its prompt among them"),
    }
    for where, (most, what), value in _listed(config, limits):
        if most is not None and value > most:
            raise ConfigError(f"{where}: expected at most {most}, the {what}, got {value}.")
    for where, texts in (("collect.positions", config.collect.positions), *_lens_positions(config)):
        for text in texts:
            _check_reach(where, text, size.context_length)


def _lens_positions(config: Config) -> Iterable[tuple[str, list[str]]]:
    """(key, spellings) of the lenses' positions that are not among `collect.positions`."""
    for name, lens in config.lens.items():
        for key in ("target_position", "query_position"):
            if hasattr(lens, key):
                yield f"lens.{name}.{key}", [getattr(lens, key)]
        blocks = [block.position for block in check_blocks(getattr(lens, "blocks", ["first"]))]
        yield f"lens.{name}.blocks", [position.text for position in blocks if position is not None]


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
        if not isinstance(lens, LogitLensConfig | PatchscopeConfig):
            raise ConfigError(
                f"lens.{name}: kind {lens.kind} does not run remotely: it needs more of the model than a trace gives. "
                "Choose kinds logit_lens and patchscope, or model.remote=false."
            )
        if lens.mapping != "identity":
            raise ConfigError(
                f"lens.{name}.mapping: {lens.mapping!r} does not run remotely. Choose identity, or model.remote=false."
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
        check_span("collect.positions", position.text, position.span_name, config.task.kind, spans_of(config.task))
