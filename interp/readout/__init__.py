"""From hidden states or logits to the few numbers that a lens keeps, in chunks of the vocabulary.

No (example, layer, vocabulary) tensor exists: memory is that of some buffers of fixed size, and of what is kept.
Probabilities are kept as natural logarithms (nats).
"""

from interp.readout.distributions import kl_divergence, log_probabilities
from interp.readout.groups import Groups, TokenGroups
from interp.readout.hidden import logits_of, reduce_hidden
from interp.readout.logits import reduce_logits
from interp.readout.reduced import Reduced

__all__ = [
    "Groups",
    "Reduced",
    "TokenGroups",
    "kl_divergence",
    "log_probabilities",
    "logits_of",
    "reduce_hidden",
    "reduce_logits",
]
