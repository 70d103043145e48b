"""Patching grids: TransformerLens's numbers, by the walk and by runs of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import InterpError
from interp.compat.transformer_lens import TransformerBridge, patching, patching_sweeps
from tests.interp.compat.transformer_lens.bridges import IDS, OTHER_IDS, bridge_of, new_bridge
from tests.interp.compat.transformer_lens.recorded_models import ANSWERS, group
from tests.interp.compat.transformer_lens.test_bridge_recorded import same


def difference(logits: Tensor) -> Tensor:
    return (logits[:, -1, ANSWERS[0]] - logits[:, -1, ANSWERS[1]]).mean()


def by_row(logits: Tensor) -> Tensor:
    return logits[:, -1, ANSWERS[0]] - logits[:, -1, ANSWERS[1]]


def everywhere(logits: Tensor) -> Tensor:
    """A metric that looks at every position, so that each cell is a run of its own."""
    return difference(logits) + 0 * logits.sum()


# TransformerLens writes only into what the MLP reads here, not into the stream, unless gradients are off.
NOT_THE_STREAM = ("resid_mid",)
APART = ("resid_mid", "attn_head_k_by_pos", "attn_head_pattern_all_pos")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_every_grid_both_ways(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, expected = bridge_of(family), group(family, "patching")
    _, clean = bridge.run_with_cache(IDS)
    runs = count_runs(bridge, monkeypatch)
    for name, values in expected.items():
        if name.startswith(("direct_path", "pattern_dest_src")):
            continue
        patch = getattr(patching, f"get_act_patch_{name}")
        runs.clear()
        walked = patch(bridge, OTHER_IDS, clean, difference)
        assert sum(runs) < 12  # one for each cell would be more
        if name in APART:
            apart = patch(bridge, OTHER_IDS, clean, everywhere)
            assert sum(runs) > walked.numel() and same(walked, apart), name
        assert name in NOT_THE_STREAM or same(walked, values), name


def count_runs(bridge: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one number with each forward pass of a bridge."""
    runs: list[int] = []
    forward = bridge.forward
    monkeypatch.setattr(bridge, "forward", lambda *args, **kwargs: runs.append(1) or forward(*args, **kwargs))
    return runs


@torch.no_grad()
def test_the_stream_between_attention_and_mlp() -> None:
    bridge = bridge_of("llama")
    _, clean = bridge.run_with_cache(IDS)
    grid = patching.get_act_patch_resid_mid(bridge, OTHER_IDS, clean, difference)
    layer, position = 1, 3

    def through(ids: Tensor, value: Tensor | None) -> Any:
        """The model by itself: what attention adds is replaced so that the stream behind it is another."""
        kept = []

        def before(module: Any, args: Any, kwargs: Any) -> None:
            kept.append(args[0] if args else kwargs["hidden_states"])

        def attended(module: Any, args: Any, output: Any) -> Any:
            kept.append(kept[-1] + output[0])
            if value is None:
                return None
            added = output[0].clone()
            added[:, position] = value[:, position] - kept[0][:, position]
            return (added, *output[1:])

        block = bridge.original_model.model.layers[layer]
        hooks = [block.register_forward_pre_hook(before, with_kwargs=True)]
        hooks.append(block.self_attn.register_forward_hook(attended))
        try:
            return bridge.original_model(ids).logits, kept[1]
        finally:
            for hook in hooks:
                hook.remove()

    _, stream = through(IDS, None)
    logits, _ = through(OTHER_IDS, stream)
    assert same(grid[layer, position], difference(logits))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_maps_and_direct_paths(family: str) -> None:
    bridge, expected = bridge_of(family), group(family, "patching")
    _, clean = bridge.run_with_cache(IDS)
    _, corrupted = bridge.run_with_cache(OTHER_IDS)
    _, short = bridge.run_with_cache(IDS[:, :3])
    found = patching.get_act_patch_attn_head_pattern_dest_src_pos(bridge, OTHER_IDS[:, :3], short, difference)
    assert same(found, expected["pattern_dest_src"])
    for name, values in expected.items():
        if name.startswith("direct_path"):
            given = (bridge, OTHER_IDS, clean, corrupted, difference, 0, 1)
            assert same(patching.get_act_patch_direct_path(*given, component=name[-1]), values)
    assert not bridge.cfg.use_split_qkv_input
    every = patching.get_act_patch_direct_path_all_sources(bridge, OTHER_IDS, clean, corrupted, difference)
    assert every.shape == (2, 4, 2, 4) and same(every[0, 1], expected["direct_path q"])
    if family == "llama":
        with pytest.raises(InterpError, match="share keys and values"):
            patching.get_act_patch_direct_path(*given, component="k")


