"""What an `Extraction` runs over, what a batch saver keeps, and the extraction as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, TensorDataset

from interp.activations import Extraction, ExtractionResult
from interp.errors import InterpError
from interp.prompts import Prompt, encode
from tests.interp.reference import wrapped

TEXTS = ["king king hello", "hello", "? cat -> cat", "The quick brown fox"]
EXTRACTION = Extraction("resid_post.1 pattern.2.h1 logits", "last 0:2", keys="all")


@pytest.fixture(scope="module")
def expected() -> ExtractionResult:
    return EXTRACTION.run(wrapped("llama"), TEXTS, batch_size=1, progress=False)


def padded(side: str) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """A collate function that pads, and keeps the other columns."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        tokenizer = wrapped("llama").tokenizer
        tokenizer.padding_side, before = side, tokenizer.padding_side
        batch = dict(tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt"))
        tokenizer.padding_side = before
        return {**batch, "label": torch.tensor([row["label"] for row in rows]), "text": [row["text"] for row in rows]}

    return collate


def rows() -> list[dict[str, Any]]:
    return [{"text": text, "label": index} for index, text in enumerate(TEXTS)]


def all_ids() -> list[list[int]]:
    return wrapped("llama").tokenizer(TEXTS)["input_ids"]


def one_by_one() -> Iterator[str]:
    yield from TEXTS


FORMS: dict[str, Callable[[], Any]] = {
    "texts": lambda: TEXTS,
    "a generator": one_by_one,
    "prompts": lambda: [Prompt(text) for text in TEXTS],
    "lists of texts": lambda: [TEXTS[:3], TEXTS[3:]],
    "lists of token ids": all_ids,
    "batches of token ids": lambda: [all_ids()[:1], all_ids()[1:]],
    "encoded prompts": lambda: [encode(wrapped("llama").tokenizer, TEXTS[0]), *TEXTS[1:]],
    "an encoding": lambda: wrapped("llama").tokenizer(TEXTS, padding=True, return_tensors="pt"),
    "encodings": lambda: [wrapped("llama").tokenizer(TEXTS[:2]), wrapped("llama").tokenizer(TEXTS[2:])],
    "rows of token ids": lambda: [{"input_ids": row} for row in all_ids()],
    "rows": rows,
    "lists of rows": lambda: [rows()[:3], rows()[3:]],
    "a table": lambda: pd.DataFrame(rows()),
    "a data set": lambda: Dataset.from_list(rows()),
    "a data set of tensors": lambda: Dataset.from_list([{"input_ids": row} for row in all_ids()]).with_format("torch"),
    "columns": lambda: [{"text": TEXTS[:3], "label": [0, 1, 2]}, {"text": TEXTS[3:], "label": [3]}],
    "a loader of texts": lambda: DataLoader(TEXTS, batch_size=3),  # type: ignore[arg-type]
    "a loader padded left": lambda: DataLoader(rows(), batch_size=3, collate_fn=padded("left")),
    "a loader padded right": lambda: DataLoader(rows(), batch_size=2, collate_fn=padded("right")),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_batches_gives_what_single_prompts_give(form: str, expected: ExtractionResult) -> None:
    result = EXTRACTION.run(wrapped("llama"), FORMS[form](), batch_size=3, progress=False)
    assert result.input_ids == expected.input_ids and result.positions == expected.positions
    for name in expected:
        torch.testing.assert_close(result[name], expected[name], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_tensors_of_one_length_are_batches() -> None:
    ids = torch.tensor([[1, 17, 250], [1, 88, 5], [1, 9, 9]])
    loader = DataLoader(TensorDataset(ids), batch_size=2)
    whole = EXTRACTION.run(wrapped("llama"), ids, progress=False)
    result = EXTRACTION.run(wrapped("llama"), loader, progress=False)
    torch.testing.assert_close(result["resid_post.1"], whole["resid_post.1"], rtol=1e-4, atol=1e-5)
    assert result.input_ids == ids.tolist()


def test_a_batch_saver_keeps_columns_and_a_bar_shows_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    model = wrapped("llama")
    loader = DataLoader(rows(), batch_size=3, collate_fn=padded("right"))  # type: ignore[arg-type]
    result = EXTRACTION.run(
        model, loader, batch_saver=lambda batch: {"label": batch["label"], "words": [t.split() for t in batch["text"]]}
    )
    assert result.saved["label"].tolist() == [0, 1, 2, 3] and result.saved["words"] == [text.split() for text in TEXTS]
    shown = capsys.readouterr().err
    assert "Extracting" in shown and "2/2" in shown
    EXTRACTION.run(model, rows(), progress=False, batch_size=3)
    assert not capsys.readouterr().err
    single = EXTRACTION.run(model, rows()[:2], progress=False, batch_size=1, batch_saver=lambda batch: {"of": 7})
    assert single.saved == {"of": [7, 7]}
    with pytest.raises(InterpError, match="an entry for each of the 2 prompts"):
        EXTRACTION.run(model, rows()[:2], progress=False, batch_saver=lambda batch: {"of": 7})
    with pytest.raises(InterpError, match="expected label of batch 1"):
        saves = iter([{"label": 1}, {"other": 1}])
        EXTRACTION.run(model, rows()[:2], progress=False, batch_size=1, batch_saver=lambda batch: next(saves))


def test_what_holds_no_prompts_is_refused() -> None:
    model = wrapped("llama")
    for batches, message in [
        ([], "at least one prompt"),
        (7, "expected batches or prompts"),
        ([{"sentence": "king"}], "Name the column"),
        ([{"input_ids": [[1, 2]], "pixel_values": torch.ones(1)}], "token ids beside pixel_values"),
        ([{"input_ids": [1, 2], "image": "a.png"}], "token ids beside image"),
        ([{"input_ids": [[1, 2], [3, 4]], "images": [None, ["a.png"]]}], "token ids beside images"),
        ([7.5], "got 7.5"),
        ([{"text": "king", "image": "a.png", "images": ["b.png"]}], "one column of images, got images and image"),
    ]:
        with pytest.raises(InterpError, match=message):
            EXTRACTION.run(model, batches, progress=False)
    with pytest.raises(InterpError, match=r"has no 'sentense'. Did you mean 'sentence'"):
        EXTRACTION.run(model, [{"sentence": "king"}], column="sentense", progress=False)
    found = EXTRACTION.run(model, [{"sentence": "king king hello"}], column="sentence", progress=False)
    assert len(found.input_ids) == 1
    with pytest.raises(InterpError, match="batch_size"):
        EXTRACTION.run(model, TEXTS, batch_size=0, progress=False)


def test_an_extraction_is_data() -> None:
    extraction = Extraction(
        ["blocks.3.hook_resid_post", ("pattern", 2), "value_weighted_mean.2.h0,1", "last_norm"], ["last", -2, "2:5"],
        means="pattern.*", queries=0, keys=None, heads=["2.h0", "3.h*"], mean_over_positions=True,
    )  # fmt: skip
    assert extraction.to_dict() == {
        "sites": "resid_post.3 pattern.2 value_weighted_mean.2.h0,1 last_norm", "positions": "last -2 2:5",
        "means": "pattern.*", "queries": "0", "keys": "last -2 2:5", "heads": "2.h0 3.h*", "mean_over_positions": True,
    }  # fmt: skip
    for again in (Extraction.from_json(extraction.to_json()), Extraction.from_yaml(extraction.to_yaml())):
        assert again == extraction and hash(again) == hash(extraction)
    assert Extraction.from_yaml("{sites: [resid_post.1, embed], positions: 1:3}").positions == "1:3"
    assert Extraction("embed").to_dict() == {"sites": "embed"}
    with pytest.raises(InterpError, match=r"has no 'site'\. Did you mean 'sites'"):
        Extraction.from_dict({"site": "embed"})
    with pytest.raises(InterpError, match="expected YAML"):
        Extraction.from_yaml("a: [")
    with pytest.raises(InterpError, match="expected a mapping"):
        Extraction.from_yaml("- embed")


def test_a_result_is_a_cache_of_its_sites(expected: ExtractionResult) -> None:
    cache = expected.cache
    assert list(cache) == ["resid_post.1", "logits"] and cache.positions == expected.positions
    assert cache.to_frame("resid_post.1").shape == (12, 35)
    assert expected.lengths == [len(ids) for ids in expected.input_ids]
    rows = expected.at("pattern.2.h1", "0:2", "query")
    torch.testing.assert_close(rows, expected["pattern.2.h1"][:, 1:3], equal_nan=True)
    averaged = Extraction("resid_post.1", mean_over_positions=True).run(wrapped("llama"), TEXTS, progress=False)
    with pytest.raises(InterpError, match="no activation of a token"):
        _ = averaged.cache


def test_a_result_is_saved(tmp_path: Path) -> None:
    model = wrapped("llama")
    extraction = Extraction(
        "resid_post.0 resid_pre.1 pattern_sum.1.h2 last_norm input_ids", "last all", means="pattern.1", keys="first"
    )
    result = extraction.run(
        model, rows(), progress=False, batch_saver=lambda batch: {"at": torch.tensor(batch["label"]), **batch}
    )
    assert result["resid_pre.1"] is result["resid_post.0"]
    result.save(tmp_path / "result.safetensors")
    again = ExtractionResult.load(tmp_path / "result.safetensors")
    assert again.extraction == extraction and again.input_ids == result.input_ids and list(again) == list(result)
    assert again.saved["label"] == [0, 1, 2, 3] and again.saved["at"].tolist() == [0, 1, 2, 3]
    assert again.tokens("all") == result.tokens("all") and again.labels("position") == result.labels("position")
    assert again.about.digest == model.digest() and again["resid_pre.1"] is again["resid_post.0"]
    for name in result:
        torch.testing.assert_close(again[name], result[name], rtol=0, atol=0, equal_nan=True)
        assert again.axes(name) == result.axes(name)
    torch.testing.assert_close(again.means["pattern.1"], result.means["pattern.1"], rtol=0, atol=0)
    assert torch.equal(again.counts["pattern.1"], result.counts["pattern.1"])
    saver = extraction.run(model, rows(), progress=False, batch_saver=lambda batch: {"of": [object()] * 4})
    with pytest.raises(InterpError, match="neither text nor numbers"):
        saver.save(tmp_path / "other.safetensors")
    result.cache.save(tmp_path / "cache.safetensors")
    with pytest.raises(InterpError, match="expected a ExtractionResult"):
        ExtractionResult.load(tmp_path / "cache.safetensors")
