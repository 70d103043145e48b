"""Slow float64 twins of the readings: one row and one token at a time."""

from __future__ import annotations

import math

import numpy as np


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


def slow_kl(reference: np.ndarray, row: np.ndarray) -> float:
    """KL(reference || row) in nats, both given as logits."""
    pairs = zip(slow_log_softmax(reference), slow_log_softmax(row), strict=True)
    return sum(math.exp(p) * (p - q) for p, q in pairs if p > -math.inf)
