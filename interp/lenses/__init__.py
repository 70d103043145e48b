"""Lenses: what a model would say if it had to speak at layer k."""

from interp.lenses.knockout import attention_knockout
from interp.lenses.logit_lens import logit_lens
from interp.lenses.patchscope import Patch, patchscope_lens
from interp.lenses.result import LensResult

__all__ = ["LensResult", "Patch", "attention_knockout", "logit_lens", "patchscope_lens"]
