"""The benchmark of patching: the tools that live in this environment give the same grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.patching import text
from benchmarks.patching_tools import TOOLS
from tests.tiny import tiny_folder


@pytest.mark.parametrize("work", ["resid_pre", "z"])
@torch.no_grad()
def test_grids_agree(work: str, tmp_path: Path) -> None:
    tiny_folder("llama", tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(3, 400, (2, 2, 5), generator=generator)
    answers = torch.tensor([[5, 9], [7, 12]])
    ours, plain = (TOOLS[tool](tmp_path, work, clean, corrupted, answers)([0, 2]) for tool in ("interpipe", "nnsight"))
    assert ours.shape == (2, 2, 5 if work == "resid_pre" else 4)
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    assert np.ptp(ours) > 1e-3


def test_the_table_names_every_tool() -> None:
    seconds = {"interpipe": 2.0, "transformer_lens": 30.0, "nnsight": 20.0}
    row = {"work": "z", "cells": 128, "seconds": seconds, "times": {"transformer_lens": 15.0, "nnsight": 10.0}}
    assert text([row]).splitlines()[1].split() == ["z", "128", "2.0", "30.0", "20.0", "15.0x,", "10.0x"]
