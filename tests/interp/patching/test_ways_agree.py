"""Engines that were written apart say the same: grids, runs with interventions, hooks, edges and paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import StandardizedTransformer
from interp.interventions import Intervention
from interp.patching import activation_patching, attribution_patching, exact_edge_effects, path_patching
from tests.tiny import tiny_model, tiny_tokenizer

CLEAN, CORRUPTED = [[1, 5, 9, 30, 44, 60], [1, 5, 9, 33, 44]], [[1, 5, 77, 30, 45, 60], [1, 8, 9, 33, 46]]
ANSWERS = [(10, 20), (30, 40)]


def of(family: str) -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), verify=False)


def louder(tensor: Tensor, _: Any) -> None:
    tensor[:, :, 0] += 3


@pytest.mark.parametrize(("family", "hooked"), [("mistral", False), ("gemma2", True)])
def test_a_grid_is_what_interventions_and_caches_give(family: str, hooked: bool) -> None:
    model = of(family)
    if hooked:  # the fast way stands back
        model.add_hook("resid_post.1", louder)
    grid = activation_patching(model, CLEAN, CORRUPTED, "z", "last", heads="all", answers=ANSWERS)
    estimate = attribution_patching(model, CLEAN, CORRUPTED, "mlp_out", "last", layers=[2], answers=ANSWERS)
    _, cache = model.run_with_cache(CLEAN, sites="z.* mlp_out.2", positions="last")

    def difference(logits: Tensor, examples: list[int] | None = None) -> Tensor:
        pairs = [ANSWERS[row] for row in (range(len(logits)) if examples is None else examples)]
        return torch.stack([one[-1, right] - one[-1, wrong] for one, (right, wrong) in zip(logits, pairs, strict=True)])

    for layer, head in ((0, 1), (2, 3)):
        site = f"z.{layer}.h{head}"
        for value in ({"prompt": CLEAN}, cache[site]):
            run = model.run(CORRUPTED, Intervention(site, "last", "set", value))
            np.testing.assert_allclose(grid.patched[:, layer, 0, head, 0], difference(run.logits), atol=1e-5)
    run = model.run(CORRUPTED, read="mlp_out.2", gradients_of=difference)
    product = ((cache["mlp_out.2"] - run["mlp_out.2"]) * run.gradients["mlp_out.2"]).sum(-1)
    np.testing.assert_allclose(estimate.effect[:, 0, :, 0], product, atol=1e-5)


def test_an_edge_is_a_path() -> None:
    model = of("llama")
    given: dict[str, Any] = dict(answers=ANSWERS[:1])
    edges = ["head_out.1.h0 -> logits", "mlp_out.0 -> mlp_in.2", "head_out.1.h2 -> v.2.h0"]
    table = exact_edge_effects(model, CLEAN[:1], CORRUPTED[:1], edges=edges, **given).to_frame().set_index("edge")
    for edge, layer, head in zip(edges, (1, 0, 1), (0, None, 2), strict=True):
        sender, receiver = edge.split(" -> ")
        path = path_patching(
            model, CLEAN[:1], CORRUPTED[:1], sender.split(".")[0], receiver.replace("logits", "resid_post.3"),
            layers=[layer], heads=None if head is None else [head], direction="noising", **given,
        )  # fmt: skip
        np.testing.assert_allclose(path.effect.squeeze(), table.loc[edge, "mean"], atol=1e-5)
