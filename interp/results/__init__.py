"""Results: what lenses return, numpy arrays with named axes. Opens without torch."""

from interp.results.generation_result import Answers, GenerationResult
from interp.results.lens_result import Attribution, FigureKind, Floats, Integers, LensResult, Quantity
from interp.results.named_arrays import Coordinate, Coordinates, NamedArrays

__all__ = [
    "Answers",
    "Attribution",
    "Coordinate",
    "Coordinates",
    "FigureKind",
    "Floats",
    "GenerationResult",
    "Integers",
    "LensResult",
    "NamedArrays",
    "Quantity",
]
