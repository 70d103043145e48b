"""A project's own choices of configs, beside the shipped ones: every Hydra application here looks there too."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from pipeline.config.base import ConfigError
from pipeline.project import overlay, shipped

__all__ = ["use_overlay"]


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
