"""The small functions give what TransformerLens's give."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from interp import InterpError
from interp.compat.transformer_lens import utilities, utils
from tests.interp.compat.transformer_lens.ours import done
from tests.interp.compat.transformer_lens.recorded_models import scenario


def test_functions_give_what_transformer_lens_gives() -> None:
    assert done("functions") == scenario("functions")


def test_both_names_of_the_module_have_the_same() -> None:
    assert utilities.__all__ == utils.__all__
    assert all(getattr(utilities, name) is getattr(utils, name) for name in utils.__all__)


def test_a_layer_behind_a_name_with_underscores_is_read() -> None:
    assert utils.get_act_name("resid_post5") == "blocks.5.hook_resid_post"  # TransformerLens: hook_resid_post5


def test_prompts_are_tested_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["<s>", "the", "cat", "sat"]

    class Model:
        def to_tokens(self, text: str, prepend_bos: bool | None = None) -> torch.Tensor:
            ids = [words.index(word) for word in text.split()]
            return torch.tensor([ids if prepend_bos is False else [0, *ids]])

        def to_str_tokens(self, text: str | torch.Tensor, prepend_bos: bool | None = None) -> list[str]:
            ids = self.to_tokens(text, prepend_bos)[0] if isinstance(text, str) else text
            return [words[token] for token in ids]

        def to_string(self, token: int) -> str:
            return words[token]

        def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot((tokens + 1) % 4, 4).float() * 3

    utils.test_prompt("the", "cat sat", Model(), top_k=2)
    single = capsys.readouterr().out
    assert "Rank: 0        Logit:  3.00 Prob: 87.00% Token: |cat|" in single
    assert "Top 1th token. Logit:  0.00" in single
    assert single.splitlines()[-1] == "Ranks of the answer tokens: [('cat', 0), ('sat', 0)]"
    utils.test_prompt("the", ["sat", "cat"], Model(), print_details=False)
    first, second = capsys.readouterr().out.splitlines()[-1], "('cat', 0)]]"
    assert first.startswith("Ranks of the answer tokens: [[('sat', ") and first.endswith(second)


def test_what_is_no_array_and_a_mask_of_another_length_are_refused() -> None:
    with pytest.raises(InterpError, match="SimpleNamespace"):
        utils.to_numpy(SimpleNamespace())
    with pytest.raises(InterpError, match="one shape"):
        utils.lm_cross_entropy_loss(torch.zeros(1, 3, 5), torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 2))
    with pytest.raises(InterpError, match="max_ctx is missing"):
        utils.Slice((1, 2)).indices()
    with pytest.raises(InterpError, match="in one row"):
        utils.Slice([[1, 2]])  # type: ignore[list-item]
