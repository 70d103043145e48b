"""easyroutine's names of positions: which tokens of each example they are, and what is no name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from interp import InterpError
from interp.compat.easyroutine import HookedModel
from interp.compat.easyroutine.input_batch import InputBatch
from tests.interp.compat.easyroutine.plain import EXAMPLES, padded

Hooked = Callable[[str], HookedModel]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "of_four", "of_seven"),
    [
        ("first", [0], [0]),
        ("last", [3], [6]),
        (" last", [3], [6]),  # as the page writes it
        ("last-2", [2], [5]),
        ("last-3", [1], [4]),
        ("last-4", [0], [3]),
        ("all", [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]),
        ("all-text", [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]),
        ("position-group-0", [0, 1], [0, 1]),
        ("position-group-1", [2], [2]),
        ("inputs-partition-2", [3], [3, 4, 5, 6]),
        ("random-inputs-partition-1", [2], [2]),
        ("random-position-group-0-2", [0, 1], [0, 1]),
        (0, [0], [0]),
        (-4, [0], [3]),
        (3, [3], [3]),
        ((1, 4), [1, 2, 3], [1, 2, 3]),
        ((0, 4), [0, 1, 2, 3], [0, 1, 2, 3]),
        ((-2, 4), [2, 3], None),
        ("1:-1", [1, 2], [1, 2, 3, 4, 5]),  # of interp's own
    ],
)
def test_tokens_of_a_name(hooked: Hooked, name: Any, of_four: list[int], of_seven: list[int] | None, side: str) -> None:
    rows = EXAMPLES[:1] if of_seven is None else EXAMPLES[:2]
    cache = hooked("llama").forward(padded(rows, side), [name], split_positions=[2, 3], extract_embed=True)
    found = cache["token_dict"] if isinstance(cache["token_dict"], list) else [cache["token_dict"]]
    expected = [of_four] if of_seven is None else [of_four, of_seven]
    assert found == [{name: tokens} for tokens in expected]
    embedding = hooked("llama").hf_model.get_input_embeddings().weight.detach()
    for row, (ids, tokens) in enumerate(zip(rows, expected, strict=True)):
        want = embedding[[ids[token] for token in tokens]]
        torch.testing.assert_close(cache["input_embeddings"][row, : len(tokens)], want)
        assert cache["input_embeddings"][row, len(tokens) :].isnan().all()


def test_drawn_tokens_are_drawn_once_and_again_the_same(hooked: Hooked) -> None:
    model, inputs = hooked("llama"), padded(EXAMPLES, "left")
    names = ["random-text", "random-text-3", "random-text-3@7", "random-position-group-1-2"]
    first, second = (
        model.forward(inputs, names, pivot_positions=torch.tensor([1]), extract_embed=True) for _ in range(2)
    )
    assert first["token_dict"] == second["token_dict"]
    for row, (ids, named) in enumerate(zip(EXAMPLES, first["token_dict"], strict=True)):
        assert [len(named[name]) for name in names] == [1, 3, 3, 2]
        assert all(sorted(set(tokens)) == tokens and tokens[-1] < len(ids) for tokens in named.values())
        assert min(named["random-position-group-1-2"]) >= 1
        assert all(name not in EXAMPLES or row for name in names)
    alone = model.forward(padded(EXAMPLES[1:2], "left"), names, split_positions=[1])
    assert alone["token_dict"] == first["token_dict"][1]
    assert any(named["random-text-3"] != named["random-text-3@7"] for named in first["token_dict"])


def test_integers_of_numpy_and_one_name_alone_are_names(hooked: Hooked) -> None:
    model, inputs = hooked("llama"), padded(EXAMPLES[:1], "left")
    for names, expected in (
        (np.arange(1, 3).tolist(), {1: [1], 2: [2]}),
        ([np.int64(2), (np.int64(0), 2)], {2: [2], (0, 2): [0, 1]}),
        ([[0, 2]], {(0, 2): [0, 1]}),
        ("last", {"last": [3]}),
        (-1, {-1: [3]}),
        ((0, 2), {(0, 2): [0, 1]}),
    ):
        assert model.forward(inputs, names)["token_dict"] == expected


def test_each_example_has_its_own_splits(hooked: Hooked) -> None:
    model, name = hooked("llama"), "position-group-1"
    splits = [[1], [4, 5], [2]]
    cache = model.forward(padded(EXAMPLES, "left"), [name], split_positions=splits)
    assert [named[name] for named in cache["token_dict"]] == [[1, 2, 3], [4], [2, 3, 4]]
    loader = [{**padded([ids], "left"), "split_positions": own} for ids, own in zip(EXAMPLES, splits, strict=True)]
    assert model.extract_cache(loader, [name])["token_dict"] == cache["token_dict"]
    batch = InputBatch.of(model.standardized, padded(EXAMPLES, "right"), splits)
    assert batch.tokens(name) == [[1, 2, 3], [4], [2, 3, 4]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lats"], "Did you mean 'last'"),
        (["nope"], "unknown"),
        (["last-5"], "example 0.*out of range"),
        (["last-0"], "last-1"),
        ([4], "example 0.*out of range"),
        ([(2, 5)], "out of range"),
        ([(2, 2)], "empty"),
        (["end-image"], "has no image"),
        (["all-image"], "has no image"),
        (["start-image"], "has no image"),
        (["random-image-2"], "has no image"),
        (["random-text-5"], "draws 5"),
        (["position-group-0"], "needs split_positions"),
        (["last", "last"], "given twice"),
        ([], "at least one"),
        ([1.5], "an integer or a pair"),
        (None, "at least one"),
    ],
)
def test_what_is_no_position_is_refused(hooked: Hooked, names: Any, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        hooked("llama").forward(padded(EXAMPLES[:2], "left"), names)


@pytest.mark.parametrize(
    ("split", "name", "message"),
    [
        ([2], "position-group-2", "make 2 groups"),
        ([4], "position-group-0", "not inside its 4 tokens"),
        ([2, 2], "position-group-1", "group"),
        ([[1]], "position-group-0", "one for each of 2 examples"),
        ("1", "position-group-0", "one for each of 2 examples"),
        ([1], "position-group-1-2", "random-position-group-1-2"),
    ],
)
def test_splits_that_make_no_such_group_are_refused(hooked: Hooked, split: Any, name: str, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        hooked("llama").forward(padded(EXAMPLES[:2], "left"), [name], split_positions=split)
