"""Activations of many prompts: batches under a token budget, shared prefixes, copies off the device as they come."""

from interp.activations.collecting import collect, collect_blocks
from interp.activations.contrast import steering_vectors
from interp.activations.prompt_runs import run
from interp.activations.run_result import RunResult

__all__ = [
    "RunResult",
    "collect",
    "collect_blocks",
    "run",
    "steering_vectors",
]
