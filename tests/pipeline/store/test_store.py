"""A store gives back what was written, to any reader, with the same bytes however it was written."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError
from pipeline.store import ArraySpec, StoreWriter, list_stores, open_store
from pipeline.store.schema import chunk_shape, from_bfloat16, to_bfloat16
from tests.pipeline.store.example import block_of, specs, tree, values, write_pending, write_store, writer


def test_values_dimensions_and_attributes_come_back(tmp_path: Path) -> None:
    store = open_store(write_store(tmp_path / "a.zarr"), verify=True)
    expected = values()
    assert store.arrays == ["resid_post", "attn_out", "rank", "nothing"]
    for name in ("resid_post", "rank", "nothing"):
        np.testing.assert_array_equal(store.read(name), expected[name])
        assert store.read(name).dtype == expected[name].dtype
    np.testing.assert_array_equal(store.read("attn_out", raw=True), expected["attn_out"])
    assert store.read("attn_out").dtype == np.float32
    assert store.dimensions("attn_out") == ("layer", "prompt", "position", "hidden")
    assert store.dtype("attn_out") == "bfloat16"
    assert store.attributes == {"format": "example/1", "model": {"name": "tiny"}, "late": ["a", "b"]}
    assert store.spec("resid_post").attributes == {"unit": "none"}
    assert store.static("positions").tolist() == np.arange(20).reshape(10, 2).tolist()
    assert store.static("scale") == 0.5


def test_a_store_is_read_without_what_a_model_needs(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    code = """if True:
    import sys
    from pipeline.store import open_store
    shape = open_store(sys.argv[1], verify=True).read("resid_post").shape
    print(shape, sorted({"torch", "transformers", "nnsight", "mlflow", "dvc", "hydra"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", code, str(tmp_path / "a.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "(3, 10, 2, 8) []\n"


def test_selection_is_numpy_grid_selection(tmp_path: Path) -> None:
    store = open_store(write_store(tmp_path / "a.zarr"))
    x = values()["resid_post"]
    np.testing.assert_array_equal(store.read("resid_post", layer=-1, prompt=9), x[-1, 9])
    np.testing.assert_array_equal(
        store.read("resid_post", prompt=[9, 0, -3, 0], hidden=[7, 1], layer=slice(None, None, -1)),
        x[::-1][np.ix_(range(3), [9, 0, 7, 0], range(2), [7, 1])],
    )
    np.testing.assert_array_equal(store.read("resid_post", prompt=np.array([4]), position=1), x[:, [4], 1])
    assert store.read("resid_post", prompt=[]).shape == (3, 0, 2, 8)
    assert store.read("resid_post", layer=slice(2, 1), prompt=0).shape == (0, 2, 8)
    attn = from_bfloat16(values()["attn_out"])
    np.testing.assert_array_equal(store.read("attn_out", layer=1, position=0), attn[1, :, 0])


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"layr": 0}, "no dimension 'layr'. Did you mean 'layer'"),
        ({"layer": 3}, r"layer=3: expected an index of 3 \(0..2"),
        ({"prompt": [0, -11]}, "prompt=-11: expected indices of 10"),
        ({"prompt": [0.5]}, "expected an index, a slice or a list of indices"),
        ({"prompt": [[0]]}, "expected an index, a slice or a list of indices"),
    ],
)
def test_bad_selection_says_what_is_right(tmp_path: Path, selection: dict[str, Any], message: str) -> None:
    store = open_store(write_store(tmp_path / "a.zarr"))
    with pytest.raises(InterpError, match=message):
        store.read("resid_post", **selection)
    with pytest.raises(InterpError, match=r"no array 'resid_pots'. Did you mean 'resid_post'"):
        store.read("resid_pots")
    with pytest.raises(InterpError, match=r"no static array 'position'. Did you mean 'positions'"):
        store.static("position")


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_round_trip_over_shapes_blocks_and_selections(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple), "shape")
    axis = data.draw(st.integers(0, len(shape) - 1), "unit axis")
    dtype = data.draw(st.sampled_from(["float16", "float32", "float64", "bfloat16", "int8", "int32", "int64"]), "dtype")
    bits = np.random.default_rng(0).integers(0, 256, size=(*shape, 8), dtype=np.uint8)
    stored = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    array = np.ascontiguousarray(bits[..., : stored.itemsize]).view(stored)[..., 0]  # any bits at all, NaN included
    dimensions = tuple("unit" if i == axis else f"d{i}" for i in range(len(shape)))
    with tempfile.TemporaryDirectory() as folder:
        store = StoreWriter(
            Path(folder) / "s.zarr",
            [ArraySpec("x", dimensions, shape, dtype)],
            unit="unit",
            block_size=data.draw(st.integers(1, 7), "block size"),
            attributes={},
            static={},
            chunk_bytes=data.draw(st.integers(8, 200), "chunk bytes"),
            compression=data.draw(st.sampled_from(["none", "zstd"]), "compression"),
        )
        for block in data.draw(st.permutations(range(len(store.blocks))), "order"):
            rows = store.blocks[block]
            store.write(block, {"x": array.take(np.arange(rows.start, rows.stop), axis=axis)})
        store.finish()
        read = open_store(store.path, verify=True)
        assert read.read("x", raw=True).tobytes() == array.tobytes()

        selection: dict[str, Any] = {}
        grid: list[np.ndarray] = []
        dropped: list[int] = []
        for i, (dimension, length) in enumerate(zip(dimensions, shape, strict=True)):
            index = st.integers(-length, length - 1)
            ends = st.none() | st.integers(-6, 6)
            slices = st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, -1, -2]))
            indices = index | st.lists(index, max_size=4) if length else st.just([])
            chosen = data.draw(st.none() | slices | indices, dimension)
            if isinstance(chosen, int):
                dropped.append(i)
            if chosen is not None:
                selection[dimension] = chosen
            taken = np.arange(length)[
                slice(None) if chosen is None else np.array(chosen, int) if chosen == [] else chosen
            ]
            grid.append(np.atleast_1d(taken))
        expected = array[np.ix_(*grid)].reshape([len(g) for i, g in enumerate(grid) if i not in dropped])
        got = read.read("x", raw=True, **selection)
        assert got.shape == expected.shape
        assert got.tobytes() == expected.tobytes()


