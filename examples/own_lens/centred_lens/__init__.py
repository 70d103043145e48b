"""A lens of one's own: the logit lens on what a prompt adds to the mean over all prompts."""

from centred_lens.config import CentredLensConfig

__all__ = ["CentredLensConfig"]
