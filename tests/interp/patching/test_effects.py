"""Metrics of logits: by hand, with gradients, and of residual streams without whole logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.patching import METRICS, Metrics
from tests.tiny import tiny_model, tiny_tokenizer

ANSWERS = [(5, 9), ([6, 7], 8)]


@pytest.fixture(scope="module")
def model() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("gemma2"), tokenizer=tiny_tokenizer())  # with a softcap


def test_metrics_by_hand(model: StandardizedTransformer) -> None:
    hidden, clean = torch.randn(2, 3, model.hidden_size, generator=torch.Generator().manual_seed(0))
    examples = torch.tensor([1, 0, 1])
    metrics = Metrics.of(model, METRICS, ANSWERS, 2)
    logits, of_clean = model.readout(hidden), model.readout(clean)
    found = metrics(logits.requires_grad_(), examples, of_clean)
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()
    p, q = logits.detach().softmax(-1), of_clean.softmax(-1)
    for row, example in enumerate(examples.tolist()):
        right = [5] if example == 0 else [6, 7]
        wrong = 9 if example == 0 else 8
        expected = [
            logits[row, right].mean() - logits[row, wrong],
            p[row, right].sum(),
            p[row, right].sum().log(),
            (q[row] * (q[row] / p[row]).log()).sum(),
        ]
        torch.testing.assert_close(found[row], torch.stack(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics.of_hidden(hidden, examples, clean), found.detach())
    alone = Metrics.of(model, "logit_difference", ANSWERS, 2)
    torch.testing.assert_close(alone.of_hidden(hidden, examples), found[:, :1].detach())


def test_functions(model: StandardizedTransformer) -> None:
    def of_example(logits: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
        return logits[:, 3] * examples

    metrics = Metrics.of(model, {"own": of_example, "kl": "kl"}, None, 2)
    assert metrics.names == ("own", "kl") and metrics.compares
    logits = torch.randn(2, model.vocab_size)
    found = metrics(logits, torch.tensor([1, 2]), logits)
    torch.testing.assert_close(found, torch.stack([logits[:, 3] * torch.tensor([1, 2]), torch.zeros(2)], dim=1))
    assert Metrics.of(model, of_example, None, 2).names == ("of_example",)
    assert not Metrics.of(model, {"kl": of_example}, None, 2).compares  # a function of that name
    with pytest.raises(InterpError, match=r"'<lambda>': expected one number a row, shape \(2,\), got shape \(\)"):
        Metrics.of(model, lambda logits: logits.mean(), None, 2)(logits, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("metric", "answers", "message"),
    [
        ("logit_diff", ANSWERS, r"unknown 'logit_diff'\. Did you mean 'logit_difference'"),
        ("probability", None, "needs answers"),
        ("kl", ANSWERS, "no metric uses them"),
        (["kl", "kl"], None, "'kl' is given twice"),
        ([], None, "expected at least one"),
        ({"mine": "kl"}, None, "called by its own name"),
        ("logit_difference", [5, 6], "needs the wrong one too"),
        ("probability", [5], "one entry for each of 2 examples"),
        ("probability", [5, "the quick brown fox"], r"example 1: 'the quick brown fox' is \d+ tokens"),
        ("probability", [5, (1, 2, 3)], r"expected the right answer or \(right, wrong\)"),
        ("probability", [5, 4000], "token id 4000 is outside the vocabulary"),
    ],
)
def test_mistakes_are_refused(model: StandardizedTransformer, metric: Any, answers: Any, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        Metrics.of(model, metric, answers, 2)


def test_answers_are_texts_or_ids(model: StandardizedTransformer) -> None:
    (king,) = model.tokenizer.encode("k", add_special_tokens=False)
    metrics = Metrics.of(model, "probability", ["k", torch.tensor([king, 7]).tolist()], 2)
    assert metrics.groups is not None and metrics.groups.ids[:, 0].tolist() == [[king], [king]]
