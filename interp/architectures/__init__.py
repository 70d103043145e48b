"""Module paths of each family of models: one record a family, all of them data.

To add a family, add a record to `interp.architectures.table`; the loader proves it on the loaded weights
(`interp.model.verify`).
"""

from interp.architectures.find import Candidates, candidates, find_architecture, known_model_types, missing_parts
from interp.architectures.record import Architecture, Sublayer, submodule
from interp.architectures.rename import RenameConfig, config_value
from interp.architectures.table import ARCHITECTURES, REFUSED

__all__ = [
    "ARCHITECTURES",
    "REFUSED",
    "Architecture",
    "Candidates",
    "RenameConfig",
    "Sublayer",
    "candidates",
    "config_value",
    "find_architecture",
    "known_model_types",
    "missing_parts",
    "submodule",
]
