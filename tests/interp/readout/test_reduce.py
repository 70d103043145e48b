"""Reading hidden states in chunks: against the whole model in plain transformers, reduced in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import interp.readout.ranks
import interp.readout.softmax
import interp.readout.stream
from interp.errors import InterpError
from interp.model import StandardizedTransformer
from interp.readout import (
    Reduced,
    TokenGroups,
    logits_of,
    probabilities_of,
    reduce_hidden,
    reduce_logits,
)
from tests.families import build
from tests.interp.readout.twins import slow_kl, slow_reduce
from tests.tiny import HIDDEN_SIZE, VOCABULARY_SIZE, tiny_tokenizer

# What follows the head and what precedes it, by family; `None`: nothing but a matrix.
FAMILIES = {
    "llama": None, "gpt2": "tied", "gemma2": "softcap", "cohere": "scale", "granite": "divisor", "gptj": "bias",
    "phi": "bias", "modernbert-decoder": "modules before the head, bias", "falcon_h1": "scale", "opt": "tied",
}  # fmt: skip
# Where the states go into each family's own code.
NORMS = {
    "gpt2": "transformer.ln_f", "gptj": "transformer.ln_f", "phi": "model.final_layernorm",
    "modernbert-decoder": "model.final_norm", "falcon_h1": "model.final_layernorm",
    "opt": "model.decoder.final_layer_norm",
}  # fmt: skip
_MODELS: dict[tuple[str, torch.dtype], StandardizedTransformer] = {}


def standardized(family: str, dtype: torch.dtype = torch.float32) -> StandardizedTransformer:
    if (family, dtype) not in _MODELS:
        module = build(family).to(dtype)
        _MODELS[family, dtype] = StandardizedTransformer(module, tokenizer=tiny_tokenizer(), verify=False)
    return _MODELS[family, dtype]


@torch.no_grad()
def plain_logits(family: str, states: Tensor) -> np.ndarray:
    """(row, vocabulary) float64: the family's own forward pass, whose final norm is given the states."""
    module = build(family)
    norm: nn.Module = module.get_submodule(NORMS.get(family, "model.norm"))
    hook = norm.register_forward_pre_hook(lambda _module, _args: (states[None],))
    logits = module(torch.ones(1, len(states), dtype=torch.long), use_cache=False).logits[0]
    hook.remove()
    return logits.double().numpy()


def some_states(layers: int, rows: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(layers, rows, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))


GROUPS = [[[3, 4, 3], [], [399]], [[0], [7, 300], [5]], [list(range(0, 400, 3)), [1], [2, 2]]]


