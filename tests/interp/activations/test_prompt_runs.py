"""`model.run` against hooks of torch, traces by hand and identities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.activations import steering_vectors
from interp.errors import InterpError
from interp.interventions import Intervention, SteeringVectors
from interp.interventions.perform import drawn, noise
from interp.interventions.shapes import embedding_std
from interp.model import StandardizedTransformer
from interp.prompts import Prompt
from tests.families import build
from tests.interp.activations.edited import at, traced

IDS = [[1, 17, 250, 33, 94, 12], [1, 88, 5, 260], [1, 9, 301, 77, 5, 6]]
OTHER = [[1, 200, 31, 44, 7, 7], [1, 3, 3, 100], [1, 18, 19, 20, 21, 22]]
GENERATOR = torch.Generator().manual_seed(0)
VECTOR = torch.randn(32, generator=GENERATOR)
Standardized = Callable[[str], StandardizedTransformer]
FAMILIES = ["gpt2", "gpt_neox", "bloom", "gptj", "gemma2", "olmo2", "jamba"]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_is_what_hooks_of_torch_give(standardized: Standardized, family: str) -> None:
    model = standardized(family)
    module = model.layer(1)._module

    def steer(_: Any, args: Any, output: Any) -> Any:
        hidden = (output if isinstance(output, Tensor) else output[0]).clone()
        hidden[:, 2] += 3 * VECTOR
        hidden[:, -1] = 0
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    for ids in IDS[:2]:
        run = model.run(
            [ids],
            [Intervention("resid_post.1", 2, "add", VECTOR, factor=3), Intervention("resid_post.1", "last", "zero")],
            positions="all",
        )
        hook = module.register_forward_hook(steer)
        with torch.no_grad():
            expected = model._module(input_ids=torch.tensor([ids])).logits
        hook.remove()
        assert run.logits is not None
        close(run.logits, expected)


# What each family is tested at: one change for each kind of site that it has, two listed at one place, one head alone.
SITES = ["embed", "resid_pre.1", "q.1.h1", "k.2", "v.2.h0", "scores.1.h2", "pattern.2", "z.1.h3", "head_out.2.h1"]
SITES += ["attn_out.0", "mixer_out.1", "resid_mid.2", "mlp_post.1", "mlp_out.2", "resid_post.3", "final_norm", "logits"]


@pytest.mark.parametrize("family", FAMILIES)
def test_is_what_a_trace_gives_at_every_site_alone_and_in_batches(wrapped: Standardized, family: str) -> None:
    model = wrapped(family)
    sites = [site for site in SITES if model.has(site)]
    assert len(sites) > 5
    for site in sites:
        before_positions = site.split(".")[0] in ("q", "k", "v", "scores", "pattern") and ".h" not in site
        index: Any = (slice(None), slice(None), [1, -1]) if before_positions else (slice(None), [1, -1])
        interventions = [
            Intervention(site, "1 last", "scale", 0.5),
            Intervention("resid_post.2", "first", "add", VECTOR),
        ]
        changes = {
            site: at(index, lambda value: torch.where(value > -1e30, value * 0.5, value)),  # masked scores stay
            "resid_post.2": at((slice(None), 0), lambda value: value + VECTOR),
        }
        expected = [traced(model, ids, changes, [site]) for ids in IDS]
        for side in ("left", "right"):
            run = model.run(IDS, interventions, read=site, positions="all", padding_side=side)  # type: ignore[arg-type]
            for example, ids in enumerate(IDS):
                assert run.logits is not None
                close(run.logits[example, : len(ids)], expected[example]["logits"][0])
                assert bool(run.logits[example, len(ids) :].isnan().all())
                own = run[site][example]
                axes = [slice(None)] * own.dim()
                axes[1 if before_positions else 0] = slice(len(ids))
                if site.startswith(("scores", "pattern")):
                    axes[-1] = slice(len(ids))
                close(own[tuple(axes)].clamp(min=-1e30), expected[example][site][0].clamp(min=-1e30))


def test_a_batch_gives_what_single_prompts_give(standardized: Standardized) -> None:
    model = standardized("gemma2")
    interventions = [
        Intervention("resid_post.0", "1:", "noise", embedding_stds=1.5, seed=3),
        Intervention("z.2.h0,2", "last", "noise", std=1.0, seed=3),
        Intervention("v.1", "first", "resample", {"prompt": OTHER[1:], "position": "first"}, seed=1),
        Intervention("mlp_out.1-2", "last", "mean", {"prompt": OTHER}),
        Intervention("attn_out.3", "last", "set", {"prompt": "the lazy dog", "position": -2}),
    ]
    alone = [model.run([ids], interventions, read="resid_post.* k.3 pattern.3.h1", positions="1 last") for ids in IDS]
    ways: list[dict[str, Any]] = [dict(batch_size=2), dict(padding_side="right"), dict(batch_size=1)]
    for way in ways:
        together = model.run(IDS, interventions, read="resid_post.* k.3 pattern.3.h1", positions="1 last", **way)
        for example, one in enumerate(alone):
            assert together.logits is not None and one.logits is not None
            close(together.logits[example], one.logits[0])
            for site in one.activations:
                expected = one[site][0]
                found = together[site][example]
                close(found[..., : expected.shape[-1]], expected)


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gptj", "olmo2", "jamba"])
def test_patching_oneself_changes_nothing_and_patching_all_of_layer_0_gives_the_source(
    wrapped: Standardized, family: str
) -> None:
    model = wrapped(family)
    plain = model.run(IDS).logits
    for site in ("resid_pre.2", "z.1", "k.1", "pattern.1", "mlp_out.2", "resid_post.*"):
        if site != "resid_post.*" and not model.has(site):
            continue
        patched = model.run(IDS, Intervention(site, "all", "set", {"prompt": IDS}))
        close(patched.logits, plain)  # type: ignore[arg-type]
    source = model.run(OTHER).logits
    for site in ("embed", "resid_pre.0"):
        patched = model.run(IDS, Intervention(site, "all", "set", {"prompt": OTHER}), batch_size=2)
        close(patched.logits, source)  # type: ignore[arg-type]


def test_a_cached_tensor_is_a_value(standardized: Standardized) -> None:
    model = standardized("llama")
    sites = "resid_mid.1 q.1 k.1 v.1.h1 scores.2 pattern.2.h3 z.1 head_out.0 mlp_post.3"
    run = model.run(IDS, read=sites, positions="1 last")
    for site in sites.split():
        value = run[site]
        patched = model.run(IDS, Intervention(site, "1 last", "set", value), positions="1 last")
        close(patched.logits, run.logits)  # type: ignore[arg-type]


def test_another_site_of_another_prompt_at_another_position(standardized: Standardized) -> None:
    model = standardized("gpt2")
    source = traced(model, OTHER[0], {}, ["resid_mid.2"])["resid_mid.2"][0, 4]
    expected = traced(model, IDS[0], {"resid_post.0": at((0, [1, 2]), lambda _: source)})["logits"][:, -1:]
    patch = Intervention("resid_post.0", "1:3", "set", {"prompt": OTHER[0], "site": "resid_mid.2", "position": 4})
    close(model.run([IDS[0]], patch).logits, expected)  # type: ignore[arg-type]
    one_each = Intervention("resid_post.0", [[1, 2], None, 3], "set", {"prompt": OTHER})
    run = model.run(IDS, one_each, read="resid_post.0", positions="all")
    source = model.run(OTHER, read="resid_post.0", positions="all")["resid_post.0"]
    plain = model.run(IDS, read="resid_post.0", positions="all")["resid_post.0"]
    close(run["resid_post.0"][0, 1:3], source[0, 1:3])
    close(run["resid_post.0"][1, :4], plain[1, :4])
    close(run["resid_post.0"][2, 3], source[2, 3])


def test_positions_in_a_span(standardized: Standardized) -> None:
    model = standardized("gpt2")
    prompts = [Prompt("The lazy dog sleeps").marked("who", "dog"), Prompt("A fox jumps over").marked("who", "fox")]
    run = model.run(prompts, Intervention("resid_post.1", "who.last", "zero"), read="resid_post.1", positions="all")
    zero = (run["resid_post.1"] == 0).all(-1)
    spans = [prompt.encode(model.tokenizer).spans["who"] for prompt in prompts]
    assert [row.nonzero().flatten().tolist() for row in zero] == [[stop - 1] for _, stop in spans]


# Operations -----------------------------------------------------------------------------------------------------------


def test_mean_and_resample_are_of_the_reference(standardized: Standardized) -> None:
    model = standardized("llama")
    reference = model.run(OTHER, read="z.1", positions="1 last")["z.1"]
    run = model.run(IDS, Intervention("z.1", "1 last", "mean", {"prompt": OTHER}), read="z.1", positions="1 last")
    close(run["z.1"], reference.mean(0, keepdim=True).expand(3, -1, -1, -1))
    every = model.run(OTHER, read="z.1", positions="all")["z.1"]
    overall = Intervention("z.1.h2", "1:3", "mean", {"prompt": OTHER}, mean_over="tokens")
    run = model.run(IDS, overall, read="z.1.h2", positions="1:3")
    close(run["z.1.h2"], every[:, :, 2].flatten(0, 1).nanmean(0).expand(3, 2, -1))
    ends = Intervention("z.1", "1:3", "mean", {"prompt": OTHER, "position": "1 last"}, mean_over="tokens")
    run = model.run(IDS, ends, read="z.1", positions="1")
    close(run["z.1"][:, 0], reference.mean((0, 1)).expand(3, -1, -1))
    run = model.run(IDS, Intervention("mlp_out.1", "last", "resample", seed=5), read="mlp_out.1")
    plain = model.run(IDS, read="mlp_out.1")["mlp_out.1"]
    for example, ids in enumerate(IDS):
        others = [other for other in range(3) if other != example]
        close(run["mlp_out.1"][example], plain[others[drawn(5, "resample", ids, 2)]])


def test_noise_is_what_is_drawn_times_its_deviation(standardized: Standardized) -> None:
    model = standardized("gemma2")  # scales its embeddings
    weights = model._module.get_input_embeddings().weight.detach()
    assert embedding_std(model) == pytest.approx(float(weights.double().std() * 32**0.5), rel=1e-3)
    run = model.run(IDS[:1], Intervention("z.1.h1", 2, "noise", embedding_stds=2.0, seed=9), read="z.1", positions=2)
    plain = model.run(IDS[:1], read="z.1", positions=2)
    expected = torch.zeros(4, 8)
    expected[1] = noise(9, "z.1", IDS[0], 2, (4, 8))[1] * 2 * embedding_std(model)
    close(run["z.1"][0, 0] - plain["z.1"][0, 0], expected)


def test_a_subspace_is_exchanged(standardized: Standardized) -> None:
    model = standardized("gpt2")
    basis = torch.linalg.qr(torch.randn(32, 3, generator=GENERATOR))[0].T
    swap = Intervention("resid_post.1", "last", "rotate_set", {"prompt": OTHER}, basis=basis @ torch.eye(32))
    run = model.run(IDS, swap, read="resid_post.1")["resid_post.1"][:, 0]
    own, other = (model.run(ids, read="resid_post.1")["resid_post.1"][:, 0] for ids in (IDS, OTHER))
    close(run @ basis.T, other @ basis.T)
    numbers = Intervention("resid_post.1", "last", "rotate_set", other, basis=basis)
    with pytest.raises(InterpError, match="does not fit"):
        model.run(IDS, numbers)
    numbers = Intervention("resid_post.1", "last", "rotate_set", other[:, None], basis=basis)
    close(model.run(IDS, numbers, read="resid_post.1")["resid_post.1"][:, 0], run)
    rest = torch.eye(32) - basis.T @ basis
    close(run @ rest, own @ rest)
    out = model.run(IDS, Intervention("resid_post.1", "last", "project_out", basis), read="resid_post.1")
    onto = model.run(IDS, Intervention("resid_post.1", "last", "project_onto", basis), read="resid_post.1")
    close(out["resid_post.1"][:, 0] + onto["resid_post.1"][:, 0], own)
    close(onto["resid_post.1"][:, 0], own @ basis.T @ basis)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_knockout_is_what_a_mask_does(standardized: Standardized, family: str) -> None:
    """Edges cut in all layers and heads before the softmax are those that transformers' own mask hides."""
    model = standardized(family)
    cut = Intervention("scores.*", "last 3", "knockout", from_positions="1:3")
    run = model.run(IDS, cut, positions="all")
    behind = Intervention("pattern.1.h0", "last", "knockout", from_positions="1:3")
    pattern = model.run(IDS, behind, read="pattern.1", positions="last")["pattern.1"]
    plain = model.run(IDS, read="pattern.1", positions="last")["pattern.1"]
    for example, ids in enumerate(IDS):
        length = len(ids)
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        mask[[3, length - 1], 1:3] = torch.finfo(torch.float32).min
        with torch.no_grad():
            expected = model._module(input_ids=torch.tensor([ids]), attention_mask=mask[None, None]).logits
        assert run.logits is not None
        close(run.logits[example, :length], expected[0])
        assert bool((pattern[example, 0, 0, 1:3] == 0).all())
        close(pattern[example, 0, 0, 3:length], plain[example, 0, 0, 3:length])  # not renormalised
        close(pattern[example, 1:, 0, :length], plain[example, 1:, 0, :length])


