"""Running part of a model: a frozen prefix that continuations share; a walk up the layers from where they differ."""

from interp.forward.batches import batches_alike
from interp.forward.check import walk_fits
from interp.forward.clean import CleanRun
from interp.forward.plain import run_patched
from interp.forward.prefix import FrozenPrefix
from interp.forward.walk import walk

__all__ = ["CleanRun", "FrozenPrefix", "batches_alike", "run_patched", "walk", "walk_fits"]
