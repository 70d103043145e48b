"""Changes of a forward pass: skipped layers and steering."""

from interp.interventions.skipping import skip_layers
from interp.interventions.steering import steer

__all__ = ["skip_layers", "steer"]
