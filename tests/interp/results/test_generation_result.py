"""Generated texts by layer: attribute extraction as in Patchscopes, tables, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interp.errors import InterpError
from interp.results import GenerationResult
from tests.tiny import tiny_tokenizer

LAYERS = (5, 0, 2)
TEXTS = (("the Eiffel Tower", "Paris", ""), ("New  York City", "tokyo", "Straße"))
IDS = (((1, 2, 3), (4,), ()), ((5, 6), (7,), (8, 9)))


def result() -> GenerationResult:
    return GenerationResult(LAYERS, IDS, TEXTS)


def test_an_answer_counts_where_the_text_contains_it_without_spaces_and_case() -> None:
    hits = result().hits(["eiffeltower", ["Osaka", "NewYork", "STRASSE"]])
    assert hits.tolist() == [[True, False, False], [True, False, True]]
    assert result().accuracy(["Paris", ["Tokyo"]]).tolist() == [0.0, 1.0, 0.0]
    assert result().accuracy(["Eiffel Tower", "Kyoto"]).tolist() == [0.5, 0.0, 0.0]
    composed, decomposed = "le café", "le cafe\N{COMBINING ACUTE ACCENT}"
    for text, answer in ((composed, decomposed), (decomposed, composed)):
        assert GenerationResult((0,), (((1,),),), ((text,),)).hits([answer]).tolist() == [[True]]
    empty = GenerationResult(LAYERS, (), ())
    assert np.isnan(empty.accuracy([])).all() and empty.accuracy([]).shape == (3,)


@pytest.mark.parametrize("answers", ["Paris", ["Paris"], ["Paris", " "], ["Paris", []], ["Paris", ["x", ""]]])
def test_answers_that_do_not_fit_are_refused(answers) -> None:
    with pytest.raises(InterpError, match="answers: "):
        result().hits(answers)


def test_texts_are_decoded_without_special_tokens() -> None:
    tokenizer = tiny_tokenizer()
    words = ["hello hello", "日本"]
    ids = [[[*tokenizer(word)["input_ids"], 2]] for word in words]
    decoded = GenerationResult.decoded([3], ids, tokenizer)
    assert decoded.texts == (("hello hello",), ("日本",)) and decoded.ids[1][0] == tuple(ids[1][0])


def test_padded_ids_and_table() -> None:
    padded = result().padded_ids()
    assert padded.dtype == np.int32 and padded.shape == (2, 3, 3)
    assert padded[0].tolist() == [[1, 2, 3], [4, -1, -1], [-1, -1, -1]]
    frame = result().to_frame()
    assert frame.to_dict("records")[4] == {"example": 1, "layer": 0, "text": "tokyo", "num_tokens": 1}
    assert len(frame) == 6


def test_concatenate() -> None:
    whole = result()
    parts = [GenerationResult(LAYERS, IDS[1:], TEXTS[1:]), GenerationResult(LAYERS, IDS[:1], TEXTS[:1])]
    assert GenerationResult.concatenate(parts, order=[1, 0]) == whole
    assert GenerationResult.concatenate(parts).texts == TEXTS[::-1]
    with pytest.raises(InterpError, match="the same layers"):
        GenerationResult.concatenate([whole, GenerationResult((1, 0, 2), IDS, TEXTS)])
    with pytest.raises(InterpError, match="each of 0 to 1 once"):
        GenerationResult.concatenate([whole], order=[1, 1])


def test_files_give_back_what_went_in_byte_for_byte(tmp_path: Path) -> None:
    result().save(tmp_path / "a.safetensors")
    loaded = GenerationResult.load(tmp_path / "a.safetensors")
    assert loaded == result()
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("ids", "texts", "message"),
    [
        (IDS, TEXTS[:1], "the same examples, got 2 and 1"),
        ((IDS[0], IDS[1][:2]), TEXTS, "ids: example 1 has 2, expected one for each of 3 layers"),
        (IDS, (TEXTS[0][:1], TEXTS[1]), "texts: example 0 has 1"),
    ],
)
def test_what_does_not_fit_is_refused(ids, texts, message) -> None:
    with pytest.raises(InterpError, match=message):
        GenerationResult(LAYERS, ids, texts)
