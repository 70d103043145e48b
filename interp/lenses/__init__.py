"""Lenses: decode what a model holds at layer k into tokens."""

from interp.lenses.attention_knockout import attention_knockout
from interp.lenses.attention_object import attention_object_lens
from interp.lenses.attention_on_prompts import attention_knockout_on_prompts, attention_object_lens_on_prompts
from interp.lenses.direct_logit_attribution import direct_logit_attribution
from interp.lenses.jacobian_lens import jacobian_lens, load_jacobians
from interp.lenses.logit_lens import logit_lens, logit_lens_on_prompts
from interp.lenses.patchscope import patchscope_lens
from interp.lenses.patchscope_generate import patchscope_generate
from interp.lenses.patchscope_grid import patchscope_grid
from interp.lenses.patchscope_on_prompts import (
    patchscope_generate_on_prompts,
    patchscope_grid_on_prompts,
    patchscope_lens_on_prompts,
)
from interp.lenses.tuned_lens import tuned_lens
from interp.patching import Patch

__all__ = [
    "Patch",
    "attention_knockout",
    "attention_knockout_on_prompts",
    "attention_object_lens",
    "attention_object_lens_on_prompts",
    "direct_logit_attribution",
    "jacobian_lens",
    "load_jacobians",
    "logit_lens",
    "logit_lens_on_prompts",
    "patchscope_generate",
    "patchscope_generate_on_prompts",
    "patchscope_grid",
    "patchscope_grid_on_prompts",
    "patchscope_lens",
    "patchscope_lens_on_prompts",
    "tuned_lens",
]
