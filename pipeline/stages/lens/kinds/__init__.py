"""The lens kinds: one module each, found by the `kind` of a lens's config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config.lens import LensConfig
from pipeline.stages.lens.base import Lens
from pipeline.stages.lens.inputs import TUNED_LENS, Inputs
from pipeline.stages.lens.kinds.attention_object import AttentionObject
from pipeline.stages.lens.kinds.knockout import Knockout
from pipeline.stages.lens.kinds.logit_lens import LogitLens
from pipeline.stages.lens.kinds.patchscope import Patchscope
from pipeline.stages.lens.kinds.patchscope_generate import PatchscopeGenerate
from pipeline.stages.lens.kinds.patchscope_grid import PatchscopeGrid
from pipeline.stages.lens.kinds.tuned_lens import Tuned

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
    return VARIANTS[config.kind](name, config, inputs)
