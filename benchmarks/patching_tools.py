"""One grid of patches by one tool: `python -m benchmarks.patching_tools TOOL WORK FOLDER EVERY`, a process of its own.

Prints the seconds of the processor that it took, and writes (example, layer, place) logit differences. It runs in other
environments too, so nothing of the repository is imported before it is known to be there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Grid = Callable[[list[int]], np.ndarray]
"""Layers -> (example, layer, place)."""


def with_transformer_lens(folder: Path, work: str, clean: Tensor, corrupted: Tensor, answers: Tensor) -> Grid:
    """`get_act_patch_resid_pre` and `get_act_patch_attn_head_out_all_pos`; of some layers, by what they are made of."""
    import pandas as pd
    from transformer_lens import patching  # type: ignore[import-not-found]
    from transformer_lens.model_bridge import TransformerBridge  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    bridge = TransformerBridge.boot_transformers(
        str(folder / "model"), hf_model=model.requires_grad_(False), tokenizer=tokenizer
    )

    def grid(layers: list[int]) -> np.ndarray:
        measured: list[Tensor] = []

        def metric(logits: Tensor) -> Tensor:
            measured.append(difference(logits[:, -1], answers))
            return measured[-1].mean()

        _, cache = bridge.run_with_cache(clean)
        measured.clear()
        if len(layers) == bridge.cfg.n_layers:
            whole = patching.get_act_patch_resid_pre if work == "resid_pre" else (
                patching.get_act_patch_attn_head_out_all_pos
            )  # fmt: skip
            whole(bridge, corrupted, cache, metric)
        else:
            axis, count = ("pos", clean.shape[1]) if work == "resid_pre" else ("head", bridge.cfg.n_heads)
            setter = patching.layer_pos_patch_setter if axis == "pos" else patching.layer_head_vector_patch_setter
            cells = [{"layer": layer, axis: place} for layer in layers for place in range(count)]
            patching.generic_activation_patch(
                bridge, corrupted, cache, metric, setter, work, index_df=pd.DataFrame(cells)
            )
        count = clean.shape[1] if work == "resid_pre" else bridge.cfg.n_heads
        cells_measured = torch.stack(measured[-len(layers) * count :], dim=1)  # what it measures before them is no cell
        return cells_measured.unflatten(1, (len(layers), count)).numpy()

    return grid


def with_nnsight(folder: Path, work: str, clean: Tensor, corrupted: Tensor, answers: Tensor) -> Grid:
    """A trace of the whole prompts for each cell."""
    import nnsight
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module: Any = AutoModelForCausalLM.from_pretrained(folder / "model").eval().requires_grad_(False)
    model = nnsight.TransformersModel(module, tokenizer=AutoTokenizer.from_pretrained(folder / "model"))
    heads, width = module.config.num_attention_heads, module.config.hidden_size // module.config.num_attention_heads

    def grid(layers: list[int]) -> np.ndarray:
        values: list[Tensor] = []
        with model.trace(input_ids=clean, use_cache=False, logits_to_keep=1):
            for layer in layers:
                part = model.model.layers[layer]
                value = part.input if work == "resid_pre" else part.self_attn.o_proj.input
                values.append(nnsight.save(value.clone()))
        found = []
        for layer, value in zip(layers, values, strict=True):
            for place in range(clean.shape[1] if work == "resid_pre" else heads):
                with model.trace(input_ids=corrupted, use_cache=False, logits_to_keep=1):
                    if work == "resid_pre":
                        live = model.model.layers[layer].input.clone()
                        live[:, place] = value[:, place]
                        model.model.layers[layer].input = live
                    else:
                        own = slice(place * width, (place + 1) * width)
                        live = model.model.layers[layer].self_attn.o_proj.input.clone()
                        live[..., own] = value[..., own]
                        model.model.layers[layer].self_attn.o_proj.input = live
                    logits = nnsight.save(model.output.logits[:, -1])
                found.append(difference(logits, answers))
        return torch.stack(found, dim=1).unflatten(1, (len(layers), -1)).numpy()

    return grid


def with_interpipe(folder: Path, work: str, clean: Tensor, corrupted: Tensor, answers: Tensor) -> Grid:
    """`interp.patching.activation_patching`."""
    from interp import StandardizedTransformer
    from interp.patching import activation_patching

    model = StandardizedTransformer(folder / "model")

    def grid(layers: list[int]) -> np.ndarray:
        where: dict[str, Any] = {"positions": None, "heads": "all"} if work == "z" else {"positions": "all"}
        result = activation_patching(
            model, clean.tolist(), corrupted.tolist(), work, layers=layers, answers=answers.tolist(), **where
        )
        return result.patched[..., 0]

    return grid


def difference(logits: Tensor, answers: Tensor) -> Tensor:
    """(row,) logit of the right answer minus that of the wrong one."""
    right, wrong = logits.gather(1, answers).unbind(1)
    return right - wrong


TOOLS = {"transformer_lens": with_transformer_lens, "nnsight": with_nnsight, "interpipe": with_interpipe}


def main() -> None:
    """Warm up with one layer, run the grid, print its seconds."""
    tool, work, folder, every = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    pairs = np.load(folder / "pairs.npz")
    clean, corrupted, answers = (torch.from_numpy(pairs[name]) for name in ("clean", "corrupted", "answers"))
    TOOLS[tool](folder, work, clean[:2], corrupted[:2], answers[:2])([0])
    grid = TOOLS[tool](folder, work, clean, corrupted, answers)
    if tool == "interpipe":
        grid([15])  # the model is another object, which is tried once
    layers = list(range(0, 16, every))
    begun = time.process_time()
    found = grid(layers)
    seconds = time.process_time() - begun
    np.save(folder / f"{tool}.npy", found)
    print(seconds)


if __name__ == "__main__":
    main()
