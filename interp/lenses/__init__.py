"""Lenses: what a model would say if it had to speak at layer k."""

from interp.lenses.attention_object import attention_object_lens
from interp.lenses.attention_on_prompts import attention_knockout_on_prompts, attention_object_lens_on_prompts
from interp.lenses.direct_logit_attribution import direct_logit_attribution
from interp.lenses.knockout import attention_knockout
from interp.lenses.logit_lens import logit_lens, logit_lens_on_prompts
from interp.lenses.patching import Patch
from interp.lenses.patchscope import patchscope_lens
from interp.lenses.patchscope_generate import patchscope_generate
from interp.lenses.patchscope_grid import patchscope_grid
from interp.lenses.patchscope_on_prompts import (
    patchscope_generate_on_prompts,
    patchscope_grid_on_prompts,
    patchscope_lens_on_prompts,
)
from interp.lenses.tuned_lens import tuned_lens

__all__ = [
    "Patch",
    "attention_knockout",
    "attention_knockout_on_prompts",
    "attention_object_lens",
    "attention_object_lens_on_prompts",
    "direct_logit_attribution",
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
