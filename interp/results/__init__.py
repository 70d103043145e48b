"""Results: what lenses return, numpy arrays with named axes. Opens without torch."""

from interp.results.circuit_result import EdgeScores, FaithfulnessCurve, area_under_roc
from interp.results.generation_result import Answers, GenerationResult
from interp.results.lens_result import Attribution, FigureKind, Floats, Integers, LensResult, Quantity
from interp.results.named_arrays import Coordinate, Coordinates, NamedArrays
from interp.results.patching_result import Direction, Effect, PatchingResult

__all__ = [
    "Answers",
    "Attribution",
    "Coordinate",
    "Coordinates",
    "Direction",
    "EdgeScores",
    "Effect",
    "FaithfulnessCurve",
    "FigureKind",
    "Floats",
    "GenerationResult",
    "Integers",
    "LensResult",
    "NamedArrays",
    "PatchingResult",
    "Quantity",
    "area_under_roc",
]
