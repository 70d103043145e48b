"""Lenses: what a model would say if it had to speak at layer k."""

from interp.lenses.attention_knockout import attention_knockout
from interp.lenses.attention_object import attention_object_lens
from interp.lenses.attention_on_prompts import attention_knockout_on_prompts, attention_object_lens_on_prompts
from interp.lenses.attribution import direct_logit_attribution
from interp.lenses.logit_lens import logit_lens, logit_lens_on_prompts
from interp.lenses.maps import AffineMap, IdentityMap, LatentMap
from interp.lenses.patchscope import patchscope_lens
from interp.lenses.patchscope_generate import patchscope_generate
from interp.lenses.patchscope_grid import patchscope_grid
from interp.lenses.sources import Latents
from interp.lenses.tuned import TunedLens, tuned_lens
from interp.patching import Patch

__all__ = [
    "AffineMap",
    "IdentityMap",
    "LatentMap",
    "Latents",
    "Patch",
    "TunedLens",
    "attention_knockout",
    "attention_knockout_on_prompts",
    "attention_object_lens",
    "attention_object_lens_on_prompts",
    "direct_logit_attribution",
    "logit_lens",
    "logit_lens_on_prompts",
    "patchscope_generate",
    "patchscope_grid",
    "patchscope_lens",
    "tuned_lens",
]
