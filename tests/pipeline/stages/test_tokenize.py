"""The stage `tokenize`: its artifact, byte for byte, and the reader of that artifact."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer, GPT2Config, LlamaConfig

from interp.errors import InterpError
from pipeline.artifacts.tokens import load_prompts, load_tokens, prompts_digest
from pipeline.config.model import ModelConfig
from pipeline.config.section import section_from
from pipeline.config.task import TaskConfig
from pipeline.project import CODE
from pipeline.stages import tokenize as stage
from pipeline.tasks import make


def task(**changes: Any) -> dict[str, Any]:
    standard = {
        "kind": "translation", "lexicon": "pipeline/demo/lexicon.json", "source_languages": ["de", "nl"],
        "target_language": "it", "latent_languages": ["en"], "max_concepts": 30, "pairs": 20, "shots": 2,
        "patch_into": {"source_language": "fr", "target_language": "es"}, "depends_on": "pipeline/demo/lexicon.json",
    }  # fmt: skip
    return standard | changes


@pytest.fixture
def run_folder(
    tmp_path: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """`run_folder(name, **changes of the task)`: a run folder, which becomes the current one."""

    def make_folder(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for package in ("interp", "pipeline"):
            (folder / package).symlink_to(CODE / package)
        model = {"name": "tiny", "source": str(model_folder("qwen2")), "depends_on": str(model_folder("qwen2"))}
        OmegaConf.save({"model": model, "task": task(**changes)}, folder / "params.yaml")
        monkeypatch.chdir(folder)
        return folder

    return make_folder


def content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in (folder / "tokens").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_artifact_is_what_the_task_made(run_folder: Callable[..., Path], model_folder: Callable[[str], Path]) -> None:
    folder = run_folder("one")
    stage.main()
    tokens = load_tokens()
    expected = make(section_from(TaskConfig, task(), "task"), AutoTokenizer.from_pretrained(model_folder("qwen2")), 256)
    assert tokens.prompts == list(expected.prompts)
    assert tokens.targets == list(expected.targets)
    assert tokens.pairs == list(expected.pairs)
    assert load_prompts() == tokens.prompts
    manifest = json.loads((folder / "tokens/manifest.json").read_text(encoding="utf-8"))
    assert manifest == tokens.manifest
    assert manifest["format"] == "interpipe.tokens/1"
    assert manifest["kind"] == "translation"
    assert manifest["groups"] == expected.groups
    assert manifest["counts"] == expected.counts
    assert manifest["tokens"] == sum(len(row.input_ids) for row in expected.prompts)
    assert manifest["prompts_digest"] == prompts_digest(load_prompts())
    measured = json.loads((folder / "timings/tokenize.json").read_text())
    assert measured["tokens"] == manifest["tokens"]


def test_what_is_odd_about_a_file_is_logged_and_kept(
    run_folder: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "own[1]*.csv"
    source.write_text("prompt;target\nBees make ;['honey', 'wax']\n;x\n", encoding="latin-1")
    own = {"kind": "next_token", "source": str(source), "target_columns": ["target"], "encoding": "latin-1",
           "depends_on": str(source)}  # fmt: skip
    params = run_folder("one") / "params.yaml"
    OmegaConf.save({**OmegaConf.load(params), "task": own}, params)
    with caplog.at_level("INFO", logger="interpipe"):
        stage.main()
    tokens = load_tokens()
    assert [row.prompt for row in tokens.prompts] == ["Bees make "]
    assert tokens.prompts[0].words["target"] == ["honey", "wax"]
    assert tokens.manifest["read_as"] == "CSV, separated by semicolons, latin-1"
    assert [(note["what"].split()[:3], note["count"]) for note in tokens.manifest["notes"]] == [
        (["cells", "of", "column"], 1), (["rows", "without", "a"], 1), (["prompts", "that", "end"], 1)
    ]  # fmt: skip
    said = [record.getMessage() for record in caplog.records]
    assert f"{source} is read as CSV, separated by semicolons, latin-1" in said
    for note in tokens.manifest["notes"]:
        assert f"{note['what']}: {note['count']}, e.g. {note['examples'][0]}" in said
    assert tokens.manifest["notes"][1]["examples"] == ["line 3"]


def test_datasets_can_be_read_by_their_own_library(run_folder: Callable[..., Path]) -> None:
    folder = run_folder("one")
    stage.main()
    tokens = load_tokens()
    prompts = datasets.load_from_disk(str(folder / "tokens/prompts"))
    assert prompts["prompt"][:] == [row.prompt for row in tokens.prompts]
    assert prompts["input_ids"][:] == [row.input_ids for row in tokens.prompts]
    pairs = datasets.load_from_disk(str(folder / "tokens/pairs"))
    assert list(pairs.features) == ["sources", "target", "labels", "answers"]
    assert pairs["sources"][:] == [pair.sources for pair in tokens.pairs]


def test_same_bytes_in_another_folder_and_process(run_folder: Callable[..., Path]) -> None:
    first = run_folder("first")
    stage.main()
    second = run_folder("elsewhere")
    subprocess.run([sys.executable, "-m", "pipeline.stages.tokenize"], cwd=second, check=True, capture_output=True)
    assert content(first) == content(second)
    assert len(content(first)) == 10
    stage.main()  # over what is there
    assert content(first) == content(second)
    for path in (first / "tokens").rglob("*"):
        assert path.is_dir() or str(first.parent).encode() not in path.read_bytes()


def test_without_patch_into_targets_and_pairs_are_empty(run_folder: Callable[..., Path]) -> None:
    folder = run_folder("one", patch_into=None)
    stage.main()
    tokens = load_tokens()
    assert (tokens.targets, tokens.pairs) == ([], [])
    assert len(tokens.prompts) == 60
    for name, columns in [("targets", 5), ("pairs", 4)]:
        empty = datasets.load_from_disk(str(folder / "tokens" / name))
        assert (len(empty), len(empty.features)) == (0, columns)


def test_prompts_keep_their_bytes_when_only_pairs_change(run_folder: Callable[..., Path]) -> None:
    def prompts(folder: Path) -> dict[str, str]:
        return {name: digest for name, digest in content(folder).items() if "/prompts/" in name}

    first = run_folder("first")
    stage.main()
    second = run_folder("second", pairs=5)
    stage.main()
    assert prompts(first) == prompts(second)
    assert content(first) != content(second)


def test_prompts_digest_is_of_what_the_model_is_fed(run_folder: Callable[..., Path]) -> None:
    run_folder("first", patch_into=None)
    stage.main()
    digest = load_tokens().manifest["prompts_digest"]
    run_folder("second", patch_into=None, latent_languages=["fr"])
    stage.main()
    assert load_tokens().manifest["prompts_digest"] == digest
    run_folder("third", patch_into=None, seed=1)
    stage.main()
    assert load_tokens().manifest["prompts_digest"] != digest


def test_fault_is_one_message(run_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder("one", lexicon="nowhere.json")
    with pytest.raises(SystemExit, match="1"):
        stage.main()
    assert "task.lexicon: expected a lexicon file, got 'nowhere.json'" in capsys.readouterr().err
    assert not (folder / "tokens").exists()


def test_reader_says_which_stage_is_missing(tmp_path: Path, run_folder: Callable[..., Path]) -> None:
    with pytest.raises(InterpError, match=r"manifest.json, found none.*pipeline.stages.tokenize"):
        load_tokens(tmp_path / "tokens")
    with pytest.raises(InterpError, match=r"state.json, found none"):
        load_prompts(tmp_path)
    folder = run_folder("one")
    stage.main()
    arrow = folder / "tokens/prompts/data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:1000])
    with pytest.raises(InterpError, match="missing or damaged"):
        load_prompts()
    (folder / "tokens/manifest.json").write_text('{"format": "other"}')
    with pytest.raises(InterpError, match=r"expected format 'interpipe.tokens/1', got 'other'"):
        load_tokens()


def test_reader_imports_neither_torch_nor_datasets() -> None:
    code = "import sys, pipeline.artifacts.tokens; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=CODE, check=True, capture_output=True, text=True)
    assert found.stdout == "set()\n"


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match=r"there is no folder ./nowhere"):
        stage.load_tokenizer(ModelConfig(name="x", source="./nowhere", depends_on="x"))
    with pytest.raises(InterpError, match=r"there is no folder pipeline/demo/nowhere"):
        stage.load_tokenizer(ModelConfig(name="x", source="pipeline/demo/nowhere", depends_on="x"))
    with pytest.raises(InterpError, match=r"cannot load the tokenizer of .*local folder with config.json"):
        stage.load_tokenizer(ModelConfig(name="x", source=str(tmp_path), depends_on="x"))


def test_context_length() -> None:
    assert stage.context_length(LlamaConfig(max_position_embeddings=77)) == 77
    assert stage.context_length(GPT2Config(n_positions=99)) == 99


def test_tokenizer_digest_tells_tokenizers_apart(model_folder: Callable[[str], Path]) -> None:
    first, same, other = (AutoTokenizer.from_pretrained(model_folder("qwen2")) for _ in range(3))
    same("some text", padding="max_length", max_length=9, truncation=True)  # what a use leaves behind is no difference
    other.add_tokens(["Buch"])
    assert stage.tokenizer_digest(first) == stage.tokenizer_digest(same)
    assert stage.tokenizer_digest(first) != stage.tokenizer_digest(other)
