"""Rows that runs share: a run has its own text in every layer, and no text stands twice below its runs' patches."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.patching.continuations import Histories

LAYERS = 4


def through_the_layers(histories: Histories, tokens: Tensor, texts: list[str]) -> tuple[list[str], list[int]]:
    """What the row of each run is behind the last layer, where a row is the text and, once alone, the run's number."""
    rows = [texts[int(at)] for at in histories.fed(torch.arange(len(tokens)))]
    counts = [len(rows)]
    for layer in range(1, LAYERS + 1):
        rows = [rows[int(row)] for row in histories.entering(layer)]
        counts.append(len(rows))
    return rows, counts


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_rows_are_the_texts_of_their_runs(data: st.DataObject) -> None:
    joins = torch.tensor(sorted(data.draw(st.lists(st.integers(-1, LAYERS - 1), min_size=1, max_size=12))))
    histories, texts = Histories.of(joins), [""] * len(joins)
    for _ in range(data.draw(st.integers(1, 4))):
        tokens = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(texts), max_size=len(texts))))
        known = {int(group): texts[run] for run, group in enumerate(histories.of_run)}
        histories, before = histories.written(tokens)
        texts = [text + str(int(token)) for text, token in zip(texts, tokens, strict=True)]
        if data.draw(st.booleans()):
            kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, len(texts) - 1), min_size=1))))
            histories, same = histories.kept(kept)
            before, tokens, texts = before[same], tokens[kept], [texts[int(run)] for run in kept]
        for run, group in enumerate(histories.of_run):  # a history goes on from what its runs had written before
            assert known[int(before[group])] == texts[run][:-1]
        found, counts = through_the_layers(histories, tokens, texts)
        assert found == texts
        for layer in range(LAYERS):
            alone = sum(int(join) < layer for join in histories.joins)
            shared = {text for text, join in zip(texts, histories.joins, strict=True) if join >= layer}
            assert counts[layer] == alone + len(shared)
