"""`StandardizedTransformer`: any decoder language model by one set of names."""

from interp.model.transformer import StandardizedTransformer

__all__ = ["StandardizedTransformer"]