def test_opened_by_plain_zarr_and_xarray_with_named_dimensions(tmp_path: Path) -> None:
    write_store(tmp_path / "lens.zarr" / "patchscope")
    expected = values()
    root = zarr.open(tmp_path / "lens.zarr", mode="r")
    assert isinstance(root, zarr.Group)
    # Markers lie in an array's folder: a folder that is no member would make this warn, and warnings are errors.
    assert {name for name, _ in root.members(max_depth=None)} >= {"patchscope", "patchscope/resid_post"}
    group = root["patchscope"]
    assert isinstance(group, zarr.Group)
    array = group["resid_post"]
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(array[...], expected["resid_post"])
    assert group["attn_out"].attrs["dtype"] == "bfloat16"
    assert array.shards == (3, 4, 2, 8)
    assert array.chunks == (1, 2, 2, 8)  # 128 bytes: two prompts of a layer

    for opened in (
        xarray.open_zarr(tmp_path / "lens.zarr" / "patchscope", consolidated=False),
        xarray.open_zarr(tmp_path / "lens.zarr", group="patchscope", consolidated=False),
    ):
        data = opened.load()
        assert data["resid_post"].dims == ("layer", "prompt", "position", "hidden")
        assert data["rank"].dtype == np.int32
        np.testing.assert_array_equal(data["resid_post"].sel(layer=2), expected["resid_post"][2])
        np.testing.assert_array_equal(data["rank"], expected["rank"])
        assert data.attrs["format"] == "example/1"
        assert data["complete"].values.tolist() == [4, 4, 2]


