"""The tokenizer algorithms that models use, trained small, each with a slow computation of what it must give."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import regex
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.interp.prompts.scripts import LETTERS, SENTENCES, words_of

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEXT = [
    'Deutsch: "Buch" - Italiano: "libro"\nDeutsch: "König" - Italiano: "re"\n',
    'Français: "livre" - Español: "libro"\nEnglish: "book" - 中文: "书"\n',
    "The quick brown fox jumps over the lazy dog. Le renard brun saute par-dessus le chien paresseux.",
    "Привет мир, как дела? 你好世界 今天天气很好。 مرحبا بالعالم こんにちは世界 नमस्ते दुनिया",
    '"Buch"\n"Buch"\n"Buch"\n',
    "king king\n1135 1135\nhello hello\n? cat -> cat don't l'eau naïve 12,5 = 7 | <b>x</b>",
] * 3
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Algorithm:
    """A tokenizer and what it must do.

    Arguments:
        tokenizer: the real one.
        pieces: the tokens of a word inside a text behind `gap` (nothing or a space), computed slowly; None where the
            word cannot be written in this vocabulary.
        text_of: what a vocabulary entry stands for inside a text: bytes, a space in front included; None for pieces
            that are never the beginning of a word.
        seen: a word as the tokenizer sees it.
    """

    tokenizer: PreTrainedTokenizerFast
    pieces: Callable[[str, str], list[str] | None]
    text_of: Callable[[str], bytes | None]
    seen: Callable[[str], str] = lambda word: word


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _merged(symbols: list[str], merges: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding, as its paper has it: again and again the pair that was learnt first."""
    while True:
        ranked = [(merges[pair], i) for i, pair in enumerate(itertools.pairwise(symbols)) if pair in merges]
        if not ranked:
            return symbols
        _, at = min(ranked)
        symbols = [*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :]]


def _merges(backend: Tokenizer) -> dict[tuple[str, str], int]:
    return {tuple(pair): rank for rank, pair in enumerate(json.loads(backend.to_str())["model"]["merges"])}


@cache
def byte_alphabet() -> dict[int, str]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the rest are counted up from 256."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _byte_level(
    pattern: str | None, vocabulary: int, *, prefix_space: bool = False, text: list[str] = TEXT
) -> Algorithm:
    backend = Tokenizer(models.BPE())
    if prefix_space:  # it splits into GPT-2's words itself
        assert pattern == GPT2
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif pattern is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    merges, letters = _merges(backend), byte_alphabet()
    byte_of = {letter: byte for byte, letter in letters.items()}

    def pieces(gap: str, word: str) -> list[str]:
        found = []
        # The real texts have a line before the word; a pattern may look at it.
        split = [gap + word] if pattern is None else regex.findall(pattern, "\n" + gap + word)[1:]
        for piece in split:
            found += _merged([letters[byte] for byte in piece.encode()], merges)
        return found

    return Algorithm(_wrap(backend), pieces, lambda token: bytes(byte_of[letter] for letter in token))


def _sentencepiece_bytes(token: str) -> bytes:
    if regex.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def _spaces(word: str) -> str:
    """The word where the mark for spaces is read as a space, and spaces around a word are ignored."""
    return word.replace("▁", " ").strip()


