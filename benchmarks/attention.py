"""How fast the lenses on attention are: `python -m benchmarks.attention [--examples 16] [--json FILE]`.

The same work, side by side in one process of one thread: plain transformers with hooks, one forward pass of the whole
prompts for each window and block (or layer), and `interp.lenses`. Probabilities are compared before any time is quoted;
times are processor time. The model is that of the other benchmark of lenses, 16 layers and 83 M parameters.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lenses import model
from interp import StandardizedTransformer
from interp.activations import collect
from interp.lenses import Latents, attention_knockout, attention_object_lens
from interp.sites import Site

LENGTH, WINDOW, REPEATS = 40, 4, 3
BLOCKS = {"first": [0], "subject": [10, 11, 12], "before": list(range(LENGTH - 1))}


@torch.no_grad()
def knockout_with_hooks(lm: StandardizedTransformer, ids: Tensor, tokens: Tensor) -> Tensor:
    """(example, window, block) probabilities of `tokens`, a forward pass a window and block."""
    module: Any = lm._module
    last = len(module.model.layers)
    mask = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~torch.ones(LENGTH, LENGTH).tril().bool(), torch.finfo().min)
    found = []
    for start in range(last):
        for keys in BLOCKS.values():
            cut = mask.clone()
            cut[..., -1, keys] = torch.finfo().min

            def replace(_: nn.Module, args: Any, kwargs: dict[str, Any], cut: Tensor = cut) -> Any:
                return args, kwargs | {"attention_mask": cut}

            with ExitStack() as stack:
                for layer in module.model.layers[start : start + WINDOW]:
                    stack.callback(layer.self_attn.register_forward_pre_hook(replace, with_kwargs=True).remove)
                logits = module(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
            found.append(logits.softmax(-1).gather(1, tokens[:, None])[:, 0])
    return torch.stack(found, dim=1).unflatten(1, (last, -1))


@torch.no_grad()
def object_with_hooks(lm: StandardizedTransformer, ids: Tensor, latents: Tensor, tokens: Tensor) -> Tensor:
    """(example, layer) probabilities of `tokens`, a forward pass a layer."""
    module: Any = lm._module
    found = []
    for start in range(len(latents)):
        with ExitStack() as stack:
            for layer in range(start, min(start + WINDOW, len(latents))):

                def replace(_: nn.Module, args: Any, kwargs: dict[str, Any], latent: Tensor = latents[layer]) -> Any:
                    hidden = kwargs["hidden_states"].clone()
                    hidden[:, -1] = latent
                    return args, kwargs | {"hidden_states": hidden}

                attention = module.model.layers[layer].self_attn
                stack.callback(attention.register_forward_pre_hook(replace, with_kwargs=True).remove)
            logits = module(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        found.append(logits.softmax(-1).gather(1, tokens[:, None])[:, 0])
    return torch.stack(found, dim=1)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of the fastest of some runs, and what the last one gave."""
    times = []
    for _ in range(REPEATS):
        begun = time.process_time()
        result = work()
        times.append(time.process_time() - begun)
    return min(times), result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lm = model()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(lm.vocab_size, (options.examples, LENGTH), generator=generator)
    tokens = torch.randint(lm.vocab_size, (options.examples,), generator=generator)
    groups = [[[token]] for token in tokens.tolist()]
    prompts = ids.tolist()
    sites = [Site("attn_in", layer) for layer in range(lm.num_layers)]
    latents = collect(lm, ids.flip(1).tolist(), sites, [[LENGTH - 1]] * len(ids))["attn_in"][:, :, 0]
    work: dict[str, tuple[Callable[[], Tensor], Callable[[], Any]]] = {
        f"knock-out, {len(BLOCKS)} blocks, windows of {WINDOW}": (
            lambda: knockout_with_hooks(lm, ids, tokens),
            lambda: attention_knockout(lm, prompts, [BLOCKS] * len(ids), groups, window=WINDOW),
        ),
        f"attention-object, windows of {WINDOW}": (
            lambda: object_with_hooks(lm, ids, latents, tokens),
            lambda: attention_object_lens(lm, Latents(latents), prompts, "last", groups, window=WINDOW),
        ),
    }
    report = []
    for name, (plain, ours) in work.items():
        ours()  # the check of the family
        slow, wanted = seconds(plain)
        fast, found = seconds(ours)
        difference = float(np.abs(np.exp(found.log_prob[..., 0]) - wanted.numpy()).max())
        assert difference < 1e-5, f"{name}: probabilities differ by {difference:.2g}"
        report.append({"work": name, "plain_s": slow, "ours_s": fast, "ratio": slow / fast, "difference": difference})
        print(
            f"{name}, {len(ids)} examples of {LENGTH} tokens: plain {slow:.2f} s, ours {fast:.2f} s of processor time, "
            f"{slow / fast:.1f}x; probabilities within {difference:.1g}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
