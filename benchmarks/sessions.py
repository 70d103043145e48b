"""What an nnsight session costs beside plain traces: `python -m benchmarks.sessions [--json FILE]`.

The same batches of prompts are traced alternately one by one and inside one session, on the embedded model; the ratio
is that of the fastest of the rounds, side by side in one run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nnsight
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.activations import collect
from interp.sites import Site

MODEL = Path(__file__).resolve().parent.parent / "pipeline/demo/model"
BATCHES, ROWS, LENGTH, ROUNDS = 16, 8, 24, 15


def one_by_one(model: StandardizedTransformer, batches: Sequence[Tensor], sites: Sequence[Site]) -> list[list[Tensor]]:
    """What sites hold at the last token, a trace a batch."""
    found = []
    for ids in batches:
        with torch.no_grad(), model.trace(input_ids=ids, use_cache=False) as tracer:
            values = nnsight.save([model.read(site)[:, -1].clone() for site in sites])
            tracer.stop()
        found.append(values)
    return found


def in_a_session(
    model: StandardizedTransformer, batches: Sequence[Tensor], sites: Sequence[Site]
) -> list[list[Tensor]]:
    """The same in one session."""
    found: list[list[Tensor]] = []
    with torch.no_grad(), model.session():
        for ids in batches:
            with model.trace(input_ids=ids, use_cache=False) as tracer:
                values = [model.read(site)[:, -1].clone() for site in sites]
                tracer.stop()
            found.append(values)
    return found


def measure() -> dict[str, float]:
    """Milliseconds of processor time a batch one by one and in a session, and their ratio."""
    torch.set_num_threads(1)
    model = StandardizedTransformer(MODEL)
    generator = torch.Generator().manual_seed(0)
    batches = list(torch.randint(3, model.vocab_size, (BATCHES, ROWS, LENGTH), generator=generator))
    sites = [Site("resid_post", layer) for layer in range(model.num_layers)]
    ways: dict[str, Callable[..., list[list[Tensor]]]] = {"traces": one_by_one, "session": in_a_session}
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.process_time()
            found = way(model, batches, sites)
            rounds[name].append((time.process_time() - started) * 1000 / BATCHES)
            ids = torch.cat(batches).tolist()
            wanted = collect(model, ids, sites, [[LENGTH - 1]] * len(ids))["resid_post"][:, :, 0]
            read = torch.cat([torch.stack(values) for values in found], dim=1)
            torch.testing.assert_close(read, wanted, atol=1e-4, rtol=1e-4)
    traces, session = min(rounds["traces"]), min(rounds["session"])
    return {"traces_ms": traces, "session_ms": session, "ratio": session / traces}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found = measure()
    print(
        f"{BATCHES} batches of {ROWS} prompts of {LENGTH} tokens, processor time: {found['traces_ms']:.2f} ms a batch "
        f"one by one, {found['session_ms']:.2f} ms in a session, {found['ratio']:.3f} times as long"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
