"""A saved result and a store are read without what a model needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("code", ["from interp.results import LensResult", "from pipeline.store import open_store"])
def test_reading_needs_no_model(code: str) -> None:
    heavy = f"{code}; import sys; print(sorted({{'torch', 'transformers', 'nnsight'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"
