"""The table: one record a layout, in the order in which an unknown model is tried on them.

Where a family has several layouts, those with a `when` stand before the one without.
"""

from __future__ import annotations

from interp.architectures.record import Architecture
from interp.architectures.table.classic import CLASSIC
from interp.architectures.table.experts import EXPERTS
from interp.architectures.table.hybrid import HYBRID
from interp.architectures.table.inside import INSIDE
from interp.architectures.table.llama_like import LLAMA_LIKE
from interp.architectures.table.normed import NORMED
from interp.architectures.table.parallel import PARALLEL
from interp.architectures.table.refused import REFUSED, why_refused

__all__ = ["ARCHITECTURES", "REFUSED", "why_refused"]

ARCHITECTURES: tuple[Architecture, ...] = (*LLAMA_LIKE, *EXPERTS, *NORMED, *PARALLEL, *HYBRID, *CLASSIC, *INSIDE)
