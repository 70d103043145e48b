"""Running part of a model: a frozen prefix that continuations share; a walk up the layers from where they differ."""

from interp.forward.batches import batches_alike
from interp.forward.check import generation_fits, walk_fits
from interp.forward.clean import CleanRun
from interp.forward.generate import Choose, generate_plainly, generate_walked
from interp.forward.plain import run_patched
from interp.forward.prefix import FrozenPrefix
from interp.forward.sampling import Sampling
from interp.forward.walk import walk

__all__ = [
    "Choose",
    "CleanRun",
    "FrozenPrefix",
    "Sampling",
    "batches_alike",
    "generate_plainly",
    "generate_walked",
    "generation_fits",
    "run_patched",
    "walk",
    "walk_fits",
]
