"""How fast hidden states are read out: `python -m benchmarks.readout [--layers 16] [--rows 64] [--json FILE]`.

Beside the pure matrix products `hidden @ head.T` of all rows, which any reading must compute, stand the streaming
readout (`interp.readout.reduce_hidden`) and the plain way: logits of one layer after another, `log_softmax`, `topk`.
Each gives the log-probabilities and ranks of token groups, the top 10, entropy and the divergence from the last layer.
Results are compared before any time is quoted. Times are seconds of the processor (of the device, where one is at
hand), the shortest of several runs, taken in turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp import StandardizedTransformer
from interp.readout import TokenGroups, reduce_hidden

TOP_K = 10
REPEATS = 7
GROUP_SIZE = 8
Readings = Mapping[str, Tensor]


def model(
    hidden_size: int, vocabulary: int, dtype: torch.dtype, device: str, layers: int = 1
) -> StandardizedTransformer:
    """A model with random weights; of its layers nothing is needed here."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256,
    )  # fmt: skip
    words = {f"w{index}": index for index in range(vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0"
    )
    return StandardizedTransformer(LlamaForCausalLM(config).to(device, dtype).eval(), tokenizer=tokenizer, verify=False)


@torch.no_grad()
def products(lm: StandardizedTransformer, hidden: Tensor, out: Tensor) -> None:
    """What no reading does without."""
    torch.mm(hidden.flatten(0, 1), lm._module.lm_head.weight.T, out=out)


@torch.no_grad()
def streaming(lm: StandardizedTransformer, hidden: Tensor, groups: TokenGroups) -> Readings:
    """Ours."""
    read = reduce_hidden(lm, hidden, groups, TOP_K, kl_reference=-1)
    assert read.kl is not None
    return {
        "log_prob": read.log_prob,
        "rank": read.rank,
        "top_ids": read.top_ids,
        "entropy": read.entropy,
        "kl": read.kl,
    }


@torch.no_grad()
def plain(lm: StandardizedTransformer, hidden: Tensor, groups: TokenGroups) -> Readings:
    """The logits of one layer after another."""
    reference = lm.readout(hidden[-1]).float().log_softmax(-1)
    ids = groups.ids.to(reference.device)
    found: dict[str, list[Tensor]] = {name: [] for name in ("log_prob", "rank", "top_ids", "entropy", "kl")}
    for states in hidden:
        log_probs = lm.readout(states).float().log_softmax(-1)
        members = log_probs.gather(1, ids.flatten(1)).view(ids.shape)
        found["log_prob"].append(members.logsumexp(-1))
        best = members.amax(-1)
        found["rank"].append(torch.stack([(log_probs > value[:, None]).sum(1) for value in best.unbind(1)], dim=1))
        found["top_ids"].append(log_probs.topk(TOP_K, dim=1).indices)
        probabilities = log_probs.exp()
        found["entropy"].append(-(probabilities * log_probs).sum(-1))
        found["kl"].append((reference.exp() * (reference - log_probs)).sum(-1))
    return {name: torch.stack(values) for name, values in found.items()}


def check(ours: Readings, theirs: Readings, exact: bool) -> None:
    """Stop where the readings differ by more than float32 rounds; bfloat16 logits have ties, which are open in theirs.

    Raises:
        SystemExit: they do.
    """
    tolerance = 1e-5 if exact else 0.02
    differences = {name: float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours}
    differences["probability"] = float((ours["log_prob"].exp() - theirs["log_prob"].exp()).abs().max())
    allowed = {"probability": tolerance, "log_prob": 10 * tolerance, "entropy": 10 * tolerance, "kl": 10 * tolerance}
    wrong = [f"{name} by {differences[name]:.2g}" for name, most in allowed.items() if not differences[name] <= most]
    # Two logits nearer than a rounding may change places.
    if exact and (ours["top_ids"] != theirs["top_ids"]).double().mean() > 1e-3:
        wrong.append("top_ids")
    if exact and differences["rank"] > 2:
        wrong.append(f"rank by {differences['rank']:.0f}")
    if wrong:
        raise SystemExit(f"streaming and plain readings differ: {', '.join(wrong)}.")


def seconds(work: Callable[[], Any], device: str) -> float:
    """Time of the processor, or of the device where the work is done."""
    if device == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def measure(
    layers: int, rows: int, hidden_size: int, vocabulary: int, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """All figures, by the number of groups."""
    lm = model(hidden_size, vocabulary, dtype, device)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(layers, rows, hidden_size, generator=generator).to(device, dtype)
    out = torch.empty(layers * rows, vocabulary, dtype=dtype, device=device)
    found: dict[str, Any] = {
        "layers": layers, "rows": rows, "hidden_size": hidden_size, "vocabulary": vocabulary,
        "dtype": str(dtype).removeprefix("torch."), "device": device, "groups": {},
    }  # fmt: skip
    for count in (1, 2, 4):
        ids = torch.randint(vocabulary, (rows, count, GROUP_SIZE), generator=generator)
        groups = TokenGroups.pad(ids.tolist(), vocabulary)
        ways: dict[str, Callable[[], Any]] = {
            "products": lambda: products(lm, hidden, out),
            "streaming": lambda groups=groups: streaming(lm, hidden, groups),
            "plain": lambda groups=groups: plain(lm, hidden, groups),
        }
        check(ways["streaming"](), ways["plain"](), exact=dtype == torch.float32)
        ways["products"]()
        taken = [{name: seconds(work, device) for name, work in ways.items()} for _ in range(REPEATS)]
        best = {name: min(one[name] for one in taken) for name in ways}
        found["groups"][str(count)] = {
            "seconds": best,
            "times_the_products": {name: best[name] / best["products"] for name in ("streaming", "plain")},
            "share_of_floor": best["products"] / best["streaming"],
            "times_as_fast_as_plain": best["plain"] / best["streaming"],
        }
    operations = 2 * layers * rows * hidden_size * vocabulary
    found["gflops"] = operations / min(one["seconds"]["products"] for one in found["groups"].values()) / 1e9
    return found


def table(found: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f"{found['layers']} layers x {found['rows']} rows, {found['hidden_size']} hidden, vocabulary "
        f"{found['vocabulary']}, {found['dtype']}, {found['device']}: products at {found['gflops']:.0f} GFLOP/s",
        f"{'groups':<8}{'products':>10}{'streaming':>11}{'plain':>9}{'streaming/products':>20}{'share':>7}{'plain/streaming':>17}",
    ]
    for count, one in found["groups"].items():
        taken = one["seconds"]
        lines.append(
            f"{count:<8}{taken['products']:>9.3f}s{taken['streaming']:>10.3f}s{taken['plain']:>8.3f}s"
            f"{one['times_the_products']['streaming']:>20.2f}{one['share_of_floor']:>7.2f}"
            f"{one['times_as_fast_as_plain']:>17.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rows", type=int, default=64, help="examples, each with all layers")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = given.layers, given.rows, given.hidden_size, given.vocabulary
    found = measure(*sizes, getattr(torch, given.dtype), device)
    print(table(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
