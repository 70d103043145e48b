"""The tokenizer classes of transformers, as models load them, on vocabularies that were trained here."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable

import pytest
from transformers import (
    BertTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from interp.errors import InterpError
from interp.prompts import AnswerTokens
from tests.interp.prompts.algorithms import TRICKY, algorithm
from tests.interp.prompts.scripts import SENTENCES

WORDS = sorted({word for line in SENTENCES for word in line.split()}) + TRICKY
BYTE_LEVEL = "byte-level BPE, many scripts"
METASPACE = "Metaspace BPE, many scripts"
UNIGRAM = "Unigram, many scripts"
WORDPIECE = "WordPiece, cased, many scripts"
SPECIAL = dict(unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def trained(name: str) -> dict:
    """Vocabulary and merges of an algorithm, as a class takes them."""
    model = json.loads(algorithm(name).tokenizer.backend_tokenizer.to_str())["model"]
    if isinstance(model["vocab"], list):
        return {"vocab": [tuple(entry) for entry in model["vocab"]], **SPECIAL}
    merges = {"merges": [tuple(pair) for pair in model["merges"]]} if "merges" in model else {}
    return {"vocab": model["vocab"], **merges, **SPECIAL}


CLASSES: dict[str, tuple[str, Callable[[], PreTrainedTokenizerBase]]] = {
    "GPT-2": (BYTE_LEVEL, lambda: GPT2Tokenizer(**trained(BYTE_LEVEL))),
    "GPT-2, prefix space": (BYTE_LEVEL, lambda: GPT2Tokenizer(**trained(BYTE_LEVEL), add_prefix_space=True)),
    "Qwen 2": (BYTE_LEVEL, lambda: Qwen2Tokenizer(**trained(BYTE_LEVEL))),
    "Llama": (METASPACE, lambda: LlamaTokenizer(**trained(METASPACE))),
    "Llama, prefix space": (METASPACE, lambda: LlamaTokenizer(**trained(METASPACE), add_prefix_space=True)),
    "Llama, no prefix space": (METASPACE, lambda: LlamaTokenizer(**trained(METASPACE), add_prefix_space=False)),
    "Llama, legacy": (METASPACE, lambda: LlamaTokenizer(**trained(METASPACE), legacy=True)),
    "Gemma": (METASPACE, lambda: GemmaTokenizer(**trained(METASPACE))),
    "XLM-RoBERTa": (UNIGRAM, lambda: XLMRobertaTokenizer(**trained(UNIGRAM))),
    "T5": (UNIGRAM, lambda: T5Tokenizer(**trained(UNIGRAM))),
    "BERT": (WORDPIECE, lambda: BertTokenizer(**trained(WORDPIECE), do_lower_case=False)),
}


@pytest.mark.parametrize("name", CLASSES)
def test_first_tokens_are_those_of_the_algorithm(name: str) -> None:
    trained_as, make = CLASSES[name]
    made, tokenizer = algorithm(trained_as), make()
    answers = AnswerTokens(tokenizer)
    for word in WORDS:
        if trained_as == UNIGRAM and unicodedata.normalize("NFKC", word) != word:
            continue  # these classes take the normalizer from a file that they were not given
        seen = unicodedata.normalize("NFC", word) if name == "Qwen 2" else word
        readings = [made.pieces(gap, seen) for gap in ("", " ")]
        expected = [reading[0] for reading in readings if reading and reading[0] not in ("▁", "Ġ")]
        try:
            found = tokenizer.convert_ids_to_tokens(answers.of_word(word))
        except InterpError:
            found = []
        assert found == list(dict.fromkeys(expected)), word
