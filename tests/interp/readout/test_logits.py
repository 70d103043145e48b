"""The readout against slow float64 twins, one row and one token at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp.readout.distributions
import interp.readout.plan
from interp.errors import InterpError
from interp.readout import TokenGroups, kl_divergence, log_probabilities, reduce_logits


def slow_log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    return row - row.max() - math.log(sum(math.exp(x - row.max()) for x in row))


def slow_reduce(row: np.ndarray, groups: list[list[int]], top_k: int) -> dict[str, list[float]]:
    """One row in float64: a sort for the ranks, a sum over a set for the probabilities."""
    log_probs = slow_log_softmax(row)
    order = sorted(range(len(row)), key=lambda token: (-float(row[token]), token))
    return {
        "log_prob": [math.log(sum(math.exp(log_probs[t]) for t in set(g))) if g else math.nan for g in groups],
        "rank": [min(order.index(t) for t in g) if g else -1 for g in groups],
        "top_ids": order[:top_k],
        "top_log_prob": [log_probs[t] for t in order[:top_k]],
        "entropy": -sum(math.exp(x) * x for x in log_probs),
    }


@st.composite
def readings(draw: st.DrawFn) -> tuple[np.ndarray, list[list[list[int]]], int]:
    rows, vocabulary = draw(st.integers(1, 5)), draw(st.integers(2, 12))
    # Few distinct values: ties are common, as they are in bfloat16.
    value = st.sampled_from([-20.0, -1.5, -0.0, 0.0, 0.25, 1.0, 7.0])
    logits = draw(st.lists(st.lists(value, min_size=vocabulary, max_size=vocabulary), min_size=rows, max_size=rows))
    group = st.lists(st.integers(0, vocabulary - 1), max_size=5)
    count = draw(st.integers(0, 3))
    groups = draw(st.lists(st.lists(group, min_size=count, max_size=count), min_size=rows, max_size=rows))
    return np.array(logits), groups, draw(st.integers(1, vocabulary))


@settings(deadline=None)
@given(readings(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_reduce_equals_the_slow_twin(reading, dtype):
    logits, groups, top_k = reading  # the sampled values are exact in every dtype
    reduced = reduce_logits(torch.tensor(logits, dtype=dtype), groups, top_k)
    for row in range(len(logits)):
        slow = slow_reduce(logits[row], groups[row], top_k)
        for name in ("log_prob", "top_log_prob", "entropy"):
            value = getattr(reduced, name)[row]
            assert value.dtype == torch.float32
            np.testing.assert_allclose(value.numpy(), slow[name], rtol=1e-5, atol=1e-5)
        assert reduced.rank[row].tolist() == slow["rank"]
        assert reduced.top_ids[row].tolist() == slow["top_ids"]
    assert reduced.kl is None


@settings(deadline=None)
@given(readings(), st.randoms(use_true_random=False))
def test_kl_equals_the_slow_twin(reading, random):
    logits, groups, top_k = reading
    other = np.array([[random.uniform(-5, 5) for _ in row] for row in logits])
    reference = log_probabilities(torch.tensor(other))
    expected = [
        sum(math.exp(p) * (p - q) for p, q in zip(slow_log_softmax(a), slow_log_softmax(b), strict=True))
        for a, b in zip(other, logits, strict=True)
    ]
    reduced = reduce_logits(torch.tensor(logits), groups, top_k, kl_reference=reference)
    np.testing.assert_allclose(reduced.kl, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kl_divergence(reference, log_probabilities(torch.tensor(logits))), reduced.kl)
    assert kl_divergence(reference, reference).tolist() == [0.0] * len(logits)


def test_kl_where_a_distribution_excludes_a_token():
    half = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    other = torch.tensor([[math.log(0.25), math.log(0.25), math.log(0.5)]])
    assert kl_divergence(half, other).item() == pytest.approx(math.log(2))
    assert kl_divergence(other, half).item() == math.inf


def test_masked_vocabulary_entries():
    """A model may forbid entries with -inf; they count nothing."""
    reduced = reduce_logits(torch.tensor([[0.0, -math.inf, 0.0]]), [[[0], [1]]], 2)
    assert reduced.entropy.item() == pytest.approx(math.log(2))
    assert reduced.log_prob.tolist() == [[pytest.approx(math.log(0.5)), -math.inf]]
    assert reduced.rank.tolist() == [[0, 2]]


def test_chunks_of_rows_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(23, 50, generator=generator)
    groups = [[torch.randint(50, (n % 4,), generator=generator).tolist(), [n]] for n in range(23)]
    reference = log_probabilities(torch.randn(23, 50, generator=generator))
    whole = reduce_logits(logits, groups, 3, kl_reference=reference)
    whole_kl = kl_divergence(reference, log_probabilities(logits))
    monkeypatch.setattr(interp.readout.distributions, "CHUNK_ELEMENTS", 4 * 50 + 7)
    monkeypatch.setattr(interp.readout.plan, "CPU_ELEMENTS", 4 * 64 + 7)
    chunked = reduce_logits(logits, groups, 3, kl_reference=reference)
    for name in ("log_prob", "rank", "top_ids", "top_log_prob", "entropy", "kl"):
        torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(kl_divergence(reference, log_probabilities(logits)), whole_kl, rtol=0, atol=0)


def test_bfloat16_logits_are_summed_in_float32():
    """Many small probabilities: in bfloat16 their sum stops growing."""
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    reduced = reduce_logits(logits, [[list(range(3000))]], 1)
    assert reduced.log_prob.item() == pytest.approx(math.log(3000 / 4096), abs=1e-5)
    assert reduced.entropy.item() == pytest.approx(math.log(4096), abs=1e-4)


def test_padded_groups_hold_each_token_once():
    padded = TokenGroups.pad([[[3, 1, 3], []], [[2], [4, 4, 4, 0]]], 5)
    held = [[ids[valid].tolist() for ids, valid in zip(*row, strict=True)] for row in zip(padded.ids, padded.valid)]  # noqa: B905
    assert held == [[[1, 3], []], [[2], [0, 4]]]
    assert len(padded.rows(slice(1, 2))) == 1
    assert len(TokenGroups.pad([], 5)) == 0


def test_no_rows():
    reduced = reduce_logits(torch.zeros(0, 7), [], 2)
    assert reduced.top_ids.shape == (0, 2)
    assert reduced.entropy.shape == (0,)


@pytest.mark.parametrize(
    ("logits", "groups", "top_k", "message"),
    [
        (torch.zeros(2, 5), [[[0]], [[1], [2]]], 1, "same number of groups"),
        (torch.zeros(1, 5), [[[5]]], 1, r"token id 5 is outside the vocabulary of the model \(0 to 4\)"),
        (torch.zeros(1, 5), [[[-1]]], 1, "token id -1 is outside"),
        (torch.zeros(1, 5), [[[0]]], 6, "top_k: expected 1 to 5"),
        (torch.zeros(1, 5), [[[0]]], 0, "top_k: expected 1 to 5"),
        (torch.zeros(2, 5), [[[0]]], 1, "groups for 2 rows"),
        (torch.zeros(5), [[[0]]], 1, r"logits \(rows, vocabulary\)"),
        (torch.tensor([[0.0, math.nan]]), [[[0]]], 1, "1 of 1 rows of logits hold NaN or infinity"),
        (torch.tensor([[0.0, math.inf], [0.0, 0.0]]), [[[0]], [[0]]], 1, "1 of 2 rows of logits"),
    ],
)
def test_errors(logits, groups, top_k, message):
    with pytest.raises(InterpError, match=message):
        reduce_logits(logits, groups, top_k)


def test_kl_reference_of_another_shape():
    with pytest.raises(InterpError, match="kl_reference"):
        reduce_logits(torch.zeros(2, 5), [[], []], 1, kl_reference=torch.zeros(1, 5))
