"""Paths of a config: what the user typed where they stood holds in every run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.paths import HUB_DATASET, HUB_MODEL, is_local, localized_path
from pipeline.project import CODE
from pipeline.validate import localize


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("openai-community/gpt2", False),
        ("gpt2", False),
        ("./gpt2", True),
        ("../gpt2", True),
        ("~/gpt2", True),
        ("/models/gpt2", True),
        ("models/gpt2/v1", True),
        ("pipeline/demo/model", True),
        ("here", True),
        ("words.csv", True),
        ("org/words.jsonl", True),
    ],
)
def test_is_local(source: str, local: bool, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert is_local(source, tmp_path) == local


def test_paths_of_the_project_are_reached_through_the_links(tmp_path: Path) -> None:
    lexicon = "pipeline/demo/lexicon.json"
    assert localized_path(lexicon, CODE) == lexicon
    assert localized_path(lexicon, tmp_path) == lexicon, "wherever the user stands"
    assert localized_path("lexicon.json", CODE / "pipeline" / "demo") == lexicon
    assert localized_path(str(CODE / lexicon), tmp_path) == lexicon
    (tmp_path / "pipeline").symlink_to(CODE / "pipeline")
    assert localized_path(lexicon, tmp_path) == lexicon, "also from within a run folder"


def test_the_users_own_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert localized_path("data/words.json", tmp_path) == str(tmp_path / "data/words.json")
    assert localized_path("../words.json", tmp_path / "data") == str(tmp_path / "words.json")
    assert localized_path("~/words.json", Path("/elsewhere")) == str(tmp_path / "words.json")
    assert localized_path("words.json", CODE) == str(CODE / "words.json")
    # A folder of the user's that only shares the name is not the project's.
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "own.json").touch()
    assert localized_path("pipeline/own.json", tmp_path) == str(tmp_path / "pipeline/own.json")


def test_a_local_model_brings_its_dependency(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    values = {"model": {"source": "mine", "depends_on": "mine"}}
    assert localize(values, tmp_path)["model"] == {
        "source": str(tmp_path / "mine"),
        "depends_on": str(tmp_path / "mine"),
    }
    # `model=gpt2 model.source=mine`: the choice's marker gives way to the folder.
    values = {"model": {"source": "mine", "depends_on": HUB_MODEL}}
    assert localize(values, tmp_path)["model"]["depends_on"] == str(tmp_path / "mine")
    assert values["model"]["source"] == "mine", "the given values are not changed"


def test_a_model_of_the_hub_depends_on_the_marker(tmp_path: Path) -> None:
    # `model=demo model.source=org/name`: depends_on follows the source by interpolation.
    values = {"model": {"source": "org/name", "depends_on": "org/name"}}
    assert localize(values, tmp_path)["model"] == {"source": "org/name", "depends_on": HUB_MODEL}


def test_tasks(tmp_path: Path) -> None:
    (tmp_path / "words.json").touch()
    (tmp_path / "words.csv").touch()
    mine = str(tmp_path / "words.json")

    def task(**values: str) -> dict[str, str]:
        changed = localize({"task": values}, tmp_path)["task"]
        assert isinstance(changed, dict)
        return changed

    translation = task(kind="translation", lexicon="words.json", depends_on="words.json")
    assert translation == {"kind": "translation", "lexicon": mine, "depends_on": mine}
    assert task(kind="cloze", sentences="words.json", depends_on="words.json")["depends_on"] == mine
    prompts = task(kind="next_token", source="words.csv", depends_on="words.csv")
    assert prompts["source"] == prompts["depends_on"] == str(tmp_path / "words.csv")
    dataset = task(kind="next_token", source="org/texts", depends_on="org/texts")
    assert dataset["source"] == "org/texts" and dataset["depends_on"] == HUB_DATASET
    chosen = task(kind="translation", lexicon="words.json", depends_on="words.csv")
    assert chosen["depends_on"] == str(tmp_path / "words.csv"), "the user's own choice stays"


def test_the_markers_exist_and_are_two() -> None:
    # A stage that depends on both must not name one file twice.
    assert HUB_MODEL != HUB_DATASET
    assert (CODE / HUB_MODEL).is_file() and (CODE / HUB_DATASET).is_file()


def test_a_wrong_config_is_left_to_validation(tmp_path: Path) -> None:
    values = {"model": None, "task": {"kind": "translatoin", "lexicon": 3}}
    assert localize(values, tmp_path) == values


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///runs.db", "sqlite:////here/runs.db"),
        ("sqlite:////there/runs.db", "sqlite:////there/runs.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        (None, None),
    ],
)
def test_a_database_of_the_users(uri: str | None, expected: str | None) -> None:
    assert localize({"tracking": {"uri": uri}}, Path("/here"))["tracking"]["uri"] == expected
