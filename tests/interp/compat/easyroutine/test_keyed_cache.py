"""`ActivationCache`: a dictionary that grows batch by batch, and a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interp import InterpError
from interp.compat.easyroutine import ActivationCache
from interp.compat.easyroutine.cache_files import ValueWithInfo

NAN = float("nan")


def cache_of(rows: int, tokens: int, start: float = 0.0) -> ActivationCache:
    """A cache of some examples with as many tokens at `all`, and the last one."""
    cache = ActivationCache()
    values = start + torch.arange(rows * (tokens + 1), dtype=torch.float32).reshape(rows, tokens + 1, 1)
    cache.put("resid_out_0", values, {"all": tokens, "last": 1})
    cache["mapping_index"] = {"all": list(range(tokens)), "last": [tokens]}
    cache["labels"] = torch.arange(rows)
    return cache


def test_it_is_a_dictionary() -> None:
    cache = cache_of(2, 3)
    assert "resid_out_0" in cache and "resid_out_1" not in cache and len(cache) == 3 and not cache.is_empty()
    assert list(cache) == list(cache.keys()) == ["resid_out_0", "mapping_index", "labels"]
    assert cache.get("resid_out_1") is None and cache.get("labels") is cache["labels"]
    with pytest.raises(KeyError, match="Did you mean 'resid_out_0'"):
        cache["resid_out_1"]
    with pytest.raises(InterpError, match="has no 'labls'"):
        del cache["labls"]
    more = cache + {"answers": ["a", "b"]}
    assert more["answers"] == ["a", "b"] and "answers" not in cache and dict(more.items())["labels"] is cache["labels"]
    cache["keys_L3"], cache["values_1"] = 1, 2
    assert cache["keys_3"] == 1 and cache["values_L1"] == 2 and "values_L1" in cache and len(cache) == 5
    cache["values_L1"] = 3
    assert cache["values_1"] == 3 and len(cache) == 5
    del cache["values_L1"]
    assert "values_1" not in cache
    assert repr(cache) == "ActivationCache(`resid_out_0, mapping_index, labels, keys_L3`)"
    assert "labels: tensor([0, 1])" in str(cache)
    with pytest.raises(InterpError, match="expected an ActivationCache or a dictionary"):
        cache.update(3)  # type: ignore[arg-type]


def test_cat_of_examples_with_other_numbers_of_tokens() -> None:
    cache = ActivationCache()
    for part in (cache_of(1, 2), cache_of(2, 3, 10), cache_of(1, 1, 100)):
        cache.cat(part)
    expected = [[0, 1, NAN, 2], [10, 11, 12, 13], [14, 15, 16, 17], [100, NAN, NAN, 101]]
    torch.testing.assert_close(cache["resid_out_0"][..., 0], torch.tensor(expected), equal_nan=True)
    assert cache["mapping_index"] == {"all": [0, 1, 2], "last": [3]}
    assert cache["labels"].tolist() == [0, 0, 1, 0]
    assert cache.map_to_dict("resid_out_0")["last"][:, 0].tolist() == [2, 13, 17, 101]
    assert cache.map_to_dict("resid_out_0")["all"].shape == (4, 3, 1)
    deferred = ActivationCache()
    with deferred.deferred_mode():
        for part in (cache_of(1, 2), cache_of(2, 3, 10), cache_of(1, 1, 100)):
            deferred.cat(part)
        assert deferred.is_empty()
    torch.testing.assert_close(deferred["resid_out_0"], cache["resid_out_0"], equal_nan=True)
    with pytest.raises(ZeroDivisionError), deferred.deferred_mode():
        deferred.cat(cache_of(1, 1))
        raise ZeroDivisionError
    deferred.cat(cache_of(1, 3))  # at once again, and nothing of the block that failed
    assert deferred["labels"].shape == (5,)


def test_cat_of_what_is_no_tensor() -> None:
    parts = [ActivationCache() for _ in range(3)]
    for index, part in enumerate(parts):
        part["number"], part["text"] = torch.tensor(float(index)), f"t{index}"
        part["list"], part["tuple"] = [index, index], (index,)
        part["token_dict"] = {"last": [index]}
        part["last_layernorm"] = {"mean": torch.full((1, 2), float(index))}
        part["shapes"] = torch.zeros(1, index + 1)
        part["metadata"] = {"model_name": "tiny"}
    parts[0].cat(parts[1])
    parts[0].cat(parts[2])
    found = parts[0]
    assert found["number"].tolist() == [0, 1, 2] and found["text"] == ["t0", "t1", "t2"]
    assert found["list"] == [0, 0, 1, 1, 2, 2] and found["tuple"] == [0, 1, 2]
    assert found["token_dict"] == [{"last": [0]}, {"last": [1]}, {"last": [2]}]
    assert found["last_layernorm"]["mean"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert [tuple(one.shape) for one in found["shapes"]] == [(1, 1), (1, 2), (1, 3)]
    assert found["metadata"] == {"model_name": "tiny"}
    del parts[1]["text"]
    with pytest.raises(InterpError, match=r"Missing: \['text'\]"):
        found.cat(parts[1])
    with pytest.raises(InterpError, match="expected an ActivationCache"):
        found.cat({"text": "t"})  # type: ignore[arg-type]


def test_values_come_together_as_the_user_says() -> None:
    cache = ActivationCache()
    cache.register_aggregation("lab", lambda old, new: new if old is None else old + new)
    cache.register_aggregation("resid", lambda pair: torch.maximum(pair[0], pair[1]))  # as the page's version called it
    for start in (0.0, 5.0, 2.0):
        cache.cat(cache_of(2, 1, start))
    assert cache["labels"].tolist() == [0, 3] and cache["resid_out_0"].flatten().tolist() == [5, 6, 7, 8]
    cache.remove_aggregation("lab")
    cache.cat(cache_of(2, 1))
    assert cache["labels"].tolist() == [0, 3, 0, 1]


def test_running_means_are_weighed_by_their_examples() -> None:
    def mean_of(rows: list[list[float]], tokens: int) -> ActivationCache:
        values, cache = torch.tensor(rows), ActivationCache()
        there = ~values.isnan()
        cache.add_to_mean("avg_pattern_L0H0", values.nansum(0)[None], there.sum(0)[None].float(), {"all": tokens})
        return cache

    cache = mean_of([[1.0, NAN], [3.0, 5.0]], 2)
    assert cache["avg_pattern_L0H0"].tolist() == [[2, 5]]
    cache.cat(mean_of([[8.0, 9.0, 1.0]], 3))
    torch.testing.assert_close(cache["avg_pattern_L0H0"], torch.tensor([[4.0, 7.0, 1.0]]))
    cache.forget_means()
    assert cache.is_empty()


def test_texts_about_values() -> None:
    cache = ActivationCache()
    cache.add_with_info("head_out_L0H0", torch.ones(1, 2), "example, position")
    value = cache["head_out_L0H0"]
    assert isinstance(value, ValueWithInfo) and value.info() == "example, position" and value.value().shape == (1, 2)
    assert type(value + 1) is torch.Tensor and type(torch.cat([value, value])) is torch.Tensor
    other = ActivationCache()
    other.add_with_info("head_out_L0H0", torch.zeros(1, 2), "example, position")
    cache.cat(other)
    assert cache["head_out_L0H0"].info() == "example, position" and cache["head_out_L0H0"].shape == (2, 2)
    assert cache.to("cpu")["head_out_L0H0"].info() == "example, position"


def test_memory() -> None:
    cache = ActivationCache()
    for layer in range(3):
        cache[f"resid_out_{layer}"], cache[f"pattern_L{layer}H0"] = torch.zeros(10, 25), torch.zeros(2)
    cache["mapping_index"], cache["last_layernorm"] = {"last": [0]}, {"mean": torch.zeros(3)}
    assert cache.memory_size("resid_out_0") == "1.00 KB" and cache.memory_size("no") == "Not present: 0 B"
    assert cache.memory_size() == "3.04 KB"
    assert cache.memory_tree()["pattern_L2H0"] == "8.00 B"
    assert cache.memory_tree(grouped_tree=True) == {
        "resid_out": "3.00 KB (3 items)", "pattern": "24.00 B (3 items)", "last_layernorm": "12.00 B",
    }  # fmt: skip


def test_memory_tree_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    cache_of(2, 3).memory_tree(print_tree=True)
    assert "- resid_out_0: 32.00 B" in capsys.readouterr().out


def test_devices() -> None:
    cache = cache_of(1, 2)
    cache["last_layernorm"], cache["list"] = {"mean": torch.zeros(3)}, [torch.zeros(2), "text"]
    moved = cache.to("meta")
    assert moved is cache and cache["resid_out_0"].is_meta
    assert cache["last_layernorm"]["mean"].is_meta and cache["list"][0].is_meta and cache["list"][1] == "text"
    assert cache.map_to_dict("resid_out_0").keys() == {"all", "last"}


def test_a_file_gives_it_back(tmp_path: Path) -> None:
    cache = cache_of(2, 3)
    cache.add_with_info("head_out_L0H0", torch.ones(2, 4), "text")
    cache["token_dict"] = [{"last": [2], (0, 2): [0, 1], 3: [3]}]
    cache["same"] = cache["resid_out_0"]
    cache.add_metadata(["last", (0, 2)], "tiny", {"extract_resid_out": True}, None)
    cache.save(tmp_path / "cache.safetensors")
    loaded = ActivationCache.load(tmp_path / "cache.safetensors")
    assert list(loaded.keys()) == list(cache.keys()) and loaded["metadata"] == cache["metadata"]
    assert loaded["token_dict"] == cache["token_dict"] and loaded["head_out_L0H0"].info() == "text"
    assert torch.equal(loaded["same"], cache["resid_out_0"])
    loaded.cat(cache)
    assert loaded["resid_out_0"].shape == (4, 4, 1) and loaded.map_to_dict("resid_out_0")["all"].shape == (4, 3, 1)
    cache["object"] = object()
    with pytest.raises(InterpError, match="got <object"):
        cache.save(tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def test_what_has_no_positions_is_not_taken_apart() -> None:
    cache = cache_of(2, 3)
    with pytest.raises(InterpError, match="'labels' is no tensor"):
        cache.map_to_dict("labels")
    cache["of_my_own"] = torch.zeros(2, 4, 5)
    assert cache.map_to_dict("of_my_own")["all"].shape == (2, 3, 5)
