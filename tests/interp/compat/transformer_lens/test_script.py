"""A script written for TransformerLens runs here with its imports changed, and computes the same."""

from __future__ import annotations

import json
import re

import pytest

from tests.interp.compat.transformer_lens.recorded_models import FOLDER, SCRIPT
from tests.interp.compat.transformer_lens.scenarios import numbers


def test_a_script_for_transformer_lens_runs_with_its_imports_changed(capsys: pytest.CaptureFixture[str]) -> None:
    source = SCRIPT.read_text(encoding="utf-8")
    changed, imports = re.subn(r"^from transformer_lens\b", "from interp.compat.transformer_lens", source, flags=re.M)
    assert imports == 2
    names: dict[str, object] = {}
    exec(compile(changed, str(SCRIPT), "exec"), names)
    told = json.loads((FOLDER / "script.json").read_text(encoding="utf-8"))
    ours = {name: numbers(value) for name, value in names["results"].items()}  # type: ignore[attr-defined]
    assert ours.keys() == told.keys()
    for name, (shape, values) in told.items():
        assert ours[name][0] == shape, name
        assert ours[name][1] == pytest.approx(values, abs=1e-3, rel=1e-4), name
    printed = capsys.readouterr().out
    assert "Ranks of the answer tokens: [('cane', 0)]" in printed and re.search(r"Top 0th token\. .*\|cane\|", printed)