def _metaspace(scheme: str, vocabulary: int, *, split: bool = False, text: list[str] = TEXT) -> Algorithm:
    """Byte-pair encoding as SentencePiece does it (Llama 2, Mistral, Gemma), with bytes for unknown characters."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(
        [line.replace("书", "").replace("世", "").replace("\n", " ") for line in text],
        trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False),
    )
    model = json.loads(trained.to_str())["model"]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in tokens]
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    strip = []
    if scheme == "legacy":  # Llama 2 as it was released: a normalizer, and no splitting into words at all
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    if scheme != "never":
        strip = [decoders.Strip(content=" ", left=1)]
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.add_special_tokens(SPECIAL)
    merges, known = _merges(backend), set(tokens)

    def pieces(gap: str, word: str) -> list[str]:
        symbols = []
        for letter in (gap + _spaces(word)).replace(" ", "▁"):
            symbols += [letter] if letter in known else [f"<0x{byte:02X}>" for byte in letter.encode()]
        return _merged(symbols, merges)

    return Algorithm(_wrap(backend), pieces, _sentencepiece_bytes, _spaces)


def _unigram(
    vocabulary: int, *, scheme: str = "always", byte_fallback: bool = False, text: list[str] = TEXT
) -> Algorithm:
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trained.train_from_iterator(
        text,
        trainers.UnigramTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    entries = [tuple(entry) for entry in json.loads(trained.to_str())["model"]["vocab"]]
    scores = {token: score for token, score in entries if token not in SPECIAL}
    unknown = min(score for _, score in entries) - 10  # what the library charges for a letter that has no entry
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    backend = Tokenizer(
        models.Unigram(
            [*entries, *((token, 0.0) for token in in_bytes)],
            unk_id=SPECIAL.index("<unk>"),
            byte_fallback=byte_fallback,
        )
    )
    backend.normalizer, backend.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme), decoders.Fuse()]
        if byte_fallback
        else [decoders.Metaspace(prepend_scheme=scheme)]
    )
    backend.add_special_tokens(SPECIAL)

    def pieces(gap: str, word: str) -> list[str] | None:
        if byte_fallback and regex.search("<0x[0-9A-F]{2}>", word):
            return None  # the library takes the spelling of a byte for the byte
        text = unicodedata.normalize("NFKC", gap + _spaces(word)).replace(" ", "▁")
        best: list[tuple[float, list[str]] | None] = [(0.0, [])] + [None] * len(text)
        for stop in range(1, len(text) + 1):
            for start in range(stop):
                before, piece = best[start], text[start:stop]
                if before is None:
                    continue
                if piece in scores:
                    price, found = scores[piece], [piece]
                elif byte_fallback and len(piece) == 1:
                    price, found = unknown, [f"<0x{byte:02X}>" for byte in piece.encode()]
                else:
                    continue
                here = best[stop]
                if here is None or before[0] + price > here[0]:
                    best[stop] = (before[0] + price, [*before[1], *found])
        last = best[len(text)]
        return None if last is None else last[1]

    return Algorithm(
        _wrap(backend), pieces, _sentencepiece_bytes, lambda word: _spaces(unicodedata.normalize("NFKC", word))
    )


def _wordpiece(vocabulary: int, *, lowercase: bool = True, text: list[str] = TEXT) -> Algorithm:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.train_from_iterator(
        text, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False)
    )
    known = set(backend.get_vocab())

    def pieces(gap: str, word: str) -> list[str] | None:
        found = []
        normalized = backend.normalizer.normalize_str(word)
        for part, _ in backend.pre_tokenizer.pre_tokenize_str(normalized):
            start = 0
            while start < len(part):
                mark = "##" if start else ""
                stop = next((s for s in range(len(part), start, -1) if mark + part[start:s] in known), None)
                if stop is None:
                    return None
                found.append(mark + part[start:stop])
                start = stop
        return found

    # A word's first piece stands for the word with and without a space before it.
    return Algorithm(
        _wrap(backend),
        pieces,
        lambda token: None if token.startswith("##") else token.encode(),
        lambda word: "".join(backend.normalizer.normalize_str(word).split()),
    )


MAKERS: dict[str, Callable[[], Algorithm]] = {
    "byte-level BPE, GPT-2's words": lambda: _byte_level(GPT2, 460),
    "byte-level BPE, Llama 3's words": lambda: _byte_level(LLAMA3, 700),
    "byte-level BPE without words": lambda: _byte_level(None, 520),
    "byte-level BPE, space at every start": lambda: _byte_level(GPT2, 460, prefix_space=True),
    "byte-level BPE, many scripts": lambda: _byte_level(GPT2, 900, text=SENTENCES),
    "Metaspace BPE, space at the first word": lambda: _metaspace("first", 500),
    "Metaspace BPE, space at every start": lambda: _metaspace("always", 500),
    "Metaspace BPE, no space": lambda: _metaspace("never", 500),
    "Metaspace BPE, Llama 2's normalizer": lambda: _metaspace("legacy", 500),
    "Metaspace BPE, split into words": lambda: _metaspace("always", 500, split=True),
    "Metaspace BPE, many scripts": lambda: _metaspace("first", 900, text=SENTENCES),
    "Unigram": lambda: _unigram(400),
    "Unigram, no space": lambda: _unigram(400, scheme="never"),
    "Unigram with bytes": lambda: _unigram(400, byte_fallback=True),
    "Unigram, many scripts": lambda: _unigram(700, text=SENTENCES),
    "Unigram with bytes, many scripts": lambda: _unigram(700, scheme="first", byte_fallback=True, text=SENTENCES),
    "WordPiece": lambda: _wordpiece(500),
    "WordPiece, cased, many scripts": lambda: _wordpiece(900, lowercase=False, text=SENTENCES),
}


@cache
def algorithm(name: str) -> Algorithm:
    """An algorithm of `MAKERS`, made once."""
    return MAKERS[name]()


TRICKY = [
    "Buch", "libro", "König", "book", "king", "hello", "1135", "12,5", "don't", "l'eau", '"Buch"', 'a"b', "naïve",
    "Straße", "书", "世", "世界", "ß", "مرحبا", "שלום", "नमस्ते", "한국어", "𝔘", "ﬁn", "ǅ", "İ", "<script>", "</b>",
    ".", "?", "-", "->", "e\N{COMBINING ACUTE ACCENT}", "\N{COMBINING ACUTE ACCENT}x", "a\N{ZERO WIDTH SPACE}b",
    "\N{ZERO WIDTH NON-JOINER}", "👩\N{ZERO WIDTH JOINER}👩\N{ZERO WIDTH JOINER}👧", "👍🏽",
    "\N{RIGHT-TO-LEFT MARK}x", "\N{REPLACEMENT CHARACTER}a", "▁", "Ġ", "<0x41>",
]  # fmt: skip


def words() -> st.SearchStrategy[str]:
    """Words without spaces in many scripts, and the unusual ones that break tokenizers."""
    letters = st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp", "Cn", "Co"))
    known = st.sampled_from(sorted({letter for line in TEXT for letter in line if not letter.isspace()}))
    return st.one_of(
        st.sampled_from(TRICKY),
        st.text(known, min_size=1, max_size=8),
        st.text(letters, min_size=1, max_size=6),
        *(words_of(script) for script in LETTERS),
        st.lists(st.sampled_from(TRICKY), min_size=2, max_size=3).map("".join),
    ).filter(lambda word: not any(special in word for special in SPECIAL))
