"""The stage `collect` in a run folder: values, resuming, and what it refuses."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
import zarr
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from interp.errors import InterpError
from pipeline.artifacts.tokens import Row, TaskData, load_prompts, prompts_digest
from pipeline.project import CODE
from pipeline.stages import collect as stage
from pipeline.stages.common import stage_main
from pipeline.stages.tokenize import write_tokens
from pipeline.store import open_store
from tests.pipeline.stages.killed import run_stage
from tests.pipeline.store.example import on_operation, tree
from tests.tiny import HIDDEN_SIZE, NUM_LAYERS

ModelFolder = Callable[[str], Path]
LENGTHS = [5, 9, 4, 12, 7, 5, 6, 8, 4, 10, 5]


def rows() -> list[Row]:
    """Prompts of several lengths, each with a span `query` of one to three tokens."""
    random = np.random.default_rng(0)
    return [
        Row(f"prompt {i}", random.integers(3, 400, size=n).tolist(), spans={"query": (1, 2 + i % 3)})
        for i, n in enumerate(LENGTHS)
    ]


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: ModelFolder) -> Callable[..., Path]:
    """`run_folder(name, family, **sections)`: a run folder with its `tokens/`, made the current folder."""
    source = tmp_path / "models"
    label = uuid.uuid4().hex  # the scratch folder of no other test run

    def make(name: str = "run", family: str = "llama", **sections: dict[str, Any]) -> Path:
        model = source / family
        if not model.exists():
            shutil.copytree(model_folder(family), model)
        folder = tmp_path / name
        folder.mkdir()
        params = {
            "model": {"name": label, "source": f"../models/{family}", "device_map": "cpu", "depends_on": str(model)},
            "collect": {"sites": ["resid_post.*", "attn_out.1-2"], "positions": ["last", "query.all"], "block_size": 2},
            "store": {"chunk_bytes": 512},
        }
        OmegaConf.save(
            OmegaConf.create({s: {**v, **sections.get(s, {})} for s, v in params.items()}), folder / "params.yaml"
        )
        monkeypatch.chdir(folder)
        write_tokens(TaskData(rows()), "tokens", kind="next_token", tokenizer_digest="0" * 64)
        return folder

    return make


def plain_hidden_states(folder: Path, ids: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(layer, position, hidden): what transformers itself gives for one prompt; not the last layer, which it norms."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.stack(states[1:-1])[:, 0]


def test_values_positions_and_attributes(run_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = run_folder(collect={"sites": ["embed", "resid_post.*", "attn_out.1-2", "logits"]})
    with caplog.at_level("INFO", "interpipe"):
        measured = stage.collect_activations()
    # 11 prompts x 4 positions x (embed 1 + resid_post 4 + attn_out 2) x 32 + logits 400, in float32
    assert f"{stage.readable_bytes(11 * 4 * (7 * 32 + 400) * 4)}" in caplog.text
    assert measured["tokens"] == sum(LENGTHS)
    assert measured["model_seconds"] > 0

    store = open_store("activations.zarr", verify=True)
    prompts = load_prompts()
    assert store.attributes["format"] == "interpipe.activations/1"
    assert store.attributes["sites"] == {
        "embed": [None], "resid_post": [0, 1, 2, 3], "attn_out": [1, 2], "logits": [None],
    }  # fmt: skip
    assert store.attributes["position_names"] == ["last", "query.all[0]", "query.all[1]", "query.all[2]"]
    assert store.attributes["prompts_digest"] == prompts_digest(prompts)
    assert store.attributes["model"]["source"] == "../models/llama"
    assert len(store.attributes["model"]["digest"]) == 64
    assert store.attributes["dtype"] == "float32"
    assert store.attributes["config"]["batch_tokens"] is None
    for name in ("resid_post", "attn_out", "logits"):
        assert store.dimensions(name) == ("layer", "prompt", "position", "hidden")

    table, offsets = store.static("positions"), store.static("input_offsets")
    hidden = store.read("resid_post")
    assert hidden.shape == (NUM_LAYERS, len(prompts), 4, HIDDEN_SIZE)
    for number, row in enumerate(prompts):
        start, stop = row.spans["query"]
        query = list(range(start, stop))
        assert table[number].tolist() == [len(row.input_ids) - 1, *query, *[-1] * (3 - len(query))]
        assert store.static("input_ids")[offsets[number] : offsets[number + 1]].tolist() == list(row.input_ids)
        expected = plain_hidden_states(folder.parent / "models/llama", list(row.input_ids))
        for column, position in enumerate(table[number]):
            if position < 0:
                assert np.isnan(hidden[:, number, column]).all()
            else:
                np.testing.assert_allclose(hidden[:-1, number, column], expected[:, position], rtol=1e-5, atol=1e-5)
    assert store.read("embed", layer=0, prompt=0, position=0).shape == (HIDDEN_SIZE,)
    assert not any(str(folder.parent).encode() in data for data in tree(Path("activations.zarr")).values())


def test_a_remote_model_gives_what_it_gives_here(run_folder: Callable[..., Path]) -> None:
    """In a process of its own: nnsight's simulation of a server takes modules and classes of this one apart."""
    sites = {"sites": ["resid_post.*", "z.1"], "positions": ["last"], "batch_tokens": 12}
    run_folder("here", collect=sites)
    stage.collect_activations()
    here = open_store("activations.zarr")
    far = run_folder("far", collect=sites, model={"remote": True})
    key = "this-is-no-one's-key"
    environment = {**os.environ, "PYTHONPATH": str(CODE), "NDIF_API_KEY": key}
    command = [sys.executable, "-c", "from tests.pipeline.stages.simulated import main; main()"]
    ran = subprocess.run(command, cwd=far, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    there = open_store("activations.zarr", verify=True)
    assert ran.stdout.split() == [str(there.num_blocks + 1)]  # sessions; one sees how wide heads are
    for name in here.arrays:
        np.testing.assert_allclose(there.read(name), here.read(name), rtol=1e-4, atol=1e-5)
    assert there.attributes["model"]["remote"] is True
    assert there.attributes["model"]["digest"] != here.attributes["model"]["digest"]  # of no weights
    kept = b"".join(file.read_bytes() for file in far.rglob("*") if file.is_file())
    assert key.encode() not in kept and key not in ran.stderr


def test_sites_with_heads(run_folder: Callable[..., Path]) -> None:
    sites = ["resid_post.*", "z.*.h0", "z.2.h3", "pattern.1", "k.1", "q.*.h1", "q.2.h3", "head_out.3", "scores.1"]
    folder = run_folder(collect={"sites": sites, "positions": ["all"]}, model={"attention_implementation": "eager"})
    stage.collect_activations()
    store = open_store("activations.zarr", verify=True)
    assert {name: store.spec(name).dimensions[3:] for name in store.arrays} == {
        "resid_post": ("hidden",), "q": ("head", "head_dim"), "k": ("kv_head", "head_dim"), "z": ("head@z", "head_dim"),
        "pattern": ("head@pattern", "key"), "scores": ("head@scores", "key"), "head_out": ("head@head_out", "hidden"),
    }  # fmt: skip
    assert store.attributes["heads"] == {"q": [1, 3], "z": [0, 3]}  # of all layers, where one names it
    assert store.attributes["sites"]["head_out"] == [3]
    assert store.static("head").tolist() == [1, 3] and store.static("kv_head").tolist() == [0, 1]
    assert store.shape("pattern") == (1, len(LENGTHS), max(LENGTHS), 4, max(LENGTHS))

    model: Any = AutoModelForCausalLM.from_pretrained(folder.parent / "models/llama", attn_implementation="eager")
    seen: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        block.self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, layer=layer: seen.__setitem__(layer, args[0][0].unflatten(-1, (4, 8)))
        )
    plainly = zarr.open_group("activations.zarr", mode="r", zarr_format=3)
    dataset = xarray.open_zarr("activations.zarr", consolidated=False)
    for prompt, row in enumerate(load_prompts()):
        length = len(row.input_ids)
        with torch.no_grad():
            output = model(torch.tensor([list(row.input_ids)]), output_attentions=True, use_cache=True)
        for layer in range(NUM_LAYERS):
            z = store.read("z", layer=layer, prompt=prompt, position=slice(length))
            np.testing.assert_allclose(z, seen[layer][:, [0, 3]].numpy(), rtol=1e-4, atol=1e-5)
        pattern = output.attentions[1][0].transpose(0, 1).numpy()  # (query, head, key)
        weight = model.model.layers[3].self_attn.o_proj.weight.T.unflatten(0, (4, 8))
        expected = {
            "pattern": pattern,
            "k": output.past_key_values.layers[1].keys[0].transpose(0, 1).numpy(),
            "head_out": torch.einsum("phd,hde->phe", seen[3], weight).detach().numpy(),
        }
        for name, values in expected.items():
            own = (0, prompt, slice(length), slice(None), slice(values.shape[-1]))
            for read in (store.read(name), plainly[name][...], dataset[name].values):
                np.testing.assert_allclose(read[own], values, rtol=1e-4, atol=1e-5)
                assert np.isnan(read[0, prompt, length:]).all()
            if name == "pattern":
                assert np.isnan(store.read(name)[0, prompt, :, :, length:]).all()
        scores = torch.from_numpy(store.read("scores", layer=0, prompt=prompt))[:length, :, :length]
        np.testing.assert_allclose(scores.softmax(-1).numpy(), pattern, rtol=1e-4, atol=1e-5)


