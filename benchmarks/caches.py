"""What a cache of all residual sites costs beside a plain forward pass: `python -m benchmarks.caches [--other PYTHON]`.

Two models: the embedded one, 8 layers and 2 M parameters, where what a tool does besides counts most, and that of the
benchmark of lenses, 16 layers and 83 M. Prompts are random, of one length. Each tool runs in a process of its own, in
turns with a plain forward pass of transformers without gradients; ratios are medians over the rounds, in processor time
of one thread. Memory is how much more the resident set grows than in a plain pass, beside the size of the tensors that
the cache holds (what two names share counts once).

`--other` is the interpreter of an environment with TransformerLens, which has two rows then: without gradients, and as
it is called by default, with them. Its bridge is given the same folder and a filter for the same sites.
"""

from __future__ import annotations

import argparse
import json
import os
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
TOOLS = ("interpipe", "transformer_lens", "transformer_lens_gradients")
DEMO = ROOT / "pipeline/demo/model"
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


def transformer_lens(folder: str, *, gradients: bool) -> Callable[[Tensor], tuple[Tensor, Cached]]:
    """`run_with_cache` of TransformerLens's bridge, with or without gradients."""
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
        with torch.set_grad_enabled(gradients):
            logits, cache = bridge.run_with_cache(ids, names_filter=names)
        return logits, {name.replace("blocks", "").replace("hook_", ""): cache[name] for name in names}

    return run


def worker(tool: str, folder: str, prompts: int, tokens: int, rounds: int) -> dict[str, float]:
    """Measure one tool in this process."""
    torch.set_num_threads(1)
    gradients = tool.endswith("gradients")
    run = interpipe(folder) if tool == "interpipe" else transformer_lens(folder, gradients=gradients)
    plain = plain_of(folder, None)
    vocabulary = plain(torch.tensor([[3]])).shape[-1]
    ids = torch.randint(3, vocabulary, (prompts, tokens), generator=torch.Generator().manual_seed(0))
    for way in (plain, run):  # weights are read from the disk
        way(ids)
    logits, base = _peak(lambda: plain(ids))
    (found, cache), peak = _peak(lambda: run(ids))
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in cache.values()}
    torch.testing.assert_close(found.detach(), logits, rtol=1e-3, atol=1e-3)
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
        "grown_mib": peak - base,
        "cached_mib": sum(storages.values()) / 2**20,
        "checksum": checksum,
    }


def _peak(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a work gives, and by how many MiB the resident set grows at most while it is done (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    found = work()
    return found, (_status("VmHWM") - before) / 1024


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(pythons: dict[str, str], folder: Path, prompts: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Tool -> figures, each in a process of its own over the same model."""
    found: dict[str, dict[str, float]] = {}
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


def table(found: dict[str, dict[str, float]], model: str, prompts: int, tokens: int) -> str:
    """The figures as text."""
    columns = ("plain ms", "tool ms", "ratio", "grown MiB", "cached MiB")
    lines = [
        f"{model}: {prompts} prompts of {tokens} tokens; resid_pre, resid_mid and resid_post of every layer",
        f"{'tool':<28}" + "".join(f"{column:>12}" for column in columns),
    ]
    for tool, one in found.items():
        figures = (one["plain_ms"], one["tool_ms"], one["ratio"], one["grown_mib"], one["cached_mib"])
        lines.append(f"{tool:<28}" + "".join(f"{figure:>12.2f}" for figure in figures))
    for tool in list(found)[1:]:
        share = found["interpipe"]["ratio"] / found[tool]["ratio"]
        besides = (found["interpipe"]["ratio"] - 1) / (found[tool]["ratio"] - 1)
        lines.append(f"interpipe takes {share:.2f} of the time of {tool}, {besides:.2f} of what that adds to a pass")
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
    pythons = {tool: asked.other if tool != "interpipe" else sys.executable for tool in TOOLS}
    pythons = {tool: python for tool, python in pythons.items() if python}
    found = {}
    with tempfile.TemporaryDirectory() as made:
        from benchmarks.lenses.model import SMALL, save

        save(Path(made, "model"), SMALL)
        for name, folder in (("embedded model", DEMO), ("83 M parameters", Path(made, "model"))):
            found[name] = measure(pythons, folder, asked.prompts, asked.tokens, asked.rounds)
            print(table(found[name], name, asked.prompts, asked.tokens), flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
