"""Activation patching as TransformerLens has it: `get_act_patch_resid_pre(model, corrupted, clean_cache, metric)`.

Each cell writes a part of the clean run's cache into the corrupted run. Where the metric looks at the last token alone,
and the cache is that of a clean run, cells walk up the layers together (`interp.patching`); else each is a run of its
own. Which of the two is found out: the results are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from interp.compat.transformer_lens.names import get_act_name
from interp.compat.transformer_lens.patching_setters import (
    layer_head_dest_src_pos_pattern_patch_setter,
    layer_head_pattern_patch_setter,
    layer_head_pos_pattern_patch_setter,
    layer_head_vector_patch_setter,
    layer_pos_head_vector_patch_setter,
    layer_pos_patch_setter,
)
from interp.compat.transformer_lens.patching_sweeps import Cells, walked
from interp.compat.transformer_lens.patching_values import PatchingResult
from interp.errors import InterpError

if TYPE_CHECKING:
    import pandas as pd

    from interp.compat.transformer_lens.bridge import TransformerBridge
    from interp.compat.transformer_lens.named_cache import ActivationCache

__all__ = [
    "PatchingResult",
    "generic_activation_patch",
    "get_act_patch_attn_head_all_pos_every",
    "get_act_patch_attn_head_by_pos_every",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_out",
    "get_act_patch_block_every",
    "get_act_patch_direct_path",
    "get_act_patch_direct_path_all_sources",
    "get_act_patch_mlp_out",
    "get_act_patch_resid_mid",
    "get_act_patch_resid_pre",
    "layer_head_dest_src_pos_pattern_patch_setter",
    "layer_head_pattern_patch_setter",
    "layer_head_pos_pattern_patch_setter",
    "layer_head_vector_patch_setter",
    "layer_pos_head_vector_patch_setter",
    "layer_pos_patch_setter",
    "make_df_from_ranges",
]

Metric = Callable[[Tensor], Any]
Setter = Callable[[Tensor, Sequence[int], Tensor], Tensor]


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> pd.DataFrame:
    """A row for each combination of indices from 0, the last column changing fastest."""
    import pandas as pd

    return pd.DataFrame(list(itertools.product(*map(range, column_max_ranges))), columns=list(column_names))


# Setter -> where the position and the head stand in its index; None: all of them.
_WALKS: dict[Any, tuple[int | None, int | None]] = {
    layer_pos_patch_setter: (1, None),
    layer_pos_head_vector_patch_setter: (1, 2),
    layer_head_vector_patch_setter: (None, 1),
    layer_head_pattern_patch_setter: (None, 1),
    layer_head_pos_pattern_patch_setter: (2, 1),
}
_OF_MAPS = (layer_head_pattern_patch_setter, layer_head_pos_pattern_patch_setter)


# The grid -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generic_activation_patch(
    model: TransformerBridge,
    corrupted_tokens: Tensor,
    clean_cache: ActivationCache,
    patching_metric: Metric | Mapping[str, Metric],
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    return_index_df: bool = False,
    *,
    reduce: str = "scalar",
    baseline: bool = False,
) -> Any:
    """Patch every cell of a grid.

    Arguments:
        model: the model.
        corrupted_tokens: (batch, position), what is written into.
        clean_cache: what is written, of `model.run_with_cache(clean_tokens)`.
        patching_metric: of logits (batch, position, d_vocab): one number, or with another `reduce` one a row; or name
            -> metric.
        patch_setter: (corrupted value, index, clean value) -> what the model goes on with.
        activation_name: short, as `get_act_name` takes it with a layer: "resid_pre", "z", "pattern".
        index_axis_names: axes of the grid, the layer first: of "layer", "pos", "head", "head_index", "src_pos",
            "dest_pos".
        index_df: a row a cell in place of a whole grid, the layer first.
        return_index_df: also the table of cells.
        reduce: "scalar": the metric is one number; "mean": the mean over rows; "none": every row, a `PatchingResult`.
        baseline: also the metric of the corrupted run as it is, in a `PatchingResult`.

    Returns:
        The metric by cell, a tensor with the grid's axes (with `index_df` one axis); or a `PatchingResult`.

    Raises:
        InterpError: neither or both of axes and table, an unknown axis or reduction, or a metric of another shape.
    """
    if reduce not in ("scalar", "mean", "none"):
        raise InterpError(f"reduce: expected 'scalar', 'mean' or 'none', got {reduce!r}.")
    if (index_axis_names is None) == (index_df is None):
        raise InterpError("expected index_axis_names or index_df, one of them.")
    metrics = dict(patching_metric) if isinstance(patching_metric, Mapping) else {"metric": patching_metric}
    named = isinstance(patching_metric, Mapping)
    as_result = named or reduce == "none" or baseline
    if as_result and return_index_df:
        raise InterpError("return_index_df: a PatchingResult has its index_df.")
    shape = _shape(model, corrupted_tokens, activation_name, index_axis_names)
    if index_df is None:
        index_df = make_df_from_ranges(shape, index_axis_names or ())
    else:
        shape = [len(index_df)]
    indices = [[int(place) for place in row] for row in index_df.itertuples(index=False)]
    rows = int(corrupted_tokens.shape[0])

    def measured(logits: Tensor) -> Tensor:
        """(metric,) or (metric, row)."""
        found = [torch.as_tensor(metric(logits)).detach().float().cpu() for metric in metrics.values()]
        wanted = () if reduce == "scalar" else (rows,)
        for name, value in zip(metrics, found, strict=True):
            if value.shape != wanted:
                raise InterpError(
                    f"patching_metric {name!r}: reduce={reduce!r} expects {wanted or 'one number'}, got shape "
                    f"{tuple(value.shape)}."
                )
        return torch.stack(found)

    unpatched = model(corrupted_tokens)
    before = measured(unpatched)
    values = None
    if patch_setter in _WALKS:
        where, head = _WALKS[patch_setter]
        cells = Cells(indices, where, head, is_map=patch_setter in _OF_MAPS)
        values = walked(model, corrupted_tokens, clean_cache, activation_name, cells, measured, unpatched, before)
    if values is None:
        values = torch.stack(
            [
                measured(_patched(model, corrupted_tokens, clean_cache, patch_setter, activation_name, index))
                for index in indices
            ]
        )
    values = values.movedim(0, 1)  # metric, cell[, row]
    values = values.reshape(len(metrics), *shape, *values.shape[2:])
    if reduce == "mean":
        values, before = values.mean(-1), before.mean(-1)
    values, before = values.to(corrupted_tokens.device), before.to(corrupted_tokens.device)
    if not as_result:
        return (values[0], index_df) if return_index_df else values[0]
    return PatchingResult(
        values=values if named else values[0],
        axis_names=list(index_axis_names or ()),
        index_df=index_df,
        metric_names=list(metrics),
        reduced=reduce != "none",
        baseline=(before if named else before[0]) if baseline else None,
        has_metric_axis=named,
    )


def _shape(model: TransformerBridge, tokens: Tensor, activation_name: str, names: Sequence[str] | None) -> list[int]:
    shared = activation_name in ("k", "v", "rot_k") and model.cfg.n_key_value_heads is not None
    heads = model.cfg.n_key_value_heads if shared else model.cfg.n_heads
    positions = int(tokens.shape[-1])
    ranges = {
        "layer": model.cfg.n_layers, "pos": positions, "src_pos": positions, "dest_pos": positions,
        "head": heads, "head_index": heads,
    }  # fmt: skip
    unknown = [name for name in names or () if name not in ranges]
    if unknown:
        raise InterpError(f"index_axis_names: unknown {unknown}; known are {list(ranges)}.")
    return [int(ranges[name] or 0) for name in names or ()]


def _patched(
    model: TransformerBridge, tokens: Tensor, clean: ActivationCache, setter: Setter, name: str, index: list[int]
) -> Tensor:
    """The logits of one run with one cell written."""
    full = get_act_name(name, index[0])
    value = clean[full]

    def patch(corrupted: Tensor, hook: Any) -> Tensor:
        return setter(corrupted.clone() if corrupted.requires_grad else corrupted, index, value)

    logits: Tensor = model.run_with_hooks(tokens, fwd_hooks=[(full, patch)])
    return logits


_by_pos = ("layer", "pos")
_head_by_pos = partial(
    generic_activation_patch,
    patch_setter=layer_pos_head_vector_patch_setter,
    index_axis_names=("layer", "pos", "head"),
)
_head = partial(
    generic_activation_patch, patch_setter=layer_head_vector_patch_setter, index_axis_names=("layer", "head")
)
_at = partial(generic_activation_patch, patch_setter=layer_pos_patch_setter, index_axis_names=_by_pos)

get_act_patch_resid_pre = partial(_at, activation_name="resid_pre")
get_act_patch_resid_mid = partial(_at, activation_name="resid_mid")
get_act_patch_attn_out = partial(_at, activation_name="attn_out")
get_act_patch_mlp_out = partial(_at, activation_name="mlp_out")
get_act_patch_attn_head_out_by_pos = partial(_head_by_pos, activation_name="z")
get_act_patch_attn_head_q_by_pos = partial(_head_by_pos, activation_name="q")
get_act_patch_attn_head_k_by_pos = partial(_head_by_pos, activation_name="k")
get_act_patch_attn_head_v_by_pos = partial(_head_by_pos, activation_name="v")
get_act_patch_attn_head_out_all_pos = partial(_head, activation_name="z")
get_act_patch_attn_head_q_all_pos = partial(_head, activation_name="q")
get_act_patch_attn_head_k_all_pos = partial(_head, activation_name="k")
get_act_patch_attn_head_v_all_pos = partial(_head, activation_name="v")
get_act_patch_attn_head_pattern_by_pos = partial(
    generic_activation_patch,
    patch_setter=layer_head_pos_pattern_patch_setter,
    activation_name="pattern",
    index_axis_names=("layer", "head_index", "dest_pos"),
)
get_act_patch_attn_head_pattern_dest_src_pos = partial(
    generic_activation_patch,
    patch_setter=layer_head_dest_src_pos_pattern_patch_setter,
    activation_name="pattern",
    index_axis_names=("layer", "head_index", "dest_pos", "src_pos"),
)
get_act_patch_attn_head_pattern_all_pos = partial(
    generic_activation_patch,
    patch_setter=layer_head_pattern_patch_setter,
    activation_name="pattern",
    index_axis_names=("layer", "head_index"),
)


def get_act_patch_attn_head_all_pos_every(
    model: TransformerBridge, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Any, **kwargs: Any
) -> Any:
    """Every head's output, query, key, value and pattern: (patch type, layer, head); shared heads are filled with 0.

    Arguments:
        model, corrupted_tokens, clean_cache, metric, kwargs: as of `generic_activation_patch`.
    """
    found = [
        patch(model, corrupted_tokens, clean_cache, metric, **kwargs)
        for patch in (
            get_act_patch_attn_head_out_all_pos,
            get_act_patch_attn_head_q_all_pos,
            get_act_patch_attn_head_k_all_pos,
            get_act_patch_attn_head_v_all_pos,
            get_act_patch_attn_head_pattern_all_pos,
        )
    ]
    return _every(found, ("layer", "head"), _OF_HEADS)


def get_act_patch_attn_head_by_pos_every(
    model: TransformerBridge, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Any, **kwargs: Any
) -> Any:
    """Every head's output, query, key, value and pattern at each position: (patch type, layer, position, head).

    Arguments:
        model, corrupted_tokens, clean_cache, metric, kwargs: as of `generic_activation_patch`.
    """
    found = [
        patch(model, corrupted_tokens, clean_cache, metric, **kwargs)
        for patch in (
            get_act_patch_attn_head_out_by_pos,
            get_act_patch_attn_head_q_by_pos,
            get_act_patch_attn_head_k_by_pos,
            get_act_patch_attn_head_v_by_pos,
            get_act_patch_attn_head_pattern_by_pos,
        )
    ]
    return _every(found, ("layer", "pos", "head"), _OF_HEADS)


def get_act_patch_block_every(
    model: TransformerBridge, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Any, **kwargs: Any
) -> Any:
    """The residual stream before each layer, attention's and the MLP's output: (patch type, layer, position).

    Arguments:
        model, corrupted_tokens, clean_cache, metric, kwargs: as of `generic_activation_patch`.
    """
    found = [
        patch(model, corrupted_tokens, clean_cache, metric, **kwargs)
        for patch in (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    ]
    return _every(found, _by_pos, ("resid_pre", "attn_out", "mlp_out"))


_OF_HEADS = ("out", "q", "k", "v", "pattern")


def _every(found: list[Any], axes: tuple[str, ...], names: tuple[str, ...]) -> Any:
    """Grids of several values on a leading axis. Maps have their head before the position."""
    if not isinstance(found[0], Tensor):
        return PatchingResult.stacked(found, axes, names)
    if "head" not in axes:
        return torch.stack(found)
    if "pos" in axes:
        found = [*found[:-1], found[-1].transpose(1, 2)]
    heads = max(each.shape[-1] for each in found)
    return torch.stack([functional.pad(each, (0, heads - each.shape[-1])) for each in found])


# Direct paths ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def get_act_patch_direct_path(
    model: TransformerBridge,
    corrupted_tokens: Tensor,
    clean_cache: ActivationCache,
    corrupted_cache: ActivationCache,
    patching_metric: Metric,
    src_layer: int,
    src_head: int,
    component: str = "q",
    verbose: bool = True,
) -> Tensor:
    """What one head tells each later head through its queries, keys or values alone (Wang et al. 2022, 2211.00593).

    What the head adds in the clean run in place of the corrupted one is added to a later head's own copy of the
    residual stream, before the norm; everything else reads the corrupted run's.

    Arguments:
        model: the model.
        corrupted_tokens: (batch, position).
        clean_cache, corrupted_cache: of both runs, with `blocks.{src_layer}.attn.hook_z`.
        patching_metric: of logits: one number.
        src_layer, src_head: the head that tells.
        component: "q", "k" or "v" of the heads that are told.
        verbose: of TransformerLens; no bar is shown.

    Returns:
        (layer, head), the metric; 0 in layers up to `src_layer`.

    Raises:
        InterpError: no such component; keys and values that several heads share; or a norm or scale between the head
            and the residual stream.
    """
    if component not in ("q", "k", "v"):
        raise InterpError(f"component: expected 'q', 'k' or 'v', got {component!r}.")
    heads = int(model.cfg.n_heads)
    if component != "q" and model.cfg.n_key_value_heads not in (None, heads):
        raise InterpError(f"component={component!r}: several heads share keys and values here. Patch 'q'.")
    added = f"blocks.{src_layer}.hook_attn_out"
    if model.hook_dict[added] is not model.hook_dict[f"blocks.{src_layer}.attn.hook_out"]:
        raise InterpError(f"{added} is not what the heads add: a norm or a scale stands between.")
    name = f"blocks.{src_layer}.attn.hook_z"
    weight = model.weight_of("W_O", f"blocks.{src_layer}.attn")[src_head]
    delta = (clean_cache[name][:, :, src_head] - corrupted_cache[name][:, :, src_head]) @ weight
    results = torch.zeros(model.cfg.n_layers, heads, device=corrupted_tokens.device)
    was = model.cfg.use_split_qkv_input
    model.set_use_split_qkv_input(True)
    try:
        for layer, head in itertools.product(range(src_layer + 1, model.cfg.n_layers), range(heads)):
            hook = partial(_add_to_head, head=head, delta=delta)
            logits = model.run_with_hooks(
                corrupted_tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_{component}_input", hook)]
            )
            results[layer, head] = float(patching_metric(logits))
    finally:
        model.set_use_split_qkv_input(was)
    return results


def _add_to_head(value: Tensor, hook: Any, head: int, delta: Tensor) -> Tensor:
    value = value.clone()
    value[:, :, head] += delta
    return value


def get_act_patch_direct_path_all_sources(
    model: TransformerBridge,
    corrupted_tokens: Tensor,
    clean_cache: ActivationCache,
    corrupted_cache: ActivationCache,
    patching_metric: Metric,
    component: str = "q",
    verbose: bool = True,
) -> Tensor:
    """`get_act_patch_direct_path` from every head: (layer, head, later layer, head).

    Arguments:
        model, corrupted_tokens, clean_cache, corrupted_cache, patching_metric, component, verbose: as of
            `get_act_patch_direct_path`.
    """
    count, heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    found = [
        get_act_patch_direct_path(
            model, corrupted_tokens, clean_cache, corrupted_cache, patching_metric, layer, head, component
        )
        for layer, head in itertools.product(range(count), range(heads))
    ]
    return torch.stack(found).reshape(count, heads, count, heads)
