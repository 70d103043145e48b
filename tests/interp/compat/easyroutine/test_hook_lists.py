"""Hooks as dictionaries: what they take and change is what `forward` does; functions of the user's; errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interp.compat.easyroutine import ActivationCache, HookedModel, Intervention
from interp.errors import InterpError
from tests.interp.compat.easyroutine.edited_by_hand import batch_of, changed, logits_of

IDS = [[1, 17, 250, 33, 94], [1, 88, 5, 260, 7]]
GIVEN = batch_of(IDS)
FLAGS = (
    "resid_in", "resid_mid", "resid_out", "attn_in", "attn_out", "mlp_out", "values", "keys", "queries", "embed",
    "head_values", "head_queries", "head_out", "attn_pattern", "head_values_projected", "last_layernorm",
    "avg_attn_pattern", "avg_values_vectors_projected",
)  # fmt: skip
ABLATIONS: list[dict[str, Any]] = [
    {"type": "std", "elem-to-ablate": "@last-2", "head-layer-couple": [[1, 0], [3, 2]]},
    {"type": "flash-attn", "elem-to-ablate": "@first", "head-layer-couple": [[0, 1], [1, 1], [2, 1]]},
]


def taken(model: HookedModel, hooks: list[dict[str, Any]], **given: Any) -> ActivationCache:
    handles = model.set_hooks(hooks)
    try:
        return model.forward(GIVEN, **given)
    finally:
        model.remove_hooks(handles)


def alike(found: ActivationCache, expected: ActivationCache) -> None:
    assert set(expected) - {"input_ids"} <= set(found)
    for key, value in expected.items():
        if isinstance(value, Tensor) and key != "input_ids":
            torch.testing.assert_close(found[key].as_subclass(Tensor), value.as_subclass(Tensor), rtol=1e-5, atol=1e-5)
    assert found["mapping_index"] == expected["mapping_index"] and found["token_dict"] == expected["token_dict"]


def test_what_they_take_is_what_forward_takes(llama: HookedModel) -> None:
    flags: dict[str, bool] = {f"extract_{flag}": True for flag in FLAGS}
    cache = ActivationCache()
    hooks = llama.create_hooks(GIVEN, cache, extracted_token_position=["last", "first"], save_logits=True, **flags)
    assert all(set(hook) == {"component", "intervention"} and callable(hook["intervention"]) for hook in hooks)
    assert {"resid_post.0", "pattern.3", "embed"} <= {hook["component"] for hook in hooks}
    plain = taken(llama, hooks)["logits"]
    alike(cache, llama.forward(GIVEN, ["last", "first"], save_logits=True, **flags))
    torch.testing.assert_close(plain, llama.forward(GIVEN)["logits"], rtol=1e-5, atol=1e-5)
    assert not llama.standardized.list_hooks()
    whole = cache["resid_out_0"].clone()
    llama.forward(batch_of(IDS[::-1]))
    assert torch.equal(cache["resid_out_0"], whole)  # removed


def test_tokens_instead_of_names(llama: HookedModel) -> None:
    expected = llama.forward(GIVEN, ["last", (1, 3)], extract_resid_out=True, extract_avg=True)["resid_out_2"]
    for where in (
        dict(token_dict={"last": [-1], "span": [1, 2]}),
        dict(token_dict=[{"last": [4], "span": [1, 2]}] * 2),
        dict(token_dict={"all": range(5), "last": [4], "span": [1, 2]}, token_index=[[4], [1, 2]]),
        dict(token_index=[[4]], extract_avg=False),
        dict(token_indexes=torch.tensor([4]), extract_avg=False),
    ):
        cache = ActivationCache()
        taken(llama, llama.create_hooks(GIVEN, cache, **{"extract_resid_out": True, "extract_avg": True, **where}))  # type: ignore[arg-type]
        torch.testing.assert_close(cache["resid_out_2"], expected[:, : cache["resid_out_2"].shape[1]])
    external = ActivationCache()
    for index in range(2):
        hooks = llama.create_hooks(
            GIVEN, ActivationCache(), batch_idx=index, external_cache=external, extract_avg_attn_pattern=True
        )
        taken(llama, hooks)
    mean = llama.forward(GIVEN, extract_avg_attn_pattern=True)["avg_pattern_L1H2"]
    torch.testing.assert_close(external["avg_pattern_L1H2"], mean)


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_they_change_is_what_forward_and_generate_change(llama: HookedModel, use_cache: bool) -> None:
    held = llama.forward(batch_of(IDS[::-1]), ["last"], extract_resid_out=True)
    queries: dict[str, Any] = dict(
        ablation_queries=ABLATIONS,
        patching_queries={
            "patching_elem": "@last", "layers_to_patch": [1], "activation_type": "resid_out_{}",
            "patching_activations": held,
        },
        interventions=[Intervention("full", "mlp_out_2", ["first"], multiplication_value=0.5)],
    )  # fmt: skip
    cache = ActivationCache()
    hooks = llama.create_hooks(GIVEN, cache, extract_resid_out=True, **queries)
    expected = llama.forward(GIVEN, extract_resid_out=True, **queries)
    torch.testing.assert_close(taken(llama, hooks)["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
    alike(cache, expected)
    given: dict[str, Any] = dict(
        max_new_tokens=4, use_cache=use_cache, eos_token_id=None, return_dict_in_generate=True, output_logits=True
    )
    wanted = llama.generate(GIVEN, **given, **queries)
    handles = llama.set_hooks(hooks)
    found = llama.generate(GIVEN, **given)
    llama.remove_hooks(handles)
    for own, other in zip(found["logits"], wanted["logits"], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(llama.generate(GIVEN, **given)["logits"][3], wanted["logits"][3], atol=1e-3)


def test_functions_at_modules_and_at_sites(llama: HookedModel, by_transformers: Any) -> None:
    seen: list[Any] = []

    def halved(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return output * 0.5

    def doubled(module: Any, args: Any, kwargs: Any, output: None) -> Any:
        return (args[0] * 2, *args[1:]), kwargs

    def watched(module: Any, input: Any, output: Any) -> None:
        seen.append(output)

    def without_last(module: None, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, 1, :, -1] = 0
        return output

    found = taken(
        llama,
        [
            {"component": "model.layers[0].mlp.output", "intervention": halved},
            {"component": "model.layers.1.self_attn.o_proj.input", "intervention": doubled},
            {"component": "model.layers[1]", "intervention": watched},
            {"component": "pattern.2", "intervention": without_last},
        ],
    )["logits"]

    def pattern(layer: int, pattern: Tensor) -> None:
        if layer == 2:
            pattern[0, 1, :, -1] = 0

    outputs = {"model.layers.0.mlp": lambda x: x * 0.5, "model.layers.1.self_attn.o_proj.input": lambda x: x * 2}
    for row, ids in enumerate(IDS):
        with changed(by_transformers, pattern, outputs):
            torch.testing.assert_close(found[row], logits_of(by_transformers, ids), rtol=1e-4, atol=1e-4)
    assert len(seen) == 1
    handles = llama.set_hooks([{"component": "model.layers[1].output", "intervention": watched}])
    with torch.no_grad():
        llama.hf_model(**GIVEN)  # called by itself
    llama.remove_hooks(handles)
    assert len(seen) == 2


def test_nothing_stays_behind_an_error(llama: HookedModel) -> None:
    plain = llama.forward(GIVEN)["logits"]

    def fails(*_: Any) -> None:
        raise RuntimeError("stop here")

    for component in ("pattern.1", "model.layers[1].output"):
        with pytest.raises(RuntimeError, match="stop here"):
            taken(llama, [{"component": component, "intervention": fails}])
    with pytest.raises(InterpError, match=r"hooks\[1\]: 'model.layers\[9\].output' is no module and no site"):
        llama.set_hooks(
            [
                {"component": "resid_post.0", "intervention": lambda *given: given[3] * 0},
                {"component": "model.layers[9].output", "intervention": fails},
            ]
        )
    with pytest.raises(InterpError, match=r"hooks\[0\]: expected component, and intervention, a function"):
        llama.set_hooks([{"component": "resid_post.0"}])
    bad = Intervention("full", "resid_out_1", ["last"], torch.ones(1, 1, 31))
    with pytest.raises(InterpError, match="expected what broadcasts to"):
        llama.forward(GIVEN, ablation_queries=ABLATIONS, interventions=[bad])
    with pytest.raises(RuntimeError, match="stop here"):
        llama.generate(GIVEN, ablation_queries=ABLATIONS, max_new_tokens=1, logits_processor=[fails])
    module = llama.hf_model
    assert not llama.standardized.list_hooks() and torch.equal(llama.forward(GIVEN)["logits"], plain)
    assert not any(
        getattr(hook, "__module__", "").startswith("tests")
        for part in module.modules()
        for hook in part._forward_hooks.values()
    )


def test_refuses(llama: HookedModel) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        (dict(inputs=batch_of([IDS[0], IDS[1][:3]])), "expected examples of one length, got 3, 5 tokens"),
        (dict(keep_gradient=True), "keep_gradient: gradients take a pass of their own"),
        (dict(extract_resid_oot=True), "create_hooks has no argument 'extract_resid_oot'. Did you mean"),
        (dict(extracted_token_position=["lats"], extract_resid_out=True), "token position 'lats'"),
        (dict(token_index=[9], extract_resid_out=True), "token_index: expected tokens of 5, got"),
        (dict(token_dict={"here": [7]}), r"token_dict\['here'\]: expected tokens of 5"),
        (dict(ablation_queries=[{"type": "std"}]), "needs elem-to-ablate"),
    ]
    for given, message in refused:
        with pytest.raises(InterpError, match=message):
            llama.create_hooks(**{"inputs": GIVEN, "cache": ActivationCache(), **given})
    handles = llama.set_hooks(llama.create_hooks(GIVEN, ActivationCache(), extract_resid_out=True))
    with pytest.raises(InterpError, match="made for 2 examples, the model runs 1"):
        llama.forward(batch_of(IDS[:1]))
    llama.remove_hooks(handles)
