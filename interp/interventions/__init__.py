"""`Intervention`: what is changed in a run, as plain data; the operations, and the checks before a model runs."""

from interp.interventions.intervention import Intervention, from_frame, from_yaml, to_frame, to_yaml
from interp.interventions.perform import OPERATIONS
from interp.interventions.steering import SteeringVectors
from interp.interventions.values import AnotherRun, SavedTensor

__all__ = [
    "OPERATIONS",
    "AnotherRun",
    "Intervention",
    "SavedTensor",
    "SteeringVectors",
    "from_frame",
    "from_yaml",
    "to_frame",
    "to_yaml",
]
