"""Finds the package that draws results, only when `result.plot()` is called.

Nothing in this room imports it, so no number depends on how a figure looks. This is the one place that names it, at run
time: stages draw figures of their own, and `pipeline.fingerprints` leaves it out of what they depend on.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["plots"]


def plots() -> Any:
    """The package `interp.plots`.

    Raises:
        ImportError: plotly is not installed (when a figure is drawn); says what to install.
    """
    return import_module("interp.plots")
