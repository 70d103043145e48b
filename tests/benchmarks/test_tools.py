"""The tools that live in this environment do the same work, each in its own way, on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.lenses.compare import DisagreementError, Readout, check
from benchmarks.lenses.model import Shape, save
from benchmarks.lenses.tools import Tool
from benchmarks.lenses.tools.with_interpipe import WithInterpipe
from benchmarks.lenses.tools.with_nnsight import WithNnsight
from benchmarks.lenses.tools.with_transformers import WithTransformers
from benchmarks.lenses.works import KINDS, Inputs, Work, make_inputs

SHAPE = Shape(layers=3, hidden=16, mlp=40, vocabulary=60, heads=2)
SOURCES = 5
RETURNED = {
    "patchscope": {"answer", "top"},
    "patchscope_end_to_end": {"answer", "top"},
    "logit_lens": {"answer", "top", "entropy"},
    "collect": {"activations"},
    "few_shot": {"activations"},
    "generate": {"ids", "margin"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "model"
    save(path, SHAPE)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> WithTransformers:
    return WithTransformers.load(str(folder))


@pytest.fixture(scope="module", params=[WithNnsight, WithInterpipe])
def tool(request: pytest.FixtureRequest, folder: Path) -> Tool:
    loaded: Tool = request.param.load(str(folder))
    return loaded


def inputs_of(kind: str, reference: WithTransformers) -> Inputs:
    target = 9 if kind.startswith("patchscope") or kind == "generate" else 0
    inputs = make_inputs(Work(kind, SOURCES, target), SHAPE.vocabulary)
    if kind != "patchscope":
        return inputs
    return replace(inputs, latents=reference.collect(inputs)["activations"])


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_plain_transformers(kind: str, tool: Tool, reference: WithTransformers, folder: Path) -> None:
    inputs = inputs_of(kind, reference)
    expected = getattr(reference, kind)(inputs)
    assert set(expected) == RETURNED[kind]
    check("tool", getattr(tool, kind)(inputs), expected, Readout(folder))


def test_the_reference_reads_out_what_the_model_says(reference: WithTransformers) -> None:
    inputs = make_inputs(Work("logit_lens", SOURCES), SHAPE.vocabulary)
    found = reference.logit_lens(inputs)
    for row, ids in enumerate(inputs.source_ids):
        logits = reference.model(torch.tensor([ids])).logits[0, -1]
        assert found["answer"][row, -1] == pytest.approx(logits.softmax(-1)[inputs.answers[row]].item(), abs=1e-6)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        assert found["entropy"][row, -1] == pytest.approx(entropy.item(), abs=1e-5)


def test_the_model_is_sure_of_some_tokens(reference: WithTransformers) -> None:
    found = reference.logit_lens(make_inputs(Work("logit_lens", SOURCES), SHAPE.vocabulary))
    assert found["top"].max() > 0.3  # or agreement within 1e-5 would say little


def off_by(value: float) -> Tensor:
    return torch.full((2, 3), 0.5) + value


def test_what_differs_is_refused(folder: Path) -> None:
    readout = Readout(folder)
    reference = {"answer": off_by(0), "top": off_by(0)}
    assert check("tool", {"answer": off_by(0), "top": off_by(5e-6)}, reference, readout) == pytest.approx(5e-6, rel=0.1)
    with pytest.raises(DisagreementError, match="off by 2e-05"):
        check("tool", {"answer": off_by(2e-5), "top": off_by(0)}, reference, readout)
    with pytest.raises(DisagreementError, match="off by nan"):
        check("tool", {"answer": off_by(float("nan")), "top": off_by(0)}, reference, readout)
    with pytest.raises(DisagreementError, match="shape"):
        check("tool", {"answer": off_by(0)[:1], "top": off_by(0)}, reference, readout)
    entropies = {**reference, "entropy": off_by(0)}
    with pytest.raises(DisagreementError, match="nats"):
        check("tool", {**reference, "entropy": off_by(1e-3)}, entropies, readout)


def test_other_activations_are_refused(folder: Path, reference: WithTransformers) -> None:
    inputs = make_inputs(Work("collect", SOURCES), SHAPE.vocabulary)
    found = reference.collect(inputs)
    turned = {"activations": found["activations"].flip(1)}
    with pytest.raises(DisagreementError, match="probabilities"):
        check("tool", turned, found, Readout(folder))


def test_generated_tokens_may_part_only_at_ties(folder: Path) -> None:
    ids = torch.tensor([[[4, 5, 6], [4, 5, 6]]])
    other = torch.tensor([[[4, 5, 6], [4, 7, 8]]])
    tied = torch.tensor([[[0.5, 0.5, 0.5], [0.5, 1e-6, 0.5]]])
    readout = Readout(folder)
    assert check("tool", {"ids": other}, {"ids": ids, "margin": tied}, readout) == 0.5
    with pytest.raises(DisagreementError, match="source 0 at layer 1"):
        check("tool", {"ids": other}, {"ids": ids, "margin": tied.flip(1)}, readout)


def test_inputs_survive_their_files(tmp_path: Path, reference: WithTransformers) -> None:
    inputs = inputs_of("patchscope", reference)
    inputs.save(tmp_path)
    loaded = Inputs.load(tmp_path)
    assert inputs.latents is not None and loaded.latents is not None
    assert torch.equal(loaded.latents, inputs.latents)
    assert replace(loaded, latents=None) == replace(inputs, latents=None)
    inputs.first(2).save(tmp_path)
    assert Inputs.load(tmp_path).latents.shape[1] == len(Inputs.load(tmp_path).source_ids) == 2  # type: ignore[union-attr]


def test_ten_times_the_prompts_are_ten_times_the_tokens() -> None:
    few, many = (make_inputs(Work("collect", sources), 60) for sources in (16, 160))
    tokens = [sum(len(ids) for ids in inputs.source_ids) for inputs in (few, many)]
    assert tokens[1] / tokens[0] == pytest.approx(10, rel=0.01)
    assert {min(len(ids) for ids in few.source_ids), max(len(ids) for ids in few.source_ids)} == {10, 60}
