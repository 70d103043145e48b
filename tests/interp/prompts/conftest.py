"""A tokenizer in plain Python, which reports no offsets."""

from __future__ import annotations

import pytest
from transformers import PythonBackend


class LetterTokenizer(PythonBackend):
    """One token a letter, of a tiny alphabet."""

    def __init__(self) -> None:
        self.letters = {letter: i for i, letter in enumerate('<>ab"\n: ')}
        super().__init__(unk_token="<unk>")

    @property
    def vocab_size(self) -> int:
        return len(self.letters)

    def get_vocab(self) -> dict[str, int]:
        return {**self.letters, **self.added_tokens_encoder}

    def _tokenize(self, text: str) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.letters.get(token, self.vocab_size)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.letters)[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


@pytest.fixture(scope="session")
def slow_tokenizer() -> LetterTokenizer:
    return LetterTokenizer()
