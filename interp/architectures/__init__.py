"""Module paths of each family of models: one record a family, all of them data.

To add a family, add a record to `interp.architectures.table`; the loader proves it on the loaded weights
(`interp.model.verify`).
"""

from interp.architectures.find import Candidates, candidates, find_architecture, known_model_types, missing_parts
from interp.architectures.record import Architecture, Sublayer, submodule
from interp.architectures.rename import RenameConfig, config_value
from interp.architectures.table import ARCHITECTURES, REFUSED
from interp.architectures.vision import VISION_LAYOUTS, VisionLayout, vision_layout

__all__ = [
    "ARCHITECTURES",
    "REFUSED",
    "VISION_LAYOUTS",
    "Architecture",
    "Candidates",
    "RenameConfig",
    "Sublayer",
    "VisionLayout",
    "candidates",
    "config_value",
    "find_architecture",
    "known_model_types",
    "missing_parts",
    "submodule",
    "vision_layout",
]
