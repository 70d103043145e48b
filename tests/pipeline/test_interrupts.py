"""An interrupt's own noise: an object that was half made complains as it goes."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import os, signal, sys
from pipeline.process import quiet_interrupts

class Bar:
    def __del__(self):
        self.postfix["info"] = ""

# Not as it was inherited: what a shell runs in the background ignores SIGINT.
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == "ignored" else signal.default_int_handler)
quiet_interrupts()
if sys.argv[1] == "before":
    Bar()
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("went on")
except KeyboardInterrupt:
    print("interrupted")
Bar()
"""


@pytest.mark.parametrize(
    "case, said, tracebacks", [("plain", "interrupted", 0), ("before", "interrupted", 1), ("ignored", "went on", 1)]
)
def test_finalizers_are_heard_until_an_interrupt_comes(case: str, said: str, tracebacks: int) -> None:
    run = subprocess.run([sys.executable, "-c", CHILD, case], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == said
    assert run.stderr.count("has no attribute 'postfix'") == tracebacks
