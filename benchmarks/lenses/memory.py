"""Peak memory of a piece of work, above what the process holds before it."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

__all__ = ["MemoryPeak"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryPeak:
    """`with MemoryPeak() as peak: ...`, then `peak.bytes`; None where the system (not Linux) does not say.

    The kernel's own high-water mark of resident memory is set back first, and what is freed but not returned is
    returned, so that memory which earlier work has used is counted again.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._before: int | None = None

    def __enter__(self) -> MemoryPeak:
        gc.collect()
        with suppress(OSError, AttributeError):  # another system, or no right to
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            _CLEAR.write_text("5", encoding="ascii")  # VmHWM := VmRSS
            self._before = _kilobytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            self.bytes = 1024 * max(0, _kilobytes("VmHWM") - self._before)


def _kilobytes(field: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
