"""Reading logits that are there: against the slow twin in float64, with ties, masks and numbers that overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp.readout.ranks
import interp.readout.softmax
import interp.readout.stream
from interp.errors import InterpError
from interp.readout import (
    kl_divergence,
    log_probabilities,
    reduce_logits,
)
from tests.interp.readout.twins import slow_kl, slow_reduce


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
    expected = [slow_kl(a, b) for a, b in zip(other, logits, strict=True)]
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
    monkeypatch.setattr(interp.readout.softmax, "CHUNK_ELEMENTS", 4 * 50 + 7)
    monkeypatch.setattr("interp.batching.CPU_ELEMENTS", 4 * 64 + 7)
    chunked = reduce_logits(logits, groups, 3, kl_reference=reference)
    for name in ("log_prob", "rank", "top_ids", "top_log_prob", "entropy", "kl"):
        torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(kl_divergence(reference, log_probabilities(logits)), whole_kl, rtol=0, atol=0)


@settings(deadline=None)
@given(readings(), st.integers(1, 3), st.sampled_from([1, 100]))
def test_chunks_of_the_vocabulary_change_nothing(reading, repeats, summed):
    """Blocks of 64 tokens, chunks of one block: ties across blocks and chunks stand in the order of their ids."""
    row, groups, top_k = reading
    vocabulary = row.shape[1]
    logits = np.tile(row, 25 * repeats)  # up to 900 tokens, every value many times
    spread = [[[token + vocabulary * (7 * token % 25) for token in group] for group in cell] for cell in groups]
    reference = np.roll(logits, 31, axis=1)
    log_probs = log_probabilities(torch.tensor(reference))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interp.readout.stream, "CPU_TOKENS", 64)
        patch.setattr(interp.readout.stream, "CPU_SUMMED", summed)
        reduced = reduce_logits(torch.tensor(logits), spread, 5 * top_k, kl_reference=log_probs)
    for at in range(len(logits)):
        slow = slow_reduce(logits[at], spread[at], 5 * top_k)
        for name in ("log_prob", "top_log_prob", "entropy"):
            np.testing.assert_allclose(getattr(reduced, name)[at].numpy(), slow[name], rtol=1e-5, atol=1e-5)
        assert reduced.rank[at].tolist() == slow["rank"]
        assert reduced.top_ids[at].tolist() == slow["top_ids"]
        assert reduced.kl[at].item() == pytest.approx(slow_kl(reference[at], logits[at]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_top_tokens_of_ordered_logits(order, monkeypatch):
    """Every later chunk holds better tokens, or none does; more are kept than a chunk holds, or fewer."""
    monkeypatch.setattr(interp.readout.stream, "CPU_TOKENS", 64)
    values = {"ascending": torch.arange(300.0), "descending": -torch.arange(300.0), "equal": torch.zeros(300)}[order]
    for top_k in (1, 5, 64, 100, 300):
        reduced = reduce_logits(values.expand(3, 300), [[[299], [0]]] * 3, top_k)
        expected = list(range(300))[:: -1 if order == "ascending" else 1]
        assert reduced.top_ids.tolist() == [expected[:top_k]] * 3
        assert reduced.rank.tolist() == [[expected.index(299), expected.index(0)]] * 3


def test_masks_that_fill_whole_chunks(monkeypatch):
    """-inf in all of a chunk, of the row or of the reference, and tied with a token whose rank is asked for."""
    monkeypatch.setattr(interp.readout.stream, "CPU_TOKENS", 64)
    logits = torch.full((2, 200), -math.inf)
    logits[0, [5, 70, 190]] = 1.0
    logits[1, [70, 71]] = torch.tensor([2.0, 3.0])
    half = log_probabilities(logits[[1, 1]])
    reduced = reduce_logits(logits, [[[100], [190]], [[199], [70]]], 4, kl_reference=half)
    assert reduced.rank.tolist() == [[101, 2], [199, 1]]  # above token 100: the three, and 98 others of lower ids
    assert reduced.top_ids.tolist() == [[5, 70, 190, 0], [71, 70, 0, 1]]
    assert reduced.entropy[0].item() == pytest.approx(math.log(3), abs=1e-6)
    assert reduced.kl[1].item() == pytest.approx(0, abs=1e-6)
    assert reduced.kl[0].item() == math.inf  # the reference gives probability to token 71, the row does not


def test_masses_of_shared_sets(monkeypatch):
    monkeypatch.setattr(interp.readout.stream, "CPU_TOKENS", 64)
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(4, 300, generator=generator)
    sets = torch.rand(3, 300, generator=generator) < torch.tensor([[0.5], [0.01], [0.0]])
    reduced = reduce_logits(logits, [[]] * 4, 1, masses=sets)
    expected = (logits.double().softmax(1) @ sets.T.double()).log().masked_fill(~sets.any(1), math.nan)
    np.testing.assert_allclose(reduced.log_mass, expected, rtol=1e-5, atol=1e-5)
    for bad in (sets[:, :-1], sets.float(), sets[0]):
        with pytest.raises(InterpError, match=r"masses: expected \(sets, 300\) bool"):
            reduce_logits(logits, [[]] * 4, 1, masses=bad)


def test_divergences_of_rows_that_are_nearly_equal():
    """What is small is exact too: float32 sums of logits that differ by a thousandth."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(8, 20000, generator=generator)
    near = logits + 1e-2 * torch.randn(8, 20000, generator=generator)
    reduced = reduce_logits(near, [[]] * 8, 1, kl_reference=logits.double().log_softmax(1).float())
    p, q = logits.double().log_softmax(1), near.double().log_softmax(1)
    np.testing.assert_allclose(reduced.kl, (p.exp() * (p - q)).sum(1), atol=1e-6)
    np.testing.assert_allclose(reduced.entropy, -(q.exp() * q).sum(1), rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    """Many small probabilities: in bfloat16 their sum stops growing."""
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    reduced = reduce_logits(logits, [[list(range(3000))]], 1)
    assert reduced.log_prob.item() == pytest.approx(math.log(3000 / 4096), abs=1e-5)
    assert reduced.entropy.item() == pytest.approx(math.log(4096), abs=1e-4)


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
def test_errors_logits(logits, groups, top_k, message):
    with pytest.raises(InterpError, match=message):
        reduce_logits(logits, groups, top_k)


def test_kl_reference_of_another_shape():
    with pytest.raises(InterpError, match="kl_reference"):
        reduce_logits(torch.zeros(2, 5), [[], []], 1, kl_reference=torch.zeros(1, 5))
