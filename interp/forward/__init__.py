"""Parts of a forward pass with unchanged numbers: layers without the head, a shared prefix from a KV cache, packed
prompts, the last layer at a few tokens; and the probes that say whether a model allows each.
"""

from interp.forward.batch import Feed, SharedPrefix, packing_fits, plan_prefixes, prefixes_fit
from interp.forward.last_layer import LastLayer, last_layer_fits
from interp.forward.layers import check_ready, is_causal
from interp.forward.packing import Packed, sent
from interp.forward.prefix import FrozenPrefix
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
