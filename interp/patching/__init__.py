"""Runs of prompts with something written into them: a plan says what, `run` does it.

The fast way is a walk up the layers, in which rows join at the layer that they are patched at; the plain way, a traced
forward pass of whole prompts for each entry of a plan, is in every family what the fast way is measured by.
"""

from interp.patching.activation_patching import activation_patching
from interp.patching.attribution_patching import Way, against_exact, attribution_patching
from interp.patching.changed_attention import (
    Cut,
    CutHeads,
    blocking_fits,
    check_something_is_left,
    heads_in,
    receiving_fits,
    run_blocked,
    seen_keys,
    walk_blocked,
    walk_receiving,
)
from interp.patching.circuits import (
    PROPORTIONS,
    Circuit,
    Selection,
    choose_edges,
    exact_edge_effects,
    faithfulness,
    run_circuits,
)
from interp.patching.computation_graph import ComputationGraph
from interp.patching.edges import edge_attribution_patching
from interp.patching.effects import METRICS, Answers, Metric, Metrics
from interp.patching.fits import generation_fits, walk_fits
from interp.patching.generate import Choose, generate_plainly, generate_walked
from interp.patching.patched_runs import CleanRun, run_patched, walk
from interp.patching.path_patching import path_patching
from interp.patching.plan import LayersPlan, Patch, PatchedPrompts, PatchPlan, check_number, check_patch

__all__ = [
    "METRICS",
    "PROPORTIONS",
    "Answers",
    "Choose",
    "Circuit",
    "CleanRun",
    "ComputationGraph",
    "Cut",
    "CutHeads",
    "LayersPlan",
    "Metric",
    "Metrics",
    "Patch",
    "PatchPlan",
    "PatchedPrompts",
    "Selection",
    "Way",
    "activation_patching",
    "against_exact",
    "attribution_patching",
    "blocking_fits",
    "check_number",
    "check_patch",
    "check_something_is_left",
    "choose_edges",
    "edge_attribution_patching",
    "exact_edge_effects",
    "faithfulness",
    "generate_plainly",
    "generate_walked",
    "generation_fits",
    "heads_in",
    "path_patching",
    "receiving_fits",
    "run_blocked",
    "run_circuits",
    "run_patched",
    "seen_keys",
    "walk",
    "walk_blocked",
    "walk_fits",
    "walk_receiving",
]
