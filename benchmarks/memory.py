"""How much memory a lens takes over N and 16 N prompts: `python -m benchmarks.memory [--prompts 256] [--json FILE]`.

A logit lens and a patchscope lens over a small model with a vocabulary of 32000, each in a process of its own: the
largest resident set (of the device, where one is at hand: the most memory allocated) less what the process had before
the lens began, with model and hidden states in place. The results are among it, twice while they are put together.
Beside them stands the size of the (prompt, layer, vocabulary)
logits that a lens which keeps everything would hold.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.readout import model
from interp.lenses import LensResult, logit_lens, patchscope_lens

LAYERS, HIDDEN, VOCABULARY, TARGET = 4, 64, 32000, 18
LENSES = ("logit lens", "patchscope lens")


def run(lens: str, prompts: int) -> dict[str, float]:
    """One lens in this process; mebibytes."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = model(HIDDEN, VOCABULARY, torch.float32, device, LAYERS)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(LAYERS, prompts, HIDDEN, generator=generator)
    groups = torch.randint(VOCABULARY, (prompts, 2, 4), generator=generator).tolist()
    target = torch.randint(VOCABULARY, (TARGET,), generator=generator).tolist()
    before = _peak(device)
    if lens == "logit lens":
        result = logit_lens(lm, hidden, groups, layers=range(LAYERS), top_k=10, reference=hidden[-1])
    else:
        targets, positions = [target] * prompts, [TARGET - 1] * prompts
        result = patchscope_lens(lm, hidden, targets, positions, groups, layers=range(LAYERS), top_k=10)
    return {
        "peak": _peak(device) - before,
        "result": _size(result),
        "logits": prompts * LAYERS * VOCABULARY * 4 / 2**20,
    }


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
    lines = [f"{'lens':<18}{'prompts':>9}{'peak MiB':>10}{'result MiB':>12}{'all logits MiB':>16}{'peak / logits':>15}"]
    for lens, by_count in found.items():
        for count, one in by_count.items():
            share = one["peak"] / one["logits"]
            lines.append(
                f"{lens:<18}{count:>9}{one['peak']:>10.1f}{one['result']:>12.2f}{one['logits']:>16.0f}{share:>15.3f}"
            )
        few, many = by_count.values()
        without = [one["peak"] - one["result"] for one in (few, many)]
        lines.append(f"{lens:<18}16 times the prompts: {without[1] / without[0]:.2f} times the memory, results apart")
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
