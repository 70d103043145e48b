"""The plugins' code as part of the stages' code: `extra` and `roots` of a fingerprint of what stages reach.

Short, and a file of its own: it knows all kinds, and no stage but the one that writes fingerprints may depend on that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pipeline.tasks  # noqa: F401 its kinds are known then
from pipeline.config.base import load as load_section
from pipeline.config.lens import load_lenses
from pipeline.config.task import TaskConfig
from pipeline.metrics import METRICS
from pipeline.plugins import load, of_run, roots, used

__all__ = ["plugin_code"]


def plugin_code() -> tuple[dict[str, list[str]], dict[str, Path]]:
    """What the plugins of the current run folder add to its stages' code.

    Returns:
        Stage -> the plugins' modules that it uses, by the kinds that the config chooses and the metrics that there are;
        and top-level name -> where its code lies. Both are empty without plugins.
    """
    names = of_run()
    if not names:
        return {}, {}
    load(names)
    chosen: dict[str, list[Any]] = {
        "tokenize": [type(load_section(TaskConfig))],
        "lens": [type(config) for config in load_lenses().values()],
        "evaluate": [metric.measure for metric in METRICS.values()],  # all that there are, whatever the config says
    }
    return used(names, chosen), roots(names)
