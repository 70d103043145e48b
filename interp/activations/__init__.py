"""Activations of prompts: caches, extractions, hooks, decompositions, runs with interventions, collecting."""

from interp.activations.activation_cache import ActivationCache
from interp.activations.cache_blocks import CacheBlocks
from interp.activations.collecting import collect, collect_blocks
from interp.activations.contrast import steering_vectors
from interp.activations.extraction import Extraction
from interp.activations.extraction_blocks import ExtractionBlocks
from interp.activations.extraction_result import ExtractionResult
from interp.activations.model_hooks import Hook, HookPair
from interp.activations.prompt_runs import run
from interp.activations.residual_stack import ResidualStack
from interp.activations.run_result import RunResult

__all__ = [
    "ActivationCache",
    "CacheBlocks",
    "Extraction",
    "ExtractionBlocks",
    "ExtractionResult",
    "Hook",
    "HookPair",
    "ResidualStack",
    "RunResult",
    "collect",
    "collect_blocks",
    "run",
    "steering_vectors",
]
