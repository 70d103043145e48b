"""Interpipe's library: read and write the inside of any decoder language model by one set of names.

Names are imported when they are first used, so that `import interp` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["InterpError", "Intervention", "Position", "Site", "StandardizedTransformer", "__version__", "parse_sites"]

if TYPE_CHECKING:
    from interp.errors import InterpError
    from interp.interventions import Intervention
    from interp.model import StandardizedTransformer
    from interp.positions import Position
    from interp.sites import Site, parse_sites

_HOMES = {
    "InterpError": "interp.errors",
    "Intervention": "interp.interventions",
    "Position": "interp.positions",
    "Site": "interp.sites",
    "StandardizedTransformer": "interp.model",
    "parse_sites": "interp.sites",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
