"""`ModelSpec`: sizes, positions, norms, attention, MLP and readout of any family's model, under one set of names."""

from interp.model.model_spec.dimensions import TRANSFORMER_LENS_NAMES
from interp.model.model_spec.model_spec import ModelSpec

__all__ = ["TRANSFORMER_LENS_NAMES", "ModelSpec"]