@torch.no_grad()
def test_a_metric_may_refuse_logits_that_are_not_all_there() -> None:
    bridge = bridge_of("gpt2")
    _, clean = bridge.run_with_cache(IDS)

    def asserting(logits: Tensor) -> Tensor:
        assert not logits.isnan().any() and logits.shape[1] == IDS.shape[1]
        return difference(logits)

    expected = patching.get_act_patch_resid_pre(bridge, OTHER_IDS, clean, difference)
    assert same(patching.get_act_patch_resid_pre(bridge, OTHER_IDS, clean, asserting), expected)


@torch.no_grad()
def test_what_is_left_to_runs_of_their_own() -> None:
    bridge = bridge_of("gpt2")
    _, clean = bridge.run_with_cache(IDS)
    logits = bridge(OTHER_IDS)
    walk = partial(
        patching_sweeps.walked, bridge, OTHER_IDS, activation_name="z", measured=difference, unpatched=logits,
        before=difference(logits), cells=patching_sweeps.Cells([[0, 1]], None, 1, is_map=False),
    )  # fmt: skip
    assert walk(clean_cache=clean) is not None
    changed = bridge.run_with_cache(IDS)[1]
    changed.cache_dict["blocks.0.attn.hook_z"] *= 2
    assert walk(clean_cache=changed) is None
    with bridge.hooks([("blocks.1.hook_mlp_out", lambda value, hook: value * 2)]):
        assert walk(clean_cache=clean) is None
    assert walk(clean_cache=clean, activation_name="pre") is None


@torch.no_grad()
def test_rows_statistics_and_tables() -> None:
    bridge = bridge_of("gpt2")
    both = torch.cat([IDS, OTHER_IDS])
    _, clean = bridge.run_with_cache(both)
    result = patching.get_act_patch_attn_head_out_all_pos(
        bridge, both.flip(0), clean, {"difference": by_row, "twice": lambda logits: 2 * by_row(logits)}, reduce="none",
        baseline=True,
    )  # fmt: skip
    assert result.values.shape == (2, 2, 4, 2)
    assert torch.allclose(result["twice"].values, 2 * result["difference"].values)
    one = result["difference"]
    alone = patching.get_act_patch_attn_head_out_all_pos(bridge, OTHER_IDS, bridge.run_with_cache(IDS)[1], difference)
    assert same(one.values[..., 0], alone)
    assert same(one.effect(), one.values - by_row(bridge(both.flip(0))))
    assert same(one.normalized(by_row(bridge(both)))[0, 0], one.effect()[0, 0] / (by_row(bridge(both)) - one.baseline))
    low, high = one.bootstrap_ci(seed=1)
    assert bool(((low <= one.mean() + 1e-6) & (one.mean() <= high + 1e-6)).all())
    assert one.permutation_pvalue().shape == one.stderr().shape == (2, 4)
    table = result.to_dataframe()
    assert len(table) == 32 and set(table.columns) == {"metric", "layer", "head", "example", "value"}
    every = patching.get_act_patch_attn_head_by_pos_every(bridge, both.flip(0), clean, by_row, reduce="mean")
    assert every.shape == (5, 2, 5, 4)
    with pytest.raises(InterpError, match="one number"):
        patching.get_act_patch_resid_pre(bridge, both, clean, by_row)
    rows = patching.make_df_from_ranges([2, 2], ["layer", "pos"])
    flat = patching.generic_activation_patch(
        bridge, OTHER_IDS, bridge.run_with_cache(IDS)[1], difference, patching.layer_pos_patch_setter, "resid_pre",
        index_df=rows,
    )  # fmt: skip
    assert same(flat.reshape(2, 2), group("gpt2", "patching")["resid_pre"][:, :2])


@torch.no_grad()
def test_flat_norms_of_queries_are_left_to_runs_of_their_own() -> None:
    bridge = new_bridge("olmo2")
    _, clean = bridge.run_with_cache(IDS)
    found = patching.get_act_patch_attn_head_q_all_pos(bridge, OTHER_IDS, clean, difference)
    apart = patching.get_act_patch_attn_head_q_all_pos(bridge, OTHER_IDS, clean, everywhere)
    assert torch.equal(found, apart)
