"""nnterp's `StandardizedTransformer`: values by layer, interventions and readout, against torch hooks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.compat.nnterp import StandardizedTransformer
from interp.compat.nnterp.interventions import logit_lens
from interp.errors import InterpError
from tests.families.cases import build as build_family
from tests.interp.compat.nnterp.models import CLOSE, PROMPTS, hidden, ids_of, next_probs, read_out, standardized
from tests.interp.reference import PLACES, build, plain
from tests.tiny import tiny_tokenizer

TEXT = PROMPTS[0]


def module_of(case: str, path: str, layer: int) -> Any:
    return plain(case).get_submodule(f"{PLACES[case].layer.format(i=layer)}.{path}".rstrip("."))


# Values -------------------------------------------------------------------------------------------------------------

VALUES = ("layers_input", "attentions_input", "attentions_output", "mlps_input", "mlps_output", "layers_output")


@torch.no_grad()
def values_by_hand(case: str, layer: int) -> dict[str, Tensor]:
    """What modules take and give: their own input and output, whatever is added to the residual stream."""
    places = PLACES[case]
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_: object, args: Any, kwargs: Any, output: Any) -> None:
            found[f"{name}_input"] = (args[0] if args else kwargs["hidden_states"]).clone()
            found[f"{name}_output"] = (output if isinstance(output, Tensor) else output[0]).clone()

        return keep

    with ExitStack() as stack:
        for name, path in (("layers", ""), ("attentions", places.attention), ("mlps", places.mlp)):
            module = module_of(case, path, layer)
            stack.callback(module.register_forward_hook(hook(name), with_kwargs=True).remove)
        plain(case)(input_ids=ids_of(TEXT))
    return found


@pytest.mark.parametrize("layer", [0, 2, -1])
@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "mixtral", "cohere"])
@torch.no_grad()
def test_values_by_layer_are_what_modules_take_and_give(case: str, layer: int) -> None:
    model = standardized(case)
    found: dict[str, Tensor] = {}
    order = VALUES
    with model.trace(TEXT):
        for name in order:
            found[name] = getattr(model, name)[layer].clone()
    by_hand = values_by_hand(case, layer % 4)
    for name in order:
        torch.testing.assert_close(found[name], by_hand[name], **CLOSE)


@pytest.mark.parametrize("name", VALUES)
@torch.no_grad()
def test_values_by_layer_can_be_set_and_called(name: str) -> None:
    model = standardized("gpt2")
    accessor = getattr(model, name)
    with model.trace(TEXT):
        value = accessor(2) * 0.5
        accessor[2] = value
        read = accessor[2].clone().save()
        logits = model.logits[0, -1].clone().save()
    torch.testing.assert_close(read, values_by_hand("gpt2", 2)[name] * 0.5, **CLOSE)
    assert not torch.allclose(logits.softmax(-1), next_probs("gpt2", TEXT), atol=1e-4)


def test_modules_by_layer() -> None:
    model = standardized("gpt2")
    assert model.attentions[-1]._module is model._model.transformer.h[3].attn
    assert [mlp._module for mlp in model.mlps] == [layer.mlp for layer in model._model.transformer.h]
    with pytest.raises(InterpError, match="attentions_output"):
        model.attentions[0] = None


@torch.no_grad()
def test_what_is_fed_and_what_comes_out() -> None:
    model = standardized("llama")
    tokenizer = tiny_tokenizer()
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with model.trace(PROMPTS):
        ids, mask, size = model.input_ids.save(), model.attention_mask.save(), model.input_size
        embeddings = model.token_embeddings.clone().save()
        logits = model.logits.clone().save()
        probs = model.next_token_probs.save()
        assert size == batch.input_ids.shape
    assert torch.equal(ids, batch.input_ids) and torch.equal(mask, batch.attention_mask)
    assert torch.equal(embeddings, model._model.model.embed_tokens(batch.input_ids))
    by_hand = torch.stack([next_probs("llama", prompt) for prompt in PROMPTS])
    torch.testing.assert_close(probs, by_hand, **CLOSE)
    torch.testing.assert_close(logits[:, -1].softmax(-1), by_hand, **CLOSE)


@torch.no_grad()
def test_token_embeddings_can_be_set() -> None:
    model = standardized("llama")
    with model.trace("The quick brown fox"):
        model.token_embeddings = model.token_embeddings.flip(1)
        found = model.layers_input[0].clone().save()
    assert torch.equal(found, model._model.model.embed_tokens(ids_of("The quick brown fox")).flip(1))


@torch.no_grad()
def test_next_token_probs_of_right_padded_prompts_are_refused() -> None:
    model = standardized("llama")
    model.tokenizer.padding_side = "right"
    try:
        with pytest.raises(InterpError, match="padding_side = 'left'"), model.trace(PROMPTS):
            model.next_token_probs.save()
        with model.trace(PROMPTS[0]):
            probs = model.next_token_probs.save()
    finally:
        model.tokenizer.padding_side = "left"
    torch.testing.assert_close(probs[0], next_probs("llama", PROMPTS[0]), **CLOSE)


# Interventions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["llama", "gpt2", "gptj", "bloom"])  # the layers of the last two return a tuple
@torch.no_grad()
def test_skipped_layers_give_what_enters_the_first(case: str) -> None:
    model = StandardizedTransformer(build_family(case), tokenizer=tiny_tokenizer())
    model.detect_layer_output_type()
    assert model.layers_output.returns_tuple is (case in ("gptj", "bloom"))
    last = model.num_layers - 1
    with model.trace(input_ids=ids_of(TEXT), use_cache=False):
        entered = model.layers_input[0].clone().save()
        model.skip_layers(0, last - 1)
        left = model.layers_input[last].clone().save()
    assert torch.equal(entered, left)
    with model.trace(input_ids=ids_of(TEXT), use_cache=False) as tracer:
        saved = model.layers_output[last - 1].clone().save()
        tracer.stop()
    with model.trace(input_ids=ids_of(TEXT), use_cache=False):
        model.skip_layers(0, last - 1, skip_with=saved)
        later = model.logits.clone().save()
    assert torch.equal(later, model._model(input_ids=ids_of(TEXT), use_cache=False).logits)


@torch.no_grad()
def test_skipping_takes_nnterps_arguments() -> None:
    model = StandardizedTransformer(build_family("gptj"), tokenizer=tiny_tokenizer())
    with model.trace(input_ids=ids_of(TEXT), use_cache=False):
        entered = model.layers_input[0]
        model.skip_layer(0, (entered * 2, None))
        left = model.layers_output[0].clone().save()
        twice = (entered * 2).save()
    assert torch.equal(left, twice)
    model = standardized("llama")
    with pytest.raises(InterpError, match="got a tuple"), model.trace(TEXT):
        model.skip_layers(0, 1, (model.layers_input[0], None))
    with model.trace(TEXT):
        entered = model.layers_input[0].save()
        model.skip_layers(0, 1, layer_returns_tuple=True)
        left = model.layers_input[2].save()
    assert torch.equal(entered, left)


@torch.no_grad()
def steered_by_hand(layers: list[int], vector: Tensor, index: Any) -> Tensor:
    """Logits (row, position, vocabulary) of two equally long prompts in plain GPT-2."""

    def add(_: object, args: object, output: Tensor) -> Tensor:
        new = output.clone()
        new[index] += 2 * vector
        return new

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(module_of("gpt2", "", layer).register_forward_hook(add).remove)
        return plain("gpt2")(input_ids=IDS).logits


IDS = torch.tensor([[1, 17, 250, 33, 94], [1, 88, 5, 260, 71]])


@pytest.mark.parametrize(
    ("arguments", "index"),
    [
        ({}, (slice(None),)),
        ({"token_positions": 0}, (slice(None), 0)),
        ({"batch_index": 1}, (1,)),
        ({"batch_index": 1, "token_positions": [0, 1]}, (1, [0, 1])),
        ({"batch_index": [0, 1], "token_positions": torch.tensor([2, 3])}, ([0, 1], [2, 3])),
    ],
)
@pytest.mark.parametrize("layers", [1, [3, 1], [-1, 0]])
@torch.no_grad()
def test_steering(layers: int | list[int], arguments: dict[str, Any], index: Any) -> None:
    model = standardized("gpt2")
    vector = torch.linspace(-1, 1, 32)
    with model.trace(input_ids=IDS):
        model.steer(layers, vector, 2, **arguments)
        logits = model.logits.clone().save()
    numbers = [layers] if isinstance(layers, int) else layers
    torch.testing.assert_close(logits, steered_by_hand([i % 4 for i in numbers], vector, index), **CLOSE)


@torch.no_grad()
def test_the_old_name_of_the_positions() -> None:
    model = standardized("gpt2")
    vector = torch.linspace(-1, 1, 32)
    with pytest.warns(DeprecationWarning, match="token_positions"), model.trace(input_ids=IDS):
        model.steer(1, vector, 2, -1)
        logits = model.logits.clone().save()
    torch.testing.assert_close(logits, steered_by_hand([1], vector, (slice(None), -1)), **CLOSE)
    with pytest.raises(InterpError, match="Cannot specify both"):
        model.steer(1, vector, positions=0, token_positions=0)


@pytest.mark.parametrize("by", ["accessor", "function"])
@torch.no_grad()
def test_steering_another_value(by: str) -> None:
    model = standardized("gpt2")
    vector = torch.linspace(-1, 1, 32)
    chosen = model.mlps_output if by == "accessor" else lambda layer: model.mlps_output[layer]
    with model.trace(TEXT):
        model.steer([2], vector, 3, positions=-1, get_layer_object_to_steer=chosen)
        logits = model.logits[0, -1].clone().save()
    added = hidden("gpt2", TEXT, "mlp_out.2")[-1] + 3 * vector
    torch.testing.assert_close(logits.softmax(-1), next_probs("gpt2", TEXT, {"mlp_out.2": (-1, added)}), **CLOSE)


# Readout ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2", "cohere"])
@torch.no_grad()
def test_projection_goes_through_softcap_and_scale(case: str) -> None:
    model = standardized(case)
    vectors = torch.stack([hidden(case, TEXT, f"resid_post.{layer}") for layer in range(4)])
    torch.testing.assert_close(model.project_on_vocab(vectors), read_out(case, vectors), **CLOSE)
    with model.trace(TEXT):
        inside = model.project_on_vocab(model.layers_output[2])[0].clone().save()
    torch.testing.assert_close(inside, read_out(case, vectors[2]), **CLOSE)


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_closest_tokens(case: str) -> None:
    model = standardized(case)
    vectors = hidden(case, TEXT, "resid_post.1")[:2]
    top = read_out(case, vectors).softmax(-1).topk(5)
    found = model.get_topk_closest_tokens(vectors)
    assert isinstance(found, list)
    for row, ids, values in zip(found, top.indices, top.values, strict=True):
        assert list(row) == tiny_tokenizer().convert_ids_to_tokens(ids.tolist())
        assert list(row.values()) == pytest.approx(values.tolist(), rel=1e-4)
    one = model.get_topk_closest_tokens(vectors[0], k=3)
    assert isinstance(one, dict) and list(one) == list(found[0])[:3]


def test_ids_without_a_token_do_not_collapse() -> None:
    module = build("llama")
    module.resize_token_embeddings(450, mean_resizing=False)  # type: ignore[operator]
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    found = model.get_topk_closest_tokens(torch.linspace(-1, 1, 32), k=450)
    assert isinstance(found, dict) and len(found) == 450
    assert {name for name in found if name.startswith("#4")} == {f"#{token}" for token in range(400, 450)}
    assert model.probs_to_dict(torch.tensor([5, 449, 5]), torch.tensor([0.5, 0.25, 0.125])) == {
        tiny_tokenizer().convert_ids_to_tokens(5): 0.5,
        "#449": 0.25,
        "#5": 0.125,
    }


def test_closest_tokens_errors() -> None:
    model = standardized("llama")
    for shape in ((31,), (1, 1, 32), ()):
        with pytest.raises(ValueError):
            model.get_topk_closest_tokens(torch.zeros(shape))
    with pytest.raises(InterpError, match="k:"):
        model.get_topk_closest_tokens(torch.zeros(32), k=0)


def test_the_tokenizer_without_prefix_is_the_users() -> None:
    from tests.interp.compat.nnterp.test_prompt_utils import metaspace_tokenizer

    tokenizer = metaspace_tokenizer()
    model = StandardizedTransformer(build("llama"), tokenizer=tokenizer)
    bare = model.add_prefix_false_tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("king").input_ids) == ["▁king"]
    assert bare.convert_ids_to_tokens(bare("king").input_ids) == ["king"]
    assert bare.get_vocab() == tokenizer.get_vocab()


def test_half_precision_models_give_probabilities_in_float32() -> None:
    model = StandardizedTransformer(build("llama").to(torch.bfloat16), tokenizer=tiny_tokenizer())
    probs = logit_lens(model, PROMPTS)
    assert isinstance(probs, Tensor) and probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, 4))
