"""The logit lens against its twin: the state of layer j, written over the last layer's, read by the model's head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import InterpError
from interp.lenses import Latents, logit_lens
from interp.model import StandardizedTransformer
from interp.results import LensResult
from tests.interp.lenses.twins import FAMILIES, HookTwin, assert_equal, expected
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS

PROMPTS = [[1, 17, 33, 250], [1, 8], [1, 99, 98, 97, 96, 95, 94], [1, 300, 12], [1, 5, 5, 5, 5]]
GROUPS = [[[3 * n, 3 * n + 1, 3 * n], [100 + n]] for n in range(len(PROMPTS))]


def states(twin: HookTwin) -> torch.Tensor:
    """(layer, example, hidden) at the last token."""
    return torch.stack([twin.residuals(ids)[:, -1] for ids in PROMPTS], dim=1)


def twin_examples(twin: HookTwin, layers: list[int], with_reference: bool) -> list[dict[str, np.ndarray]]:
    wanted = []
    for ids, groups in zip(PROMPTS, GROUPS, strict=True):
        own = twin.residuals(ids)[:, -1]
        by_layer = [twin.logits(ids, len(ids) - 1, {NUM_LAYERS - 1: own[layer]}) for layer in layers]
        wanted.append(expected(by_layer, groups, 3, twin.logits(ids) if with_reference else None))
    return wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_twin(family, standardized):
    twin = HookTwin(family)
    hidden = states(twin)
    result = logit_lens(
        standardized(family), Latents(hidden, range(NUM_LAYERS), reference=hidden[-1]), GROUPS, top_k=3, batch_size=2
    )
    assert_equal(result.arrays(), twin_examples(twin, list(range(NUM_LAYERS)), True), atol=1e-5)
    assert result.layers == (0, 1, 2, 3)
    assert result.baseline is None
    assert result.kl[:, -1].tolist() == [0.0] * len(PROMPTS)
    # At the last layer the lens is the model: it predicts what the model predicts.
    np.testing.assert_array_equal(result.top_ids[:, -1, 0], result.model_top_id)


def test_some_layers_and_no_reference(standardized):
    twin = HookTwin("llama")
    result = logit_lens(standardized("llama"), Latents(states(twin)[[0, 2]], [0, 2]), GROUPS, top_k=3)
    assert_equal(result.arrays(), twin_examples(twin, [0, 2], False), atol=1e-5)
    assert np.isnan(result.surprisal).all()
    assert result.model_top_id.tolist() == [-1] * len(PROMPTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_inverted(family, standardized):
    """The same numbers as the lens on prompts, which has a twin of its own."""
    hidden = states(HookTwin(family))
    model = standardized(family)
    result = logit_lens(model, Latents(hidden, range(4), reference=hidden[-1]), GROUPS, inverted=True)
    targets = [{"a": one, "b": two} for one, two in GROUPS]
    other = logit_lens(model, PROMPTS, targets=targets, inverted=True)
    for name, values in other.arrays().items():
        np.testing.assert_allclose(result.arrays()[name], values, atol=2e-5, rtol=1e-5, err_msg=name)
    normal = logit_lens(model, Latents(hidden, range(4)), GROUPS)
    assert np.abs(result.log_prob - normal.log_prob).max() > 0.1


def test_the_batch_size_changes_nothing(standardized):
    hidden = states(HookTwin("gemma2"))
    results = [
        logit_lens(standardized("gemma2"), Latents(hidden, range(4), reference=hidden[-1]), GROUPS, batch_size=size)
        for size in (1, 3, 100)
    ]
    for name, whole in results[-1].arrays().items():
        for result in results:
            np.testing.assert_allclose(result.arrays()[name], whole, atol=1e-6, rtol=1e-6)


def test_bfloat16_is_near_float32(model_folder):
    """Stated tolerance: 0.03 in probability; bfloat16 has 8 bits of mantissa."""
    twin = HookTwin("llama")
    model = StandardizedTransformer(model_folder("llama"), dtype="bfloat16", device_map="cpu")
    result = logit_lens(model, Latents(states(twin).bfloat16(), range(NUM_LAYERS)), GROUPS, top_k=3)
    wanted = twin_examples(twin, list(range(NUM_LAYERS)), False)
    assert result.log_prob.dtype == np.float32
    np.testing.assert_allclose(np.exp(result.log_prob), np.exp([w["log_prob"] for w in wanted]), atol=0.03)
    np.testing.assert_allclose(result.entropy, [w["entropy"] for w in wanted], atol=0.1)


def test_no_examples(standardized):
    result = logit_lens(standardized("llama"), Latents(torch.zeros(2, 0, HIDDEN_SIZE), [0, 1]), [], top_k=4)
    assert result.top_ids.shape == (0, 2, 4)
    assert result.entropy.shape == (0, 2)


def test_results_keep_no_graph(standardized):
    """Nothing is recorded for gradients, also when the caller's tensors ask for them: numpy would refuse them."""
    hidden = states(HookTwin("llama")).requires_grad_()
    assert isinstance(logit_lens(standardized("llama"), Latents(hidden, range(4)), GROUPS), LensResult)


def test_concatenate_puts_examples_in_their_places(standardized):
    hidden = states(HookTwin("llama"))
    whole = logit_lens(standardized("llama"), Latents(hidden, range(4)), GROUPS)
    order = [3, 0, 4, 1, 2]
    parts = [
        logit_lens(standardized("llama"), Latents(hidden[:, rows], range(4)), [GROUPS[r] for r in rows])
        for rows in (order[:2], order[2:])
    ]
    together = LensResult.concatenate(parts, order=order)
    np.testing.assert_array_equal(together.top_ids, whole.top_ids)
    np.testing.assert_allclose(together.log_prob, whole.log_prob, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [0, 1, 2]}, r"latents: expected shape \(layer, example, hidden_size\) = \(3, 5, 32\)"),
        ({"layers": [0, 1, 2, 4]}, "layers of the model, 0 to 3"),
        ({"layers": [0, 2, 1, 3]}, "ascending order"),
        ({"layers": []}, "ascending order"),
        ({"batch_size": 0}, "batch_size"),
        ({"top_k": 0}, "top_k"),
        ({"reference": torch.zeros(5, 3)}, "reference: expected shape"),
        ({"targets": [[[400]]] * 5}, "token id 400 is outside the vocabulary"),
    ],
)
def test_errors(changes, message, standardized):
    arguments = {"targets": GROUPS, "layers": range(4), **changes}
    source = Latents(torch.zeros(4, 5, HIDDEN_SIZE), arguments.pop("layers"), arguments.pop("reference", None))
    with pytest.raises(InterpError, match=message):
        logit_lens(standardized("llama"), source, **arguments)
