"""q, k, v, scores and pattern of attention: read and written inside a trace, in place only where and when asked for.

Two ways lead to them. Most families hand q, k and v to a function that transformers' `AttentionInterface` names; for
the time of a trace that asks, Interpipe stands between (`interp.attention.interface`). The classic ones compute
attention in the module's own forward pass; there each value is the input or output of an operation that nnsight's
`source` names (`interp.attention.operations`).
"""

from interp.attention.access import AttentionAccess
from interp.attention.points import KINDS

__all__ = ["KINDS", "AttentionAccess"]
