"""The bridge's call, hooks and caches: what TransformerLens's do, and what is refused that they swallow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import InterpError
from interp.compat.transformer_lens import TransformerBridge, TransformerLensKeyValueCache
from tests.interp.compat.transformer_lens.bridges import IDS, OTHER_IDS, bridge_of, new_bridge
from tests.interp.compat.transformer_lens.recorded_models import made, words
from tests.interp.compat.transformer_lens.test_bridge_recorded import same

BOTH = torch.cat([IDS, OTHER_IDS])
RESID = "blocks.1.hook_resid_pre"


@pytest.fixture(params=["gpt2", "llama"])
def bridge(request: pytest.FixtureRequest) -> Iterator[TransformerBridge]:
    """A bridge that a test leaves without hooks."""
    found = bridge_of(request.param)
    yield found
    assert not found.list_hooks()


@torch.no_grad()
def test_a_hook_at_every_point(bridge: TransformerBridge) -> None:
    """What is put back changes nothing; a hook that fails leaves nothing behind."""
    plain = bridge(BOTH)
    with opened(bridge):
        for name in dict.fromkeys(point.name for point in bridge.hook_points()):
            assert name is not None
            if name.endswith("hook_attn_in") and not bridge.cfg.use_attn_in:
                continue
            assert same(bridge.run_with_hooks(BOTH, fwd_hooks=[(name, lambda value, hook: value.clone())]), plain)
            with pytest.raises(ZeroDivisionError):
                bridge.run_with_hooks(BOTH, fwd_hooks=[(name, lambda value, hook: 1 / 0)])
            assert not bridge.list_hooks()
    assert same(bridge(BOTH), plain)


class opened:
    """Every gate but that which takes the place of others."""

    def __init__(self, bridge: TransformerBridge) -> None:
        self.bridge = bridge

    def __enter__(self) -> None:
        self._set(True)
        self.bridge.set_use_attn_in(self.bridge.cfg.n_key_value_heads is None)

    def __exit__(self, *_: object) -> None:
        self._set(False)
        self.bridge.set_use_attn_in(False)

    def _set(self, value: bool) -> None:
        for name in ("attn_result", "split_qkv_input", "hook_mlp_in", "attn_in"):
            getattr(self.bridge, f"set_use_{name}")(value)


def in_place(value: Tensor, hook: Any) -> None:
    value[:, 1] *= 1.5
    value[:, 1] += torch.linspace(0, 1, value.shape[-1])


@torch.no_grad()
def test_hooks_live_as_long_as_they_say(bridge: TransformerBridge) -> None:
    seen: list[str] = []

    def note(word: str) -> Any:
        return lambda value, hook: seen.append(f"{word} {hook.name}")

    bridge.add_hook(RESID, note("first"))
    bridge.add_hook("blocks.1.hook_in", note("before it"), prepend=True)
    bridge.add_perma_hook(lambda name: name.endswith("0.hook_resid_post"), note("permanent"))
    point = bridge.hook_dict["hook_embed"]
    bridge.check_and_add_hook(point, "hook_embed", note("checked"), level=3)
    assert {name: len(handles) for name, handles in bridge.list_hooks().items()} == {
        "hook_embed": 1, "blocks.0.hook_resid_post": 1, RESID: 2,
    }  # fmt: skip
    bridge(IDS)
    assert seen == [
        "checked hook_embed",
        "permanent blocks.0.hook_resid_post",
        "before it blocks.1.hook_in",
        f"first {RESID}",
    ]
    seen.clear()
    bridge.generate(IDS, max_new_tokens=2, do_sample=False)
    assert seen.count(f"first {RESID}") == 2
    bridge.reset_hooks(level=3)
    assert "hook_embed" not in bridge.list_hooks()
    with bridge.hooks([(RESID, note("inside"))]):
        assert len(bridge.list_hooks(RESID)[RESID]) == 3
    assert len(bridge.list_hooks(RESID)[RESID]) == 2
    bridge.reset_hooks()
    assert list(bridge.list_hooks()) == ["blocks.0.hook_resid_post"]
    bridge.reset_hooks(including_permanent=True)


def test_backward_hooks_change_the_gradient(bridge: TransformerBridge) -> None:
    kept: dict[str, Tensor] = {}

    def doubled(gradient: Tensor, hook: Any) -> Tensor:
        kept["given"] = gradient.clone()
        return 2 * gradient

    def grad_of(value: Tensor, hook: Any) -> None:
        value.retain_grad()
        kept["value"] = value

    with bridge.hooks([("blocks.0.hook_resid_post", grad_of)], [(RESID, doubled)]):
        bridge(IDS, return_type="loss").backward()
    bridge.zero_grad()
    gradient = kept["value"].grad
    assert gradient is not None and same(gradient, 2 * kept["given"]) and bool(gradient.abs().max() > 0)
    with pytest.raises(InterpError, match="bwd_hooks would be gone"):
        bridge.run_with_hooks(IDS, bwd_hooks=[(RESID, doubled)])


@torch.no_grad()
def test_from_layer_to_layer(bridge: TransformerBridge) -> None:
    logits, cache = bridge.run_with_cache(IDS)
    assert same(bridge(IDS, stop_at_layer=1), cache["resid_pre", 1])
    assert same(bridge(IDS, stop_at_layer=-1), cache["resid_pre", 1])
    assert same(bridge(cache["resid_pre", 1], start_at_layer=1), logits)
    assert same(bridge(IDS, stop_at_layer=2), logits)
    _, lower = bridge.run_with_cache(IDS, stop_at_layer=1)
    assert {int(name.split(".")[1]) for name in lower if name.startswith("blocks.")} == {0, 1}
    assert RESID in lower and "blocks.1.attn.hook_z" not in lower and "ln_final.hook_scale" not in lower
    _, upper = bridge.run_with_cache(cache["resid_pre", 1], start_at_layer=1)
    assert "hook_embed" not in upper and same(upper["pattern", 1], cache["pattern", 1])
    doubled = bridge.run_with_hooks(
        2 * cache["resid_pre", 1], start_at_layer=1, fwd_hooks=[(RESID, lambda value, hook: value / 2)]
    )
    assert same(doubled, logits)
    with pytest.raises(InterpError, match="does not reach it"):
        bridge.run_with_cache(IDS, stop_at_layer=1, names_filter="blocks.1.attn.hook_z")
    with pytest.raises(InterpError, match="has no tokens"):
        bridge(cache["resid_pre", 1], start_at_layer=1, return_type="loss")
    with pytest.raises(InterpError, match="expected the residual stream"):
        bridge(IDS, start_at_layer=1)
    with pytest.raises(InterpError, match="has 2 layers"):
        bridge(cache["resid_pre", 1], start_at_layer=2)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "falcon"])
@torch.no_grad()
def test_a_frozen_prefix(family: str) -> None:
    bridge = bridge_of(family)
    whole, cache = bridge.run_with_cache(BOTH)
    past = TransformerLensKeyValueCache.init_cache(bridge.cfg, None, 1)
    bridge(IDS[:, :2], past_kv_cache=past)
    assert past[0].past_keys.shape[1] == past.previous_attention_mask.shape[1] == 2
    past.freeze()
    rest = BOTH[:, 2:]
    for _ in range(2):  # one row goes on as two, as often as one likes
        assert same(bridge(rest, past_kv_cache=past), whole[:, 2:])
    assert past[0].past_keys.shape[1] == 2
    name = "blocks.1.attn.hook_pattern"
    _, found = bridge.run_with_cache(rest, past_kv_cache=past)
    assert same(found[name], cache[name][:, :, 2:])
    assert same(found["v", 1], cache["v", 1][:, 2:]) and same(found["resid_post", 1], cache["resid_post", 1][:, 2:])
    if "blocks.1.attn.hook_rot_k" in bridge.hook_dict:
        assert same(found["rot_k", 1], cache["rot_k", 1][:, 2:])
    hooks = [("blocks.0.attn.hook_z", lambda value, hook: value * torch.tensor([0.0, 1, 1, 1])[:, None])]
    edited = [(hooks[0][0], lambda value, hook: torch.cat([value[:, :2], hooks[0][1](value[:, 2:], hook)], 1))]
    expected = bridge.run_with_hooks(BOTH, fwd_hooks=edited)[:, 2:]
    assert same(bridge.run_with_hooks(rest, fwd_hooks=hooks, past_kv_cache=past), expected)
    past.unfreeze()
    bridge(IDS[:, 2:3], past_kv_cache=past)
    assert past[0].past_keys.shape[1] == past[1].past_values.shape[1] == 3
    assert same(bridge(IDS[:, 3:], past_kv_cache=past), whole[:1, 3:])


@torch.no_grad()
def test_a_frozen_prefix_with_padding(bridge: TransformerBridge) -> None:
    ids = torch.tensor([[0, 0, 1, 7, 21], [1, 7, 12, 30, 12]])
    mask = (ids != 0).int()
    whole = bridge(ids, attention_mask=mask)
    past = TransformerLensKeyValueCache.init_cache(bridge.cfg, None, 2)
    bridge(ids[:, :3], attention_mask=mask[:, :3], past_kv_cache=past)
    past.freeze()
    assert same(bridge(ids[:, 3:], past_kv_cache=past), whole[:, 3:])
    assert same(whole[:1, 2:], bridge(ids[:1, 2:]))
    with pytest.raises(InterpError, match="does not run all layers"):
        past.unfreeze()
        bridge(ids[:, 3:], past_kv_cache=past, stop_at_layer=1)


@torch.no_grad()
def test_a_cache_of_transformers(bridge: TransformerBridge) -> None:
    whole = bridge(BOTH)
    logits, past = bridge(BOTH[:, :2], return_type="logits_and_cache")
    assert same(logits, whole[:, :2])
    assert same(bridge(BOTH[:, 2:], past_key_values=past), whole[:, 2:]) and past.get_seq_length() == 5


@torch.no_grad()
def test_from_a_folder(tmp_path: Path) -> None:
    """Falcon is loaded with eager attention, without which it has no pattern; weights are float32 unless one says."""
    made("falcon").half().save_pretrained(tmp_path)  # type: ignore[operator]
    words().save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    assert bridge.cfg.dtype == torch.float32 and "blocks.0.attn.hook_pattern" in bridge.hook_dict
    assert bridge(IDS).shape == (1, 5, 32)
    half = TransformerBridge.boot_transformers(tmp_path, device="cpu", dtype=torch.float16)
    assert half.cfg.dtype == torch.float16 and "blocks.0.attn.hook_q" in half.hook_dict
    assert TransformerBridge.boot_transformers(half.standardized).standardized is half.standardized
    named = TransformerBridge.boot_transformers(str(tmp_path), hf_model=made("falcon"))  # whose tokenizer it is
    assert named.to_tokens("a b").tolist() == [[1, 4, 5]]


@torch.no_grad()
def test_what_is_refused(bridge: TransformerBridge) -> None:
    refused: list[tuple[Any, str]] = [
        ("blocks.0.attn.hook_patern", "hook_pattern"),
        (["hook_embed", "blocks.0.hook_mlpout"], "hook_mlp_out"),
        (lambda name: "no such" in name, "none of the"),
        ([], "empty list"),
        ("blocks.9.hook_resid_pre", "no hook point"),
    ]
    for names_filter, message in refused:
        with pytest.raises(InterpError, match=message):
            bridge.run_with_cache(IDS, names_filter=names_filter)
    with pytest.raises(InterpError, match="hook_resid_pre"):
        bridge.run_with_hooks(IDS, fwd_hooks=[("blocks.0.hook_resid_pe", in_place)])
    with pytest.raises(InterpError, match="names_filter"):
        bridge.run_with_cache(IDS, name_filter="hook_embed")
    with pytest.raises(TypeError, match="past_key"):
        bridge(IDS, past_key_value=None)
    with pytest.raises(InterpError, match="return_type"):
        bridge(IDS, return_type="predictions")
    with pytest.raises(InterpError, match="of shape"):
        bridge.run_with_hooks(IDS, fwd_hooks=[(RESID, lambda value, hook: value[:, :1])])
    with pytest.raises(InterpError, match="of one"):
        bridge.run_with_cache(BOTH, remove_batch_dim=True)
    with pytest.raises(InterpError, match="start_at_layer"):
        bridge(torch.zeros(1, 5, 16))
    with pytest.raises(InterpError, match="no 'hook_nothing'"):
        bridge.run_with_cache(IDS)[1]["nothing"]


@torch.no_grad()
def test_a_function_leaves_out_what_does_not_fire(bridge: TransformerBridge, caplog: pytest.LogCaptureFixture) -> None:
    """Points that are off with a word; those that the pass does not reach as what they are."""
    attention = bridge.run_with_cache(IDS, names_filter=lambda name: "attn" in name)[1]
    assert "blocks.1.attn.hook_z" in attention.cache_dict and "blocks.1.attn.hook_result" not in attention.cache_dict
    assert "set_use_attn_result" in caplog.text and "blocks.1.attn.hook_result" in caplog.text
    assert bridge.run_with_cache(IDS, names_filter=lambda name: True)[1].keys() == bridge.run_with_cache(IDS)[1].keys()
    caplog.clear()
    bridge.run_with_hooks(IDS, fwd_hooks=[(lambda name: name.endswith(("hook_z", "hook_result")), in_place)])
    assert "fwd_hooks: left out" in caplog.text
    caplog.clear()
    lower = bridge.run_with_cache(IDS, names_filter=lambda name: "resid" in name, stop_at_layer=1)[1]
    assert list(lower)[-1] == RESID and not caplog.text
    with pytest.raises(InterpError, match="set_use_attn_result"):
        bridge.run_with_cache(IDS, names_filter=lambda name: name.endswith("hook_result"))
    with pytest.raises(InterpError, match="does not reach it"):
        bridge.run_with_cache(IDS, names_filter=lambda name: name.endswith("1.hook_resid_post"), stop_at_layer=1)


@torch.no_grad()
def test_hooks_without_the_batch_axis(bridge: TransformerBridge) -> None:
    shapes: list[tuple[int, ...]] = []

    def halved(value: Tensor, hook: Any) -> Tensor:
        shapes.append(tuple(value.shape))
        return value / 2

    def in_half(value: Tensor, hook: Any) -> None:
        value /= 2

    whole = bridge.run_with_hooks(IDS, fwd_hooks=[(RESID, halved)])
    assert same(bridge.run_with_hooks(IDS, fwd_hooks=[(RESID, halved)], remove_batch_dim=True), whole)
    assert same(bridge.run_with_hooks(IDS, fwd_hooks=[(RESID, in_half)], remove_batch_dim=True), whole)
    bridge.run_with_hooks(BOTH, fwd_hooks=[(RESID, halved)], remove_batch_dim=True)
    assert shapes == [(1, 5, 16), (5, 16), (2, 5, 16)]


@torch.no_grad()
def test_names_that_a_family_lacks() -> None:
    neox, mixtral = bridge_of("gpt_neox"), bridge_of("mixtral")
    for bridge, name, reason in [
        (neox, "blocks.0.hook_resid_mid", "parallel residual"),
        (mixtral, "blocks.0.mlp.hook_pre", "mixture of experts"),
        (mixtral, "hook_pos_embed", "rotary"),
        (bridge_of("gpt2"), "blocks.0.attn.hook_rot_q", "does not rotate"),
        (bridge_of("gpt2"), "blocks.0.mlp.hook_pre_linear", "no gate"),
        (bridge_of("olmo2"), "blocks.0.ln1.hook_scale", "no norm before attention"),
    ]:
        assert name not in bridge.hook_dict
        with pytest.raises(InterpError, match=reason):
            bridge.run_with_cache(IDS, names_filter=name)
        with pytest.raises(InterpError, match=reason):
            bridge.run_with_hooks(IDS, fwd_hooks=[(name, in_place)])


@torch.no_grad()
def test_texts_losses_and_batches(bridge: TransformerBridge) -> None:
    texts = ["a b no yes", "c d"]
    tokens = bridge.to_tokens(texts)
    assert tokens.tolist() == [[1, 4, 5, 31, 30], [0, 0, 1, 6, 7]]
    logits = bridge(texts)
    assert same(logits[1, 2:], bridge(texts[1])[0])
    alone = [bridge(text, return_type="loss", loss_per_token=True) for text in texts]
    assert same(bridge.loss(texts), torch.cat([one.flatten() for one in alone]).mean())
    given, loss = bridge(texts, return_type="both")
    assert torch.equal(given, logits) and same(loss, bridge(texts, return_type="loss"))
    assert bridge(texts, return_type=None) is None
    assert bridge.get_token_position("no", texts[0]) == 3
    with pytest.raises(InterpError, match="is not among"):
        bridge.get_token_position("z", texts[0])
    with pytest.raises(InterpError, match="2 tokens"):
        bridge.to_single_token("a b")


@torch.no_grad()
def test_generation(bridge: TransformerBridge) -> None:
    plain = bridge.generate("a b no", max_new_tokens=6, do_sample=False, stop_at_eos=False)
    assert isinstance(plain, str) and plain.startswith("a b no")
    ids = bridge.generate(IDS, max_new_tokens=6, do_sample=False, stop_at_eos=False, repetition_penalty=1.0)
    stopped = bridge.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=int(ids[0, 6]))
    end = int((stopped[0, 5:] == ids[0, 6]).nonzero()[0]) + 6
    assert torch.equal(stopped, ids[:, :end])
    text, cache = bridge.generate(
        "a b no", max_new_tokens=2, do_sample=False, return_cache=True, names_filter="hook_embed"
    )
    assert cache["embed"].shape[1] == 6 and isinstance(text, str)
    with pytest.raises(InterpError, match="expected one prompt"):
        bridge.generate(BOTH, return_cache=True)
    torch.manual_seed(0)
    drawn = [
        bridge.generate(BOTH, max_new_tokens=5, top_k=3, stop_at_eos=False, freq_penalty=penalty)
        for penalty in (0.0, 1e4)
    ]
    assert all(one.shape == (2, 10) for one in drawn)
    assert all(len(set(row)) == len(row) for row in drawn[1][:, 5:].tolist())  # what stands there is not said again
    both = bridge.generate(["a b no", "c"], max_new_tokens=3, do_sample=False, stop_at_eos=False)
    alone = bridge.generate("c", max_new_tokens=3, do_sample=False, stop_at_eos=False)
    assert both[1] == alone


@torch.no_grad()
def test_a_row_in_a_batch_is_what_it_is_alone(bridge: TransformerBridge) -> None:
    alone = bridge.run_with_cache(IDS[:, :3])[1]
    for padded, mask, own in (
        ([[1, 7, 12, 0, 0], OTHER_IDS[0].tolist()], [[1, 1, 1, 0, 0], [1] * 5], slice(0, 3)),
        ([[0, 0, 1, 7, 12], OTHER_IDS[0].tolist()], [[0, 0, 1, 1, 1], [1] * 5], slice(2, 5)),
    ):
        _, cache = bridge.run_with_cache(torch.tensor(padded), attention_mask=torch.tensor(mask))
        for name in ("resid_post", "z", "mlp_out"):
            assert same(cache[name, 1][:1, own], alone[name, 1])
        assert same(cache["pattern", 1][:1, :, own, own], alone["pattern", 1])


@torch.no_grad()
def test_the_cache_is_a_copy_by_every_name(bridge: TransformerBridge) -> None:
    _, cache = bridge.run_with_cache(IDS)
    assert torch.equal(cache["blocks.0.attn.q.hook_out"], cache["q", 0]) and torch.equal(cache["q0"], cache["q", 0])
    assert torch.equal(cache["resid_post", -1], cache["ln_final.hook_in"])
    assert len(cache) == len(cache.keys()) == len(list(cache.items()))
    before = cache["hook_embed"].clone()
    bridge.run_with_hooks(IDS, fwd_hooks=[("hook_embed", lambda value, hook: value.zero_())])
    assert torch.equal(cache["hook_embed"], before)
    plain = bridge.run_with_cache(IDS, return_cache_object=False)[1]
    assert isinstance(plain, dict) and plain.keys() == cache.cache_dict.keys()
    rows = bridge.run_with_cache(BOTH)[1]
    assert same(rows.apply_slice_to_batch_dim(0)["z", 1], cache["z", 1][0])
    assert rows.apply_slice_to_batch_dim([1])["z", 1].shape[0] == 1
    assert not cache.remove_batch_dim(batch_size=1).has_batch_dim and cache["z", 1].dim() == 3
    with pytest.raises(InterpError, match="of 2 rows"):
        rows.remove_batch_dim()
    there = bridge.run_with_cache(IDS, device="meta", names_filter="hook_embed")[1]
    assert there["embed"].device.type == "meta"
    assert bridge.run_with_cache(IDS, names_filter=("hook_embed",))[1].to("meta")["embed"].device.type == "meta"
    with pytest.raises(InterpError, match="refactor_factored_attn_matrices"):
        bridge.enable_compatibility_mode(refactor_factored_attn_matrices=True)
    with torch.enable_grad():
        cache.toggle_autodiff()
        assert not torch.is_grad_enabled()


@torch.no_grad()
def test_parts_and_weights_by_name(bridge: TransformerBridge) -> None:
    _, cache = bridge.run_with_cache(IDS)
    block = bridge.blocks[0]
    assert block.attn.hook_q is bridge.hook_dict["blocks.0.attn.hook_q"]
    assert len(bridge.blocks) == 2 and bridge.hook_embed is bridge.embed.hook_out
    assert same(torch.einsum("bphd,hdm->bpm", cache["z", 0], block.attn.W_O) + block.attn.b_O, cache["attn_out", 0])
    given = cache["normalized", 0, "ln1"] * block.ln1.weight + lifted(block)
    assert same(torch.einsum("bpm,hmd->bphd", given, bridge.W_Q[0]) + bridge.b_Q[0], cache["q", 0])
    assert same(cache["post", 0] @ bridge.W_out[0] + bridge.b_out[0], cache["mlp_out", 0])
    assert same(cache["ln_final.hook_out"] @ bridge.W_U + bridge.b_U, bridge(IDS))
    assert torch.equal(bridge.W_E[IDS], cache["hook_embed"])
    with pytest.raises(InterpError, match="W_Q"):
        bridge.weight_of("W_q", "blocks.0.attn")
    with pytest.raises(AttributeError):
        bridge.no_such_thing  # noqa: B018
    assert hasattr(bridge, "W_gate") == bridge.cfg.gated_mlp == hasattr(block.mlp, "hook_pre_linear")
    assert hasattr(bridge, "W_pos") == hasattr(bridge, "pos_embed") and not hasattr(block, "hook_resid_middle")
    with pytest.raises(InterpError, match=r"no gate|nothing is added"):
        bridge.W_pos if bridge.cfg.gated_mlp else bridge.W_gate  # noqa: B018


@torch.no_grad()
def test_parts_called_in_a_hook_are_no_part_of_the_pass(bridge: TransformerBridge) -> None:
    """A logit lens inside a hook, as scripts have it."""
    plain, cache = bridge.run_with_cache(IDS)
    read: list[Tensor] = []

    def lens(resid: Tensor, hook: Any) -> None:
        read.append(bridge.unembed(bridge.ln_final(resid)))

    names = [f"blocks.{layer}.hook_resid_post" for layer in range(2)]
    with bridge.hooks([(name, lens) for name in names] + [("ln_final.hook_scale", lambda value, hook: value * 1)]):
        logits, found = bridge.run_with_cache(IDS)
    assert same(logits, plain) and same(read[1], plain) and same(found["ln_final.hook_out"], cache["ln_final.hook_out"])
    assert same(read[0], bridge.unembed(bridge.ln_final(cache["resid_post", 0])))


def lifted(block: Any) -> Tensor:
    bias: Tensor = getattr(block.ln1.original_component, "bias", torch.zeros(1))
    return bias


def test_a_model_of_its_own_stays_as_it_is() -> None:
    bridge = new_bridge("gpt2")
    given = bridge.original_model
    with torch.no_grad():
        before = given(IDS).logits
        bridge.add_hook(RESID, lambda value, hook: value * 0)
        bridge.enable_compatibility_mode()
        assert not torch.allclose(bridge(IDS), before)
        assert torch.equal(given(IDS).logits, before)
    assert list(bridge.list_hooks()) == [RESID]
    assert bridge.cfg.normalization_type == "LNPre"


def test_what_version_4_removed_is_pointed_from() -> None:
    with pytest.raises(ImportError, match=r"write TransformerBridge\.boot_transformers\(name\)"):
        from interp.compat.transformer_lens import HookedTransformer  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'TransformerBrige'"):
        from interp.compat.transformer_lens import TransformerBrige  # type: ignore[attr-defined]  # noqa: F401
