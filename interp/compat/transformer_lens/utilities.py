"""`utils` under its name in TransformerLens 4."""

from interp.compat.transformer_lens import utils
from interp.compat.transformer_lens.utils import *  # noqa: F403

__all__ = utils.__all__
