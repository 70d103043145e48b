"""Attribution patching against gradients taken in plain transformers; integrated gradients against exact patches."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp import StandardizedTransformer
from interp.errors import InterpError
from interp.patching import activation_patching, attribution_patching, edge_attribution_patching
from tests.families import build
from tests.interp.patching.edge_twin import hooked
from tests.tiny import tiny_tokenizer

CLEAN = [[1, 17, 250, 33, 94, 12], [1, 88, 5, 260, 71, 9]]
CORRUPTED = [[1, 19, 25, 33, 4, 12], [1, 8, 5, 60, 71, 44]]
ANSWERS = [(5, 9), (40, 41)]


def square(logits: Tensor) -> Tensor:
    return logits[:, 3] ** 2


@cache
def wrapped(family: str) -> StandardizedTransformer:
    return StandardizedTransformer(build(family), tokenizer=tiny_tokenizer(), verify=False)


def plain_products(plain: Any, module: nn.Module, ids: list[int], other: list[int], answers: tuple[int, int]) -> Any:
    """Per metric (position, hidden): difference of a module's input between two prompts times the gradient of both
    metrics of the first; and the metrics."""
    values = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        values.append(args[0])

    with hooked((module, "before", keep)):
        logits = [plain(input_ids=torch.tensor([one])).logits[0, -1] for one in (ids, other)]
    right, wrong = answers
    metrics = torch.stack([logits[0][right] - logits[0][wrong], logits[0][3] ** 2])
    products = [
        (values[1] - values[0]).detach()[0] * torch.autograd.grad(metric, values[0], retain_graph=True)[0][0]
        for metric in metrics
    ]
    return torch.stack(products), metrics.detach()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_first_order_term_against_plain_gradients(family: str) -> None:
    model, plain = wrapped(family), build(family)
    result = attribution_patching(
        model, CLEAN, CORRUPTED, ["z", "mlp_in"], positions=["2", "last"], layers=[1, 3],
        metric=["logit_difference", square], answers=ANSWERS,
    )  # fmt: skip
    heads = attribution_patching(
        model, CLEAN, CORRUPTED, "z", positions=None, layers=[1, 3], heads="all", metric=["logit_difference", square],
        answers=ANSWERS,
    )  # fmt: skip
    assert result.axes == ("example", "site", "layer", "position") and heads.axes == ("example", "layer", "head")
    assert result.group_names == ("logit_difference", "square") and result.direction == "denoising"
    for example, (clean, corrupted) in enumerate(zip(CLEAN, CORRUPTED, strict=True)):
        for at, layer in enumerate((1, 3)):
            block = plain.model.layers[layer]
            for kind, module in (("z", block.self_attn.o_proj), ("mlp_in", block.mlp)):
                products, metrics = plain_products(plain, module, corrupted, clean, ANSWERS[example])
                np.testing.assert_allclose(result.corrupted[example], metrics, rtol=1e-4, atol=1e-5)
                of_site = result.effect[example, ["z", "mlp_in"].index(kind), at]  # (position, metric)
                np.testing.assert_allclose(of_site.T, products[:, [2, -1]].sum(-1), rtol=1e-3, atol=1e-5)
                if kind == "z":
                    by_head = products.unflatten(-1, (model.num_heads, -1)).sum((1, 3))  # (metric, head)
                    np.testing.assert_allclose(heads.effect[example, at].T, by_head, rtol=1e-3, atol=1e-5)


def test_cells_are_those_of_activation_patching() -> None:
    """Also where prompts have different lengths, positions are sets, sites are maps, and weights take no gradient."""
    model = StandardizedTransformer(build("llama").requires_grad_(False), tokenizer=tiny_tokenizer(), verify=False)
    longer = [[1, 40, *CLEAN[0]], CLEAN[1]]
    grids: list[dict[str, Any]] = [
        {"sites": ["resid_pre", "attn_out"], "positions": {"ends": ["first", "last"], "before": "-2"}},
        {"sites": "k", "positions": ["-2", "-1"], "heads": [1]},
        {
            "sites": "resid_post",
            "positions": "last",
            "direction": "noising",
            "metric": "kl",
            "answers": None,
            "steps": 2,
        },
    ]
    for grid in grids:
        given = {"metric": "log_probability", "answers": ANSWERS, **grid}
        more = {"steps": given.pop("steps"), "way": "sites"} if "steps" in given else {}
        exact = activation_patching(model, longer, CORRUPTED, **given)
        estimate = attribution_patching(model, longer, CORRUPTED, **given, **more)
        assert dict(estimate.coordinates) == dict(exact.coordinates) and estimate.direction == exact.direction
        np.testing.assert_allclose(estimate.clean, exact.clean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(estimate.corrupted, exact.corrupted, rtol=1e-4, atol=1e-5)
        assert np.isfinite(estimate.patched).all()
    maps = attribution_patching(model, CLEAN, CORRUPTED, "pattern", "last", heads="all", metric=square)
    assert maps.patched.shape == (2, 4, 1, 4, 1)


def test_integrated_gradients_add_up_to_the_effect_of_the_patch() -> None:
    """With enough steps, what goes along the way of a site adds up to what a patch of it all does."""
    model = wrapped("gpt2")
    given = {"layers": [0, 2], "metric": "logit_difference", "answers": ANSWERS}
    for site in ("resid_pre", "z"):
        exact = activation_patching(model, CLEAN, CORRUPTED, site, None, **given)
        cells = attribution_patching(model, CLEAN, CORRUPTED, site, "all", steps=16, way="sites", **given)
        np.testing.assert_allclose(cells.effect.sum(axis=2), exact.effect, rtol=0.02, atol=0.01)
    inputs = attribution_patching(model, CLEAN, CORRUPTED, "resid_pre", None, steps=16, **given)
    exact = activation_patching(model, CLEAN, CORRUPTED, "resid_pre", None, **given)
    np.testing.assert_allclose(inputs.effect[:, 0], exact.effect[:, 0], rtol=0.02, atol=0.01)  # the embeddings


def test_a_batch_gives_what_each_pair_gives() -> None:
    model = wrapped("llama")
    clean, corrupted = [*CLEAN, [1, 9, 40]], [*CORRUPTED, [1, 12, 41]]
    given: dict[str, Any] = {"sites": "mlp_out", "positions": "last", "metric": square, "steps": 2}
    together = attribution_patching(model, clean, corrupted, **given)
    alone = attribution_patching(model, clean, corrupted, **given, batch_size=1)
    np.testing.assert_allclose(together.effect, alone.effect, rtol=1e-4, atol=1e-6)
    assert together.patched.shape == (3, 4, 1, 1)


def test_what_is_refused() -> None:
    model = wrapped("llama")
    for change, message in (
        ({"steps": 0}, "steps: expected at least 1"),
        ({"metric": "kl", "direction": "noising"}, "metric 'kl' compares with the clean run, at which its gradient is"),
        ({"way": "input"}, "way: unknown 'input'. Did you mean 'inputs'"),
        ({"direction": "denoise"}, "direction: unknown 'denoise'"),
        ({"clean": [[1, 5, *CLEAN[0]], CLEAN[1]], "steps": 2}, "no way from the embeddings of the one"),
        ({"metric": {"one": square, "other": lambda logits: square(logits).detach()}}, "'other': gradients of it are"),
        ({"metric": lambda logits: logits.argmax(-1)}, "has none with respect to the logits"),
    ):
        given = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": square, "positions": "last", **change}
        with pytest.raises(InterpError, match=message):
            attribution_patching(model, **given)


def test_gradients_in_inference_mode_are_refused() -> None:
    model = wrapped("llama")
    given: dict[str, Any] = dict(clean=CLEAN, corrupted=CORRUPTED, metric=square)
    gradients: dict[str, Any] = dict(gradients="resid_post.1", gradients_of=lambda logits: logits[0, 0, 3])
    with torch.inference_mode():
        for call in (
            lambda: attribution_patching(model, **given),
            lambda: edge_attribution_patching(model, **given),
            lambda: model.run(CLEAN, gradients_of=lambda logits, _: logits[:, 0, 3]),
            lambda: model.run_with_cache(CLEAN, **gradients),
        ):
            with pytest.raises(InterpError, match="inference_mode keeps no gradients"):
                call()
