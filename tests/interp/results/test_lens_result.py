"""Results: their axes are checked, parts of them come out right, tables and files give back what went in."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from interp.errors import InterpError
from interp.results import LensResult
from tests.interp.results.made import random_result
from tests.tiny import tiny_tokenizer

BY_LAYER = {"example": range(3), "layer": (1, 4, 5)}
GRID = {"example": ("dog", "cat"), "source_layer": range(4), "target_layer": range(3)}
POSITIONS = {"example": range(2), "position": ("first", "last"), "layer": range(4)}
KNOCK_OUT = {"example": range(2), "window": (0, 4), "block": ("subject", "relation", "all")}
EVERY = [BY_LAYER, GRID, POSITIONS, KNOCK_OUT]


def equal(first: LensResult, second: LensResult) -> None:
    assert first.coordinates == second.coordinates and list(first.coordinates) == list(second.coordinates)
    assert first.group_names == second.group_names
    assert first.arrays().keys() == second.arrays().keys()
    for name, values in first.arrays().items():
        assert values.dtype == second.arrays()[name].dtype
        np.testing.assert_array_equal(values, second.arrays()[name], err_msg=name)


def test_axes_and_coordinates() -> None:
    result = random_result(BY_LAYER)
    assert result.axes == ("example", "layer") and result.layers == (1, 4, 5)
    assert result.along("group") == ("it", "en")
    assert repr(result) == "LensResult(example: 3, layer: 3; groups: it, en)"
    grid = random_result(GRID)
    assert grid.axes_of("log_prob") == ("example", "source_layer", "target_layer", "group")
    assert grid.model_top_id.shape == (2,)
    assert random_result(POSITIONS).model_top_id.shape == (2, 2)
    with pytest.raises(InterpError, match="no axis 'layer': this result has example, source_layer, target_layer"):
        _ = grid.layers


def test_groups_without_names_are_numbered() -> None:
    result = random_result(BY_LAYER)
    assert LensResult(coordinates=BY_LAYER, **result.arrays()).group_names == ("0", "1")


def test_arrays_have_their_dtype_and_cannot_be_changed() -> None:
    given = np.zeros((3, 3), dtype=np.float64)
    result = random_result(BY_LAYER, entropy=given)
    assert result.entropy.dtype == np.float32 and result.rank.dtype == np.int32
    for values in result.arrays().values():
        with pytest.raises(ValueError, match="read-only"):
            values[...] = 0
    given[...] = 1  # the caller's array stays the caller's
    with pytest.raises(AttributeError):
        result.entropy = given  # type: ignore[misc]
    with pytest.raises(TypeError):
        result.coordinates["layer"] = (0,)  # type: ignore[index]


@pytest.mark.parametrize(
    ("coordinates", "changes", "message"),
    [
        (BY_LAYER, {"entropy": np.zeros((3, 2))}, r"entropy: expected shape \(example, layer\) = \(3, 3\), got \(3, 2"),
        (
            BY_LAYER,
            {"rank": np.zeros((3, 3, 1), dtype=int)},
            r"rank: expected shape \(example, layer, group\) = \(3, 3, 2\), got \(3, 3, 1\)",
        ),
        (BY_LAYER, {"top_log_prob": np.zeros((3, 3, 9))}, r"top_log_prob: .*\(3, 3, 3\), got \(3, 3, 9\)"),
        (BY_LAYER, {"model_top_id": np.zeros((3, 3), dtype=int)}, r"model_top_id: expected shape \(example\) = \(3\)"),
        (BY_LAYER, {"baseline": np.zeros(3)}, r"baseline: expected shape \(example, group\) = \(3, 2\), got \(3,\)"),
        (BY_LAYER, {"rank": np.full((3, 3, 2), 0.5)}, "rank: expected whole numbers, got float64"),
        ({"layer": range(3)}, {}, "expected `example` as the first axis, got .*layer"),
        ({"example": range(3), "group": range(2)}, {}, "'group' is an axis of single arrays"),
        ({"example": range(3), "layer": (1, 1)}, {}, r"'layer' holds one of \[1, 1\] twice"),
        (BY_LAYER, {"group_names": ("a", "b", "c")}, "group_names: expected 2 names"),
        (BY_LAYER, {"group_names": ("a", "a")}, "group_names: expected 2 names, all different"),
    ],
)
def test_what_does_not_fit_is_refused(coordinates, changes, message) -> None:
    with pytest.raises(InterpError, match=message):
        random_result(coordinates, **changes) if "group_names" not in changes else LensResult(
            coordinates=coordinates, **random_result(coordinates).arrays(), **changes
        )


def test_select_by_coordinate() -> None:
    result = random_result(POSITIONS)
    part = result.select(position="last", layer=[3, 0], group="en", example=1)
    assert dict(part.coordinates) == {"example": (1,), "layer": (3, 0)} and part.group_names == ("en",)
    np.testing.assert_array_equal(part.log_prob, result.log_prob[1:, 1, [3, 0], 1:])
    np.testing.assert_array_equal(part.top_ids, result.top_ids[1:, 1, [3, 0]])
    np.testing.assert_array_equal(part.model_top_id, result.model_top_id[1:, 1])
    equal(result.select(), result)
    equal(result.select(layer=np.int64(2)), result.select(layer=2))
    equal(result.select(layer=np.arange(2)), result.select(layer=[0, 1]))
    with pytest.raises(InterpError, match=r"layer: no 7 in this result. Known: 0, 1, 2, 3"):
        result.select(layer=7)
    with pytest.raises(InterpError, match=r"no axis 'layers'.* Did you mean 'layer'"):
        result.select(layers=1)


def test_concatenate_renumbers_plain_examples_and_keeps_names() -> None:
    result = random_result({"example": range(5), "layer": (2, 3)}, baseline=np.arange(10).reshape(5, 2))
    order = [3, 0, 4, 1, 2]
    parts = [result.select(example=order[:2]), result.select(example=order[2:])]
    parts = [
        LensResult({**p.coordinates, "example": range(len(p.kl))}, group_names=p.group_names, **p.arrays())
        for p in parts
    ]
    equal(LensResult.concatenate(parts, order=order), result)
    named = random_result(GRID)
    turned = LensResult.concatenate([named.select(example="cat"), named.select(example="dog")], order=[1, 0])
    equal(turned, named)


def test_concatenate_refuses_what_differs() -> None:
    result = random_result(BY_LAYER)
    for other in (
        result.select(layer=[1, 4]),
        result.select(group="it"),
        random_result(BY_LAYER, baseline=np.zeros((3, 2))),
        random_result(BY_LAYER, top_k=2),
    ):
        with pytest.raises(InterpError, match="differ in their axes, layers, groups or arrays"):
            LensResult.concatenate([result, other])
    with pytest.raises(InterpError, match="at least one"):
        LensResult.concatenate([])
    for order in ([0, 1], [0, 0, 1]):
        with pytest.raises(InterpError, match="each of 0 to 2 once"):
            LensResult.concatenate([result], order=order)


def test_the_table_of_groups() -> None:
    result = random_result(GRID, baseline=np.log([[0.5, 0.25], [0.1, 0.2]]))
    frame = result.to_frame()
    assert list(frame.columns) == [
        "example", "source_layer", "target_layer", "group", "log_prob", "probability", "rank", "baseline_log_prob",
    ]  # fmt: skip
    assert len(frame) == 2 * 4 * 3 * 2
    row = frame[
        (frame.example == "cat") & (frame.source_layer == 3) & (frame.target_layer == 1) & (frame.group == "en")
    ]
    assert row.log_prob.item() == result.log_prob[1, 3, 1, 1] and row["rank"].item() == result.rank[1, 3, 1, 1]
    assert row.probability.item() == pytest.approx(np.exp(result.log_prob[1, 3, 1, 1]))
    assert np.exp(row.baseline_log_prob.item()) == pytest.approx(0.2)
    assert "baseline_log_prob" not in random_result(GRID).to_frame().columns
    assert len(random_result(GRID, names=()).to_frame()) == 0


def test_the_table_of_top_tokens() -> None:
    result, tokenizer = random_result(POSITIONS), tiny_tokenizer()
    frame = result.to_frame("top", tokenizer=tokenizer)
    assert list(frame.columns) == [
        "example", "position", "layer", "place", "token_id", "token", "log_prob", "probability",
    ]  # fmt: skip
    row = frame[(frame.example == 1) & (frame.position == "last") & (frame.layer == 2) & (frame.place == 1)]
    assert row.token_id.item() == result.top_ids[1, 1, 2, 1]
    assert row.token.item() == tokenizer.decode([int(result.top_ids[1, 1, 2, 1])])
    assert "token" not in result.to_frame("top").columns


def test_the_table_of_distributions_and_positions_that_are_not_there() -> None:
    gaps = random_result(POSITIONS)
    ids, top = gaps.top_ids.copy(), gaps.model_top_id.copy()
    ids[0, 1], top[0, 1] = -1, -1
    result = LensResult(
        gaps.coordinates, group_names=gaps.group_names, **{**gaps.arrays(), "top_ids": ids, "model_top_id": top}
    )
    frame = result.to_frame("distribution")
    assert list(frame.columns) == [
        "example", "position", "layer", "entropy", "kl", "surprisal", "top_id", "model_top_id",
    ]  # fmt: skip
    assert len(frame) == (4 - 1) * 4 and not ((frame.example == 0) & (frame.position == "last")).any()
    row = frame[(frame.example == 1) & (frame.position == "first") & (frame.layer == 3)]
    assert row.entropy.item() == result.entropy[1, 0, 3] and row.model_top_id.item() == result.model_top_id[1, 0]
    assert row.top_id.item() == result.top_ids[1, 0, 3, 0]
    assert len(result.to_frame()) == 3 * 4 * 2 and len(result.to_frame("top")) == 3 * 4 * 3
    with pytest.raises(InterpError, match=r"expected a table, got 'tops'\. Did you mean 'top'"):
        result.to_frame("tops")  # type: ignore[arg-type]
    for table in ("groups", "distribution"):
        with pytest.raises(InterpError, match=f"tokenizer: .* and '{table}' is asked for"):
            result.to_frame(table, tokenizer=tiny_tokenizer())  # type: ignore[arg-type]


@pytest.mark.parametrize("coordinates", EVERY)
def test_files_give_back_what_went_in_byte_for_byte(coordinates, tmp_path: Path) -> None:
    baseline = np.full((len(coordinates["example"]), 2), -np.inf)
    result = random_result(coordinates, names=("日本語", '"<b>"'), baseline=baseline)
    files = [tmp_path / name for name in ("first.safetensors", "second.safetensors")]
    result.save(files[0])
    loaded = LensResult.load(files[0])
    equal(loaded, result)
    loaded.save(str(files[1]))
    assert files[0].read_bytes() == files[1].read_bytes()
    equal(pickle.loads(pickle.dumps(result)), result)
    equal(copy.deepcopy(result), result)


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(InterpError, match="there is no file"):
        LensResult.load(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(InterpError, match=r"expected a LensResult \(version 1\), found None"):
        LensResult.load(path)
    random_result(BY_LAYER).save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InterpError, match="no whole safetensors file"):
        LensResult.load(path)


def test_results_open_without_torch(tmp_path: Path) -> None:
    random_result(BY_LAYER).save(tmp_path / "lens.safetensors")
    code = """if True:
    import sys
    from interp.results import LensResult
    print(LensResult.load(sys.argv[1]), *sorted({"torch", "transformers", "nnsight", "plotly"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", code, str(tmp_path / "lens.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "LensResult(example: 3, layer: 3; groups: it, en)\n"
