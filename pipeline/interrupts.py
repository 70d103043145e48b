"""Interrupts that leave no traceback: a finalizer that fails once a signal has come is not reported."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

__all__ = ["quiet_interrupts"]


def quiet_interrupts() -> None:
    """Let SIGINT raise `KeyboardInterrupt`, as Python does, and report no failing finalizer from then on.

    An object that the interrupt left half made (a progress bar, say) complains as it goes, with a traceback that
    says nothing. For processes that end after an interrupt. A signal that is ignored stays ignored, so that `nohup`
    works; only a process's main thread may ask for signals, another one changes nothing.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        sys.unraisablehook = lambda unraisable: None
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
