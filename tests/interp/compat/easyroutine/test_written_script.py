"""A script written for easyroutine runs here with its import changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[4]
SCRIPT = ROOT / "examples" / "written_for_easyroutine.py"


def test_a_script_for_easyroutine_runs_with_its_import_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    source = SCRIPT.read_text(encoding="utf-8")
    changed, imports = re.subn(
        r"^from easyroutine\.interpretability\b", "from interp.compat.easyroutine", source, flags=re.M
    )
    assert imports == 1
    names: dict[str, Any] = {}
    exec(compile(changed, str(SCRIPT), "exec"), names)
    results = names["results"]
    assert [next(iter(found)) for found in results["first predictions"].values()][:2] == ["cane", "ac"]
    assert results["labels"] == ["cane", "acqua", "pecora"] and results["last"].shape == (3, 128)
    assert results["mapping_index"]["last"] == 1 and results["attention to the first token"].shape == (8, 3)
    assert float(results["change by ablation"]) > 0.01
    in_clean, in_patched, variation = results["logit differences"]
    assert in_clean > 0 > in_patched  # layer 6 writes the other word
    assert variation == pytest.approx(in_patched - in_clean, abs=1e-4)
    assert not torch.isnan(results["last"]).any()
