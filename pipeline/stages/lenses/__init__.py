"""The lens kinds: one module each, found by the `kind` of a lens's config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pipeline.config.lens import LensConfig
from pipeline.plugins import resolve
from pipeline.stages.lenses.attention_object import AttentionObject
from pipeline.stages.lenses.base import Lens
from pipeline.stages.lenses.generate import PatchscopeGenerate
from pipeline.stages.lenses.grid import PatchscopeGrid
from pipeline.stages.lenses.inputs import Inputs
from pipeline.stages.lenses.knockout import Knockout
from pipeline.stages.lenses.logit import LogitLens
from pipeline.stages.lenses.mapping import TUNED_LENS
from pipeline.stages.lenses.patchscope import Patchscope
from pipeline.stages.lenses.tuned import Tuned

__all__ = ["TUNED_LENS", "VARIANTS", "Inputs", "Lens", "prepare"]

VARIANTS: dict[str, Callable[[str, Any, Inputs], Lens[Any]]] = {
    "logit_lens": LogitLens,
    "tuned_lens": Tuned,
    "patchscope": Patchscope,
    "patchscope_grid": PatchscopeGrid,
    "patchscope_generate": PatchscopeGenerate,
    "attention_object": AttentionObject,
    "knockout": Knockout,
}


def prepare(name: str, config: LensConfig, inputs: Inputs) -> Lens[Any]:
    """Find all that a lens needs, so that every fault of the config shows before anything is computed.

    Raises:
        InterpError: the lens cannot be run on these inputs.
    """
    made = VARIANTS.get(config.kind) or resolve(str(getattr(config, "stage", "")))  # a plugin's
    return cast(Lens[Any], made(name, config, inputs))
