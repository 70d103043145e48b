"""Compose configs with Hydra: a project's own choices beside the shipped ones, faults told in one message."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from pipeline.config.section import ConfigError, nearest
from pipeline.project import overlay, shipped

__all__ = ["CONFIG_FOLDER", "explain", "use_overlay"]


CONFIG_FOLDER = shipped("conf")
UNKNOWN_KEY = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")

TWICE_CHOSEN = re.compile(r"Multiple values for (\S+)\. |(\S+) appears more than once in the final defaults list")


def explain(error: Exception, overrides: Sequence[str], config_folder: str | None = None) -> str:
    """One readable message for a config that cannot be composed.

    Arguments:
        error: what Hydra or OmegaConf raised.
        overrides: the command line's overrides.
        config_folder: a further folder of configs (`--config-dir`).

    Returns:
        What is wrong, and the nearest known name where one is unknown.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_choice(error, config_folder)
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the override {error.override!r}: {_first_line(error)}. Expected KEY=VALUE; quote lists and "
            "spaces for the shell, e.g. 'lens=[logit_lens,patchscope]'"
        )
    unknown = UNKNOWN_KEY.match(str(error))
    if unknown:
        return _unknown_key(unknown[1], overrides, config_folder)
    twice = TWICE_CHOSEN.match(str(error))
    if twice:
        group = twice[1] or twice[2]
        return f"group {group!r} has a choice already. Write {group}=CHOICE once, without '+'."
    cause = f" ({_first_line(error.__cause__)})" if error.__cause__ is not None else ""
    return re.sub(r"\s*\n\s*", " ", str(error).strip()) + cause


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _unknown_choice(error: MissingConfigException, config_folder: str | None) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return f"there is no config {choice!r} in {config_folder or CONFIG_FOLDER}."
    choices = list(error.options or [])
    if not choices:  # Hydra gives none for a choice in a list
        with _hydra():
            choices = GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG)
    return f"unknown choice {choice!r} of group {group!r}.{nearest(choice, choices)}"


def _unknown_key(key: str, overrides: Sequence[str], config_folder: str | None) -> str:
    with _hydra():
        groups = GlobalHydra.instance().config_loader().list_groups("")
        chosen = [override for override in overrides if override.split("=")[0] in groups]
        try:
            config = _compose(chosen, config_folder)
        except (HydraException, ValueError):  # a sweep, or a second mistake: explained against the defaults
            config = _compose([], config_folder)
    node: Any = OmegaConf.to_container(config, resolve=False)
    walked: list[str] = []
    for part in key.split("."):
        if not isinstance(node, dict):
            return f"unknown key {key!r}: {'.'.join(walked)} is a single value, {node!r}."
        if walked and not node:
            return f"{key}: {'.'.join(walked)} has no keys yet. Add this one with '+{key}=VALUE'"
        if part not in node:
            where = f" in {'.'.join(walked)} ({key})" if walked else ""
            return f"unknown key {part!r}{where}.{nearest(part, {*node, *([] if walked else groups)})}"
        node = node[part]
        walked.append(part)
    if isinstance(node, dict):
        return f"{key}: what it does not hold yet is added with '+{key}.NAME=VALUE'."
    return f"{key}: this override cannot be applied."


@contextlib.contextmanager
def _hydra() -> Iterator[None]:
    """Hydra on this project's configs, also inside an application that Hydra is running."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = running


def _compose(overrides: Sequence[str], config_folder: str | None) -> DictConfig:
    further = [f"hydra.searchpath=['file://{config_folder}']"] if config_folder else []
    return compose("config", overrides=[*overrides, *further])


class ProjectConfigs(SearchPathPlugin):
    """Puts the project's `conf/` behind the shipped one, as `--config-dir` does."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra calls this whenever it composes.

        Raises:
            ConfigError: a choice has the name of a shipped one, which would be taken in its place.
        """
        folder = overlay()
        if folder is None:
            return
        for file in sorted(folder.rglob("*.yaml")):
            name = file.relative_to(folder)
            if (shipped("conf") / name).exists():
                raise ConfigError(
                    f"{file}: a choice of this name ships with Interpipe and would be taken in its place. Rename yours."
                )
        search_path.append("project", f"file://{folder}")


def use_overlay() -> None:
    """Make it known to Hydra, once a process."""
    Plugins.instance().register(ProjectConfigs)
