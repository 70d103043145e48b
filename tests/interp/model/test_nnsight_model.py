"""What nnsight does with a whole model: names, envoys of one's own, runs elsewhere, threads, memory."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from typing import Any

import pytest
import torch
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.eproperty import eproperty
from nnsight.modeling import huggingface
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from interp import StandardizedTransformer
from interp.errors import InterpError
from tests.families.cases import build
from tests.interp.model.plain import (
    ATTENTIONS,
    IDS,
    LAYERS,
    MLP_ADDED,
    NUM_LAYERS,
    PROMPT,
    changing,
    encoded,
    families,
    layers,
    plain,
    residuals,
    wrapped,
)
from tests.tiny import tiny_tokenizer


def fresh(family: str, **options: Any) -> StandardizedTransformer:
    return StandardizedTransformer(build(family), tokenizer=tiny_tokenizer(), verify=False, **options)


# Names ----------------------------------------------------------------------------------------------------------------


@families
def test_modules_by_every_name(family: str) -> None:
    model = wrapped(family)
    own = f"{LAYERS[family]}.1"
    assert model.get("layers.1") is model.get(own) is model.layers[1]
    assert model.layers[1].self_attn is model.get(f"{own}.{ATTENTIONS[family]}") is model.attentions[1]
    assert model.layers[1].path == f"model.{own}"
    assert model.layers[1].parent is model.layers
    assert model.layers[1].root is model
    assert len(model.layers) == NUM_LAYERS and [layer.path for layer in model.layers][1] == f"model.{own}"
    paths = [path for path, _ in model.named_modules()]
    modules = {f"model.{path}" for path, _ in plain(family).named_modules() if path}
    assert modules <= set(paths), "every module once, by its own name"
    assert len(paths) == len(set(paths))
    assert model.to("cpu") is model
    assert "self_attn" in str(model) and type(model.layers[1]._module).__name__ in str(model)


@torch.no_grad()
def test_the_users_names_beside_the_standard_ones() -> None:
    named = {
        "llama": {"model.layers": "blocks", LlamaAttention: "attention", "*.norm": ["last_norm", "normed"]},
        "gpt2": {"transformer.h": "blocks", "attn.c_proj": "attn.o_proj", "attn": "attention", "*.ln_f": "last_norm"},
    }
    for family, names in named.items():
        model = fresh(family, rename=names)
        assert model.blocks[2] is model.layers[2] is model.get(LAYERS[family])[2]
        assert model.last_norm is model.ln_final
        assert model.blocks[2].attention is model.layers[2].self_attn
        with model.trace(IDS) as tracer:
            cache = tracer.cache(modules=["model.transformer.h.1" if family == "gpt2" else "model.model.layers.1"])
            hidden = model.blocks[2].output.clone().save()
            projected = model.attentions[3].o_proj.output.clone().save()
            added = model.read("attn_out.3").clone().save()
        expected, _ = residuals(family, input_ids=IDS)
        assert torch.equal(hidden, expected[2])
        assert torch.equal(cache.blocks[1].output, expected[1])
        assert torch.equal(projected, added)


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match=r"would shadow the alias already bound here from 'transformer\.h'"):
        fresh("gpt2", rename={"transformer.wte": "layers"})
    with pytest.raises(ValueError, match="would shadow"):
        fresh("gpt2", rename={"transformer.wte": "digest"})


class Heads(Envoy):
    """The heads before the output projection, changed in place."""

    @eproperty(key="input")
    def heads(self, value: Any) -> Tensor:
        (hidden,), _ = value
        return hidden.unflatten(-1, (4, -1))

    @heads.transform
    def heads(self, value: Tensor, raw: Any) -> Any:
        return (value.flatten(-2),), raw[1]


@torch.no_grad()
def test_envoys_of_ones_own() -> None:
    model = fresh("llama", envoys={"self_attn.o_proj": Heads})
    with model.trace(IDS):
        seen = model.layers[1].self_attn.o_proj.heads.clone().save()
        model.layers[2].self_attn.o_proj.heads[:, :, 3] = 0
        logits = model.logits.save()
    with model.trace(IDS):
        z = model.read("z.1").clone().save()
        model.write("z.2.h3", torch.zeros(2, 6, 8))
        expected = model.logits.save()
    assert torch.equal(seen, z)
    torch.testing.assert_close(logits, expected)
    assert not torch.equal(logits, residuals("llama", input_ids=IDS)[1])


# Elsewhere ------------------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_a_trace_is_sent_and_run(family: str) -> None:
    """`remote="local"` packs a block as for a server, hides what a server has not, and runs it here."""
    model = wrapped(family)
    with model.trace(PROMPT, remote="local"):
        hidden = model.read("resid_post.1").clone().save()
        model.layers_output[2] = model.layers_output[2] * 2
        model.write("mlp_out.3", torch.zeros_like(model.read("mlp_out.3")))
        tail = model.readout(model.read("resid_post.3")).save()
        logits = model.logits.save()
    expected, _ = residuals(family, **encoded(PROMPT))
    assert torch.equal(hidden, expected[1])
    assert torch.equal(tail, logits)
    with (
        changing(layers(family)[2], lambda value, _: value * 2),
        changing(layers(family)[3].get_submodule(MLP_ADDED[family]), lambda value, _: value * 0),
    ):
        torch.testing.assert_close(logits, residuals(family, **encoded(PROMPT))[1])


@torch.no_grad()
def test_sessions_invokes_and_generation_are_sent_and_run() -> None:
    model = wrapped("gpt2")
    with model.session(remote="local"):
        with model.trace(IDS):
            hidden = model.read("resid_post.1")
        with model.trace() as tracer:
            with tracer.invoke(IDS[:1]):
                model.write("resid_post.2", hidden[:1])
                first = model.logits.clone().save()
            with tracer.invoke(IDS[1:]):
                second = model.logits.clone().save()
    before, clean = residuals("gpt2", input_ids=IDS)
    with changing(layers("gpt2")[2], lambda value, _: before[1]):
        torch.testing.assert_close(first, residuals("gpt2", input_ids=IDS)[1][:1])
    torch.testing.assert_close(second, clean[1:])
    with model.generate(IDS, max_new_tokens=3, do_sample=False, remote="local") as tracer:
        for _ in tracer.iter[:3]:
            model.steer(1, torch.ones(32), factor=4.0)
        ids = tracer.result.save()
    with changing(layers("gpt2")[1], lambda value, _: value + 4):
        expected = plain("gpt2").generate(IDS, max_new_tokens=3, do_sample=False)
    assert torch.equal(ids, expected)


@torch.no_grad()
def test_an_edit_goes_with_the_model() -> None:
    model = wrapped("llama")
    with model.edit() as (_, edited):
        edited.write("resid_post.1", edited.read("resid_post.1") * 2)
    with edited.trace(IDS, remote="local"):
        logits = edited.logits.save()
    with changing(layers("llama")[1], lambda value, _: value * 2):
        torch.testing.assert_close(logits, residuals("llama", input_ids=IDS)[1])


def test_an_error_far_away_is_the_users_own() -> None:
    model = wrapped("llama")
    with pytest.raises(InterpError, match="Did you mean"), model.trace(IDS, remote="local"):
        model.read("resid_pst.1").save()


def test_a_server_is_asked_for_nnsights_class(model_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(model_folder("llama"))
    model = StandardizedTransformer(folder, revision=None, verify=False)
    monkeypatch.setitem(huggingface._ID_CACHE, folder, "owner/name")  # what the hub would answer
    name, _, key = model.to_model_key().partition(":")
    assert name == "nnsight.modeling.transformers.TransformersModel"
    assert json.loads(key) == {"repo_id": "owner/name", "revision": None, "task": "text-generation"}
    model = StandardizedTransformer(folder, revision="v1", trust_remote_code=True, verify=False)
    assert json.loads(model.to_model_key().partition(":")[2]) == {
        "repo_id": "owner/name",
        "revision": "v1",
        "trust_remote_code": True,
        "task": "text-generation",
    }


# Side by side ---------------------------------------------------------------------------------------------------------


def test_two_models_in_two_threads() -> None:
    expected = {family: residuals(family, input_ids=IDS) for family in ("llama", "gpt2")}
    wrong: list[str] = []

    def work(family: str, model: StandardizedTransformer) -> None:
        for _ in range(10):
            with torch.no_grad(), model.trace(IDS):
                hidden = model.read("resid_post.2").clone().save()
                logits = model.logits.save()
            if not (torch.equal(hidden, expected[family][0][2]) and torch.equal(logits, expected[family][1])):
                wrong.append(family)

    threads = [threading.Thread(target=work, args=(family, wrapped(family))) for family in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_two_models_in_one_block() -> None:
    source, target = wrapped("llama"), wrapped("gpt2")
    with source.session():
        with source.trace(IDS):
            hidden = source.read("resid_post.2")
        with target.trace(IDS):
            target.write("resid_post.1", hidden)
            logits = target.logits.save()
    read = residuals("llama", input_ids=IDS)[0][2]
    with changing(layers("gpt2")[1], lambda value, _: read):
        torch.testing.assert_close(logits, residuals("gpt2", input_ids=IDS)[1])


# Memory ---------------------------------------------------------------------------------------------------------------


def traced(model: StandardizedTransformer) -> list[weakref.ref[Tensor]]:
    """Trace in every way; weak references to tensors that were not saved."""
    seen: list[weakref.ref[Tensor]] = []
    with model.trace(IDS) as tracer:
        hidden = model.read("resid_post.1")
        seen.append(weakref.ref(hidden))
        seen.append(weakref.ref(model.layers_output[2]))
        tracer.result.logits.sum().save()
    with model.trace() as tracer:
        with tracer.invoke(IDS[:1]):
            seen.append(weakref.ref(model.read("attn_out.1")))
        with tracer.invoke(IDS[1:]):
            model.layers_output[1][:] = 0
    with model.generate(IDS, max_new_tokens=2, min_new_tokens=2) as tracer:
        for _ in tracer.iter[:2]:
            seen.append(weakref.ref(model.read("resid_post.1")))
    return seen


def test_nothing_is_held_after_a_trace() -> None:
    model = fresh("llama")
    gc.collect()
    gc.disable()
    try:
        seen = traced(model)
        assert len(seen) == 5
        assert not any(reference() is not None for reference in seen)
        weights = weakref.ref(model._module)
        del model
        assert weights() is None, "weights are freed with the last reference, without waiting for the collector"
    finally:
        gc.enable()