@contextmanager
def divided(elements: int, tokens: int, summed: int) -> Iterator[None]:
    """Small buffers, so that tiny models have many chunks and blocks of rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.batching.CPU_ELEMENTS", elements)
        patch.setattr("interp.readout.stream.CPU_TOKENS", tokens)
        patch.setattr("interp.readout.stream.CPU_SUMMED", summed)
        yield


@pytest.fixture
def small() -> Iterator[None]:
    with divided(2 * 2 * 128, 128, 2 * 128):
        yield


def assert_equal(reduced: Reduced, logits: np.ndarray, groups: list[list[list[int]]], reference: np.ndarray) -> None:
    """Compare readings (layer, row) with the twin's of `logits` (layer, row, vocabulary)."""
    top_k = reduced.top_ids.shape[-1]
    for layer, row in np.ndindex(logits.shape[:2]):
        slow = slow_reduce(logits[layer, row], groups[row], top_k)
        for name in ("log_prob", "top_log_prob", "entropy"):
            found = getattr(reduced, name)[layer, row]
            assert found.dtype == torch.float32
            np.testing.assert_allclose(found, slow[name], rtol=2e-5, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(reduced.log_prob[layer, row].exp(), np.exp(slow["log_prob"]), atol=1e-5)
        assert reduced.rank[layer, row].tolist() == slow["rank"]
        assert reduced.top_ids[layer, row].tolist() == slow["top_ids"]
        assert reduced.kl[layer, row].item() == pytest.approx(
            slow_kl(reference[row], logits[layer, row]), rel=1e-4, abs=1e-5
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("small")
def test_equals_the_plain_model(family):
    """128 does not divide the vocabulary of 400; three rows are two blocks."""
    hidden = some_states(2, 3)
    logits = np.stack([plain_logits(family, states) for states in hidden])
    reduced = reduce_hidden(standardized(family), hidden, GROUPS, 5, kl_reference=1)
    assert standardized(family).readout_parts() is not None
    assert_equal(reduced, logits, GROUPS, logits[1])
    assert reduced.kl[1].tolist() == [0.0] * 3  # nothing differs from itself


@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("small")
def test_low_precision_is_that_of_the_model_s_logits_alone(family, dtype):
    """The model's own logits, summed in float64, to 1e-5; a product of another shape may round one of them otherwise,
    so that probabilities are allowed a step of the dtype."""
    model = standardized(family, dtype)
    hidden = some_states(2, 3)
    reduced = reduce_hidden(model, hidden, GROUPS, 5, kl_reference=-1)
    logits = torch.stack([model.readout(states) for states in hidden]).detach()
    assert logits.dtype == dtype
    step = torch.finfo(dtype).eps * float(logits.abs().max())
    for layer in range(2):
        slow = reduce_logits(logits[layer].double(), GROUPS, 5)
        np.testing.assert_allclose(reduced.log_prob[layer], slow.log_prob, atol=2 * step)
        np.testing.assert_allclose(reduced.top_log_prob[layer], slow.top_log_prob, atol=2 * step)
        np.testing.assert_allclose(reduced.entropy[layer], slow.entropy, atol=2 * step)
    assert_consistent(reduced, GROUPS)


def assert_consistent(reduced: Reduced, groups: list[list[list[int]]]) -> None:
    """Ranks and top tokens speak of one order: a group of rank r < k holds the token at place r, and none before."""
    for layer, row in np.ndindex(reduced.rank.shape[:2]):
        top = reduced.top_ids[layer, row].tolist()
        for group, rank in zip(groups[row], reduced.rank[layer, row].tolist(), strict=True):
            places = [place for place, token in enumerate(top) if token in group]
            assert (rank == -1) == (not group)
            assert places[:1] == ([rank] if 0 <= rank < len(top) else [])


@settings(deadline=None, max_examples=30)
@given(
    layers=st.integers(1, 3), rows=st.integers(0, 4), tokens=st.sampled_from([64, 192, 448]),
    elements=st.sampled_from([64, 1000, 1 << 20]), summed=st.sampled_from([1, 500]), top_k=st.sampled_from([1, 7, 400]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), data=st.data(),
)  # fmt: skip
def test_shapes_and_divisions(layers, rows, tokens, elements, summed, top_k, dtype, data):
    """However rows and vocabulary are divided, the readings are those of whole logits and of one order of tokens."""
    model = standardized("llama", dtype)
    hidden = some_states(layers, rows, seed=rows)
    count = data.draw(st.integers(0, 3))
    group = st.lists(st.integers(0, VOCABULARY_SIZE - 1), max_size=4)
    groups = data.draw(st.lists(st.lists(group, min_size=count, max_size=count), min_size=rows, max_size=rows))
    with divided(elements, tokens, summed):
        reduced = reduce_hidden(model, hidden, groups, top_k, kl_reference=layers - 1)
    assert reduced.top_ids.shape == (layers, rows, top_k)
    assert reduced.rank.shape == (layers, rows, count if rows else 0)
    assert_consistent(reduced, groups)
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    for layer in range(layers):
        whole = reduce_logits(model.readout(hidden[layer]).detach(), groups, top_k)
        torch.testing.assert_close(reduced.entropy[layer], whole.entropy, atol=tolerance, rtol=0)
        torch.testing.assert_close(reduced.top_log_prob[layer], whole.top_log_prob, atol=tolerance, rtol=0)
        torch.testing.assert_close(reduced.log_prob[layer], whole.log_prob, atol=tolerance, rtol=0, equal_nan=True)


@pytest.mark.usefixtures("small")
def test_equal_logits_stand_in_the_order_of_their_ids():
    """States of zero: every logit is the same, in the product with a chunk and in that with a token alone."""
    reduced = reduce_hidden(standardized("llama"), torch.zeros(2, HIDDEN_SIZE), [[[399], [70]], [[5, 3], []]], 3)
    assert reduced.top_ids.tolist() == [[0, 1, 2]] * 2
    assert reduced.rank.tolist() == [[399, 70], [3, -1]]
    assert reduced.entropy.tolist() == [pytest.approx(math.log(400))] * 2


@pytest.mark.usefixtures("small")
def test_references():
    """A layer, other hidden states, and log-probabilities, each with what stands in the others' place."""
    model = standardized("gemma2")
    hidden, other = some_states(2, 3), some_states(1, 3, seed=1)[0]
    by_layer = reduce_hidden(model, torch.cat([hidden, other[None]]), GROUPS, 2, kl_reference=2)[:2]
    by_states = reduce_hidden(model, hidden, GROUPS, 2, kl_reference=other)
    log_probs = model.readout(other).detach().double().log_softmax(-1)
    by_log_probs = reduce_hidden(model, hidden, GROUPS, 2, kl_log_probs=log_probs)
    for found in (by_states, by_log_probs):
        torch.testing.assert_close(found.kl, by_layer.kl, atol=1e-6, rtol=1e-5)
        assert torch.equal(found.top_ids, by_layer.top_ids)
    logits = np.stack([plain_logits("gemma2", states) for states in hidden])
    assert_equal(by_log_probs, logits, GROUPS, plain_logits("gemma2", other))
    assert reduce_hidden(model, hidden, GROUPS, 2).kl is None
    single = reduce_hidden(model, hidden[0], GROUPS, 2, kl_reference=other)
    torch.testing.assert_close(single.kl, by_states.kl[0], atol=1e-6, rtol=0)


def test_rows_do_not_see_each_other(small):
    """The same rows give the same bytes; fewer layers or rows, the same but for the rounding of products."""
    model, hidden = standardized("llama"), some_states(3, 4)
    groups = [GROUPS[row % 3] for row in range(4)]
    whole, again = (reduce_hidden(model, hidden, groups, 4, kl_reference=2) for _ in range(2))
    some = reduce_hidden(model, hidden[1:, :2], groups[:2], 4, kl_reference=1)
    for name in ("log_prob", "rank", "top_ids", "top_log_prob", "entropy", "kl"):
        value = getattr(whole, name)
        assert torch.equal(value.nan_to_num(), getattr(again, name).nan_to_num())
        torch.testing.assert_close(getattr(some, name), value[1:, :2], atol=1e-5, rtol=1e-5, equal_nan=True)


def _hooked(head: Any) -> Callable[[], None]:
    return head.register_forward_hook(lambda _module, _args, output: output * 2).remove


def _replaced(head: Any) -> Callable[[], None]:
    kept = head.__dict__.get("forward")
    head.forward = lambda states: nn.functional.linear(states, head.weight) * 2

    def undo() -> None:
        del head.__dict__["forward"]
        if kept is not None:
            head.forward = kept

    return undo


@pytest.mark.parametrize("change", [_hooked, _replaced])
@pytest.mark.usefixtures("small")
def test_a_head_that_is_more_than_a_matrix_gives_whole_logits(change):
    model, hidden = standardized("llama"), some_states(2, 3)
    plain = np.stack([plain_logits("llama", states) for states in hidden])
    sets = torch.arange(400)[None] < 20
    undo = change(model._module.get_submodule("lm_head"))
    try:
        assert model.readout_parts() is None
        reduced = reduce_hidden(model, hidden, GROUPS, 5, kl_reference=0, masses=sets)
        some = logits_of(model, hidden[0], torch.tensor([[1, 2], [3, 3], [0, 399]]))
        other = reduce_hidden(model, hidden, GROUPS, 5, kl_reference=hidden[0])
    finally:
        undo()
    assert model.readout_parts() is not None
    assert_equal(reduced, 2 * plain, GROUPS, 2 * plain[0])
    mass = np.exp(2 * plain)[..., :20].sum(-1) / np.exp(2 * plain).sum(-1)
    np.testing.assert_allclose(reduced.log_mass[..., 0], np.log(mass), atol=1e-5)
    torch.testing.assert_close(other.kl, reduced.kl)
    np.testing.assert_allclose(some[2], 2 * plain[0, 2, [0, 399]], rtol=1e-5)


@pytest.mark.parametrize("family", ["gptj", "gemma2", "cohere"])
@pytest.mark.usefixtures("small")
def test_logits_of_chosen_tokens(family):
    ids, states = torch.tensor([[1, 2, 3], [3, 3, 0], [0, 399, 7]]), some_states(1, 3)[0]
    expected = np.take_along_axis(plain_logits(family, states), ids.numpy(), 1)
    np.testing.assert_allclose(logits_of(standardized(family), states, ids), expected, rtol=1e-4, atol=1e-5)
    for wrong in (-1, 400):  # -1 is no token from the end
        with pytest.raises(InterpError, match=f"ids: expected 0 to 399, the vocabulary, got .*{wrong}"):
            logits_of(standardized(family), states, torch.tensor([[1], [2], [wrong]]))
    with pytest.raises(InterpError, match=r"ids \(row, n\), got \(3, 32\) and \(2, 3\)"):
        logits_of(standardized(family), states, ids[:2])


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_probabilities_over_the_whole_vocabulary(family, inverted, monkeypatch):
    monkeypatch.setattr("interp.readout.reduce.how_many", lambda *_: 2)  # rows at once
    states = some_states(2, 3)
    logits = torch.tensor(plain_logits(family, states.flatten(0, 1))).view(2, 3, -1)
    found = probabilities_of(standardized(family), states, inverted=inverted)
    assert found.dtype == torch.float32 and found.device.type == "cpu"
    expected = (-logits if inverted else logits).softmax(-1).float()  # without a bias, and a cap is odd
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


class _Watch(TorchDispatchMode):
    """The most numbers in a tensor that is made, and how often the host asks a device for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.questions = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.questions += 1
        made = result if isinstance(result, tuple | list) else [result]
        self.largest = max(self.largest, *(tensor.numel() for tensor in made if isinstance(tensor, Tensor)), 0)
        return result


def test_no_tensor_of_rows_and_vocabulary(small):
    """16 times the rows: no larger tensor, but for the states that come in and the readings that go out."""
    model = standardized("llama")
    groups = TokenGroups.pad([[[1, 2], [3]]] * 64, VOCABULARY_SIZE)
    with _Watch() as watch:
        reduce_hidden(model, some_states(2, 64), groups, 3, kl_reference=1)
    assert watch.largest < 64 * VOCABULARY_SIZE  # of one layer
    assert watch.largest <= max(2 * 64 * HIDDEN_SIZE, VOCABULARY_SIZE * HIDDEN_SIZE)  # the weight is looked at


def test_an_accelerator_is_not_asked_within_the_loops(monkeypatch):
    """One question at the start and one at the end, however many chunks and blocks of rows there are."""
    monkeypatch.setattr(interp.readout.ranks, "_may_ask", lambda _device: False)
    model, asked = standardized("llama"), []
    for tokens in (64, 448):
        for rows in (2, 16):
            with divided(2 * 64 * 7, tokens, 1 << 20), _Watch() as watch:
                reduced = reduce_hidden(model, some_states(2, rows), [[[1], [2]]] * rows, 3, kl_reference=1)
            asked.append(watch.questions)
            monkeypatch.undo()
            twin = reduce_hidden(model, some_states(2, rows), [[[1], [2]]] * rows, 3, kl_reference=1)
            monkeypatch.setattr(interp.readout.ranks, "_may_ask", lambda _device: False)
            assert torch.equal(reduced.top_ids, twin.top_ids)
            assert torch.equal(reduced.rank, twin.rank)
    assert len(set(asked)) == 1, asked


@pytest.mark.usefixtures("small")
def test_numbers_that_overflowed():
    hidden = some_states(2, 3)
    hidden[1, 2, 0] = math.nan
    hidden[0, 1, 3] = math.inf
    with pytest.raises(InterpError, match="2 of 6 rows of logits hold NaN or infinity"):
        reduce_hidden(standardized("llama"), hidden, GROUPS, 5)
    log_probs = torch.zeros(3, 400).index_put((torch.tensor(1), torch.tensor(300)), torch.tensor(math.nan))
    with pytest.raises(InterpError, match="NaN"):
        reduce_hidden(standardized("llama"), hidden[:, :1].nan_to_num(), [[]], 5, kl_log_probs=log_probs[1:2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(3, 31)}, r"hidden: expected shape \(row, 32\)"),
        ({"hidden": torch.zeros(0, 3, 32)}, "at least one layer"),
        ({"groups": [[]]}, "groups for 3 rows"),
        ({"groups": [[[400]]] * 3}, "token id 400"),
        ({"top_k": 401}, "top_k: expected 1 to 400"),
        ({"kl_reference": 1}, "one of 1 layers by its index, got 1"),
        ({"kl_reference": torch.zeros(3, 400)}, r"kl_reference: expected hidden states .*\(3, 32\)"),
        ({"kl_log_probs": torch.zeros(3, 32)}, r"kl_log_probs: expected shape \(row, vocabulary\) = \(3, 400\)"),
        ({"kl_log_probs": torch.zeros(3, 400), "kl_reference": 0}, "got both"),
        ({"masses": torch.zeros(3, 4)}, "masses: expected"),
    ],
)
def test_errors(changes, message):
    arguments = dict(hidden=torch.zeros(3, 32), groups=[[]] * 3, top_k=1)
    with pytest.raises(InterpError, match=message):
        reduce_hidden(standardized("llama"), **{**arguments, **changes})
