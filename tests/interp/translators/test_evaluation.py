"""The evaluation equals plain transformers, sequence by sequence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.translators import (
    GivenSequences,
    PackedText,
    TextSource,
    TokenSequence,
    TunedLens,
    evaluate_tuned_lens,
    evaluation,
)
from tests.interp.lenses.twins import FAMILIES
from tests.interp.translators.conftest import random_sequences
from tests.interp.translators.twins import TunedTwin, as_tensors, random_translators
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS, TEXT

Standardized = Callable[[str], StandardizedTransformer]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_measure_equals_its_twin(
    standardized: Standardized, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_TOKENS_AT_ONCE", 5)
    model, sequences = standardized(family), random_sequences()
    lens, translators = TunedLens.of(model, (0, 2)), random_translators((0, 2), HIDDEN_SIZE)
    lens.take(as_tensors(translators))
    result = evaluate_tuned_lens(model, lens, sequences, batch_tokens=30)
    assert result.layers == (0, 2, NUM_LAYERS - 1)

    twin = TunedTwin(family)
    rows: dict[tuple[int, int], list[list[float]]] = {}
    for sequence in random_sequences():
        ids = list(sequence.ids)
        residuals = twin.residuals(ids)
        final = torch.log_softmax(twin.speak(ids, residuals[-1]).double(), dim=-1)
        for index, layer in enumerate(result.layers):
            translated = residuals[layer]
            if layer in translators:
                translated = translated + translated @ translators[layer][0].T + translators[layer][1]
            for number, hidden in enumerate((residuals[layer], translated)):
                spoken = torch.log_softmax(twin.speak(ids, hidden).double(), dim=-1)
                for place in range(len(ids) - 1):
                    p, q = final[place], spoken[place]
                    rows.setdefault((number, index), []).append([
                        -float(q[ids[place + 1]]),
                        float((p.exp() * (p - q)).sum()),
                        -float((q.exp() * q).sum()),
                        float(p.argmax() == q.argmax()),
                    ])  # fmt: skip
    for (number, index), values in rows.items():
        found = [getattr(result, name)[number, index] for name in ("cross_entropy", "kl", "entropy", "agreement")]
        np.testing.assert_allclose(found, np.mean(values, axis=0), rtol=1e-5, atol=1e-5)
    assert result.tokens == len(rows[0, 0])
    assert result.num_bytes == 2 * result.tokens
    np.testing.assert_allclose(result.bits_per_byte, result.cross_entropy / 2 / math.log(2))
    np.testing.assert_allclose(result.kl[:, -1], 0, atol=1e-6)


def test_the_frame_has_a_row_for_each_lens_and_layer(standardized: Standardized) -> None:
    model = standardized("llama")
    result = evaluate_tuned_lens(model, TunedLens.of(model), random_sequences(), layers=[1, 3], max_tokens=10)
    frame = result.to_frame()
    assert list(zip(frame["lens"], frame["layer"], strict=True)) == [
        ("logit", 1), ("logit", 3), ("tuned", 1), ("tuned", 3)
    ]  # fmt: skip
    assert frame["kl"][2] == result.kl[1, 0]
    assert frame.columns.tolist()[2:] == ["cross_entropy", "bits_per_byte", "kl", "entropy", "agreement"]
    assert result.tokens == 8 + 4  # two sequences: the first has 9 tokens, fewer than 10
    again = json.loads(json.dumps(result.to_dict()))
    assert again["kl"] == result.kl.tolist()
    assert again["layers"] == [1, 3]


def test_lenses_are_measured_on_the_same_text(standardized: Standardized, tmp_path: Path) -> None:
    """The place of a stream is as it was, so that the next lens is not measured on what comes later."""
    model = standardized("llama")
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT * 3), encoding="utf-8")
    streams = [
        GivenSequences(list(random_sequences())),
        PackedText(model.tokenizer, TextSource(str(tmp_path / "text.txt")), sequence_length=16),
        PackedText(model.tokenizer, TextSource(str(tmp_path / "text.txt")), sequence_length=16, repeat=True),
    ]
    for stream in streams:
        next(iter(stream))
        place, lens = stream.state(), TunedLens.of(model)
        first, second = (evaluate_tuned_lens(model, lens, stream, max_tokens=20) for _ in range(2))
        assert first.to_dict() == second.to_dict() and stream.state() == place


def test_errors_say_what_was_expected(standardized: Standardized) -> None:
    model = standardized("llama")
    lens = TunedLens.of(model, [1])
    with pytest.raises(InterpError, match=r"no translator for layers \[2\]"):
        evaluate_tuned_lens(model, lens, random_sequences(), layers=[1, 2])
    with pytest.raises(InterpError, match="at least one sequence of two tokens"):
        evaluate_tuned_lens(model, lens, GivenSequences([TokenSequence((5,), (1,))]))