def test_a_chunk_that_was_never_written_reads_as_nan_or_minus_one(tmp_path: Path) -> None:
    store = writer(tmp_path / "a.zarr")
    group = zarr.open_group(store.path, mode="r")
    assert np.isnan(group["resid_post"][...]).all()
    assert (group["rank"][...] == -1).all()
    assert np.isnan(from_bfloat16(group["attn_out"][...])).all()
    store.close()


def test_values_equal_to_the_fill_value_are_written(tmp_path: Path) -> None:
    spec = ArraySpec("x", ("prompt", "hidden"), (4, 8), "float32")
    store = StoreWriter(tmp_path / "a.zarr", [spec], unit="prompt", block_size=2, attributes={}, static={})
    for block in (0, 1):
        store.write(block, {"x": np.full((2, 8), np.nan, np.float32)})
    store.finish()
    assert (store.path / "x/c/1/0").stat().st_size >= 64
    assert np.isnan(open_store(store.path, verify=True).read("x")).all()


def test_the_same_bytes_whatever_the_order_and_the_interruptions(tmp_path: Path) -> None:
    expected = tree(write_store(tmp_path / "a.zarr"))
    disturbed = tmp_path / "b.zarr"
    for block in (2, 0):  # a writer for each block
        with writer(disturbed) as store:
            write_pending(store, [block])
    with writer(disturbed) as store:
        assert store.pending() == [1]
        np.testing.assert_array_equal(store.read(2, "resid_post"), values()["resid_post"][:, 8:])
        write_pending(store)
        write_pending(store, [0])  # a block may be written again
        store.finish({"late": ["a", "b"]})
    assert tree(disturbed) == expected
    assert not any("lock" in file or "partial" in file for file in expected)
    again = writer(disturbed)  # a finished store is re-opened, and nothing is left to do
    assert again.pending() == []
    again.finish({"late": ["a", "b"]})
    assert tree(disturbed) == expected


def test_nothing_of_this_machine_or_moment_is_in_the_store(tmp_path: Path) -> None:
    first, second = tree(write_store(tmp_path / "one" / "a.zarr")), tree(write_store(tmp_path / "two" / "a.zarr"))
    assert first == second
    assert not any(str(tmp_path).encode() in data for data in first.values())


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_bfloat16_keeps_every_bit_pattern_and_rounds_as_torch_does(tmp_path: Path, compression: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    spec = ArraySpec("x", ("prompt", "hidden"), bits.shape, "bfloat16")
    path = tmp_path / "a.zarr"
    store = StoreWriter(path, [spec], unit="prompt", block_size=100, attributes={}, static={}, compression=compression)
    for block, rows in enumerate(store.blocks):
        store.write(block, {"x": bits[rows.start : rows.stop]})
    store.finish()
    read = open_store(path)
    np.testing.assert_array_equal(read.read("x", raw=True), bits)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(read.read("x"), expected)

    floats = np.random.default_rng(0).integers(0, 1 << 32, size=100_000, dtype=np.uint32).view(np.float32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    for numbers in (floats, ties):
        theirs = torch.from_numpy(numbers).bfloat16().float().numpy()
        np.testing.assert_array_equal(from_bfloat16(to_bfloat16(numbers)), theirs)


@pytest.mark.parametrize(
    ("shard", "chunk_bytes", "expected"),
    [
        ((32, 64, 2, 4096), 1 << 20, (1, 32, 2, 4096)),
        ((4, 64, 2, 32), 1 << 20, (4, 64, 2, 32)),  # all of it fits
        ((12, 61, 1, 768), 1 << 10, (1, 1, 1, 256)),  # a prime length, and a row that is too long
        ((1,), 8, (1,)),
    ],
)
def test_inner_chunks_divide_the_shard_and_keep_the_limit(
    shard: tuple[int, ...], chunk_bytes: int, expected: tuple[int, ...]
) -> None:
    assert chunk_shape(shard, 4, chunk_bytes) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": {"format": "example/1", "model": {"name": "big"}}}, 'attributes.model.name: expected "big"'),
        ({"block_size": 5}, "block_size: expected 5, found 4"),
        ({"compression": "zstd"}, "compression"),
        ({"static": {}}, "static.layer: only in the store"),
    ],
)
def test_another_config_is_refused_and_told_apart(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with writer(tmp_path / "a.zarr"), pytest.raises(InterpError, match="being written by another process"):
        writer(tmp_path / "a.zarr")
    for path in (tmp_path / "a.zarr", write_store(tmp_path / "b.zarr")):  # unfinished and finished
        with pytest.raises(InterpError, match=f"written by another config.*{message}"):
            writer(path, **changes)
        writer(path).close()


def test_a_folder_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InterpError, match="expected a store or nothing there"):
        writer(tmp_path)
    assert tree(tmp_path) == {"notes.txt": b"mine"}


