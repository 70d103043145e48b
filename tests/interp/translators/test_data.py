"""Text: its bytes are all counted once, its order is fixed, and a place in it can be kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from interp.errors import InterpError
from interp.translators import GivenSequences, PackedText, TextSource, TokenSequence
from interp.translators.data import token_bytes
from interp.translators.states import TextSize, batches_of_tokens
from tests.tiny import TEXT, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
DOCUMENTS = [f"{text} {number}" for number in range(4) for text in TEXT]


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words with a mark for the space before, characters that it does not know as bytes, accents taken off."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocabulary |= {piece: index + 257 for index, piece in enumerate(["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a"])}
    bpe = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")


@given(st.text(max_size=60))
def test_bytes_of_tokens_sum_to_those_of_the_text(text: str) -> None:
    for tokenizer in (TOKENIZER, SENTENCEPIECE):
        ids, num_bytes = token_bytes(tokenizer, text)
        assert len(ids) == len(num_bytes)
        assert min(num_bytes, default=0) >= 0
        assert sum(num_bytes) == (len(text.encode()) if ids else 0)


SENTENCEPIECE = sentencepiece_like()


def test_each_token_has_the_bytes_that_it_stands_for() -> None:
    ids, num_bytes = token_bytes(TOKENIZER, "fox мир")
    pieces = [TOKENIZER.decode([token]) for token in ids]
    whole = [len(piece.encode()) for piece in pieces if "�" not in piece]
    assert [size for size, piece in zip(num_bytes, pieces, strict=True) if "�" not in piece] == whole
    assert token_bytes(TOKENIZER, "") == ([], [])


def test_a_tokenizer_that_does_not_say_where_tokens_stand_has_bytes_spread() -> None:
    class Slow:
        is_fast = False

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            return {"input_ids": list(range(4))}

    assert token_bytes(Slow(), "ten bytes!")[1] == [2, 3, 2, 3]  # type: ignore[arg-type]


def test_given_sequences_of_prompts_have_the_bytes_of_their_text() -> None:
    prompt = TOKENIZER("Français")["input_ids"]
    (sequence,) = GivenSequences.of(TOKENIZER, [prompt])
    assert sequence.ids == tuple(prompt)
    assert sequence.num_bytes[0] == 0  # <s>
    assert sum(sequence.num_bytes) == len("Français".encode())


def write(folder: Path, kind: str) -> Path:
    path = folder / f"text.{kind}"
    if kind == "txt":
        path.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    elif kind == "parquet":
        pd.DataFrame({"text": DOCUMENTS}).to_parquet(path)
    elif kind == "csv":
        pd.DataFrame({"text": DOCUMENTS}).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in DOCUMENTS), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a[12].jsonl", "a*.jsonl", "a?.jsonl"])
def test_a_path_is_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / "a1.jsonl").write_text('{"text": "wrong"}\n')
    (tmp_path / name).write_text('{"text": "right"}\n')
    assert list(TextSource(str(tmp_path / name)).documents()) == ["right"]


def test_a_path_that_would_be_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a::b.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(InterpError, match="takes `::` in a path for a link"):
        list(TextSource(str(tmp_path / "a::b.jsonl")).documents())


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet", "csv"])
def test_every_kind_of_file_gives_its_documents_in_order(tmp_path: Path, kind: str) -> None:
    source = TextSource(str(write(tmp_path, kind)))
    assert list(source.documents()) == DOCUMENTS
    assert list(source.documents(skip=7)) == DOCUMENTS[7:]
    assert str(tmp_path) not in json.dumps(source.describe())


def test_shuffling_mixes_otherwise_each_time_but_always_the_same(tmp_path: Path) -> None:
    path = str(write(tmp_path, "jsonl"))
    source = TextSource(path, shuffle_buffer=8, seed=3)
    first, again, later = list(source.documents(0)), list(source.documents(0)), list(source.documents(1))
    assert first == again != DOCUMENTS
    assert sorted(first) == sorted(later) == sorted(DOCUMENTS)
    assert later != first
    assert list(source.documents(0, skip=9)) == first[9:]


def test_packing_leaves_nothing_out(tmp_path: Path) -> None:
    sequences = list(PackedText(TOKENIZER, TextSource(str(write(tmp_path, "jsonl"))), sequence_length=16))
    assert {len(sequence.ids) for sequence in sequences} == {16}
    assert {sequence.ids[0] for sequence in sequences} == {TOKENIZER.bos_token_id}
    flat = [token for sequence in sequences for token in sequence.ids[1:]]
    end = TOKENIZER.eos_token_id
    whole = [token for text in DOCUMENTS for token in [*TOKENIZER(text, add_special_tokens=False)["input_ids"], end]]
    assert flat == whole[: len(flat)]
    assert len(whole) - len(flat) < 15
    num_bytes = [size for sequence in sequences for size in sequence.num_bytes]
    assert len(num_bytes) == 16 * len(sequences)
    told = [size for text in DOCUMENTS for size in [*token_bytes(TOKENIZER, text)[1], 0]]
    assert sum(num_bytes) == sum(told[: len(flat)])


@pytest.mark.parametrize("shuffle_buffer", [0, 6])
def test_a_place_in_the_text_can_be_kept(tmp_path: Path, shuffle_buffer: int) -> None:
    source = TextSource(str(write(tmp_path, "jsonl")), shuffle_buffer=shuffle_buffer)

    def packed() -> PackedText:
        return PackedText(TOKENIZER, source, sequence_length=16, repeat=True)

    whole = list(itertools.islice(packed(), 60))  # more than twice through the text
    assert len({sequence.ids for sequence in whole}) < 60 or shuffle_buffer
    for taken in (0, 1, 17, 45):
        stream = packed()
        list(itertools.islice(stream, taken))
        resumed = packed()
        resumed.restore(json.loads(json.dumps(stream.state())))
        assert list(itertools.islice(resumed, 60 - taken)) == whole[taken:]


def test_text_that_has_changed_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    stream = PackedText(TOKENIZER, TextSource(str(path)), sequence_length=16)
    next(iter(stream))
    state = stream.state()
    path.write_text(path.read_text(encoding="utf-8").replace("Deutsch", "Dansk"), encoding="utf-8")
    stream.restore(state)
    stream._ids.clear()
    with pytest.raises(InterpError, match="no longer what it was when the training stopped"):
        next(iter(stream))


def test_text_without_tokens_ends() -> None:
    class Silent(TextSource):
        def documents(self, epoch: int = 0, skip: int = 0) -> Iterator[str]:
            return iter(["", ""])

    assert list(PackedText(SENTENCEPIECE, Silent("none"), sequence_length=4, repeat=True)) == []


def test_given_sequences_go_on_where_they_were() -> None:
    given_sequences = [TokenSequence((n, n + 1), (1, 1)) for n in range(3)]
    stream = GivenSequences(given_sequences, repeat=True)
    list(itertools.islice(stream, 4))
    resumed = GivenSequences(given_sequences, repeat=True)
    resumed.restore(stream.state())
    assert [sequence.ids[0] for sequence in itertools.islice(resumed, 4)] == [1, 2, 0, 1]
    assert [sequence.ids[0] for sequence in GivenSequences(given_sequences)] == [0, 1, 2]
    assert GivenSequences(given_sequences[:2]).describe() != GivenSequences(given_sequences[1:]).describe()


def test_errors_say_what_was_expected(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    path = write(tmp_path, "jsonl")
    with pytest.raises(InterpError, match=r"expected a column 'body' that holds text, found text\."):
        next(TextSource(str(path), column="body").documents())
    other = tmp_path / "text.docx"
    other.write_text("text", encoding="utf-8")
    with pytest.raises(InterpError, match=r"expected a file ending in \.jsonl, .*, got 'text.docx'"):
        next(TextSource(str(other)).documents())
    with pytest.raises(InterpError, match="expected at least 3 tokens, got 2"):
        PackedText(TOKENIZER, TextSource(str(path)), sequence_length=2)
    with pytest.raises(InterpError, match="at least one sequence, and tokens in each"):
        GivenSequences([TokenSequence((), ())])


def test_batches_keep_the_order_and_the_budget() -> None:
    sequences = [TokenSequence((0,) * length, (1,) * length) for length in (4, 4, 2, 9, 30, 1, 1)]
    batches = list(batches_of_tokens(sequences, 12))
    assert [[len(sequence.ids) for sequence in batch] for batch in batches] == [[4, 4, 2], [9], [30], [1, 1]]


def test_bits_per_byte() -> None:
    size = TextSize()
    assert size.bits_per_byte(1.0) != size.bits_per_byte(1.0)  # NaN
    size.add([TokenSequence((1, 5, 6), (9, 3, 5)), TokenSequence((1, 5), (0, 4))])
    assert (size.tokens, size.num_bytes) == (3, 12)
    assert size.bits_per_byte(2.0) == pytest.approx(2.0 * 3 / 12 / 0.6931471805599453)
