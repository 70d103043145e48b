"""What a user does with the pieces that need no model, written once: `record.py` runs it with TransformerLens's, the
tests with ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

NAMES = [
    ("embed",), ("k", 6, "a"), ("pre", 2), ("normalized", 27, "ln2"), ("k6",), ("scale4ln1",), ("pre5",), ("scale",),
    ("resid_pre", 3), ("attn", 2), ("attn_out", 0), ("mlp_post", 1), ("rot_q", 4), ("attn_logits", 1), ("value", 2),
    ("pattern3",), ("hook_embed",), ("blocks.1.hook_in",), ("normalized",), ("pre_linear", 0), ("result", 1, "attn"),
]  # fmt: skip
SLICES: dict[str, Any] = {
    "none": None, "int": 1, "negative": -1, "stop": (2,), "range": (1, 4), "step": (0, 5, 2), "list": [0, 3],
    "tensor": torch.tensor([1, 1, 4]), "numpy": torch.tensor([0, 2]).numpy(), "slice": slice(1, None),
    "mask": torch.tensor([True, False, True, False, True]), "scalar": torch.tensor(2),
}  # fmt: skip


def module_class(lens: SimpleNamespace) -> type:
    """A module of a user's own: one layer of attention without a mask, and a sum."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hook_q = lens.HookPoint()
            self.hook_pattern = lens.HookPoint()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = self.hook_q(x.unflatten(-1, (2, 3)))  # (batch, position, head, size)
            pattern = self.hook_pattern(torch.einsum("bihd,bjhd->bhij", heads, heads).softmax(-1))
            return torch.einsum("bhij,bjhd->bihd", pattern, heads).flatten(-2)

    class Own(lens.HookedRootModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.hook_tokens = lens.HookPoint()
            self.hook_embed = lens.HookPoint()
            self.blocks = nn.ModuleList([Inner(), Inner()])
            self.hook_out = lens.HookPoint()
            table = torch.arange(60, dtype=torch.float32).reshape(10, 6)
            self.table = nn.Parameter((table * 37 % 11 - 5) / 8)
            self.setup()

        def forward(self, tokens: torch.Tensor, scale: float = 1.0, **more: Any) -> torch.Tensor:
            x = self.hook_embed(self.table[self.hook_tokens(tokens)])
            for block in self.blocks:
                x = x + block(x)
            return self.hook_out(x).square().mean() * scale

    return Own


def numbers(value: Any) -> Any:
    """A result as JSON holds it."""
    if isinstance(value, torch.Tensor):
        return [list(value.shape), [round(float(each), 6) for each in value.detach().flatten()]]
    if isinstance(value, dict):
        return {str(name): numbers(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [numbers(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value


def hooks(lens: SimpleNamespace) -> dict[str, Any]:
    """Hooks that come and go."""
    model, tokens, said, seen = module_class(lens)(), torch.tensor([[1, 2, 3, 4, 5]]), {}, []
    said["names"] = [list(model.hook_dict), list(model.mod_dict), [point.name for point in model.hook_points()]]
    said["layer"] = model.hook_dict["blocks.1.hook_q"].layer()

    def note(word: str) -> Any:
        return lambda tensor, hook: seen.append(f"{word} {hook.name}")

    def count() -> int:
        return sum(len(handles) for handles in model.list_hooks().values())

    model.add_hook("hook_embed", note("a"))
    model.add_hook("hook_embed", note("b"), prepend=True)
    model.add_hook(lambda name: name.endswith("hook_q"), note("c"))
    model.add_perma_hook("hook_out", note("permanent"))
    model(tokens)
    said["order"], seen[:] = list(seen), []
    said["listed"] = {name: len(handles) for name, handles in model.list_hooks().items()}
    said["listed without permanent"] = list(model.list_hooks(including_permanent=False))
    said["listed some"] = [list(model.list_hooks("hook_embed")), list(model.list_hooks(["hook_out"], dir="bwd"))]
    model.reset_hooks()
    said["after reset"] = [count(), list(model.list_hooks())]
    model.reset_hooks(including_permanent=True)
    said["after all"] = count()
    with model.hooks([("hook_embed", note("outer"))]):
        with model.hooks([("hook_embed", note("inner"))]):
            model(tokens)
            said["inside"] = count()
        said["outside the inner"] = count()
    said["outside both"], said["nested order"], seen[:] = count(), list(seen), []
    model.run_with_hooks(tokens, fwd_hooks=[("hook_out", note("kept"))], reset_hooks_end=False)
    said["kept"] = count()
    model.reset_hooks(level=2)
    said["other level"] = count()
    model.reset_hooks(level=1)
    said["its level"] = count()
    model.add_hook("hook_embed", note("mine"))
    model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", note("passing"))])
    said["mine stays"] = count()
    model.reset_hooks()
    try:
        model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda tensor, hook: 1 / 0)])
    except ZeroDivisionError:
        said["after an exception"] = count()

    def halve(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1
        return tensor / 2

    said["halved"] = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_pattern", halve)], scale=2.0)
    said["plain"] = model(tokens)
    said["context"] = dict(model.hook_dict["blocks.0.hook_pattern"].ctx)
    model.reset_hooks()
    said["context cleared"] = dict(model.hook_dict["blocks.0.hook_pattern"].ctx)
    gradients = []
    model.add_hook("hook_out", lambda gradient, hook: gradients.append(gradient.clone()), dir="bwd")
    model.add_hook("hook_embed", lambda gradient, hook: gradient * 0 + 1, dir="bwd")
    model(tokens).backward()
    said["gradients"] = [gradients[0], model.table.grad]
    model.reset_hooks(direction="fwd")
    said["backward stays"] = count()
    model.remove_all_hook_fns("bwd")
    said["backward goes"] = count()
    return numbers(said)


def caches(lens: SimpleNamespace) -> dict[str, Any]:
    """What is kept of a run."""
    model, tokens, said = module_class(lens)(), torch.tensor([[1, 2, 3, 4, 5]]), {}
    output, cache = model.run_with_cache(tokens)
    said["all"] = [output, {name: list(each.shape) for name, each in cache.items()}, cache["blocks.1.hook_pattern"]]
    said["one"] = list(model.run_with_cache(tokens, names_filter="hook_embed")[1])
    said["two"] = list(model.run_with_cache(tokens, names_filter=["hook_out", "hook_embed"])[1])
    said["some"] = list(model.run_with_cache(tokens, names_filter=lambda name: "pattern" in name)[1])
    cache = model.run_with_cache(tokens, incl_bwd=True, names_filter=["hook_embed", "blocks.0.hook_pattern"])[1]
    said["gradients"] = {name: cache[name] for name in sorted(cache)}
    said["filled"] = model.table.grad
    said["no batch"] = {
        name: list(each.shape) for name, each in model.run_with_cache(tokens, remove_batch_dim=True)[1].items()
    }
    with_positions = ["hook_embed", "blocks.0.hook_q", "blocks.0.hook_pattern"]
    for name, places in SLICES.items():
        cut = model.run_with_cache(tokens, names_filter=with_positions, pos_slice=places)[1]
        said[f"positions {name}"] = [[list(each.shape), float(each.sum())] for each in cut.values()]
    kept = model.add_caching_hooks("hook_out")
    model(tokens)
    said["added"] = [kept["hook_out"], [len(each) for each in model.list_hooks().values()]]
    model.reset_hooks()
    kept, forward, backward = model.get_caching_hooks(["hook_embed"], incl_bwd=True, cache={"before": 1})
    with model.hooks(forward, backward):
        model(tokens).backward()
    said["got"] = [sorted(kept), [name for name, _ in forward], [name for name, _ in backward]]
    some: dict[str, Any] = {}
    model.cache_some(some, lambda name: name == "hook_embed")
    model.cache_all(every := {})
    model(tokens)
    said["old names"] = [list(some), list(every)]
    model.reset_hooks()
    return numbers(said)


def functions(lens: SimpleNamespace) -> dict[str, Any]:
    """The small functions."""
    utilities, said = lens.utilities, {}
    said["names"] = [utilities.get_act_name(*name) for name in NAMES]
    grid = torch.arange(30.0).reshape(5, 6)
    for name, places in SLICES.items():
        cut = utilities.Slice(places)
        said[f"slice {name}"] = [cut.mode, cut.apply(grid), utilities.Slice.unwrap(places).apply(grid.T, dim=-1)]
        said[f"indices {name}"] = cut.indices(5).tolist()
    logits = torch.sin(torch.arange(60.0)).reshape(2, 5, 6)
    tokens = torch.tensor([[1, 2, 3, 4, 5], [0, 0, 4, 1, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    for name, each in {"all": None, "masked": mask}.items():
        for per_token in (False, True):
            said[f"loss {name} {per_token}"] = utilities.lm_cross_entropy_loss(logits, tokens, each, per_token)
    said["accuracy"] = [utilities.lm_accuracy(logits, tokens), utilities.lm_accuracy(logits, tokens, per_token=True)]
    said["numpy"] = [utilities.to_numpy(each).tolist() for each in (grid.bfloat16(), [1, 2], (3,), 4.0)]
    said["corner"] = utilities.get_corner(logits, 2)
    said["frame"] = utilities.logits_to_df(logits[0, 0], top_k=3).to_dict("list")
    said["repeated"] = utilities.repeat_along_head_dimension(logits[:, :2, :2], 2)
    said["sums"] = [utilities.get_cumsum_along_dim(grid, 0), utilities.get_cumsum_along_dim(grid, -1, reverse=True)]
    said["shapes"] = [
        utilities.is_square(grid),
        utilities.is_lower_triangular(torch.eye(2)),
        list(utilities.transpose(logits).shape),
    ]
    said["batch"] = [list(utilities.remove_batch_dim(each).shape) for each in (grid, grid[:1])]
    said["prefix"] = utilities.filter_dict_by_prefix({"a.b": 1, "ab": 2, "a.c.d": 3}, "a")
    said["positions"] = utilities.get_offset_position_ids(2, mask)
    for side in ("left", "right"):
        for bos, padding in ((1, 0), (0, 0)):
            named = SimpleNamespace(
                pad_token_id=padding, bos_token_id=bos, padding_side=side, bos_token="b", pad_token="p"
            )
            rows = torch.tensor([[0, 0, 3, 0, 4], [1, 2, 0, 0, 0], [0, 5, 6, 7, 8]])
            for prepend in (False, True):
                said[f"mask {side} {bos} {prepend}"] = utilities.get_attention_mask(named, rows, prepend)
    return numbers(said)


def key_values(lens: SimpleNamespace) -> dict[str, Any]:
    """Keys and values of tokens that were seen."""
    said: dict[str, Any] = {}
    config = lens.Config(d_model=8, d_head=2, n_layers=2, n_ctx=16, n_heads=4, n_key_value_heads=2, device="cpu")
    cache = lens.KeyValueCache.init_cache(config, torch.device("cpu"), batch_size=2)
    said["empty"] = [list(cache[1].past_keys.shape), list(cache.previous_attention_mask.shape), cache.frozen]
    first, second = torch.arange(24.0).reshape(2, 3, 2, 2), torch.arange(8.0).reshape(2, 1, 2, 2)
    cache[0].append(first, -first)
    said["mask"] = cache.append_attention_mask(torch.ones(2, 3, dtype=torch.int))
    cache.freeze()
    keys, values = cache[0].append(second, -second)
    said["frozen"] = [keys, values, cache[0].past_keys, cache.append_attention_mask(torch.zeros(2, 1, dtype=torch.int))]
    said["still"] = [list(cache.previous_attention_mask.shape), cache.entries[0].frozen, cache.frozen]
    cache.unfreeze()
    cache[0].append(second, -second)
    said["unfrozen"] = [list(cache[0].past_values.shape), cache.entries[1].frozen]
    return numbers(said)


def config(lens: SimpleNamespace) -> dict[str, Any]:
    """A config made by hand."""
    said: dict[str, Any] = {}
    for name, given in {
        "few": dict(d_model=64, d_head=16, n_layers=2, n_ctx=128, device="cpu"),
        "more": dict(
            d_model=64, d_head=8, n_layers=2, n_ctx=128, n_heads=4, d_vocab=100, act_fn="gelu", d_mlp=96,
            n_key_value_heads=2, attn_types=["local", "global"], window_size=4, normalization_type="RMS",
            init_mode="kaiming", rotary_base=500000, device="cpu", use_attn_result=True, default_prepend_bos=False,
        ),
    }.items():  # fmt: skip
        made = lens.Config(**given)
        fields = {field: value for field, value in made.to_dict().items() if not isinstance(value, torch.dtype)}
        said[name] = [fields, str(made.dtype), made.head_dim]
    return numbers(said)


SCENARIOS = {each.__name__: each for each in (hooks, caches, functions, key_values, config)}
