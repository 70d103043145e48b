"""nnterp's `logging`: its logger, under the name by which scripts set its level.

Unlike nnterp's it gets no handler on import: what is shown is for the program to decide. Nothing here writes to it.
"""

from __future__ import annotations

import logging

__all__ = ["logger"]

logger = logging.getLogger("nnterp")
