"""What is refused before a model runs, and what the messages say would fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.errors import InterpError
from interp.interventions import Intervention
from interp.model import StandardizedTransformer
from interp.tensor_files import write_tensors

IDS = [[1, 17, 250, 33, 94], [1, 88, 5]]
Standardized = Callable[[str], StandardizedTransformer]


@pytest.fixture
def idle(standardized: Standardized, monkeypatch: pytest.MonkeyPatch) -> StandardizedTransformer:
    """A model that must not run; the shapes of its sites are known already."""
    model = standardized("llama")
    model.run(IDS, Intervention("z.* q.* k.* v.* pattern.*", "last", "scale", 1.0))

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(type(model), "interleave", fail)
    return model


def one(site: str, positions: Any = "last", operation: str = "zero", value: Any = None, **more: Any) -> Intervention:
    return Intervention(site, positions, operation, value, **more)


REFUSED = [
    (one("resid_post.7"), r"intervention \(zero at resid_post.7\): .*layer 7 is out of range.*0 to 3"),
    (one("z.1.h9"), "head 9 is out of range"),
    (one("mixer_out.1"), "mixer_out.1' does not exist in LlamaForCausalLM.*Use attn_in and attn_out|does not exist"),
    (one("resid_post.1", 4), r"positions: example 1: position '4' is out of range: the prompt has 3 tokens"),
    (one("resid_post.1", "query.last"), "the prompt has no span 'query'"),
    (one("resid_post.1", [0, 1, 2]), "expected positions for each of 2 examples, got 3"),
    (
        one("resid_post.1", "last", "set", torch.zeros(7)),
        r"a value of shape \(7,\) does not fit; expected what broadcasts to \(example 2, position 1, number 32\)",
    ),
    (one("z.1", "0:2", "add", torch.zeros(5, 4, 8)), r"broadcasts to \(example 2, position 2, head 4, number 8\)"),
    (one("k.1", "last", "add", torch.zeros(4, 1, 8)), r"broadcasts to \(example 2, head 2, position 1, number 8\)"),
    (one("z.1.h1", "last", "set", torch.zeros(32)), r"broadcasts to \(example 2, position 1, number 8\)"),
    (one("pattern.1", "last", "set", torch.zeros(4)), r"broadcasts to \(example 2, head 4, position 1, key 5\)"),
    (one("resid_post.1", "last", "set", [float("nan")]), "holds NaN or infinity at example 0"),
    (one("resid_post.1", "0:2", "add", torch.zeros(2, 32), steps="every"), "one for each of its positions"),
    (one("resid_post.1", "last", "project_out", torch.zeros(2, 8)), r"a direction \(32,\) or a subspace"),
    (one("resid_post.1", "last", "project_out", torch.ones(2, 32)), "its 2 directions depend on each other"),
    (one("resid_post.1", "last", "set", {"prompt": [[1, 2], [1, 3], [1, 4]]}), "one for each of 2 examples, got 3"),
    (one("resid_post.1", "last", "set", {"prompt": [[1, 999]]}), "value: .*ids 1 to 999, expected token ids from 0"),
    (one("resid_post.1", "0:2", "set", {"prompt": [[1, 2, 3]], "position": "all"}), "is read at 3"),
    (one("resid_post.1", "last", "set", {"prompt": [[1, 2]], "position": 5}), "value: position: example 0: .*'5'"),
    (one("z.1.h0", "last", "set", {"prompt": [[1, 2]], "site": "resid_post.1"}), "resid_post.1 has 32 numbers, z.1.h0"),
    (one("z.1.h0", "last", "set", {"prompt": [[1, 2]], "site": "z.1"}), "8 numbers in each of 4 heads, z.1.h0 takes 8"),
    (one("z.1", "last", "set", {"prompt": [[1, 2]], "site": "z.0-1"}), "expected one site"),
    (one("z.1", "last", "set", {"prompt": [[1, 2]], "site": "z.9"}), "layer 9 is out of range"),
    (one("pattern.1", "last", "set", {"prompt": [[1, 2, 3]]}), "prompts must be equally long"),
    (one("z.1", "all", "mean", {"prompt": IDS}), "is written at 5 positions.*or take mean_over='tokens'"),
    (one("z.1", [0, 1], "mean", {"prompt": IDS}), "say where the reference prompts are read"),
    (one("z.1", "last", "resample", {"prompt": [IDS[0]]}), "example 0: there is no other example to resample from"),
    (one("scores.1", 0, "knockout", from_positions=0), "cuts everything that token 0 sees.*at pattern.1"),
    (one("scores.1", "last", "knockout", from_positions=4), "from_positions: example 1: position '4' is out of range"),
    (one("resid_post.1", "last", "set", {"file": "nowhere.safetensors"}), "there is no file 'nowhere.safetensors'"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[f"{given}"[:60] for given, _ in REFUSED])
def test_refuses_before_the_model_runs(idle: StandardizedTransformer, given: Intervention, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        idle.run(IDS, given)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            one("z.1", "all"),
            one("z.1.h2", "last", "set", 1.0),
            r"\[1\] \(set at z.1.h2\) contradicts interventions\[0\]",
        ),
        (one("resid_post.1"), one("resid_pre.2"), "both overwrite resid_pre.2 at token 4 of example 0"),
        (one("embed", 0), one("resid_pre.0", "first", "set", 0.0), "token 0 of example 0"),
        (one("resid_post.1", "last", "skip"), one("resid_post.1", "all", "set", 0.0), "contradicts"),
        (one("z.1", 0, steps="every"), one("z.1", 1, steps="every"), "at new tokens of example 0"),
        (one("pattern.1", from_positions=0), one("pattern.1.h2", from_positions="0 1"), "overwrite pattern.1 at token"),
    ],
)
def test_refuses_what_contradicts(
    idle: StandardizedTransformer, first: Intervention, second: Intervention, message: str
) -> None:
    with pytest.raises(InterpError, match=message):
        idle.run(IDS, [first, second])


def test_takes_what_does_not_contradict(standardized: Standardized) -> None:
    model = standardized("llama")
    model.run(IDS, [one("pattern.1", "last", from_positions=key) for key in (0, 1)])
    apart = [one("z.1.h1"), one("z.1.h2"), one("z.2", 0), one("z.2", 1), one("z.3", [0, None]), one("z.3", [None, 0])]
    model.run(IDS, [*apart, one("z.1", "all", "add", 1.0), one("z.1.h1", 0, "set", 1.0)])


def test_refuses_other_arguments(idle: StandardizedTransformer) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        (dict(interventions=[{"site": "z.1"}]), r"interventions\[0\]: expected an Intervention.*from_dict"),
        (dict(interventions={"site": "z.1"}), r"expected an Intervention, got {'site': 'z.1'}"),
        (dict(read="resid_post.9"), "layer 9 is out of range"),
        (dict(read="resid_mdi.1"), "Did you mean 'resid_mid'"),
        (dict(positions="lats"), "position 'lats'"),
        (dict(positions=3), "position '3' is out of range"),
        (dict(batch_size=0), "batch_size: expected at least 1"),
    ]
    for given, message in refused:
        with pytest.raises(InterpError, match=message):
            idle.run(IDS, **given)


def test_refuses_a_model_without_weights(model_folder: Callable[[str], Path]) -> None:
    model = StandardizedTransformer(model_folder("llama"), remote=True)
    with pytest.raises(InterpError, match="loaded without weights"):
        model.run(IDS)


def test_names_what_a_file_has(idle: StandardizedTransformer, tmp_path: Path) -> None:
    file = tmp_path / "vectors.safetensors"
    write_tensors(file, {"truth": torch.ones(32), "resid_post.2": torch.ones(32)})
    with pytest.raises(InterpError, match=r"has no tensor 'trut'. Did you mean 'truth'"):
        idle.run(IDS, one("resid_post.1", "last", "add", {"file": str(file), "name": "trut"}))
    with pytest.raises(InterpError, match=r"has no tensor 'resid_post.1'. Did you mean 'resid_post.2'"):
        idle.run(IDS, one("resid_post.1", "last", "add", {"file": str(file)}))
    (tmp_path / "broken").write_text("no")
    with pytest.raises(InterpError, match=r"no whole safetensors file"):
        idle.run(IDS, one("resid_post.1", "last", "add", {"file": str(tmp_path / "broken")}))


def test_a_layer_with_a_window_may_have_nothing_left(standardized: Standardized) -> None:
    model = standardized("mistral")  # a window of 6
    ids = [list(range(1, 12))]
    cut = one("scores.1", "last", "knockout", from_positions="5:")
    with pytest.raises(InterpError, match=r"everything that a token sees in this layer"):
        model.run(ids, cut)
    model.run(ids, one("scores.1", "last", "knockout", from_positions="5:10"))


def test_a_metric_is_a_number_for_each_prompt(standardized: Standardized) -> None:
    model = standardized("llama")
    metrics: list[tuple[Any, str]] = [
        (lambda logits: logits, "a function of two arguments"),
        (lambda logits, _: logits.sum(), r"expected a tensor \(2,\), a number for each row, got \(\)"),
        (lambda logits, _: logits[:, 0, 0].detach(), "does not depend on the logits"),
    ]
    for metric, message in metrics:
        with pytest.raises(InterpError, match=message):
            model.run(IDS, read="z.1", gradients_of=metric)


def test_what_was_not_read_is_named(standardized: Standardized) -> None:
    run = standardized("llama").run(IDS, read="resid_post.1", logits=False)
    assert run.logits is None and "resid_post.1" in repr(run)
    assert run["blocks.1.hook_resid_post"].shape == (2, 1, 32)
    assert "resid_post.-3" in run.activations and "resid_post.2" not in run.activations
    with pytest.raises(InterpError, match=r"resid_post.2 was not read. Did you mean 'resid_post.1'"):
        run["resid_post.2"]