def test_a_block_takes_exactly_what_was_declared(tmp_path: Path) -> None:
    store = writer(tmp_path / "a.zarr")
    whole = values()
    good = {spec.name: block_of(whole[spec.name], spec, store.blocks[0]) for spec in specs()}
    for bad, message in [
        ({**good, "rnak": good["rank"]}, "unknown array 'rnak'. Did you mean 'rank'"),
        ({k: v for k, v in good.items() if k != "rank"}, "no values for rank"),
        ({**good, "rank": good["rank"][:3]}, r"expected \(4, 3\)"),
        ({**good, "rank": good["rank"].astype(np.int64)}, "expected int32, got int64"),
        ({**good, "resid_post": good["resid_post"].astype(np.float64)}, "expected float32, got float64"),
    ]:
        with pytest.raises(InterpError, match=message):
            store.write(0, bad)
    with pytest.raises(InterpError, match=r"block 3: expected 0\.\.2"):
        store.write(3, good)
    assert store.pending() == [0, 1, 2]
    with pytest.raises(InterpError, match=r"not complete: \[0, 1, 2\]"):
        store.finish()
    store.close()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ArraySpec("complete", ("prompt",), (10,), "int32"), "free in this store"),
        (ArraySpec("layer", ("prompt",), (10,), "int32"), "free in this store"),
        (ArraySpec("a/b", ("prompt",), (10,), "int32"), "holds no '/'"),
        (ArraySpec("x", ("prompt",), (10,), "float23"), "unknown dtype 'float23'. Did you mean 'float32'"),
        (ArraySpec("x", ("layer",), (3,), "int32"), "expected the unit dimension 'prompt'"),
        (ArraySpec("x", ("prompt", "layer"), (10, 4), "int32"), "dimension 'layer' has length 3 .* and 4 in 'x'"),
        (ArraySpec("x", ("prompt", "layer"), (10,), "int32"), "one name per dimension"),
    ],
)
def test_a_layout_that_is_no_store_is_refused(tmp_path: Path, array: ArraySpec, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        writer(tmp_path / "a.zarr", arrays=[*specs(), array])
    assert not (tmp_path / "a.zarr").exists()


def test_attributes_are_plain_values(tmp_path: Path) -> None:
    for wrong in (float("nan"), Path("x"), np.zeros(2)):
        with pytest.raises(InterpError, match="expected plain values"):
            writer(tmp_path / "a.zarr", attributes={"a": wrong})


def test_stores_of_a_root_group_are_listed(tmp_path: Path) -> None:
    for name in ("patchscope", "logit_lens"):
        write_store(tmp_path / "lens.zarr" / name)
    assert list_stores(tmp_path / "lens.zarr") == ["logit_lens", "patchscope"]
    with pytest.raises(InterpError, match="holds stores: logit_lens, patchscope"):
        open_store(tmp_path / "lens.zarr")
    with pytest.raises(InterpError, match="found none"):
        list_stores(tmp_path / "nowhere")
    with pytest.raises(InterpError, match="found none"):
        open_store(tmp_path / "nowhere")
    assert json.loads((tmp_path / "lens.zarr" / "zarr.json").read_text())["node_type"] == "group"
