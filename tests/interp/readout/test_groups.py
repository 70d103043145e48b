"""Groups of token ids as index tensors."""

from __future__ import annotations

from typing import Any

import pytest

from interp.errors import InterpError
from interp.readout import TokenGroups


def test_padded_groups_hold_each_token_once():
    padded = TokenGroups.pad([[[3, 1, 3], []], [[2], [4, 4, 4, 0]]], 5)
    held = [[ids[valid].tolist() for ids, valid in zip(*row, strict=True)] for row in zip(padded.ids, padded.valid)]  # noqa: B905
    assert held == [[[1, 3], []], [[2], [0, 4]]]
    assert len(padded.rows(slice(1, 2))) == 1
    assert len(TokenGroups.pad([], 5)) == 0


@pytest.mark.parametrize("groups", [[1, 2], [[1, 2], [3]], [[[1], 2]]])
def test_ids_that_are_in_no_group_are_refused(groups: Any) -> None:
    with pytest.raises(InterpError, match=r"for each row a list of groups, .* e\.g\. \[\[\[5, 7\], \[9\]\]\]"):
        TokenGroups.pad(groups, 5)
