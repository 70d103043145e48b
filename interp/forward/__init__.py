"""Running part of a model: a frozen prefix that continuations share; a walk up the layers from where they differ."""

from interp.forward.blocking import (
    Cut,
    CutHeads,
    blocking_fits,
    check_something_is_left,
    heads_in,
    run_blocked,
    seen_keys,
    walk_blocked,
)
from interp.forward.causal import is_causal
from interp.forward.check import walk_fits
from interp.forward.check_generation import generation_fits
from interp.forward.clean import CleanRun
from interp.forward.generate import Choose, generate_plainly, generate_walked
from interp.forward.plain import run_patched
from interp.forward.prefix import FrozenPrefix
from interp.forward.ready import check_ready
from interp.forward.receiving import receiving_fits, walk_receiving
from interp.forward.rotary import first_changed, stays_within, whole_batches
from interp.forward.sampling import Sampling
from interp.forward.shared import SharedPrefix, plan_prefixes, prefixes_fit
from interp.forward.walk import walk

__all__ = [
    "Choose",
    "CleanRun",
    "Cut",
    "CutHeads",
    "FrozenPrefix",
    "Sampling",
    "SharedPrefix",
    "blocking_fits",
    "check_ready",
    "check_something_is_left",
    "first_changed",
    "generate_plainly",
    "generate_walked",
    "generation_fits",
    "heads_in",
    "is_causal",
    "plan_prefixes",
    "prefixes_fit",
    "receiving_fits",
    "run_blocked",
    "run_patched",
    "seen_keys",
    "stays_within",
    "walk",
    "walk_blocked",
    "walk_fits",
    "walk_receiving",
    "whole_batches",
]
