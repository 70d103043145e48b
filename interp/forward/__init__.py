"""Parts of a model's forward pass: its layers alone, a frozen prefix that continuations share, prompts in one row, the
last layer at a few tokens; and whether the model allows it.
"""

from interp.forward.batch import Feed, packing_fits
from interp.forward.last_layer import LastLayer, last_layer_fits
from interp.forward.packing import Packed, sent
from interp.forward.prefix import FrozenPrefix
from interp.forward.prefix_groups import SharedPrefix, plan_prefixes, prefixes_fit
from interp.forward.probes import check_ready, is_causal
from interp.forward.rope import first_changed, forget_lengths, rotary_limit, stays_within, whole_batches

__all__ = [
    "Feed",
    "FrozenPrefix",
    "LastLayer",
    "Packed",
    "SharedPrefix",
    "check_ready",
    "first_changed",
    "forget_lengths",
    "is_causal",
    "last_layer_fits",
    "packing_fits",
    "plan_prefixes",
    "prefixes_fit",
    "rotary_limit",
    "sent",
    "stays_within",
    "whole_batches",
]
