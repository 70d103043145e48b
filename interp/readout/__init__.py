"""Reduces hidden states or logits to the few numbers that a lens keeps, in chunks of the vocabulary.

No (example, layer, vocabulary) tensor exists: memory is that of some buffers of fixed size, and of what is kept.
Probabilities are kept as natural logarithms (nats).
"""

from interp.readout.groups import Groups, Reduced, TokenGroups
from interp.readout.reduce import logits_of, probabilities_of, reduce_hidden, reduce_logits
from interp.readout.sampling import Sampling, stop_tokens
from interp.readout.softmax import kl_divergence, log_probabilities

__all__ = [
    "Groups",
    "Reduced",
    "Sampling",
    "TokenGroups",
    "kl_divergence",
    "log_probabilities",
    "logits_of",
    "probabilities_of",
    "reduce_hidden",
    "reduce_logits",
    "stop_tokens",
]
