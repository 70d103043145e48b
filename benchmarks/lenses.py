"""How fast the patchscope lens is: `python -m benchmarks.lenses [--sources 16] [--json FILE]`.

The same work, side by side in one run: plain transformers with a hook (one forward pass of the whole target prompts a
layer), plain nnsight (one trace a layer), and `interp.lenses.patchscope_lens`. Probabilities are compared before any
time is quoted. Beside the ratios stands the share of the floating-point floor: the operations that the result needs,
divided by this machine's own matrix-product rate, measured in the same run.

The model has about 80 M parameters (16 layers), built from config; every source has latents of all layers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nnsight
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp import StandardizedTransformer
from interp.lenses import patchscope_lens

LAYERS, HIDDEN, MLP, VOCABULARY = 16, 512, 1376, 32000
LENGTHS = (18, 80)
REPEATS = 3


def tiny_vocabulary() -> PreTrainedTokenizerFast:
    """A tokenizer for form's sake: the benchmark feeds token ids."""
    words = {f"w{index}": index for index in range(VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0")


def model() -> StandardizedTransformer:
    """The benchmark's model, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256,
    )  # fmt: skip
    return StandardizedTransformer(LlamaForCausalLM(config).eval(), tokenizer=tiny_vocabulary())


@torch.no_grad()
def with_hooks(lm: StandardizedTransformer, ids: Tensor, latents: Tensor, tokens: Tensor) -> Tensor:
    """(source, layer) probabilities of `tokens` by plain transformers, a forward pass a layer."""
    module: Any = lm._module
    found = []
    for layer, latent in enumerate(latents):

        def patch(_: nn.Module, args: Any, output: Tensor, latent: Tensor = latent) -> Tensor:
            output[:, -1] = latent
            return output

        handle = module.model.layers[layer].register_forward_hook(patch)
        probabilities = module(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1)
        handle.remove()
        found.append(probabilities.gather(1, tokens[:, None])[:, 0])
    return torch.stack(found, dim=1)


@torch.no_grad()
def with_nnsight(lm: StandardizedTransformer, ids: Tensor, latents: Tensor, tokens: Tensor) -> Tensor:
    """The same by plain nnsight, a trace a layer."""
    found: list[Tensor] = []
    for layer, latent in enumerate(latents):
        with lm.trace(input_ids=ids, use_cache=False):
            lm.model.layers[layer].output[:, -1] = latent
            probabilities = nnsight.save(lm.output.logits[:, -1].softmax(-1))
        found.append(probabilities.gather(1, tokens[:, None])[:, 0])
    return torch.stack(found, dim=1)


def with_interp(lm: StandardizedTransformer, ids: Tensor, latents: Tensor, tokens: Tensor) -> Tensor:
    """The same by the patchscope lens."""
    rows, length = ids.shape
    groups = [[[int(token)]] for token in tokens]
    result = patchscope_lens(lm, latents, ids.tolist(), [length - 1] * rows, groups, layers=range(LAYERS), top_k=1)
    return torch.from_numpy(result.log_prob[:, :, 0]).exp()


def best_of(work: Callable[[], Tensor], repeats: int = REPEATS) -> tuple[float, Tensor]:
    """The shortest of some runs, in seconds, and what the last one gave."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def matrix_rate() -> float:
    """Floating-point operations a second of a large matrix product on this machine."""
    left, right = torch.randn(1024, HIDDEN), torch.randn(HIDDEN, 4096)
    seconds, _ = best_of(lambda: [left @ right for _ in range(20)][-1])
    return 20 * 2 * 1024 * HIDDEN * 4096 / seconds


def needed_operations(sources: int, length: int) -> float:
    """What the readings need: the target prompt once, each row from its layer on, and the readouts."""
    per_token = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * MLP)  # of one layer, without attention
    attention = 4 * length * HIDDEN
    walked = sources * LAYERS * (LAYERS - 1) / 2
    readouts = 2 * HIDDEN * VOCABULARY * sources * LAYERS
    return (walked + length * LAYERS) * (per_token + attention) + readouts


def measure(sources: int) -> dict[str, Any]:
    """All figures."""
    lm = model()
    rate = matrix_rate()
    found: dict[str, Any] = {"sources": sources, "matrix_gflops": rate / 1e9, "work": {}}
    for length in LENGTHS:
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(VOCABULARY, (1, length), generator=generator).expand(sources, length).contiguous()
        latents = torch.randn(LAYERS, sources, HIDDEN, generator=generator)
        tokens = torch.randint(VOCABULARY, (sources,), generator=generator)
        given = (lm, ids, latents, tokens)
        with_interp(*given)  # finds out once, for this model, that the fast way fits
        timed = {
            "transformers": best_of(partial(with_hooks, *given), repeats=1),
            "nnsight": best_of(partial(with_nnsight, *given), repeats=1),
            "interp": best_of(partial(with_interp, *given)),
        }
        reference = timed["transformers"][1]
        for name, (_, probabilities) in timed.items():
            difference = float((probabilities - reference).abs().max())
            if difference > 1e-5:
                raise SystemExit(f"{name} gives other probabilities than plain transformers (off by {difference:.2g}).")
        ours = timed["interp"][0]
        found["work"][f"patchscope, target of {length} tokens"] = {
            "seconds": {name: seconds for name, (seconds, _) in timed.items()},
            "times_as_fast_as": {name: timed[name][0] / ours for name in ("transformers", "nnsight")},
            "share_of_floor": needed_operations(sources, length) / rate / ours,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=16, help="source prompts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    found = measure(given.sources)
    print(f"{found['sources']} sources, {LAYERS} layers, matrix products at {found['matrix_gflops']:.0f} GFLOP/s")
    for name, figures in found["work"].items():
        seconds = ", ".join(f"{way} {value:.2f} s" for way, value in figures["seconds"].items())
        ratios = ", ".join(f"{value:.1f}x {way}" for way, value in figures["times_as_fast_as"].items())
        print(f"{name}: {seconds}; {ratios}; {figures['share_of_floor']:.2f} of the floating-point floor")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
