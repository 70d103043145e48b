"""Running part of a model: a frozen prefix that continuations share; a walk up the layers from where they differ."""

from interp.forward.batches import batches_alike
from interp.forward.causal import is_causal
from interp.forward.check import walk_fits
from interp.forward.plain import run_patched
from interp.forward.prefix import FrozenPrefix
from interp.forward.shared import SharedPrefix, plan_prefixes, prefixes_fit
from interp.forward.walk import walk

__all__ = [
    "FrozenPrefix",
    "SharedPrefix",
    "batches_alike",
    "is_causal",
    "plan_prefixes",
    "prefixes_fit",
    "run_patched",
    "walk",
    "walk_fits",
]
