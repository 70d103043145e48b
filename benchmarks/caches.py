"""What a cache of all residual sites costs beside a forward pass: `python -m benchmarks.caches [--other PYTHON]`.

The model is that of the benchmark of lenses, 16 layers and 83 M parameters; prompts are random, of one length. Each
tool runs in a process of its own, in turns with a plain forward pass of transformers; the ratio is the median over the
rounds, in processor time of one thread. Memory is the growth of the largest resident set beyond that of plain passes,
beside the size of the tensors that the cache holds (what two names share counts once).

`--other` is the interpreter of an environment with TransformerLens, which has a column then; its bridge is given the
same folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
PROMPTS, TOKENS, ROUNDS = 16, 24, 15
TOOLS = ("interpipe", "transformer_lens")
SITES = "resid_pre.* resid_mid.* resid_post.*"
Cached = dict[str, Tensor]


def plain_of(folder: str, implementation: str | None) -> Callable[[Tensor], Tensor]:
    """A forward pass of transformers and nothing else."""
    from transformers import AutoModelForCausalLM

    module: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=implementation).eval()

    def run(ids: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(input_ids=ids, use_cache=False).logits
        return logits

    return run


def interpipe(folder: str) -> Callable[[Tensor], tuple[Tensor, Cached]]:
    """`run_with_cache` of Interpipe."""
    from interp import StandardizedTransformer

    model = StandardizedTransformer(folder)

    def run(ids: Tensor) -> tuple[Tensor, Cached]:
        logits, cache = model.run_with_cache(ids, sites=SITES)
        return logits, dict(cache.items())

    return run


def transformer_lens(folder: str) -> Callable[[Tensor], tuple[Tensor, Cached]]:
    """`run_with_cache` of TransformerLens's bridge."""
    from transformer_lens.model_bridge import TransformerBridge  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    bridge = TransformerBridge.boot_transformers(
        folder, hf_model=module, tokenizer=AutoTokenizer.from_pretrained(folder)
    )
    names = [
        f"blocks.{layer}.hook_resid_{kind}" for layer in range(bridge.cfg.n_layers) for kind in ("pre", "mid", "post")
    ]

    def run(ids: Tensor) -> tuple[Tensor, Cached]:
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(ids, names_filter=names)
        return logits, {name.replace("blocks", "").replace("hook_", ""): cache[name] for name in names}

    return run


def worker(tool: str, folder: str, prompts: int, tokens: int, rounds: int) -> dict[str, float]:
    """Measure one tool in this process."""
    torch.set_num_threads(1)
    ids = torch.randint(3, 30000, (prompts, tokens), generator=torch.Generator().manual_seed(0))
    run = {"interpipe": interpipe, "transformer_lens": transformer_lens}[tool](folder)
    plain = plain_of(folder, None)
    for _ in range(2):
        logits = plain(ids)
    base = _peak()
    found, cache = run(ids)
    grown = _peak() - base
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in cache.values()}
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)
    last = [value for name, value in cache.items() if "resid_post" in name][-1]
    checksum = float(last.double().abs().sum())
    del found, cache, last
    times: dict[str, list[float]] = {"plain": [], "tool": []}
    for _ in range(rounds):
        for name, way in (("plain", plain), ("tool", run)):
            started = time.process_time()
            kept = way(ids)
            times[name].append(time.process_time() - started)
            del kept
    ratios = [one / other for one, other in zip(times["tool"], times["plain"], strict=True)]
    return {
        "plain_ms": 1000 * statistics.median(times["plain"]),
        "tool_ms": 1000 * statistics.median(times["tool"]),
        "ratio": statistics.median(ratios),
        "grown_mib": grown,
        "cached_mib": sum(storages.values()) / 2**20,
        "checksum": checksum,
    }


def _peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(pythons: dict[str, str], prompts: int, tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Tool -> figures, each in a process of its own over the same model."""
    from benchmarks.lenses.model import SMALL, save

    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "model")
        save(folder, SMALL)
        for tool, python in pythons.items():
            sizes = ["--prompts", str(prompts), "--tokens", str(tokens), "--rounds", str(rounds)]
            command = [python, "-m", "benchmarks.caches", "--worker", tool, "--folder", str(folder), *sizes]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
            found[tool] = json.loads(said.stdout.splitlines()[-1])
    sums = [one["checksum"] for one in found.values()]
    if max(sums) - min(sums) > 1e-4 * max(sums):
        raise SystemExit(f"the tools do not agree on the last residual stream: {sums}")
    return found


def table(found: dict[str, dict[str, float]], prompts: int, tokens: int) -> str:
    """The figures as text."""
    lines = [
        f"{prompts} prompts of {tokens} tokens, resid_pre, resid_mid and resid_post of every layer",
        f"{'tool':<18}{'plain ms':>10}{'tool ms':>10}{'ratio':>8}{'grown MiB':>11}{'cached MiB':>12}{'grown / cached':>16}",
    ]
    for tool, one in found.items():
        lines.append(
            f"{tool:<18}{one['plain_ms']:>10.0f}{one['tool_ms']:>10.0f}{one['ratio']:>8.2f}{one['grown_mib']:>11.1f}"
            f"{one['cached_mib']:>12.1f}{one['grown_mib'] / one['cached_mib']:>16.2f}"
        )
    if len(found) > 1:
        share = found["interpipe"]["tool_ms"] / found["transformer_lens"]["tool_ms"]
        lines.append(f"interpipe takes {share:.2f} of TransformerLens's time")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", metavar="PYTHON", help="an interpreter that has TransformerLens")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--worker", choices=TOOLS, help="measure one tool in this process")
    parser.add_argument("--folder", help="of the model, for --worker")
    asked = parser.parse_args(arguments)
    if asked.worker:
        print(json.dumps(worker(asked.worker, asked.folder, asked.prompts, asked.tokens, asked.rounds)))
        return
    pythons = {"interpipe": sys.executable} | ({"transformer_lens": asked.other} if asked.other else {})
    found = measure(pythons, asked.prompts, asked.tokens, asked.rounds)
    print(table(found, asked.prompts, asked.tokens))
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
