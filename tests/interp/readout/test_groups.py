"""Groups of token ids as index tensors."""

from __future__ import annotations

from interp.readout import TokenGroups


def test_padded_groups_hold_each_token_once():
    padded = TokenGroups.pad([[[3, 1, 3], []], [[2], [4, 4, 4, 0]]], 5)
    held = [[ids[valid].tolist() for ids, valid in zip(*row, strict=True)] for row in zip(padded.ids, padded.valid)]  # noqa: B905
    assert held == [[[1, 3], []], [[2], [0, 4]]]
    assert len(padded.rows(slice(1, 2))) == 1
    assert len(TokenGroups.pad([], 5)) == 0
