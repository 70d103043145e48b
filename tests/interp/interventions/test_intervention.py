"""`Intervention` as data: every spelling, every form on disk, and what is refused."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.interventions import (
    OPERATIONS,
    AnotherRun,
    Intervention,
    SavedTensor,
    from_frame,
    from_yaml,
    to_frame,
    to_yaml,
)
from interp.interventions.where import is_of_the_end
from interp.prompts import Prompt
from interp.sites import Site

SPANNED = Prompt("the cat sat", spans={"animal": (4, 7)}, add_special_tokens=False)
EVERY_FORM = [
    Intervention("blocks.3.hook_resid_post", "last", "add", [0.1, -2e-5], factor=2),
    Intervention(("q", 0), [1, None, [2, "last"]], "set", {"prompt": ["a", "b", [1, 2]], "position": "first"}),
    Intervention("scores.2-5.h0", "last", "knockout", from_positions="2:5", steps="every"),
    Intervention("pattern.1.h2", "all", "isolate", steps="every"),
    Intervention("pattern.1.h0-1", "last", "scale", 0.5, from_positions="first 2:4"),
    Intervention("scores.*", "after_query last", "knockout", from_positions=["before_query", 3]),
    Intervention("z.*.h*", "all", "noise", embedding_stds=3, seed=4),
    Intervention("z.0", "random:3@7", "noise", std=0.5),
    Intervention("resid_post.1", "all", "rotate_set", {"prompt": SPANNED, "site": "resid_in_1"}, basis=np.eye(3)[:2]),
    Intervention("resid_post.1", 2, "set", torch.tensor([0.5, 1 / 3]).bfloat16()),
    Intervention("resid_post.0-2", -1, "project_out", {"file": "directions.safetensors"}),
    Intervention("resid_post.1", "all", "project_onto", SavedTensor("directions.safetensors", "truth")),
    Intervention("mlp_post.-1", "all", "scale", 0.5),
    Intervention("attn_out.1", "first", "mean", AnotherRun(["a b", "c d"]), mean_over="tokens"),
    Intervention("attn_out.1 mlp_out.*", "0 3", "resample", seed=2),
    Intervention("resid_post.2", "all", "skip"),
    Intervention("hidden_states[4]", "all", "zero"),
]


@pytest.mark.parametrize("one", EVERY_FORM, ids=lambda one: f"{one.operation}-{one.site}".replace(" ", "+"))
def test_is_read_back_equal(one: Intervention) -> None:
    assert Intervention.from_dict(one.to_dict()) == one
    assert Intervention.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert Intervention.from_json(one.to_json()) == one
    assert from_yaml(to_yaml(one)) == [one]
    assert Intervention.from_row(one.to_row()) == one
    assert hash(Intervention.from_json(one.to_json())) == hash(one)


def test_tables_and_lists_are_read_back_equal() -> None:
    assert from_yaml(to_yaml(EVERY_FORM)) == EVERY_FORM
    frame = to_frame(EVERY_FORM)
    assert frame.shape == (len(EVERY_FORM), 12)
    assert from_frame(frame) == EVERY_FORM
    assert from_frame(pd.read_csv(io.StringIO(frame.to_csv(index=False)))) == EVERY_FORM


@given(
    st.sampled_from(["resid_post", "attn_out", "mlp_post"]),
    st.integers(-4, 3),
    st.one_of(st.integers(-9, 9), st.sampled_from(["last", "2:5", "query.all", "0 last"])),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
    st.floats(-1e9, 1e9),
)
@settings(max_examples=40, deadline=None)
def test_numbers_are_read_back_to_the_last_bit(
    kind: str, layer: int, position: Any, value: list[float], factor: float
) -> None:
    one = Intervention(f"{kind}.{layer}", position, "add", value, factor=factor)
    assert from_yaml(to_yaml(one)) == [one]
    assert Intervention.from_json(one.to_json()) == one
    (row,) = from_frame(pd.read_csv(io.StringIO(to_frame([one]).to_csv(index=False))))
    assert row == one


def test_sites_and_positions_are_kept_in_one_spelling() -> None:
    assert Intervention(Site("z", 2, 1), 3, "zero").site == "z.2.h1"
    assert Intervention("resid_post.0-2  blocks.1.attn.hook_pattern", 3, "zero").site == "resid_post.0-2 pattern.1"
    assert Intervention("z.2", torch.tensor([3, -1]), "zero").positions == ("3", "-1")
    assert Intervention("z.2", "first  2", "zero").positions == "first 2"


def test_a_tensor_stays_on_the_path_of_gradients() -> None:
    vector = torch.ones(3, requires_grad=True)
    assert Intervention("resid_post.0", "last", "add", vector).value is vector


def test_yaml_by_hand_means_what_it_says() -> None:
    (one,) = from_yaml("{site: z.0, positions: 2:5, operation: scale, value: 1e-3}")
    assert one == Intervention("z.0", "2:5", "scale", 1e-3)
    with pytest.raises(InterpError, match=r"expected YAML"):
        from_yaml("a: [")


def test_large_tensors_are_named_in_a_file() -> None:
    large = Intervention("resid_post.0", "all", "set", torch.zeros(1 << 17))
    with pytest.raises(InterpError, match=r"131072 numbers is too large to be written out.*Save it in a file"):
        large.to_dict()
    with pytest.raises(InterpError, match=r"holds NaN or infinity"):
        Intervention("resid_post.0", "all", "set", [float("nan")]).to_json()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(operation="sett"), "operation 'sett' is unknown. Did you mean 'set'"),
        (dict(site="resid_pots.1", operation="zero"), "unknown kind 'resid_pots'. Did you mean 'resid_post'"),
        (dict(site="pattern.1", operation="noise", std=1), "which pattern cannot take.*and pattern takes set, add"),
        (dict(site="z.1", operation="skip"), "It takes resid_post, attn_out, mixer_out, mlp_out"),
        (dict(operation="knockout", from_positions=0), "knockout at resid_post.1.*It takes scores, pattern"),
        (dict(site="scores.1", operation="knockout"), r"expected from_positions="),
        (dict(operation="zero", from_positions=0), "from_positions is a parameter of .*at scores and pattern"),
        (dict(operation="isolate"), "isolate at resid_post.1.*It takes scores, pattern"),
        (dict(operation="set"), r"set replaces it by the value: expected value="),
        (dict(operation="noise"), r"expected std= or embedding_stds=, one of them"),
        (dict(operation="noise", std=1, embedding_stds=1), "one of them"),
        (dict(operation="noise", std=-1), "std: expected a number above 0, got -1"),
        (dict(operation="zero", seed=1), "seed is a parameter of resample, noise; zero has none"),
        (dict(operation="set", value=[1], factor=2), "factor is a parameter of add; set has none"),
        (dict(operation="zero", value=[1]), "it takes no value, got numbers"),
        (dict(operation="mean", value=[1]), "it takes another run, got numbers"),
        (dict(operation="scale", value={"prompt": "a"}), "it takes numbers or a tensor in a file, got another run"),
        (dict(operation="rotate_set", value=[1]), r"expected basis="),
        (dict(operation="set", value="abc"), "value: expected a tensor or numbers"),
        (dict(operation="set", value={"fil": "x"}), "got a mapping with the keys fil"),
        (dict(operation="set", value={"file": "x", "nam": "y"}), "file goes with name, got 'nam'. Did you mean 'name'"),
        (dict(operation="set", value={"prompt": 3.5}), "expected a prompt of another run"),
        (dict(operation="zero", steps="all"), "steps: expected prompt or every, got 'all'"),
        (dict(operation="zero", positions="lats"), "position 'lats'"),
        (dict(operation="zero", positions=""), "positions: expected a position"),
        (dict(operation="zero", positions=[2.5]), r"positions\[0\]: expected a position"),
        (dict(operation="zero", seed=-1), "seed: expected a whole number from 0"),
    ],
)  # fmt: skip
def test_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InterpError, match=message):
        Intervention(**{"site": "resid_post.1", "positions": "last", **given})


def test_refuses_other_keys() -> None:
    with pytest.raises(InterpError, match=r"has no 'opration'. Did you mean 'operation'"):
        Intervention.from_dict({"site": "z.0", "positions": "last", "opration": "zero"})
    with pytest.raises(InterpError, match=r"needs positions, operation; got site"):
        Intervention.from_dict({"site": "z.0"})
    with pytest.raises(InterpError, match=r"expected a mapping"):
        Intervention.from_dict(["z.0"])  # type: ignore[arg-type]


def test_every_operation_has_a_form_here() -> None:
    assert {one.operation for one in EVERY_FORM} == set(OPERATIONS)


def test_positions_that_what_comes_before_does_not_move() -> None:
    for where in ("last", "-2 last", "-3:", "-3:-1", "word.all word.0", "after_word", ("last", "", "word.first")):
        assert is_of_the_end(where)
    for where in ("first", "all", "last 2", ":-1", "-3:2", "random:2", "before_word", ("last", "0")):
        assert not is_of_the_end(where)