def test_sites_with_heads_resume_and_round(run_folder: Callable[..., Path]) -> None:
    collect = {"sites": ["pattern.*", "scores.2", "z.0.h1-2"], "positions": ["all"], "dtype": "bfloat16"}
    whole = run_folder("whole", collect=collect)
    stage.collect_activations()
    expected = tree(whole / "activations.zarr")
    store = open_store(whole / "activations.zarr", verify=True)
    exact = run_folder("exact", collect={**collect, "dtype": "float32"})
    stage.collect_activations()
    single = open_store(exact / "activations.zarr")
    for name in store.arrays:
        rounded = torch.from_numpy(single.read(name)).to(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(store.read(name), rounded)
    assert np.isneginf(store.read("scores")).any()  # what is masked lies beyond bfloat16

    killed = run_folder("killed", collect=collect)
    for kill in (("^open .*/pattern/c/", 2), (r"^open .*/complete/\d+\.json", 1)):
        run_stage("collect", killed, kill)
    run_stage("collect", killed)
    assert tree(killed / "activations.zarr") == expected


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_model_in_half_precision_is_kept_bit_by_bit(run_folder: Callable[..., Path], name: str) -> None:
    # One prompt a batch is what transformers computes, without the rounding that padding adds.
    folder = run_folder(model={"dtype": name}, collect={"batch_tokens": 1, "positions": ["last"]})
    stage.collect_activations()
    store = open_store("activations.zarr")
    assert store.dtype("resid_post") == store.attributes["dtype"] == name
    for number, row in enumerate(load_prompts()):
        dtype = getattr(torch, name)
        expected = plain_hidden_states(folder.parent / "models/llama", list(row.input_ids), dtype)[:, -1]
        got = store.read("resid_post", layer=[0, 1, 2], prompt=number, position=0)
        np.testing.assert_array_equal(got.astype(np.float32), expected.float().numpy())


def test_a_cast_rounds_as_torch_does_and_gives_smaller_files(run_folder: Callable[..., Path]) -> None:
    run_folder("full")
    stage.collect_activations()
    full = open_store("activations.zarr").read("resid_post")
    for dtype in (torch.bfloat16, torch.float16):
        run_folder(str(dtype), collect={"dtype": str(dtype).removeprefix("torch.")})
        stage.collect_activations()
        store = open_store("activations.zarr")
        expected = torch.from_numpy(full).to(dtype).float().numpy()
        np.testing.assert_array_equal(store.read("resid_post").astype(np.float32), expected)
        assert store.bytes_on_disk("resid_post") < 0.6 * 4 * full.size


def test_a_killed_stage_goes_on_and_leaves_the_same_bytes(run_folder: Callable[..., Path]) -> None:
    run_folder("undisturbed")
    stage.collect_activations()
    expected = tree(Path("activations.zarr"))
    folder = run_folder("killed")
    # In the header; in a shard; and at the second block of the process that goes on.
    for kill in (("^open .*/positions/", 0), ("^open .*/resid_post/c/", 3), (r"^open .*/complete/\d+\.json", 1)):
        run_stage("collect", folder, kill)
        assert not (folder / "activations.zarr").exists()
    measured = stage.collect_activations()
    assert 0 < measured["tokens"] < sum(LENGTHS)
    assert tree(Path("activations.zarr")) == expected


def test_a_full_disk_is_said_and_the_same_command_goes_on(
    run_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder("undisturbed")
    stage.collect_activations()
    expected = tree(Path("activations.zarr"))

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = run_folder("full")
    with monkeypatch.context() as patch:
        on_operation(85, full, patch.setattr)
        with pytest.raises(SystemExit):
            stage_main("collect", stage.collect_activations)
    assert "the disk is full" in capsys.readouterr().err
    assert not (folder / "activations.zarr").exists()
    with monkeypatch.context() as patch:
        patch.setattr(stage.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10))
        with pytest.raises(InterpError, match=r"free on the disk of .*, found 10 B"):
            stage.collect_activations()
    assert 0 < stage.collect_activations()["tokens"] < sum(LENGTHS)
    assert tree(Path("activations.zarr")) == expected


def test_a_stage_stopped_before_publishing_only_publishes(
    run_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "publish", interrupted)
        stage.collect_activations()
    assert stage.collect_activations()["tokens"] == 0
    open_store("activations.zarr", verify=True)


def test_another_model_at_the_same_place_starts_anew(run_folder: Callable[..., Path]) -> None:
    folder = run_folder()
    stage.collect_activations()
    before = open_store("activations.zarr").attributes["model"]["digest"]
    model = AutoModelForCausalLM.from_pretrained(folder.parent / "models/llama")
    model.model.norm.weight.data *= 2
    model.save_pretrained(folder.parent / "models/llama")
    assert stage.collect_activations()["tokens"] == sum(LENGTHS)
    assert open_store("activations.zarr").attributes["model"]["digest"] != before


def test_values_outside_the_range_name_their_place() -> None:
    values = torch.ones(2, 3, 1, 4)
    positions = np.array([[0], [5], [-1]])
    values[:, 2] = float("nan")  # where there is no position
    kept = stage.as_stored("resid_post", values, "float16", positions, [3, 7], 64)
    assert kept.dtype == np.float16
    assert np.isnan(kept[:, 2]).all()
    values[1, 1, 0, 2] = 1e5
    with pytest.raises(
        InterpError, match=r"resid_post\.7, prompt 65, token 5, unit 2: .*100000 is inf in float16.*float32"
    ):
        stage.as_stored("resid_post", values, "float16", positions, [3, 7], 64)
    assert stage.as_stored("resid_post", values, "bfloat16", positions, [3, 7], 64).dtype == np.uint16
    values[1, 1, 0, 2] = float("nan")
    with pytest.raises(InterpError, match=r"embed, prompt 65.* model itself overflows: set model\.dtype"):
        stage.as_stored("embed", values[1:], "float32", positions, [None], 64)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"collect": {"sites": ["resid_post.7"]}}, r"layer 7 is out of range. The model has 4 layers"),
        ({"collect": {"positions": ["query.5"]}}, r"collect.positions, prompt 0 \('prompt 0'\): position 'query.5'"),
        ({"collect": {"positions": ["source.last"]}}, r"no span 'source'. Known: query"),
        (
            {"collect": {"dtype": "float61"}},
            r"collect.dtype: expected one of model, float32, bfloat16, float16, got .float61.",
        ),
        ({"model": {"source": "../models/none"}}, r"expected a folder with a model"),
    ],
)
def test_what_cannot_be_collected_is_said(
    run_folder: Callable[..., Path], sections: dict[str, dict[str, Any]], message: str
) -> None:
    folder = run_folder(**sections)
    with pytest.raises(InterpError, match=message):
        stage.collect_activations()
    assert not (folder / "activations.zarr").exists()


def test_without_prompts_there_is_nothing_to_collect(run_folder: Callable[..., Path]) -> None:
    run_folder()
    write_tokens(TaskData([]), "tokens", kind="next_token", tokenizer_digest="0" * 64)
    with pytest.raises(InterpError, match="holds no prompt"):
        stage.collect_activations()
