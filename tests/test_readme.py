"""What the README, and the page that goes on from it, tell people to type."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from interp.architectures import known_model_types
from pipeline.demo.lexicon import load_lexicon

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")


def test_the_notebook_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "readme.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(script))
    said = capsys.readouterr().out.splitlines()
    lines, changed = said[:8], said[8:]
    assert "['pecora'," in lines[-1], "the last layer says the answer"
    assert "['pecora'," not in lines[0], "the first one does not"
    assert changed[:2] == ["2 ['pecora']", "6 ['libro']"]
    recovery = [float(number) for number in re.findall(r"-?\d\.\d*", "".join(changed[2:]))]
    assert recovery[:8:2] == [1.0] * 4 and recovery[-1] == 1.0, "from the word to the last token"


def test_the_number_of_models_is_that_of_the_table() -> None:
    (number,) = re.findall(r"(\d+) model types have a record", README)
    assert int(number) == len(known_model_types())


def test_the_lexicon_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```json\n(.*?)```", RUNS, flags=re.DOTALL)
    (tmp_path / "words.json").write_text(text, encoding="utf-8")
    assert load_lexicon(tmp_path / "words.json").concept("sun").words["zh"] == ("太阳", "日")


def test_targets_choices_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)`", README + RUNS):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for group, choice in re.findall(r"\b(experiment|model|task|lens)=(\w+)", README + RUNS):
        assert (ROOT / "conf" / group / f"{choice}.yaml").is_file(), f"{group}={choice}"
    for image in re.findall(r"!\[.*?\]\((.+?)\)", README):
        assert (ROOT / image).is_file(), image
