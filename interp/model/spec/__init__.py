"""`ModelSpec`: sizes, positions, norms, attention, MLP and readout of any family's model, under one set of names."""

from interp.model.spec.names import TRANSFORMER_LENS_NAMES
from interp.model.spec.spec import ModelSpec

__all__ = ["TRANSFORMER_LENS_NAMES", "ModelSpec"]
