"""Lenses: decode what a model holds at layer k into tokens.

One function a lens. What it reads is prompts, or `Latents` that were read of some before.
"""

from interp.lenses.attention_knockout import attention_knockout
from interp.lenses.attention_object import attention_object_lens
from interp.lenses.direct_logit_attribution import direct_logit_attribution
from interp.lenses.jacobian_lens import jacobian_lens, load_jacobians
from interp.lenses.logit_lens import logit_lens
from interp.lenses.patchscope import patchscope_lens
from interp.lenses.patchscope_generate import patchscope_generate
from interp.lenses.patchscope_grid import patchscope_grid
from interp.lenses.sources import Latents
from interp.lenses.tuned_lens import tuned_lens
from interp.patching import Patch

__all__ = [
    "Latents",
    "Patch",
    "attention_knockout",
    "attention_object_lens",
    "direct_logit_attribution",
    "jacobian_lens",
    "load_jacobians",
    "logit_lens",
    "patchscope_generate",
    "patchscope_grid",
    "patchscope_lens",
    "tuned_lens",
]
