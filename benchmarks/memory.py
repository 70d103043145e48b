"""How much memory a lens takes over N and 16 N prompts: `python -m benchmarks.memory [--prompts 256] [--json FILE]`.

A logit lens, a patchscope lens, one on prompts with another model as the source, and the evaluation of a tuned lens,
over a small model with a vocabulary of 32000, each in a process of its own: the largest resident set (of the device,
where one is at hand: the most memory allocated) less what the process had before the lens began, with model and hidden
states in place. The results are among it, twice while they are put together. Beside them stands the size of the
(prompt, layer, vocabulary) logits that a lens which keeps everything would hold; for the evaluation, of one token a
prompt, where it reads all of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.readout import model
from interp import StandardizedTransformer
from interp.lenses import Latents, logit_lens, patchscope_lens
from interp.results import LensResult
from interp.translators import GivenSequences, TokenSequence, TunedLens, evaluate_tuned_lens

LAYERS, HIDDEN, VOCABULARY, TARGET = 4, 64, 32000, 18
LENSES = ("logit lens", "patchscope lens", "patchscope, 2 models", "tuned evaluation")


def run(lens: str, prompts: int) -> dict[str, float]:
    """One lens in this process; mebibytes."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = model(HIDDEN, VOCABULARY, torch.float32, device, LAYERS)
    work = _work(lens, lm, prompts, device)
    before = _peak(device)
    size = work()
    return {
        "peak": _peak(device) - before,
        "result": size,
        "logits": prompts * LAYERS * VOCABULARY * 4 / 2**20,
    }


def _work(lens: str, lm: StandardizedTransformer, prompts: int, device: str) -> Callable[[], float]:
    """What is measured, ready to begin; it gives the size of its result."""
    generator = torch.Generator().manual_seed(0)
    if lens in ("logit lens", "patchscope lens"):
        hidden = torch.randn(LAYERS, prompts, HIDDEN, generator=generator)
        groups = torch.randint(VOCABULARY, (prompts, 2, 4), generator=generator).tolist()
        given: dict[str, Any] = dict(top_k=10)
        if lens == "logit lens":
            return lambda: _size(logit_lens(lm, Latents(hidden, reference=hidden[-1]), groups, **given))
        target = torch.randint(VOCABULARY, (TARGET,), generator=generator).tolist()
        return lambda: _size(patchscope_lens(lm, Latents(hidden), [target] * prompts, "last", groups, **given))
    texts = torch.randint(VOCABULARY, (prompts, TARGET), generator=generator).tolist()
    if lens == "tuned evaluation":
        tuned, sequences = TunedLens.of(lm), GivenSequences([TokenSequence(tuple(ids), (1,) * TARGET) for ids in texts])
        return lambda: (
            sum(
                array.nbytes
                for array in vars(evaluate_tuned_lens(lm, tuned, sequences)).values()
                if isinstance(array, np.ndarray)
            )
            / 2**20
        )
    other = model(HIDDEN, VOCABULARY, torch.float32, device, LAYERS)
    groups = {"target": list(range(8))}
    return lambda: _size(patchscope_lens(lm, texts, "w1 w2", source_model=other, targets=groups, top_k=10))


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _size(result: LensResult) -> float:
    return sum(array.nbytes for array in result.arrays().values()) / 2**20


def measure(prompts: int) -> dict[str, dict[str, dict[str, float]]]:
    """Lens -> number of prompts -> mebibytes, each in a fresh process."""
    found: dict[str, Any] = {}
    for lens in LENSES:
        found[lens] = {}
        for count in (prompts, 16 * prompts):
            command = [sys.executable, "-m", "benchmarks.memory", "--run", lens, "--prompts", str(count)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[lens][str(count)] = json.loads(said.splitlines()[-1])
    return found


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The figures as text."""
    lines = [f"{'lens':<22}{'prompts':>9}{'peak MiB':>10}{'result MiB':>12}{'all logits MiB':>16}{'peak / logits':>15}"]
    for lens, by_count in found.items():
        for count, one in by_count.items():
            share = one["peak"] / one["logits"]
            lines.append(
                f"{lens:<22}{count:>9}{one['peak']:>10.1f}{one['result']:>12.2f}{one['logits']:>16.0f}{share:>15.3f}"
            )
        few, many = by_count.values()
        without = [one["peak"] - one["result"] for one in (few, many)]
        lines.append(f"{lens:<22}16 times the prompts: {without[1] / without[0]:.2f} times the memory, results apart")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256, help="N")
    parser.add_argument("--run", choices=LENSES, help="run one lens here, over exactly that many prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    given = parser.parse_args()
    if given.run is not None:
        print(json.dumps(run(given.run, given.prompts)))
        return
    found = measure(given.prompts)
    print(table(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
