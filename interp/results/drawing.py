"""Find what draws results, only when somebody draws: `result.plot()` in a notebook.

Nothing in this room imports it, so no number depends on how a figure looks. This is the one place that names it, at run
time, and `pipeline.fingerprints` leaves that out of what stages depend on.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["plots"]


def plots() -> Any:
    """The package `interp.plots`.

    Raises:
        ImportError: matplotlib is not installed; says what to install.
    """
    return import_module("interp.plots")