def test_masked_scores_stay_masked(standardized: Standardized) -> None:
    pattern = standardized("llama").run(
        IDS, Intervention("scores.1", "all", "zero"), read="pattern.1.h0", positions="all", padding_side="left"
    )["pattern.1.h0"]  # fmt: skip
    for example, ids in enumerate(IDS):
        uniform = torch.ones(len(ids), len(ids)).tril()
        close(pattern[example, : len(ids), : len(ids)], uniform / uniform.sum(-1, keepdim=True))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "olmo2"])
def test_skip_is_a_model_without_the_part(wrapped: Standardized, family: str) -> None:
    model, without = wrapped(family), build(family)
    layers = without.get_submodule(model.architecture.layers)
    del layers[2]
    with torch.no_grad():
        expected = [without(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in IDS]
    run = model.run(IDS, Intervention("resid_post.2", "all", "skip"))
    assert run.logits is not None
    close(run.logits[:, 0], torch.stack(expected))
    for part in ("attn_out", "mlp_out"):
        skipped = model.run(IDS, Intervention(f"{part}.1", "all", "skip")).logits
        zeroed = model.run(IDS, Intervention(f"{part}.1", "all", "zero")).logits
        assert skipped is not None and zeroed is not None and torch.equal(skipped, zeroed)
    some = model.run(IDS, Intervention("resid_post.2", 1, "skip"), read="resid_pre.2 resid_post.2", positions="0 1")
    assert torch.equal(some["resid_post.2"][:, 1], some["resid_pre.2"][:, 1])
    assert not torch.equal(some["resid_post.2"][:, 0], some["resid_pre.2"][:, 0])


def test_interventions_at_one_place_act_as_listed(standardized: Standardized) -> None:
    model = standardized("llama")
    add, double = Intervention("z.1", "last", "add", 1.0), Intervention("z.1.h2", "last", "scale", 2.0)
    plain = model.run(IDS, read="z.1")["z.1"]
    first = model.run(IDS, [add, double], read="z.1")["z.1"]
    second = model.run(IDS, [double, add], read="z.1")["z.1"]
    close(first[:, :, 2], (plain[:, :, 2] + 1) * 2)
    close(second[:, :, 2], plain[:, :, 2] * 2 + 1)
    close(first[:, :, 1], second[:, :, 1])


def test_a_star_names_the_layers_that_have_the_site(wrapped: Standardized) -> None:
    model = wrapped("jamba")
    _, cache = model.run_with_cache(IDS, sites="z.* resid_post.1")
    found = model.run(IDS, read="z.* resid_post.1", positions="all")
    assert list(found.activations) == list(cache) and len(cache) < 1 + model.num_layers
    for site in cache:
        torch.testing.assert_close(found[site], cache[site], rtol=1e-4, atol=2e-5, equal_nan=True)
    assert not model.run(IDS[:1], read=iter(())).activations.sites


# Steering -------------------------------------------------------------------------------------------------------------


def test_saved_steering_vectors_are_values(standardized: Standardized, tmp_path: Path) -> None:
    model = standardized("llama")
    vectors = steering_vectors(model, IDS, OTHER, sites="resid_post.1-2 z.1.h0", position="1:3")
    ends = [model.run(ids, read="resid_post.2 z.1", positions="1:3") for ids in (IDS, OTHER)]
    expected = ends[0]["resid_post.2"].mean((0, 1)) - ends[1]["resid_post.2"].mean((0, 1))
    close(vectors["resid_post.2"], expected)
    close(vectors["z.1.h0"], (ends[0]["z.1"] - ends[1]["z.1"])[:, :, 0].mean((0, 1)))
    vectors.save(tmp_path / "steer.safetensors")
    loaded = SteeringVectors.load(tmp_path / "steer.safetensors")
    assert loaded.method == "mean_difference" and torch.equal(loaded["resid_post.2"], vectors["resid_post.2"])
    named = loaded.interventions("last", 2.0, sites="resid_post.2", file=tmp_path / "steer.safetensors")
    assert named[0].to_dict()["value"] == {"file": str(tmp_path / "steer.safetensors"), "name": "resid_post.2"}
    run = model.run(IDS, named, read="resid_post.2")["resid_post.2"]
    plain = model.run(IDS, read="resid_post.2")["resid_post.2"]
    close(run - plain, (2 * expected).expand_as(run))
    ranged = Intervention("resid_post.1-2", "all", "add", {"file": str(tmp_path / "steer.safetensors")})
    whole = model.run(IDS, loaded.interventions(sites="resid_post.1 resid_post.2")).logits
    assert torch.equal(model.run(IDS, ranged).logits, whole)  # type: ignore[arg-type]


# Anything -------------------------------------------------------------------------------------------------------------


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "scale": lambda value: value * -1.5,
    "set": lambda value: torch.full_like(value, 0.25),
    "add": lambda value: value + 0.5,
    "project_out": lambda value: value - value.mean(-1, keepdim=True),
    "project_onto": lambda value: value.mean(-1, keepdim=True).expand_as(value),
}
VALUES = {"scale": -1.5, "set": 0.25, "add": 0.5}
BEFORE = ("q", "k", "v")


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_site_position_and_operation(standardized: Standardized, data: st.DataObject) -> None:
    model = standardized(data.draw(st.sampled_from(["gpt_neox", "qwen3", "gemma2"])))
    drawn_sites = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["resid_pre", "q", "k", "v", "z", "attn_out", "mlp_post", "mlp_out", "resid_post"]),
                st.integers(0, 3),
            ),
            min_size=1, max_size=3, unique=True,
        )
    )  # fmt: skip
    interventions, changes = [], {}
    for kind, layer in drawn_sites:
        operation = data.draw(st.sampled_from(sorted(CHANGES)))
        position = data.draw(st.integers(-4, 3))
        width = model.run([[1, 2]], read=f"{kind}.{layer}", logits=False)[f"{kind}.{layer}"].shape[-1]
        value = torch.ones(width) if operation.startswith("project") else VALUES.get(operation)
        interventions.append(Intervention(f"{kind}.{layer}", position, operation, value))
        index: Any = (slice(None), slice(None), position) if kind in BEFORE else (slice(None), position)
        changes[f"{kind}.{layer}"] = at(index, CHANGES[operation])
    places = {(kind, layer) for kind, layer in drawn_sites}
    if any(("resid_post", layer - 1) in places for kind, layer in places if kind == "resid_pre"):
        return  # one place by two names, which may contradict
    run = model.run(IDS[:2], interventions, padding_side=data.draw(st.sampled_from(["left", "right"])))
    for example, ids in enumerate(IDS[:2]):
        assert run.logits is not None
        close(run.logits[example, 0], traced(model, ids, changes)["logits"][0, -1])
