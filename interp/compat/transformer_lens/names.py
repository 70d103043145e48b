"""TransformerLens's short ways to write a hook point's name."""

from __future__ import annotations

import re

__all__ = ["get_act_name"]

_IN_ATTENTION = {"k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores"}
_IN_MLP = {"pre", "post", "mid", "pre_linear"}
_NAMES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_mid": "mid",
    "mlp_post": "post",
}
_PARTS = {"a": "attn", "m": "mlp", "b": "", "block": "", "blocks": "", "attention": "attn"}


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The hook point's name that a short one means.

        get_act_name("k", 6)                    blocks.6.attn.hook_k
        get_act_name("k6")                      the same
        get_act_name("resid_pre", 2)            blocks.2.hook_resid_pre
        get_act_name("normalized", 27, "ln2")   blocks.27.ln2.hook_normalized
        get_act_name("scale4ln1")               blocks.4.ln1.hook_scale
        get_act_name("scale")                   ln_final.hook_scale
        get_act_name("embed")                   hook_embed

    Arguments:
        name: what stands behind `hook_`, also `attn` for the pattern, `key`, `query`, `value`; digits behind it are the
            layer, and letters behind these the part. A whole name is given back as it is.
        layer: the layer, where the name is of one.
        layer_type: the part of a layer: `attn` or `a`, `mlp` or `m`, `ln1`, `ln2`, ...; a name that stands in one
            part only needs none.
    """
    if ("." in name or name.startswith("hook_")) and layer is None and layer_type is None:
        return name
    short = re.match(r"([a-z_]+)(\d+)(.*)", name)
    if short is not None:
        name, layer, layer_type = short.groups()
    name = _NAMES.get(name, name)
    if name in _IN_ATTENTION:
        layer_type = "attn"
    elif name in _IN_MLP:
        layer_type = "mlp"
    elif layer_type is not None:
        layer_type = _PARTS.get(layer_type, layer_type)
    if layer is None and name in ("scale", "normalized"):
        return f"ln_final.{layer_type + '.' if layer_type else ''}hook_{name}"
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{layer_type + '.' if layer_type else ''}hook_{name}"
