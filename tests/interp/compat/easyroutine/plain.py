"""What easyroutine's keys are, by plain torch hooks on a Llama of transformers, one example at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EXAMPLES = [[1, 5, 9, 30], [1, 40, 50, 60, 70, 80, 90], [1, 7, 33, 21, 11]]


def padded(rows: list[list[int]], side: str) -> dict[str, Tensor]:
    """A batch of examples with padding on one side."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        at = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, at], mask[index, at] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def plain_keys(model: Any, ids: list[int]) -> dict[str, Tensor]:
    """Every key of every flag, of all positions of one example, without its batch axis."""
    config, found, handles = model.config, {}, []
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads

    def keep(name: str, side: str) -> Any:
        def hook(_: Any, args: Any, kwargs: Any, output: Any = None) -> None:
            value = output if side == "output" else (args[0] if args else kwargs["hidden_states"])
            found[name] = (value[0] if isinstance(value, tuple) else value)[0].clone()

        return hook

    def watch(module: Any, name: str, side: str) -> None:
        if side == "output":
            handles.append(module.register_forward_hook(keep(name, side), with_kwargs=True))
        else:
            handles.append(module.register_forward_pre_hook(keep(name, side), with_kwargs=True))

    for i, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        for module, name, side in (
            (layer, "resid_in", "input"), (layer, "resid_out", "output"), (attention, "attn_in", "input"),
            (layer.input_layernorm, "resid_in_post_layernorm", "output"), (attention.o_proj, "attn_out", "output"),
            (layer.post_attention_layernorm, "resid_mid", "input"), (layer.mlp, "mlp_out", "output"),
            (attention.o_proj, "z", "input"), (attention.v_proj, "values", "output"),
        ):  # fmt: skip
            watch(module, f"{name}_{i}", side)
        watch(attention.k_proj, f"keys_L{i}", "output")
        watch(attention.q_proj, f"queries_L{i}", "output")
    watch(model.model.norm, "norm_in", "input")
    before, config._attn_implementation = config._attn_implementation, "eager"
    try:
        output = model(input_ids=torch.tensor([ids]), output_attentions=True)
    finally:
        config._attn_implementation = before
        for handle in handles:
            handle.remove()
    found["logits"] = output.logits[0]
    found["input_embeddings"] = found["resid_in_0"]
    for i, layer in enumerate(model.model.layers):
        weight, z = layer.self_attn.o_proj.weight, found.pop(f"z_{i}")
        width = z.shape[-1] // heads
        for head in range(heads):
            own, group = (
                slice(head * width, (head + 1) * width),
                slice(head // groups * width, (head // groups + 1) * width),
            )
            values, keys, queries = found[f"values_{i}"], found[f"keys_L{i}"], found[f"queries_L{i}"]
            name = f"L{i}H{head}"
            found[f"head_values_{name}"], found[f"head_keys_{name}"] = values[:, group], keys[:, group]
            found[f"head_queries_{name}"] = queries[:, own]
            found[f"head_out_{name}"] = z[:, own] @ weight[:, own].T
            found[f"projected_value_{name}"] = values[:, group] @ weight[:, own].T
            found[f"projected_key_{name}"] = keys[:, group] @ weight[:, own].T
            found[f"projected_query_{name}"] = queries[:, own] @ weight[:, own].T
            found[f"pattern_{name}"] = output.attentions[i][0, head]
    return found
